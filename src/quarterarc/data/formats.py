"""The formats of image files that are read, and what other files are, for messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import PurePath

from ..common.text import counted

__all__ = ["ENDINGS", "FORMATS", "counted_by_ending", "not_an_image", "why_not"]

FORMATS = (
    "PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000",
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),
)  # fmt: skip
"""The names of the formats in Pillow; PPM includes PGM and PBM, and AVIF needs Pillow 11.3."""
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".j2k", ".avif",
)  # fmt: skip
"""The endings of the files of a folder that are images. The content decides which format a file has."""

_OTHERS = (
    (rb".{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "a HEIC image, which is not read; convert it to JPEG or PNG"),
    (rb"\xff\xd8\xff", "a damaged JPEG image"),
    (rb"\x89PNG", "a damaged PNG image"),
    (rb"GIF8", "a damaged GIF image"),
    (rb"RIFF.{4}WEBP", "a damaged WebP image"),
    (rb".{4}ftypavi[fs]", "a damaged AVIF image, or Pillow was built without AVIF"),
    (rb".{4}ftyp", "a video or another media file"),
    (rb"version https://git-lfs", "a pointer of Git LFS; download the file itself (git lfs pull)"),
    (rb"\s*<(\?xml[^<]*<)?svg", "an SVG drawing, which is not read; convert it to PNG"),
    (rb"\s*<", "an HTML or XML page, such as a failed download"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "compressed by gzip"),
    (rb"%PDF", "a PDF document"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"8BPS", "a Photoshop document, which is not read; export it as PNG or TIFF"),
    (rb"\0+$", "filled with zeros"),
)
"""What begins with these bytes."""


def not_an_image(data: bytes) -> str:
    """The reason why a file is not used: what it is instead of an image."""
    kind = next((kind for start, kind in _OTHERS if re.match(start, data[:512], re.DOTALL)), None)
    return f"it is {kind}" if kind else f"it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"


def why_not(file: str) -> str:
    """The reason why a file is passed over, by its ending."""
    ending = PurePath(file).suffix.lower()
    reason = _PASSED_OVER.get(ending)
    return reason or f"{ending or 'a name without an ending'} is not the ending of an image"


_PASSED_OVER = {
    **dict.fromkeys((".heic", ".heif"), "HEIC is not read: convert it to JPEG or PNG"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"),
        "raw files of cameras are not read: convert it to TIFF or JPEG",
    ),
    **dict.fromkeys((".mov", ".mp4", ".avi", ".mkv", ".webm"), "videos are not read: save frames as images"),
    **dict.fromkeys((".svg", ".pdf", ".psd", ".ai", ".eps"), "documents and drawings are not read: export it as PNG"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z", ".rar"), "an archive beside images: give it as a source of its own"),
}


def counted_by_ending(files: Iterable[str], most: int = 6) -> str:
    """Files that are not used, counted by ending: "2 .txt, 1 .heic, 1 without an ending"; empty without files."""
    counts = Counter(PurePath(file).suffix.lower() or "without an ending" for file in files)
    parts = [f"{count:,} {ending}" for ending, count in counts.most_common(most)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(most))
    return ", ".join([*parts, *([f"{counted(rest, 'other')}"] if rest else [])])
