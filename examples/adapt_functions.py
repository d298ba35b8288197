"""Sample from your own EDM denoiser or rectified flow; the two below are the same denoiser on the arc.

    python examples/adapt_functions.py

Replace the two functions by your model. Their data distribution is a mixture of Gaussians around three small pictures,
for which the optimal estimates are known in closed form.
"""

from typing import Any

import torch
from torch import Tensor

import quarterarc as qa
from quarterarc.interop import EDM, FlowMatching

pictures = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-1, 1)
width = 0.2


def denoise_edm(x: Tensor, sigma: Tensor) -> Tensor:
    """E[image | image + sigma noise = x], D(x; sigma) in Karras et al. (2022); x (B, C, H, W), sigma (B,)."""
    variance = (width**2 + sigma**2)[:, None]
    distances = (x.flatten(1)[:, None] - pictures.flatten(1)).square().sum(2)
    mean = ((-distances / (2 * variance)).softmax(1) @ pictures.flatten(1)).reshape(x.shape)
    return mean + width**2 / variance[..., None, None] * (x - mean)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[noise - image | (1 - t) image + t noise = x], the field of a rectified flow; noise is at t = 1."""
    t = t.clamp(1e-9, 1 - 1e-9)
    by_image, by_noise = (1 - t)[:, None, None, None], t[:, None, None, None]
    image = denoise_edm(x / by_image, t / (1 - t))
    return (x - by_image * image) / by_noise - image


def main() -> None:
    noise = qa.noise(range(5), (1, 4, 4), dtype=torch.float64)
    edm, flow = EDM(denoise_edm), FlowMatching(velocity)
    start = edm.largest_angle  # sigma is at most 80, a little below pure noise

    samplers: dict[str, dict[str, Any]] = {"rotation": {}, "ddim": {"eta": 0.5}, "heun": {"form": "noise"}}
    for name, options in samplers.items():
        results = [
            qa.sample(model, noise, name, 20, grid=qa.grid("angle", 20, start), seeds=range(5), **options)
            for model in (edm, flow)
        ]
        difference = float((results[0].images - results[1].images).abs().max())
        print(f"{name:9s} {results[0].nfe:3d} NFE   EDM and flow differ by {difference:.1e}")

    # Heun in the noise form on the grid "rho" is the sampler of EDM: the same sigmas, and an Euler step last
    result = qa.sample(edm, noise, "heun", 18, "rho", form="noise")
    nearest = (result.images[:, None] - pictures).flatten(2).norm(dim=2).min(1)
    print(f"EDM's sampler: {result.nfe} NFE, images end near pictures", nearest.indices.tolist())


if __name__ == "__main__":
    main()
