"""Images as likelihoods take them: tensors or arrays, read and checked one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.progress import progress_bar
from ..common.text import counted
from ..data.pixels import to_float

__all__ = ["Images", "batch_ranges", "check_finite", "check_images", "read_batch", "read_levels"]

Images: TypeAlias = Tensor | np.ndarray
"""Images of shape (N, C, H, W): a tensor, or an array, possibly memory-mapped, that is read one batch at a time."""


def check_images(images: Images, labels: Tensor | None = None, numbers: Sequence[int] | None = None) -> None:
    """Raise an InputError unless images have shape (N, C, H, W), with one label and one number per image."""
    if images.ndim != 4 or not all(images.shape):
        raise InputError(
            f"a likelihood takes at least 1 image, as an array of shape (N, C, H, W), got shape {tuple(images.shape)}"
        )
    for what, values in (("labels", labels), ("numbers", numbers)):
        if values is not None and len(values) != len(images):
            raise InputError(f"got {counted(len(images), 'image')} but {len(values)} {what}: give one per image")


def read_batch(images: Images, first: int, last: int) -> Tensor:
    """Images first..last - 1 as a tensor. Those of an array are copied: a memory-mapped file may be read-only."""
    rows = images[first:last]
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


def read_levels(images: Images, first: int, last: int) -> Tensor:
    """Images first..last - 1 of 8-bit levels in [-1, 1], floating point; uint8 images become float32.

    Raises:
        InputError: if a value is not finite, or is not one of the 256 levels.
    """
    rows = read_batch(images, first, last)
    if rows.dtype == torch.uint8:
        return to_float(rows)
    if not rows.is_floating_point():
        raise InputError(f"images must be uint8, or floating point in [-1, 1], got {rows.dtype}")
    check_finite(rows, first)
    level = (rows.double() + 1.0) * 127.5
    # 0.01 levels: float32 rounds by about 1e-5 levels
    if bool(((level - level.round()).abs() > 0.01).any()) or float(level.min()) < -0.5 or float(level.max()) > 255.5:
        raise InputError(
            f"bits per dimension need 8-bit images, as uint8 or as levels k / 127.5 - 1 in [-1, 1]: images "
            f"{first}..{last - 1} have other values in {float(rows.min()):.4g}..{float(rows.max()):.4g}; "
            "quarterarc.to_uint8 rounds them"
        )
    return rows


def check_finite(images: Tensor, first: int) -> None:
    """Raise an InputError if a pixel is NaN or infinite.

    Args:
        images: a batch, shape (B, C, H, W).
        first: number of its first image, for the message.
    """
    bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        raise InputError(
            f"{len(bad)} of images {first}..{first + len(images) - 1} hold NaN or infinity, "
            f"first image {first + int(bad[0])}: remove or repair them"
        )


def batch_ranges(count: int, batch_size: int, description: str, progress: bool) -> Iterator[tuple[int, int]]:
    """First image and end of each batch, with a progress bar."""
    with progress_bar(count, "image", description, progress) as bar:
        for first in range(0, count, batch_size):
            last = min(first + batch_size, count)
            yield first, last
            bar.update(last - first)
