"""Conversion of 8-bit pixels to [-1, 1], the range of a network, and back, and of axes to (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.devices import send
from ..common.errors import InputError

__all__ = ["apply_flips", "axes_call", "levels", "to_float", "to_uint8"]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels of any shape to float32 in [-1, 1], x / 127.5 - 1: level 0 is -1, level 255 is 1."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floating-point images of any shape to uint8: clamped to [-1, 1], then (x + 1) * 127.5 rounded to a level.

    The exact inverse of `to_float` on all 256 levels. A value halfway between two levels, such as 0, is rounded to the
    even one (128). Half precision is converted to float32 first, because bfloat16 has no 256 distinct levels.

    Raises:
        InputError: for NaN and infinity, which have no level; the image is named by its place on the first axis.
    """
    missing = ~images.isfinite()
    if missing.any():
        where = f"image {int(missing.flatten(1).any(1).nonzero()[0])} of {len(images)}" if images.dim() > 3 else "it"
        raise InputError(
            f"{where} has pixels that are NaN or infinite ({int(missing.sum()):,} of {images.numel():,}): check "
            "the network's weights and the sampler's options"
        )
    return levels(images)


def levels(images: Tensor) -> Tensor:
    """`to_uint8` without its check, for which the host waits for the device: NaN and infinity get any level."""
    if images.dtype.itemsize < 4:
        images = images.float()
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def apply_flips(batch: Tensor, flip_mask: Tensor) -> Tensor:
    """Mirror the images of `batch` (B, C, H, W) horizontally whose entry in `flip_mask` (B,) is true."""
    return torch.where(send(flip_mask, batch.device, torch.bool)[:, None, None, None], batch.flip(-1), batch)


def axes_call(shape: Sequence[int], permute: str) -> str | None:
    """The expression that moves the axes of `images` to (N, C, H, W), as far as their lengths show; None if unknown.

    Args:
        shape: the shape of `images`.
        permute: the method that reorders axes: `permute` of a tensor, `transpose` of an array.
    """
    if len(shape) == 4 and shape[1] <= 4:
        return "images"
    if len(shape) == 4 and shape[3] <= 4:
        return f"images.{permute}(0, 3, 1, 2)"
    if len(shape) == 3 and shape[2] <= 4 < shape[0]:
        return f"images.{permute}(2, 0, 1)[None]"
    if len(shape) == 3:
        return "images[None]" if shape[0] <= 4 else "images[:, None]"
    return "images[None, None]" if len(shape) == 2 else None
