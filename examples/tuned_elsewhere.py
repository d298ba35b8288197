"""What a tuned grid is worth for anything but what it was tuned to: `python examples/tuned_elsewhere.py runs/demo`.

Tunes `multistep` to an exact denoiser of digits, to one of photographs' patches and to the trained runs that are named,
and samples with each tuned grid from all of them. Prints the median distance to the flow's own image over that of the
untuned default: below 1 the tuned grid is better. The diagonal is what tuning is for.
"""

import argparse
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

import quarterarc as qa
from quarterarc.sampling.tuning import tune


def patches(count: int, size: int = 8) -> np.ndarray:
    """Patches of the photographs, shape (count, 3, size, size), 0..255."""
    photographs = load_sample_images().images
    each = [
        extract_patches_2d(photograph, (size, size), max_patches=count // 2, random_state=0)
        for photograph in photographs
    ]
    return np.concatenate(each).transpose(0, 3, 1, 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="trained runs to take as well")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="to tune to, and to measure on (default: 128)")
    asked = parser.parse_args()
    models: dict[str, Any] = {
        "digits": qa.MixtureData(torch.tensor(load_digits().images[:, None] / 8 - 1), 0.15),
        "patches": qa.MixtureData(torch.tensor(patches(800) / 127.5 - 1), 0.15),
        **{run: qa.load(run) for run in asked.runs},
    }
    tuned = {name: tune(model, asked.nfe, images=asked.images) for name, model in models.items()}
    print(" " * 24, *(f"{name:>16}" for name in models), " <- sampled")
    rows: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        noise = qa.noise(range(asked.images), model.shape)
        flow = qa.sample(model, noise, "adaptive", pair="dormand-prince", tolerance=1e-5).images

        def miss(made: qa.Result, flow: torch.Tensor = flow) -> float:
            return float((made.images - flow).flatten(1).norm(dim=1).median())

        default = miss(qa.sample(model, noise, steps=asked.nfe))
        for name, grid in tuned.items():
            made = qa.sample(model, noise, grid.apply(qa.samplers.Multistep()), grid=grid.angles)
            rows[name].append(miss(made) / default)
    for name, row in rows.items():
        print(f"tuned to {name:15}", *(f"{ratio:16.2f}" for ratio in row))


if __name__ == "__main__":
    main()
