"""Files by relative name (`Tree`): those of a folder. `archives` has those in zip and tar files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..common.errors import InputError
from .decode import read_file

__all__ = ["FolderTree", "Tree", "files_under", "size_and_time"]


class Tree(Protocol):
    """Files by number, in a fixed order; they are read from several threads at once."""

    what: str
    """Kind and place, for messages: `folder cats`."""
    root: Path
    """The folder or archive, for messages and identities."""
    names: Sequence[str]
    """The relative names of all files, with forward slashes, without hidden ones."""

    def group(self, number: int) -> int:
        """The number of the archive that contains a file; files of different ones may have the same name."""
        ...

    def shown(self, number: int) -> str:
        """The name of a file in messages."""
        ...

    def size_and_time(self, number: int) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds; -1 for a missing file."""
        ...

    def read(self, number: int, most: int) -> bytes:
        """The content of a file of at most `most` bytes.

        Raises:
            BadImage: if it is larger, or cannot be read.
        """
        ...

    def paths(self, numbers: Sequence[int]) -> Sequence[Path]:
        """The files on disk that contain these files."""
        ...


class FolderTree:
    """The files under a folder, recursively, in the sorted order of their relative paths.

    Names that begin with a dot are left out. Links to folders are followed, once per folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.what, self.root = f"folder {folder}", folder
        self.names: Sequence[str] = sorted(files_under(folder, ("",)))

    def group(self, number: int) -> int:
        """0, since a folder is no archive."""
        return 0

    def shown(self, number: int) -> str:
        """The path of a file."""
        return str(self.root / self.names[number])

    def size_and_time(self, number: int) -> tuple[int, int]:
        """Size and modification time of a file."""
        return size_and_time(self.root / self.names[number])

    def read(self, number: int, most: int) -> bytes:
        """The content of a file; see `Tree`."""
        name = self.shown(number)
        return read_file(name, name, most)

    def paths(self, numbers: Sequence[int]) -> Sequence[Path]:
        """The files themselves."""
        return [self.root / self.names[number] for number in numbers]


def size_and_time(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds; -1 for a missing file."""
    try:
        stat = file.stat()
    except OSError:  # a broken link: reading it raises the error that names it
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def files_under(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """The relative paths, with forward slashes and in arbitrary order, of the files with one of the endings.

    Raises:
        InputError: for a folder without read permission, which must not count as empty.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(path)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(endings) and not name.startswith("."):
                yield (Path(path) / name).relative_to(folder).as_posix()
