"""Picture files as inputs of an edit: decoded and converted as training does, to the shape of a model's images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.decode import BadImage, Look, Pixels, look, read_file, read_pixels
from ..data.spec import DataSpec
from ..data.survey import changes

__all__ = ["read_image", "read_mask"]

logger = logging.getLogger("quarterarc")

_COLOURFUL = 32
"""Levels between the channels of a pixel that is not gray; JPEG changes gray by less."""


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The pixels of a picture, uint8 of shape (C, H, W); the log has what was done to it.

    Args:
        path: a file of any format that training reads.
        shape: (C, H, W). The largest centred part of that aspect ratio is resized to it.

    Raises:
        InputError: if the file cannot be read or is no picture.
    """
    data, seen = _looked_at(path)
    channels, height, width = shape
    spec = _spec(path, height, width, channels)
    done = []
    if abs(seen.width * height - seen.height * width) > max(width, height) // 2:
        done.append("cropped to a square" if height == width else f"cropped to {width}:{height}")
    if (seen.height, seen.width) != (height, width):
        done.append(f"resized to {height}x{width}")
    done += changes(seen, spec)
    size = f"{seen.height}x{seen.width} (height x width)"
    logger.info("%s: %s, %s", path, size, ", ".join(done) or "used as it is")
    return _tensor(_decoded(data, spec, path))


def read_mask(path: Path, image: Path, shape: tuple[int, int, int]) -> Tensor:
    """A mask, bool of shape (H, W): true where a picture is white (or lighter than middle gray) or transparent.

    Args:
        path: the mask, of the size of the image, with which it is cropped and resized; or of the model's size.
        image: the image.
        shape: (C, H, W) of the model's images.

    Raises:
        InputError: if the file cannot be read, has another size or has colours, or marks no pixel or all.
    """
    data, seen = _looked_at(path)
    _, height, width = shape
    size, of_image = (seen.height, seen.width), _looked_at(image)[1]
    if size not in ((height, width), (of_image.height, of_image.width)):
        raise InputError(
            f"the mask {path} is {size[0]}x{size[1]} (height x width): give the size of the image, "
            f"{of_image.height}x{of_image.width}, or of the model's images, {height}x{width}"
        )
    colours = _decoded(data, _spec(path, *size, 3), path).astype(np.int16)
    if int((colours.max(2) - colours.min(2)).max()) > _COLOURFUL:
        raise InputError(f"the mask {path} has colours: paint white where new content is made, and black elsewhere")
    unknown = _tensor(_decoded(data, _spec(path, height, width, 1), path))[0] >= 128
    if not bool(unknown.any()) and bool((_decoded(data, _spec(path, *size, 1), path) >= 128).any()):
        raise InputError(
            f"the mask {path} is white only outside the centre of the image that is used, of the aspect "
            f"{width}:{height}, or in places that vanish at {height}x{width}: paint white within it, or crop both"
        )
    if not bool(unknown.any()):
        raise InputError(f"the mask {path} is black, so there is nothing to make: paint white where new content goes")
    if bool(unknown.all()):
        raise InputError(
            f"the mask {path} is white, so nothing of the image is kept: paint black what stays; "
            "`quarterarc sample` makes whole images"
        )
    return unknown


def _spec(path: Path, height: int, width: int, channels: int) -> DataSpec:
    return DataSpec(source=str(path), size=(height, width), channels=channels, crop="center")  # type: ignore[arg-type]


def _looked_at(path: Path) -> tuple[bytes, Look]:
    """The bytes of a picture file and its size, mode and the like."""
    spec = _spec(path, 1, 1, 1)
    try:
        data = read_file(path, str(path), spec.max_bytes)
    except BadImage as error:
        raise _without_skipping(path, error) from None
    seen = look(data, spec)
    if seen is None:
        _decoded(data, spec, path)  # raises the reason
        raise InputError(f"cannot use {path}: it is damaged")
    return data, seen


def _decoded(data: bytes, spec: DataSpec, path: Path) -> Pixels:
    try:
        return read_pixels(data, spec, str(path))
    except BadImage as error:
        raise _without_skipping(path, error) from None


def _without_skipping(path: Path, error: BadImage) -> InputError:
    return InputError(f"cannot use {path}: {error.reason}")


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
