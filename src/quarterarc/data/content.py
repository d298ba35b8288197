"""A hash of the content of files, by which a resumed run notices images that were replaced under the same names.

Up to 4 GiB are read as a whole. Of larger data every k-th MiB is read, so that the cost stays bounded: replacing all
images is noticed with certainty, replacing one of them with the probability 1/k.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..storage.files import check_regular

__all__ = ["content_of"]

_PART, _MOST = 2**20, 2**32


def content_of(files: Iterable[Path]) -> str:
    """32 hexadecimal digits of the SHA-256 of the content of files in their order; independent of names and times."""
    files = list(files)
    sizes = [_size(file) for file in files]
    every = max(1, math.ceil(sum(sizes) / _MOST))
    content, part = hashlib.sha256(), 0
    for file, size in zip(files, sizes, strict=True):
        content.update(f"{size} ".encode())
        parts = range(math.ceil(size / _PART))
        chosen = [place for place in parts if (part + place) % every == 0]
        part += len(parts)
        if chosen:
            _add(content, file, chosen)
    return content.hexdigest()[:32]


def _add(content: Any, file: Path, parts: Iterable[int]) -> None:
    try:
        with file.open("rb") as opened:
            for place in parts:
                opened.seek(place * _PART)
                content.update(opened.read(_PART))
    except OSError as error:  # reading the image raises the error that names it
        content.update(type(error).__name__.encode())


def _size(file: Path) -> int:
    """The size of a regular file; 0 for one that is missing, a FIFO or a device, which are not opened."""
    try:
        return check_regular(file).st_size
    except OSError:
        return 0
