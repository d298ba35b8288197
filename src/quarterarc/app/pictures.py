"""Pictures that visitors send: data URLs, decoded by the rules and within the limits of all other images."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.decode import BadImage, read_pixels, shape_of
from ..data.spec import DataSpec

__all__ = ["MOST_BYTES", "decode_mask", "decode_picture"]

MOST_BYTES = 8 * 2**20
"""Bytes of a file."""
MOST_PIXELS = 2**24
"""Its pixels, as stored."""


def decode_picture(url: Any, shape: tuple[int, int, int]) -> Tensor:
    """A picture of a visitor as the network sees images: upright, centre crop, resized; uint8 (C, H, W).

    Args:
        url: `data:...;base64,...` of a file in any format that `quarterarc train` reads.
        shape: (C, H, W).

    Raises:
        InputError: if it is no picture, is damaged, or has too many bytes or pixels.
    """
    return _decoded(url, shape, "your picture")


def decode_mask(url: Any, shape: tuple[int, int, int]) -> Tensor:
    """A drawn mask: true where the canvas was painted; bool (H, W).

    Raises:
        InputError: if it is no picture of this size.
    """
    size = _size(url, "the mask")
    if size != shape[1:]:
        raise InputError(f"the mask has {size[0]}x{size[1]} pixels, the picture {shape[1]}x{shape[2]}")
    return _decoded(url, (4, *shape[1:]), "the mask")[3] > 127


def _decoded(url: Any, shape: tuple[int, int, int], name: str) -> Tensor:
    _size(url, name)
    channels, height, width = shape
    spec = DataSpec.model_validate(
        {"source": "memory", "size": (height, width), "channels": channels, "crop": "center", "max_pixels": MOST_PIXELS}
    )
    try:
        pixels = read_pixels(_content(url, name), spec, name)
    except BadImage as error:
        raise InputError(f"{name} cannot be used: {error.reason}") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _size(url: Any, name: str) -> tuple[int, int]:
    """Height and width from the header, before anything is decoded."""
    found = shape_of(_content(url, name))
    if found is None:
        raise InputError(f"{name} is not an image file that can be read, or has far too many pixels")
    _, height, width = found
    if height * width > MOST_PIXELS:
        raise InputError(
            f"{name} has {height * width / 2**20:.0f} million pixels, more than {MOST_PIXELS // 2**20}: reduce it first"
        )
    return height, width


def _content(url: Any, name: str) -> bytes:
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:100]:
        raise InputError(f"{name} was not sent as a file")
    text = url.partition(";base64,")[2]
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise InputError(f"{name} has more than {MOST_BYTES // 2**20} MB: reduce it first")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} was damaged on its way") from None
