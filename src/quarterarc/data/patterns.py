"""Files by a pattern with `*`, `?`, `[...]` and `**`, in bounded time also below `/proc` and with links in circles."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from ..common.errors import InputError

__all__ = ["MOST_VISITED", "matching_files"]

MOST_VISITED = 1_000_000
"""The largest number of files and folders that a pattern with `**` may visit."""


def matching_files(pattern: str) -> Iterator[Path]:
    """The files that match a pattern, in arbitrary order; `**` stands for any number of folders.

    As in `glob`, names that begin with a dot match only patterns that do. Links to folders are followed, once per
    folder.

    Raises:
        InputError: for a pattern with `**` that visits more than 1,000,000 files and folders.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(pattern))
        return
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    root, wanted = Path(*fixed), parts[len(fixed) :]
    hidden = any(part.startswith(".") for part in wanted)
    visited, seen = 0, set()
    for path, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        visited += len(files) + 1
        if visited > MOST_VISITED:
            raise InputError(
                f"the pattern {pattern} visits more than {MOST_VISITED:,} files: give a narrower one, such as "
                f"{root / 'FOLDER' / '*.parquet'}"
            )
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(path) / name
            if _matches(file.relative_to(root).parts, wanted):
                yield file


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a pattern, one name per part, and any number per `**`."""
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    name, part = names[0], parts[0]
    hidden = name.startswith(".") and not part.startswith(".")
    if part == "**":
        return _matches(names, parts[1:]) or (not hidden and _matches(names[1:], parts))
    return not hidden and fnmatchcase(name, part) and _matches(names[1:], parts[1:])
