"""ICC profiles: conversion of pixels to sRGB, by Little CMS through Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

__all__ = ["changes_colours", "to_srgb"]

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # the Pillow mode of the colours that a profile describes
_SAME = 2  # levels: profiles of sRGB by different makers differ by rounding


def to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """An 8-bit image with its colours converted from those of its ICC profile to sRGB.

    The intent is relative colorimetric with black point compensation; colours outside sRGB are clipped, and alpha is
    kept. The image is returned unchanged if it has no profile, if the profile is sRGB (no colour moves by more than 2
    levels), cannot be read, or describes another kind of colours.

    Args:
        image: the image, in any mode of 8 bits.
        profile: the content of the profile, bytes, or None.
    """
    if not isinstance(profile, bytes) or not profile or image.mode == "1":
        return image
    conversion = _conversion(profile)
    if conversion is None:
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    if colours.mode != conversion.mode:
        return image
    converted = conversion.apply(colours)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def changes_colours(profile: Any) -> bool:
    """Whether an ICC profile, bytes or None, is read and describes other colours than sRGB."""
    return isinstance(profile, bytes) and bool(profile) and _conversion(profile) is not None


@dataclass(frozen=True)
class _Conversion:
    mode: str
    transform: Any  # for gray the table of its 256 levels

    def apply(self, image: Image.Image) -> Image.Image:
        if self.mode == "L":
            return image.point(self.transform)
        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None  # it is None for a conversion in place
        return converted


@lru_cache(maxsize=16)
def _conversion(profile: bytes) -> _Conversion | None:
    """The conversion from a profile to sRGB; None if it changes nothing or the profile cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return _Conversion(mode, transform)
        probe = _colours() if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        converted = ImageCms.applyTransform(probe, transform)
        assert converted is not None
        if mode == "L":
            converted = converted.getchannel("G")
        moved = np.abs(np.asarray(converted).astype(int) - np.asarray(probe)).max()
        if moved <= _SAME:
            return None
        return _Conversion(mode, transform if mode == "RGB" else list(converted.tobytes()))
    except MemoryError:
        raise
    except Exception:  # unreadable, or of colours that images here do not have (Lab, XYZ, named)
        return None


def _colours() -> Image.Image:
    """Colours on a grid of 18 levels per channel."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(grid.reshape(-1, len(levels), 3))
