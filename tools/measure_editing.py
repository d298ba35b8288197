"""The table of docs/editing.md: methods of inpainting at equal evaluations, on digits whose right half is made anew.

python tools/measure_editing.py runs/digits

Three models of the digits: a Gaussian and a mixture, whose conditional distributions are known exactly, and a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import quarterarc as qa
from quarterarc import edit

SHAPE = (1, 8, 8)
UNKNOWN = torch.arange(8).expand(8, 8) >= 4
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("project, multistep", {"steps": 10, "sampler": "multistep"}),
    ("project, ddpm", {"steps": 10}),
    ("resample, 6 steps, 2 times", {"steps": 6, "resamplings": 2}),
    ("project, multistep", {"steps": 50, "sampler": "multistep"}),
    ("project, ddpm", {"steps": 50}),
    ("resample, 26 steps, 2 times", {"steps": 26, "resamplings": 2}),
    ("resample, 10 steps, 6 times", {"steps": 10, "resamplings": 6}),
    ("project, multistep", {"steps": 250, "sampler": "multistep"}),
    ("project, ddpm", {"steps": 250}),
    ("resample, 51 steps, 5 times", {"steps": 51, "resamplings": 5}),
    ("resample, 20 steps, 13 times", {"steps": 20, "resamplings": 13}),
    ("resample, 10 steps, 30 times", {"steps": 10, "resamplings": 30}),
)


def inpaint(denoise: Any, images: Tensor, seeds: range, settings: dict[str, Any]) -> Tensor:
    """New right halves, by `resample` if the settings repeat anything."""
    method = "resample" if "resamplings" in settings else "project"
    return edit.inpaint(denoise, images, UNKNOWN, seeds=seeds, method=method, batch_size=500, **settings).images


def gaussian(digits: Tensor, count: int) -> Callable[[dict[str, Any]], list[float]]:
    """The error of the mean, relative to ignoring the known pixels, and the variance, relative to the exact one."""
    flat, unknown = digits.double().flatten(1), UNKNOWN.flatten()
    mean, covariance = flat.mean(0), flat.T.cov() + 0.01 * torch.eye(64)
    data = qa.GaussianData(mean.reshape(SHAPE), covariance)
    image = data.draw(1, torch.Generator().manual_seed(0))[0]
    gain = torch.linalg.solve(covariance[~unknown][:, ~unknown], covariance[~unknown][:, unknown]).T
    shift = gain @ (image.flatten()[~unknown] - mean[~unknown])
    variance = (covariance[unknown][:, unknown] - gain @ covariance[~unknown][:, unknown]).trace()

    def measure(settings: dict[str, Any]) -> list[float]:
        made = inpaint(data, image, range(count), settings).flatten(1)[:, unknown]
        error = (made.mean(0) - mean[unknown] - shift).norm() / shift.norm()
        return [float(error), float(made.var(0).sum() / variance)]

    return measure


def mixture(digits: Tensor, count: int, width: float = 0.3) -> Callable[[dict[str, Any]], list[float]]:
    """The share of results whose nearest of 200 digits is the wrong one: total variation to the exact weights."""
    means, places = digits[:200].double(), range(0, 200, 20)
    data = qa.MixtureData(means, width)
    images = data.means[list(places)] + width * torch.randn(
        len(places), *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def measure(settings: dict[str, Any]) -> list[float]:
        each = count // len(images)
        made = inpaint(data, images.repeat_interleave(each, 0), range(each * len(images)), settings)
        distances = torch.cdist((images * ~UNKNOWN).flatten(1), (means * ~UNKNOWN).flatten(1))
        exact = (-(distances**2) / (2 * width**2)).softmax(1)
        known_too = data.weights(made, 0.0).reshape(len(images), each, 200).mean(1)
        return [float((known_too - exact).abs().sum(1).mean() / 2)]

    return measure


def trained(run: str, digits: Tensor, labels: Tensor, count: int) -> Callable[[dict[str, Any]], list[float]]:
    """The Frechet distance of completed digits to digits, and the share with the class of their known half, in %."""
    from quarterarc.evaluation.extractors.digits import load_digits_net

    denoise, chosen = qa.load(run), torch.arange(count) % len(digits)
    classes = load_digits_net()

    def measure(settings: dict[str, Any]) -> list[float]:
        made = qa.to_uint8(inpaint(denoise, digits[chosen], range(count), settings))
        distance = qa.evaluate(made, "digits", ["fid"], features="digits", device="cpu", progress=False)["metrics"]
        same = (classes(made)["logits"].argmax(1) == labels[chosen]).double().mean()
        return [float(distance["fid"]), 100 * float(same)]

    return measure


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", metavar="RUN", help="a run of the recipe digits")
    parser.add_argument("--count", type=int, default=1000, help="results per cell (default: %(default)s)")
    args = parser.parse_args()
    spec = qa.DataSpec(source="digits", size=8, channels=1, labels=True)
    batch = qa.open_data(spec, progress=False).batch(range(1797))
    digits = qa.to_float(batch.images)
    measures = (
        gaussian(digits, args.count),
        mixture(digits, args.count),
        trained(args.run, digits, torch.as_tensor(batch.labels), args.count),
    )
    print("| method | NFE | error of the mean | variance | wrong weight | Frechet distance | class kept, % |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, settings in SETTINGS:
        steps, repeated = settings["steps"], settings.get("resamplings", 1) - 1
        values = [value for measure in measures for value in measure(settings)]
        cells = " | ".join(f"{value:.{1 if place > 2 else 2}f}" for place, value in enumerate(values))
        print(f"| {name} | {steps + repeated * (steps - 2)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
