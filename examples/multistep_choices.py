"""What each choice inside `multistep` is worth: distance to the flow's own image, on exact denoisers of real images.

A mixture of narrow Gaussians around scikit-learn's digits, and one around patches of its two photographs, have
denoisers in closed form, so that all error is the sampler's. Prints the median distance an image, root mean square a
pixel, times 1000, at 5, 8, 10 and 20 evaluations.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images

import quarterarc as qa

CHOICES: dict[str, dict] = {
    "default": {},
    "plain": {"order": 3, "share": None, "width": 0.0, "finish": "falling"},
    "no corrector": {"corrector": False},
    "estimates not moved": {"share": None},
    "noise a polynomial": {"width": 0.0, "finish": "level"},
    "noise of one width, 0.1": {"width": 0.1},
    "level finish": {"finish": "level"},
    "falling finish": {"finish": "falling"},
    "finish in the image": {"finish": "image"},
    "order 2": {"order": 2},
    "order 3": {"order": 3},
    "form velocity": {"form": "velocity"},
    "form image": {"form": "image"},
    "clock angle": {"clock": "angle"},
    "Runge-Kutta start, order 3": {"start": "runge-kutta", "order": 3},
    "grid angle": {"grid": "angle"},
}


def patches(count: int, size: int = 8) -> np.ndarray:
    """Patches of the photographs, shape (count, 3, size, size), 0..255."""
    random, found = np.random.default_rng(0), []
    photographs = load_sample_images().images
    for k in range(count):
        photograph = photographs[k % len(photographs)]
        top, left = (random.integers(length - size) for length in photograph.shape[:2])
        found.append(photograph[top : top + size, left : left + size].transpose(2, 0, 1))
    return np.stack(found)


def main() -> None:
    """Print a table for each world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48, help="images a setting (default: 48)")
    parser.add_argument("--width", type=float, default=0.15, help="of the mixtures (default: 0.15)")
    args = parser.parse_args()
    count = args.images
    worlds = {
        "digits": qa.MixtureData(torch.tensor(load_digits().images[:, None] / 8 - 1), args.width),
        "8x8 patches of photographs": qa.MixtureData(torch.tensor(patches(800) / 127.5 - 1), args.width),
    }
    for name, world in worlds.items():
        noise = qa.noise(range(count), world.shape, dtype=torch.float64)
        flow = qa.sample(world, noise, "adaptive", pair="dormand-prince", tolerance=1e-6).images
        print(f"\n{name:28}     NFE 5       8      10      20")
        for choice, options in CHOICES.items():
            misses = []
            for nfe in (5, 8, 10, 20):
                # two Runge-Kutta steps of two evaluations each open order 3: of order 4 there are none at 5 evaluations
                steps = nfe - 2 if "start" in options else nfe
                made = qa.sample(world, noise, "multistep", steps, seeds=range(count), **options)
                assert made.nfe == nfe
                misses.append(float((made.images - flow).flatten(1).square().mean(1).sqrt().median()))
            print(f"{choice:28}", *(f"{1000 * miss:7.2f}" for miss in misses))


if __name__ == "__main__":
    main()
