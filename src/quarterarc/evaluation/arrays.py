"""Feature arrays as arguments: numpy or torch, any device, any real dtype; checked once, without a copy if possible."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.devices import has_float64
from ..common.errors import InputError
from ..common.text import counted

__all__ = ["Features", "MeanStd", "as_features", "as_pair"]

Features: TypeAlias = Tensor | NDArray[Any]
"""One row per image: real numbers, shape (images, dimensions)."""


class MeanStd(NamedTuple):
    """Mean of a score over splits or subsets, and the standard deviation with divisor n."""

    mean: float
    std: float


def as_features(values: Features, what: str = "features", fewest: int = 1, start: int = 0) -> Tensor:
    """The array as a floating-point tensor of shape (images, dimensions), sharing memory if possible.

    Args:
        values: the array; integers become float32 (up to 16 bits) or float64, half precision becomes float32.
        what: name of the array, for messages.
        fewest: the smallest valid number of images.
        start: number of the first row, for a part of a longer array.

    Raises:
        InputError: for values that are not real numbers, another shape, fewer images, NaN or infinity.
    """
    tensor = _floating(values if isinstance(values, Tensor) else _from_numpy(values, what), what)
    if tensor.ndim != 2:
        raise InputError(f"{what} must have shape (images, dimensions), got {tuple(tensor.shape)}: flatten each image")
    count, dimensions = tensor.shape
    if count == 0 or dimensions == 0:
        raise InputError(f"{what} are empty, of shape {tuple(tensor.shape)}: give at least {max(1, fewest)} images")
    if count < fewest:
        raise InputError(f"{what} hold {counted(count, 'image')} where at least {fewest} are needed: give more images")
    _check_finite(tensor, what, start)
    return tensor


def as_pair(a: Features, b: Features, names: tuple[str, str], fewest: int) -> tuple[Tensor, Tensor]:
    """Two arrays to compare, as `as_features` returns them, both on the device of the first.

    Raises:
        InputError: as `as_features`, and if their dimensions differ.
    """
    first, second = as_features(a, names[0], fewest), as_features(b, names[1], fewest)
    if first.shape[1] != second.shape[1]:
        sizes = f"{first.shape[1]} dimensions and {names[1]} {second.shape[1]}"
        raise InputError(f"{names[0]} have {sizes}: take both from the same extractor")
    return first, second.to(first.device)


def _from_numpy(values: object, what: str) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise InputError(f"{what} must be real numbers, got a {type(values).__name__} of dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        return torch.from_numpy(array)


def _floating(tensor: Tensor, what: str) -> Tensor:
    if tensor.is_complex():
        raise InputError(f"{what} must be real numbers, got {tensor.dtype}")
    tensor = tensor.detach()
    if not has_float64(tensor.device):
        tensor = tensor.cpu()
    tensor = tensor.contiguous()  # the order of the sums over a row must not depend on the layout
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    exact_in_float32 = tensor.is_floating_point() or tensor.dtype.itemsize <= 2
    return tensor.to(torch.float32 if exact_in_float32 else torch.float64)


def _check_finite(tensor: Tensor, what: str, start: int) -> None:
    """Check the sums of rows first: only a row whose sum is not finite can hold NaN or infinity (or it overflowed)."""
    suspects = (~torch.isfinite(tensor.sum(1))).nonzero()[:, 0]
    wrong = (~torch.isfinite(tensor[suspects])).sum(1)
    if not wrong.any():
        return
    rows = suspects[wrong > 0]
    numbers = counted(int(wrong.sum()), "NaN or infinite number")
    raise InputError(
        f"{what} hold {numbers} in {len(rows)} of {len(tensor)} rows, first in row {start + int(rows[0])}: "
        "remove these images or extract them again"
    )
