"""One world told as an EDM denoiser and as a rectified flow: on the arc they are the same denoiser.

    python examples/adapt_functions.py

The world is a mixture around three small pictures, whose best estimates are known exactly. A model of yours takes the
place of the two functions.
"""

from typing import Any

import torch
from torch import Tensor

import quarterarc as qa
from quarterarc.interop import EDM, FlowMatching

pictures = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-1, 1)
width = 0.2


def denoise_edm(x: Tensor, sigma: Tensor) -> Tensor:
    """E[image | image + sigma noise = x]: what Karras et al. call D(x; sigma)."""
    variance = (width**2 + sigma**2)[:, None]
    distances = (x.flatten(1)[:, None] - pictures.flatten(1)).square().sum(2)
    mean = ((-distances / (2 * variance)).softmax(1) @ pictures.flatten(1)).reshape(x.shape)
    return mean + width**2 / variance[..., None, None] * (x - mean)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[noise - image | (1 - t) image + t noise = x]: a rectified flow's field, t = 1 being noise."""
    t = t.clamp(1e-9, 1 - 1e-9)
    by_image, by_noise = (1 - t)[:, None, None, None], t[:, None, None, None]
    image = denoise_edm(x / by_image, t / (1 - t))
    return (x - by_image * image) / by_noise - image


def main() -> None:
    noise = qa.noise(range(5), (1, 4, 4), dtype=torch.float64)
    edm, flow = EDM(denoise_edm), FlowMatching(velocity)
    start = edm.largest_angle  # an EDM denoiser begins at sigma 80, just short of pure noise

    samplers: dict[str, dict[str, Any]] = {"rotation": {}, "ddim": {"eta": 0.5}, "heun": {"form": "noise"}}
    for name, options in samplers.items():
        results = [
            qa.sample(model, noise, name, 20, grid=qa.grid("angle", 20, start), seeds=range(5), **options)
            for model in (edm, flow)
        ]
        apart = float((results[0].images - results[1].images).abs().max())
        print(f"{name:9s} {results[0].nfe:3d} NFE   EDM and flow differ by {apart:.1e}")

    # Heun in the noise form, on this grid, is EDM's own sampler: the same steps in sigma, the last one Euler's
    result = qa.sample(edm, noise, "heun", 18, "rho", form="noise")
    nearest = (result.images[:, None] - pictures).flatten(2).norm(dim=2).min(1)
    print(f"EDM's sampler: {result.nfe} NFE, images end near pictures", nearest.indices.tolist())


if __name__ == "__main__":
    main()
