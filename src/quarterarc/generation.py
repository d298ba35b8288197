"""Many images from seeds: an image depends on its own seed, not on batch size, order or number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .estimate import Denoise
from .samplers import Sampler
from .sampling import Result, sample
from .streams import Purpose, normal, stream

__all__ = ["batches", "generate", "noise"]


def noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Where the trajectories of these seeds begin: standard normal, shape (len(seeds), *shape).

    Args:
        seeds: whole numbers from 0, one an image; each image depends on its own seed alone.
        shape: (C, H, W).
        device: where to put it; it is drawn on the CPU, so that it is the same on every device.
        dtype: float64 is drawn in float64, everything else in float32 and cast.
    """
    return normal([stream(seed, Purpose.NOISE) for seed in seeds], shape, dtype).to(device)


def batches(
    denoise: Denoise,
    seeds: Sequence[int],
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | np.ndarray | None = None,
    *,
    batch_size: int = 64,
    labels: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[tuple[Sequence[int], Result]]:
    """Sample batch after batch, yielding each batch's seeds and result; arguments as for `generate`."""
    shape = shape or getattr(denoise, "shape", None)
    if shape is None:
        raise InputError("this denoiser does not say the shape of its images: give shape=(C, H, W)")
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    if labels is not None and len(labels) != len(seeds):
        raise InputError(f"there are {len(seeds)} seeds but {len(labels)} labels: give one a seed")
    device = getattr(denoise, "device", "cpu")
    for first in range(0, len(seeds), batch_size):
        some = seeds[first : first + batch_size]
        classes = None if labels is None else torch.tensor(labels[first : first + batch_size], device=device)
        start = noise(some, shape, device)
        yield some, sample(denoise, start, sampler, steps, grid, labels=classes, seeds=some, **options)


def generate(
    denoise: Denoise,
    seeds: Sequence[int],
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | np.ndarray | None = None,
    *,
    batch_size: int = 64,
    labels: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Images from seeds, in their order: shape (len(seeds), C, H, W), float32 on the CPU.

    Every random draw of an image depends on its seed alone. The network's arithmetic can round differently in
    batches of another size, by no more than a level of 8 bits here and there.

    Args:
        denoise: a denoiser; one that does not know the `shape` of its images needs it given.
        seeds: whole numbers from 0, one an image; a range will do.
        sampler, steps, grid, options: as for `quarterarc.sample`.
        batch_size: how many images at once.
        labels: classes, one a seed, for a denoiser that takes any.
        shape: (C, H, W) of an image.

    Raises:
        InputError: for an unknown shape, a batch size below 1, labels not one a seed, and what `sample` refuses.
    """
    made = batches(denoise, seeds, sampler, steps, grid, batch_size=batch_size, labels=labels, shape=shape, **options)
    parts = [result.images.cpu() for _, result in made]
    if not parts:
        raise InputError("there are no seeds: give one for each image")
    return torch.cat(parts)
