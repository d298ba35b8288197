"""Exact worlds: mixtures of narrow Gaussians around real images, whose denoisers are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from quarterarc.closed_form import MixtureData

WIDTH = 0.15
"""The standard deviation h of the mixtures' components, for pixels in [-1, 1]."""


def digits() -> Tensor:
    """All 1,797 of scikit-learn's handwritten digits, in [-1, 1], float64, shape (1797, 1, 8, 8)."""
    return torch.tensor(load_digits().images / 8.0 - 1.0)[:, None]


def patches(size: int, count: int) -> Tensor:
    """Patches of scikit-learn's two photographs, in [-1, 1], float64, shape (count, 3, size, size).

    The photographs alternate, and each patch lies at a uniformly random place (seed 0).
    """
    random, photographs = np.random.default_rng(0), load_sample_images().images
    pixels = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        row, column = (int(random.integers(side - size + 1)) for side in photograph.shape[:2])
        pixels.append(photograph[row : row + size, column : column + size].transpose(2, 0, 1))
    return torch.tensor(np.array(pixels) / 127.5 - 1.0)


WORLDS: dict[str, Callable[[], Tensor]] = {
    "digits": digits,
    "patches8": lambda: patches(8, 800),
    "patches16": lambda: patches(16, 400),
}
"""The centres of each world's mixture: the digits, 800 8x8 and 400 16x16 colour patches of the photographs."""


def mixture(name: str, width: float = WIDTH) -> MixtureData:
    """The exact denoiser of a world.

    Args:
        name: a name in `WORLDS`.
        width: standard deviation of the components.
    """
    return MixtureData(WORLDS[name](), width)
