"""Images and masks as the functions of `edit` take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.text import counted
from ..data.pixels import to_float
from ..denoiser import Denoise, required_shape, traits

__all__ = ["as_images", "as_unknown"]

_LARGEST = 20.0
"""Pixels lie in about [-1, 1]; larger values than this one are levels of 0..255 given as floating point."""


def as_images(denoise: Denoise, image: Tensor, count: int, what: str = "the image") -> Tensor:
    """Images, shape (1 or count, C, H, W), floating point, on the denoiser's device.

    Args:
        denoise: a denoiser.
        image: uint8, or floating point in [-1, 1]; shape (C, H, W) or (B, C, H, W).
        count: the number of results.
        what: the name of the image in messages.

    Raises:
        InputError: for another type, shape or number of images, or pixels that are not finite or are levels of 0..255.
    """
    if not isinstance(image, Tensor) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"{what} is a tensor, uint8 or floating point in [-1, 1], got {kind}")
    images = image[None] if image.ndim == 3 else image
    if images.ndim != 4 or len(images) not in (1, count):
        raise InputError(
            f"{what} has shape {tuple(image.shape)}: give (C, H, W), or one per result, ({count}, C, H, W)"
        )
    shape = required_shape(denoise, traits(denoise).shape or images.shape[1:])
    if tuple(images.shape[1:]) != shape:
        raise InputError(f"{what} has shape {tuple(images.shape[1:])} (C, H, W), but the model makes images of {shape}")
    if images.dtype == torch.uint8:
        images = to_float(images)
    if not bool(images.isfinite().all()):
        raise InputError(f"{what} has pixels that are NaN or infinite")
    if float(images.abs().max()) > _LARGEST:
        raise InputError(
            f"{what} has values of {float(images.min()):.4g}..{float(images.max()):.4g}, but pixels lie in [-1, 1]: "
            "give uint8, or quarterarc.to_float of it"
        )
    return images.to(traits(denoise).device or images.device)


def as_unknown(mask: Tensor, images: Tensor, count: int) -> Tensor:
    """Where new content is made: bool, shape (1 or count, 1, H, W), on the device of the images.

    Args:
        mask: bool; floating point, of which 0.5 and above is true; or whole numbers, of which all but 0 are true. Shape
            (H, W), (1, H, W) or (B, 1, H, W).
        images: shape (B, C, H, W).
        count: the number of results.

    Raises:
        InputError: for another shape or number of masks, or a mask that marks no pixel.
    """
    if not isinstance(mask, Tensor):
        raise InputError(f"the mask is a tensor, got {type(mask).__name__}")
    masks = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape) if mask.ndim < 4 else mask
    expected: Sequence[int] = (1, *images.shape[2:])
    if tuple(masks.shape[1:]) != tuple(expected) or len(masks) not in (1, count):
        size = tuple(images.shape[2:])
        raise InputError(
            f"the mask has shape {tuple(mask.shape)}: give (H, W) = {size}, or one per result, {(count, *expected)}"
        )
    unknown = masks >= 0.5 if masks.is_floating_point() else masks != 0
    empty = (~unknown.flatten(1).any(1)).nonzero().flatten()
    if len(empty):
        which = "the mask" if len(unknown) == 1 else f"mask {int(empty[0])} of {counted(len(unknown), 'mask')}"
        raise InputError(f"{which} marks no pixel, so there is nothing to make: 1 or true is where new content goes")
    return unknown.to(images.device)
