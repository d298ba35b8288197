"""PNG files of 8-bit images, and contact sheets of several images."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..common.errors import InputError
from ..common.text import printable
from .files import read_regular, replace_file

__all__ = ["columns_of", "contact_sheet", "encode_png", "is_whole_png", "read_png", "to_picture", "write_png"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_picture(pixels: Tensor) -> Image.Image:
    """A Pillow image of uint8 pixels, shape (C, H, W); C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA).

    Raises:
        InputError: for another data type or shape.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in _MODES:
        raise InputError(
            f"a picture is uint8 of shape (1 to 4, H, W), got {pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    array = pixels.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array, _MODES[pixels.shape[0]])


def encode_png(pixels: Tensor) -> bytes:
    """A PNG file of uint8 pixels, shape (C, H, W); errors as for `to_picture`."""
    png = io.BytesIO()
    to_picture(pixels).save(png, format="PNG")
    return png.getvalue()


def write_png(path: Path, pixels: Tensor) -> None:
    """Write uint8 pixels, shape (C, H, W), as a PNG file, atomically; `files.flush` makes it durable.

    Raises:
        InputError: for another data type or shape.
        OSError: if the file cannot be written.
    """
    picture = to_picture(pixels)
    with replace_file(path, durable=False) as temporary:
        picture.save(temporary, format="PNG")


def read_png(path: Path) -> Tensor:
    """The pixels, uint8 of shape (C, H, W), of a PNG file written by `write_png`."""
    with Image.open(path) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1)


_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""The colour type in the header of a PNG file, by channels."""


def is_whole_png(path: Path, shape: Sequence[int]) -> bool:
    """Whether a file is a complete PNG of 8 bits and shape (C, H, W), by its header and checksums, without decoding."""
    try:
        content = read_regular(path)
    except OSError:
        return False
    channels, height, width = shape
    header = struct.pack(">4sIIBB", b"IHDR", width, height, 8, _COLOURS[channels])
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:26] != header:
        return False
    place = 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 12 + length
        if content[end - 4 : end] != struct.pack(">I", zlib.crc32(content[place + 4 : end - 4])):
            return False
        if content[place + 4 : place + 8] == b"IEND":
            return end == len(content)
        place = end
    return False


def columns_of(count: int) -> int:
    """The images per row of a contact sheet of so many images: about twice the number of rows, filled evenly."""
    rows = math.ceil(count / max(1, math.ceil(math.sqrt(2 * count))))
    return max(1, math.ceil(count / max(1, rows)))


def contact_sheet(
    pixels: Tensor,
    columns: int | None = None,
    size: int = 64,
    gap: int = 2,
    smooth: bool = False,
    rows: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] = (),
) -> Tensor:
    """Images in rows on white, small ones enlarged by a whole factor.

    Args:
        pixels: uint8, shape (B, C, H, W).
        columns: images per row; by default about twice the number of rows.
        size: largest height and width of an enlarged image, in pixels.
        gap: white pixels between images.
        smooth: enlarge by bicubic interpolation, in which shapes are easier to recognise; otherwise repeat pixels.
        rows: the places of the images in each row, in place of `columns`.
        names: a name per row, written before it; none without names.

    Returns:
        uint8 pixels, shape (C, height, width).
    """
    count, channels, height, width = pixels.shape
    if rows is None:
        columns = columns or columns_of(count)
        rows = [range(count)[first : first + columns] for first in range(0, count, columns)]
    columns = max(map(len, rows), default=1)
    factor = max(1, size // max(height, width))
    height, width = height * factor, width * factor
    if smooth:
        large = F.interpolate(pixels.cpu().float(), (height, width), mode="bicubic", align_corners=False)
        pixels = large.round().clamp(0, 255).to(torch.uint8)
    else:
        pixels = pixels.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    shape = (channels, len(rows) * (height + gap) + gap, columns * (width + gap) + gap)
    canvas = torch.full(shape, 255, dtype=torch.uint8)
    for row, places in enumerate(rows):
        for column, place in enumerate(places):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            canvas[:, top : top + height, left : left + width] = pixels[place]
    return torch.cat([_names(names, canvas, height + gap), canvas], dim=2) if names else canvas


def _names(names: Sequence[str], canvas: Tensor, height: int) -> Tensor:
    """The names of rows of this height, in black on white, to be placed before the rows of a sheet."""
    texts = [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..." for name in map(printable, names)
    ]
    font = ImageFont.load_default(_FONT_SIZE)
    width = math.ceil(max(font.getlength(text) for text in texts)) + 12
    picture = Image.new("L", (width, canvas.shape[1]), 255)
    draw = ImageDraw.Draw(picture)
    for row, text in enumerate(texts):
        draw.text((width - 6, row * height + height // 2), text, fill=0, font=font, anchor="rm")
    strip = torch.from_numpy(np.array(picture))[None].repeat(len(canvas), 1, 1)
    if len(canvas) in (2, 4):
        strip[-1] = 255  # alpha
    return strip


_FONT_SIZE, _LONGEST_NAME = 14, 24
