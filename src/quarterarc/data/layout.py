"""Image files that hold more than one picture of at most four channels: several pages or frames, further channels."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from typing import Any

from PIL import Image, TiffImagePlugin

__all__ = ["check_layout", "count_pages", "unknown_tiff"]

_SUBFILE, _OLD_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA = 254, 255, 258, 262, 277, 338  # TIFF
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples of a colour by photometric interpretation
_ALPHA = (1, 2)  # associated and unassociated alpha as an extra sample
_REDUCED_OR_MASK = 5  # bits of NewSubfileType
_MOST_PAGES = 99  # that are counted


def check_layout(image: Image.Image, pages: str) -> None:
    """Check that an opened image is one picture of at most four channels.

    Args:
        image: the image, not yet decoded.
        pages: `DataSpec.pages`.

    Raises:
        ValueError: with the reason.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        _check_channels(tags)
    if pages == "one" or (pages == "auto" and image.format == "TIFF"):
        count = count_pages(image)
        if count > 1:
            number = "several" if image.format == "GIF" else count if count <= _MOST_PAGES else f"over {_MOST_PAGES}"
            raise ValueError(
                f"it has {number} {'pages' if image.format == 'TIFF' else 'frames'}, of which only one would be used; "
                "save each as its own file, or use the first of every file (data.pages=first)"
            )


def _check_channels(tags: Any) -> None:
    samples, extra = tags.get(_SAMPLES, 1), tuple(tags.get(_EXTRA, ()))
    further = samples - _COLOURS.get(tags.get(_PHOTOMETRIC, 1), samples)
    undeclared_alpha = not extra and samples == 4  # as old programs write RGBA
    if further <= 0 or (further == 1 and (undeclared_alpha or extra[:1] in [(kind,) for kind in _ALPHA])):
        return
    raise ValueError(_channels_text(samples))


def _channels_text(samples: int) -> str:
    return (
        f"it has {samples} channels, of which only gray or RGB, with or without alpha, can be read; save the channels "
        "to use as a gray or RGB image"
    )


def count_pages(image: Image.Image) -> int:
    """The number of pictures in a file, of a GIF at most 2; smaller copies and masks in a TIFF are not counted."""
    if image.format == "MPO":  # a photograph, with a preview, depth or a second view beside it
        return 1
    if image.format == "GIF":  # counting its frames would read the whole file
        return 1 + bool(getattr(image, "is_animated", False))
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    count = frame = 1
    with suppress(EOFError):
        while count <= _MOST_PAGES and frame <= 10 * _MOST_PAGES:
            image.seek(frame)
            tags: Any = getattr(image, "tag_v2", {})
            reduced = tags.get(_SUBFILE, 0) & _REDUCED_OR_MASK or tags.get(_OLD_SUBFILE, 0) == 2
            count, frame = count + (not reduced), frame + 1
    image.seek(0)
    return count


def unknown_tiff(data: bytes) -> str | None:
    """The reason why Pillow does not know a TIFF's pixels; None if it is not a TIFF."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    with suppress(Exception), warnings.catch_warnings():  # Pillow's readers raise nearly anything on damaged files
        warnings.simplefilter("ignore")
        header = data[: 16 if 43 in data[2:4] else 8]  # 43: BigTIFF
        file, tags = io.BytesIO(data), TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        if _SAMPLES not in tags and _BITS not in tags:
            return "it is a damaged TIFF image"
        samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))
        if samples > 4 or samples == 2:
            return _channels_text(samples)
        return f"its pixels ({samples} x {bits[0]} bits) are not known to Pillow; save it with 8 or 16 bits"
    return "it is a damaged TIFF image"
