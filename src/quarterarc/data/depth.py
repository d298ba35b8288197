"""Images of more than 8 bits: their range of values, and whether a data set uses it."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["has_16_bit_colour", "highest_value", "to_8_bits", "top_value"]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF


def top_value(image: Image.Image) -> int | None:
    """The value of white in a gray image of more than 8 bits; None if its format defines none."""
    if image.mode.startswith("I;16"):
        tags: Any = getattr(image, "tag_v2", {})
        return (1 << int(tags.get(_BITS_PER_SAMPLE, (16,))[0])) - 1
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None  # Pillow scales PGM to 16 bits


def has_16_bit_colour(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits per channel, of which Pillow decodes the high byte."""
    return not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def highest_value(image: Image.Image) -> int | None:
    """The highest value of an image whose range is 0..65535 (of 16-bit colour: of its high byte); None for others."""
    colour = has_16_bit_colour(image)
    if not colour and (not image.mode.startswith("I") or top_value(image) != 65535):
        return None
    values = np.asarray(image.convert("RGB") if colour else image)
    highest = int(values.max())
    if colour:
        return highest << 8
    tags: Any = getattr(image, "tag_v2", {})
    return 65535 - int(values.min()) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else highest


def to_8_bits(image: Image.Image, limits: tuple[float, float] | None) -> Image.Image:
    """A gray image of more than 8 bits scaled to 8 bits; other modes unchanged.

    Args:
        image: the decoded image.
        limits: the values that become 0 and 255, see `DataSpec.range`; None for the range of the format.

    Raises:
        ValueError: if the format defines no range and none is given, or for NaN.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    top = top_value(image)
    if limits is None and top is None:
        raise ValueError(
            f"its {'floating-point' if image.mode == 'F' else 'signed or 32-bit'} pixels have no defined range; give "
            "the values of black and white (data.range=LOW,HIGH), or save it with 8 or 16 bits"
        )
    low, high = limits if limits is not None else (0, top or 0)
    values = np.asarray(image).astype(np.float64)
    if np.isnan(values).any():
        raise ValueError("it has pixels that are NaN")
    scaled = (values - low) * (255 / (high - low))
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    gray = Image.fromarray((scaled.clip(0, 255) + 0.5).astype(np.uint8))
    clear = image.info.get("transparency")  # the one gray value that is transparent
    if isinstance(clear, int):
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray
