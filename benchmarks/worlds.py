"""Exact worlds: mixtures of narrow Gaussians around real images, whose denoisers are known in closed form.

The defaults of the samplers were searched on the centres `digits`, `patches8` and `patches16` with the width `WIDTH`.
The other worlds of `WORLDS` are held out: other widths, other images, and noise from `HELD_OUT_SEED`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from quarterarc.closed_form import MixtureData
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, ImageData, open_data, to_float

WIDTH = 0.15
"""The width of the worlds of the search: standard deviation h of the components, for pixels in [-1, 1]."""
HELD_OUT_WIDTHS = (0.06, 0.3)
HELD_OUT_SEED = 500_000_000
"""Seed of the first noise in held-out worlds: far from those of the searches (from 0) and of tuning (from 10^9)."""


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


def cifar(data: Path, size: int, count: int) -> Tensor:
    """A patch of each of `count` CIFAR-10 images, in [-1, 1], float64, shape (count, 3, size, size).

    The images are evenly spaced in the file, and each patch lies at a uniformly random place (seed 0).

    Raises:
        InputError: for a file that has fewer images, or none at all.
    """
    images = _opened(data)
    if images.count is None or images.count < count:
        raise InputError(f"{data} has {images.count} images: give --data a parquet file of at least {count}")
    random, pixels = np.random.default_rng(0), []
    for image in to_float(images.batch(np.arange(count) * (images.count // count)).images).double():
        row, column = (int(random.integers(32 - size + 1)) for _ in range(2))
        pixels.append(image[:, row : row + size, column : column + size])
    return torch.stack(pixels)


@cache
def _opened(data: Path) -> ImageData:
    """The images of CIFAR-10; opening them takes ten seconds."""
    return open_data(DataSpec(source=str(data), size=32), progress=False)


CENTRES: dict[str, Callable[[], Tensor]] = {
    "digits": digits,
    "patches8": lambda: patches(8, 800),
    "patches16": lambda: patches(16, 400),
}
"""The centres of mixtures by name: the digits, 800 8x8 and 400 16x16 colour patches of the photographs."""
CIFAR_CENTRES: dict[str, Callable[[Path], Tensor]] = {
    "cifar16": lambda data: cifar(data, 16, 400),
    "cifar32": lambda data: cifar(data, 32, 400),
}
"""Centres from a file of CIFAR-10's images: 16x16 patches of 400 images, and 400 whole images."""


class Setting(NamedTuple):
    """A world of the comparison of samplers.

    Attributes:
        centres: a name in `CENTRES` or `CIFAR_CENTRES`.
        width: standard deviation of the components.
        images: images that are measured; fewer where an image has many pixels, which bounds the cost.
        tuned_on: images that grids and schedules are tuned on.
        largest_tuned: the largest NFE for which they are tuned: tuning takes long and gains little beyond.
        held_out: whether no default was searched on it.
    """

    centres: str
    width: float = WIDTH
    images: int = 48
    tuned_on: int = 384
    largest_tuned: int = 20
    held_out: bool = False

    @property
    def seed(self) -> int:
        """Seed of the first image's noise."""
        return HELD_OUT_SEED if self.held_out else 0


def _held_out(centres: str, images: int, tuned_on: int, largest_tuned: int) -> dict[str, Setting]:
    """The two held-out worlds of these centres, by name."""
    settings = (Setting(centres, width, images, tuned_on, largest_tuned, True) for width in HELD_OUT_WIDTHS)
    return {f"{centres}-{setting.width:g}": setting for setting in settings}


WORLDS: dict[str, Setting] = {
    **_held_out("digits", 48, 128, 20),
    **_held_out("patches8", 48, 128, 20),
    **_held_out("cifar16", 32, 64, 10),
    **_held_out("cifar32", 24, 32, 5),
    **{name: Setting(name) for name in CENTRES},
}
"""The held-out worlds, and then those of the search."""


def mixture(name: str, width: float = WIDTH, data: Path | None = None) -> MixtureData:
    """The exact denoiser of a mixture around some centres.

    Args:
        name: a name in `CENTRES` or `CIFAR_CENTRES`.
        width: standard deviation of the components.
        data: a parquet file or folder of CIFAR-10's images, for `CIFAR_CENTRES`.
    """
    if name in CENTRES:
        return MixtureData(CENTRES[name](), width)
    if data is None:
        raise InputError(f"the centres '{name}' are images of CIFAR-10: give their file with --data")
    return MixtureData(CIFAR_CENTRES[name](data), width)
