"""The structure of an encoded image, checked before a decoder that it could occupy for minutes sees it.

The number of pixels bounds the memory of a decoder, but not its time: a JPEG may have a scan per ten bytes, a PNG a
chunk per twelve, a TIFF a strip per four or tags that all share one large value. What is checked here is far beyond
what programs write, and takes less than a millisecond for usual images.
"""

from __future__ import annotations

import re
import struct

__all__ = ["MOST_SCANS", "BadStructure", "check_structure", "count_scans"]

MOST_SCANS = 100  # of a progressive JPEG; programs write about ten
_MOST_PARTS, _PART = 10_000, 256  # parts of a file; beyond that number they have this many bytes each on average
_MOST_JUNK = 2**16  # bytes between the segments of a JPEG
_MOST_SLOW = 2**24  # bytes of formats that Pillow decodes in Python: plain PPM and BMP with run lengths
_TYPES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of a value of each type of TIFF


class BadStructure(ValueError):
    """An image that would take far longer to decode than its pixels explain."""


def check_structure(data: bytes) -> None:
    """Raise a BadStructure for an image that would take far longer to decode than its pixels explain.

    Args:
        data: the encoded image; a damaged one passes, because its decoder reports it.
    """
    if data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff(data)
    elif len(data) > _MOST_SLOW and (data[:2] in (b"P1", b"P2", b"P3") or _has_run_lengths(data)):
        raise BadStructure(f"it has {len(data):,} bytes of a format that is slow to decode; save it as PNG")


def count_scans(data: bytes) -> int:
    """The number of scans of a JPEG; in its pixels, the marker of a scan does not occur."""
    return data.count(b"\xff\xda")


def _check_jpeg(data: bytes) -> None:
    if (scans := count_scans(data)) > MOST_SCANS:
        raise BadStructure(f"it is a JPEG of {scans:,} scans, more than {MOST_SCANS}; save it again")
    place, junk, segments = 2, 0, 0
    while marker := _MARKER.match(data, place):
        junk, segments = junk + len(marker[0]) - 2, segments + 1
        if junk > _MOST_JUNK or segments > _MOST_PARTS:
            raise BadStructure("it is a JPEG of many small segments, or of bytes that belong to none; save it again")
        kind, place = marker[0][-1], marker.end()
        if kind == 0xDA:
            return
        if kind != 0x01 and not 0xD0 <= kind <= 0xD9:  # those have no content
            place += max(int.from_bytes(data[place : place + 2], "big"), 2)
    if len(data) - place > _MOST_JUNK:
        raise BadStructure("it is a JPEG without pixels")


_MARKER = re.compile(rb"[^\xff]*\xff+[^\xff]", re.DOTALL)


def _check_png(data: bytes) -> None:
    place, chunks = 8, 0
    while place < len(data):
        if data[place + 4 : place + 8] == b"IEND":
            return
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        chunks += 1
        if chunks > _MOST_PARTS + place // _PART:
            raise BadStructure(f"it is a PNG of more than {chunks:,} small chunks; save it again")


def _check_tiff(data: bytes) -> None:
    """The first directory of a TIFF: the sizes of its values, and the number of its strips or tiles."""
    order, large = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    offset, count, entry = ("Q", "Q", "HHQ8x") if large else ("I", "H", "HHI4x")
    try:
        (place,) = struct.unpack_from(order + offset, data, 8 if large else 4)
        (entries,) = struct.unpack_from(order + count, data, place)
        start = place + struct.calcsize(order + count)
        layout = struct.Struct(order + entry)
        values = data[start : start + min(entries, 2**16) * layout.size]
        tags = list(layout.iter_unpack(values[: len(values) // layout.size * layout.size]))
    except struct.error:
        return
    claimed = sum(_TYPES[kind] * number for _, kind, number in tags if kind < len(_TYPES) and number <= len(data))
    if claimed > 4 * len(data) + 2**16:
        raise BadStructure(f"it is a TIFF whose tags have {claimed:,} bytes in a file of {len(data):,}; save it again")
    strips = max((number for tag, _, number in tags if tag in _STRIPS), default=0)
    if strips > _MOST_PARTS + len(data) // _PART:
        raise BadStructure(f"it is a TIFF of {strips:,} strips or tiles in {len(data):,} bytes; save it again")


_STRIPS = (273, 324)  # the tags of the offsets of strips and tiles


def _has_run_lengths(data: bytes) -> bool:
    """Whether it is a BMP with the compression RLE8 or RLE4."""
    return data[:2] == b"BM" and int.from_bytes(data[30:34], "little") in (1, 2)
