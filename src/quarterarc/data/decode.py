"""Decoding of one image to uint8 pixels, by Pillow and NumPy; thread-safe.

The same rules hold for every source:

- Formats: those of `formats`, recognised by content. The first frame of an animation is used; a TIFF of several pages
  is an error (`pages` changes both), and so are more than four channels (`layout`).
- A truncated or damaged file is an error, never an image with gray pixels.
- EXIF orientation is applied; unreadable EXIF is ignored.
- 16-bit gray becomes round(value / 257), 12-bit TIFF round(value * 255 / 4095). For 16-bit colour Pillow returns the
  high byte, which differs by less than one level. Signed and 32-bit integers and floats have no defined range: an error
  unless `range` is set (`depth`).
- Palettes become RGB. Colours are converted to sRGB by the ICC profile (`profiles`); CMYK without one by Pillow's
  formula.
- Without an alpha channel (1 or 3 channels) transparency is composited over white; with one, opaque images get alpha
  255.
- Resizing is Pillow's, antialiased, with premultiplied alpha. JPEG's reduced-size decoding changes the result and is
  not used.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ..common.errors import InputError
from ..storage.files import read_regular
from .depth import has_16_bit_colour, highest_value, to_8_bits
from .formats import FORMATS, not_an_image
from .layout import check_layout, count_pages, unknown_tiff
from .profiles import changes_colours, to_srgb
from .spec import DataSpec
from .structure import BadStructure, check_structure, count_scans

__all__ = [
    "DECODING",
    "GRAY_MODES",
    "SKIP_BAD",
    "BadImage",
    "Encoded",
    "Pixels",
    "look",
    "read_file",
    "read_pixels",
    "shape_of",
    "too_large",
]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs about damaged files is raised, too

DECODING = 2
"""The version of these rules, part of the keys of cached results."""

Encoded: TypeAlias = bytes | Image.Image
"""The return type of `Source.read`: the bytes of an image file, or a Pillow image."""
Pixels: TypeAlias = NDArray[np.uint8]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_FILTERS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes without colours."""
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF


SKIP_BAD = "or leave out such images (data.skip_bad=true)"
"""The advice about unusable images."""


class BadImage(InputError):
    """An image of a source that cannot be used; `skip_bad` skips it.

    Attributes:
        reason: the reason alone, without the name and the advice.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"cannot use {name}: {reason}; repair or remove it, {SKIP_BAD}")


def read_file(path: str | Path, name: str, most: int = 0) -> bytes:
    """The bytes of a regular file of at most `most` bytes (0: no limit).

    Raises:
        BadImage: if the file is larger, is a FIFO, a device or a socket, or cannot be read.
    """
    try:
        if most and (size := os.stat(path).st_size) > most and Path(path).is_file():
            raise too_large(name, size, most)
        return read_regular(path, most)
    except MemoryError:
        raise InputError(f"out of memory while reading {name}: free memory, or replace the file") from None
    except OSError as error:
        raise BadImage(name, error.strerror or str(error)) from error


def too_large(name: str, size: int, most: int) -> BadImage:
    """The error of an encoded image of more bytes than `DataSpec.max_bytes`."""
    return BadImage(
        name, f"it has {size:,} bytes, more than the {most:,} that data.max_pixels allows; raise that to use it"
    )


def read_pixels(encoded: Encoded, spec: DataSpec, name: str) -> Pixels:
    """Decode, crop, convert and resize one image.

    Args:
        encoded: the image.
        spec: crop, channels, size and filter.
        name: the image, for messages.

    Returns:
        uint8 (height, width, channels).

    Raises:
        BadImage: if it is not an image, is truncated or damaged, is smaller than the crop box, has pixels without a
            defined range, or has more than `spec.max_pixels` pixels.
        InputError: if memory does not suffice.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which hides truncated images; leave it False")
    try:
        try:
            image = _prepared(encoded, spec)
        except (UnidentifiedImageError, Image.DecompressionBombError, BadStructure):
            raise
        except Exception:  # the errors of codecs do not name a failed allocation: decode alone, then check
            with _ALONE:
                try:
                    image = _prepared(encoded, spec)
                except Exception:
                    _check_memory(encoded)
                    raise
    except Image.DecompressionBombError:
        raise BadImage(
            name, f"it has more than data.max_pixels={spec.max_pixels} pixels; raise that to use it"
        ) from None
    except MemoryError:  # the state of the machine, not of the image: skip_bad must not skip it
        raise InputError(
            f"out of memory while decoding {name}: free memory, or replace the image by a smaller one"
        ) from None
    except UnidentifiedImageError:
        data = encoded if isinstance(encoded, bytes) else b""
        raise BadImage(name, unknown_tiff(data) or not_an_image(data)) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise BadImage(name, " ".join(str(error).split()) or type(error).__name__) from error
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)


_ALONE = Lock()


def _prepared(encoded: Encoded, spec: DataSpec) -> Image.Image:
    image = _open(encoded, spec.max_pixels) if isinstance(encoded, bytes) else encoded
    pixels = _check_size(image, spec.max_pixels)
    check_layout(image, spec.pages)
    if spec.range not in (None, (0, 65535)) and has_16_bit_colour(image):
        raise ValueError("data.range applies to gray images, and it has 16-bit colour; save it with 8 bits")
    with _BUDGET.hold(pixels, 4 * spec.max_pixels):
        image.load()
        profile = image.info.get("icc_profile")
        image = _crop(_upright(to_8_bits(image, spec.range)), spec)
        image = _to_mode(to_srgb(image, profile), spec.channels)
        if image.size != (spec.width, spec.height):
            image = image.resize((spec.width, spec.height), _FILTERS[spec.resize])
    return image


def _check_memory(encoded: Encoded) -> None:
    """Raise a MemoryError if there is no memory for an image: four buffers of 4 bytes per pixel, as for WebP."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS) if isinstance(encoded, bytes) else encoded
        pixels = image.width * image.height
    except MemoryError:
        raise
    except Exception:  # the header is damaged too, or it is a WebP, whose decoder allocates when it is opened
        pixels = _webp_pixels(encoded) if isinstance(encoded, bytes) else _SMALL
    if pixels <= _LARGEST:
        np.empty(16 * pixels, dtype=np.uint8)


def _webp_pixels(data: bytes) -> int:
    """Width times height from the header of a WebP file (RFC 9649); of another file a small number."""
    kind, header = data[12:16], data[16:30]
    if data[8:12] != b"WEBP" or len(header) < 14:
        return _SMALL
    if kind == b"VP8X":
        return (1 + int.from_bytes(header[8:11], "little")) * (1 + int.from_bytes(header[11:14], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(header[5:9], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    return (int.from_bytes(header[10:12], "little") & 0x3FFF) * (int.from_bytes(header[12:14], "little") & 0x3FFF)


_SCANNED = 16  # times max_pixels: the pixels of all scans of a JPEG together
_SMALL, _LARGEST = 2**20, 2**28
"""Pixels; above the second number Pillow's own limit applies, which is independent of the memory."""


class Look(NamedTuple):
    """What a look at an image finds, for the log."""

    height: int
    """Height in pixels, upright."""
    width: int
    """Width in pixels, upright."""
    mode: str
    """Pillow's mode of its pixels."""
    alpha: bool
    """Whether it has an alpha channel or a transparent colour."""
    turned: bool
    """Whether its EXIF orientation rotates or mirrors it; of a PNG not known without decoding."""
    profile: bool
    """Whether its ICC profile changes colours."""
    deep: bool
    """Whether it has more than 8 bits per channel."""
    highest: int | None
    """The highest value if the range is 0..65535 and the pixels were decoded."""
    frames: int
    """The number of frames of an animation; 1 for other images."""


def look(encoded: Encoded, spec: DataSpec, pixels: bool = True) -> Look | None:
    """What a look at an image finds; None if it cannot be read.

    Args:
        encoded: the image.
        spec: its limits.
        pixels: whether to decode an image of more than 8 bits for its highest value.
    """
    try:
        image = _open(encoded, spec.max_pixels) if isinstance(encoded, bytes) else encoded
        frames = 1 if image.format == "TIFF" else count_pages(image)
        orientation, height, width = _upright_size(image)
        deep = has_16_bit_colour(image) or image.mode.startswith(("I", "F"))
        alpha, profile = image.has_transparency_data, changes_colours(image.info.get("icc_profile"))
        highest = None
        if pixels and deep:
            with _BUDGET.hold(_check_size(image, spec.max_pixels), 4 * spec.max_pixels):
                highest = highest_value(image)
        return Look(height, width, image.mode, alpha, orientation in _UPRIGHT, profile, deep, highest, frames)
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return None


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; 1, upright, if the EXIF cannot be read: the pixels are valid even so."""
    with suppress(Exception):
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _upright_size(image: Image.Image) -> tuple[Any, int, int]:
    """EXIF orientation, and height and width after it is applied."""
    # the EXIF of a PNG may follow its pixels, so reading it would decode them
    orientation = 1 if image.format == "PNG" else _orientation(image)
    width, height = image.size
    return (orientation, width, height) if orientation in _SIDEWAYS else (orientation, height, width)


def shape_of(encoded: Encoded) -> tuple[int, int, int] | None:
    """(channels, height, width) from the header, upright, with 1 channel for gray; None if it cannot be read."""
    try:
        if isinstance(encoded, bytes):
            check_structure(encoded)
        image = Image.open(io.BytesIO(encoded), formats=FORMATS) if isinstance(encoded, bytes) else encoded
        _, height, width = _upright_size(image)
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return None
    return (1 if image.mode in GRAY_MODES else 3, height, width)


class _Budget:
    """The pixels that all threads decode at the same time, which bounds their memory together."""

    def __init__(self) -> None:
        self._changed, self._held = threading.Condition(), 0

    @contextmanager
    def hold(self, pixels: int, limit: int) -> Iterator[None]:
        """Wait until all held pixels and these fit into `limit`, or no others are held."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


_BUDGET = _Budget()


def _reset_budget() -> None:
    """A forked process has no other threads, and none that could release what they held."""
    global _BUDGET
    _BUDGET = _Budget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_budget)


def _check_size(image: Image.Image, most: int) -> int:
    """The number of pixels that decoding an image allocates: of the image, or of one of its tiles (TIFF)."""
    tags: Any = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 1)) * int(tags.get(_TILE_HEIGHT, 1))
    for pixels, what in ((image.width * image.height, f"it is {image.height}x{image.width}"), (tile, "its tiles have")):
        if pixels > most:
            raise ValueError(f"{what} = {pixels:,} pixels, more than data.max_pixels={most}; raise that to use it")
    return max(image.width * image.height, tile)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError("it is empty")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit holds for the whole process
    if _webp_pixels(data) > max(max_pixels, _SMALL):  # its decoder allocates when it is opened
        raise Image.DecompressionBombError
    check_structure(data)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format in ("JPEG", "MPO") and count_scans(data) * image.width * image.height > _SCANNED * max_pixels:
        raise BadStructure("it is a JPEG of too many scans for its size; save it again without progressive coding")
    # An interrupted download that is padded with zeros decodes to gray without an error: its last scan has no end.
    if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("image file is truncated (no end marker)")
    return image


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _crop(image: Image.Image, spec: DataSpec) -> Image.Image:
    if spec.crop == "none":
        return image
    if spec.crop == "center":
        top, left, height, width = _centred_box(image.height, image.width, spec)
    else:
        top, left, height, width = spec.crop
    if top + height > image.height or left + width > image.width:
        raise ValueError(
            f"it is {image.height}x{image.width} (height x width), smaller than the crop box, which needs "
            f"{top + height}x{left + width}"
        )
    return image.crop((left, top, left + width, top + height))


def _centred_box(height: int, width: int, spec: DataSpec) -> tuple[int, int, int, int]:
    """The largest centred box with the aspect ratio of the target, in whole pixels: (top, left, height, width)."""
    scale = min(height / spec.height, width / spec.width)
    box_height = min(height, max(1, round(spec.height * scale)))
    box_width = min(width, max(1, round(spec.width * scale)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels in (1, 3):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
