"""Files in zip and tar archives, read in place: nothing is unpacked, and no path in an archive leads out of it.

Archives may come from anyone: the sizes that they claim are checked before memory is allocated for them.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..common.errors import InputError
from ..common.text import one_line, shortened
from ..storage.files import check_regular
from ..storage.npz import ZIP_ERRORS
from .decode import BadImage, too_large
from .trees import Tree

__all__ = ["ARCHIVES", "JoinedTree", "TarTree", "ZipTree", "open_archives"]

_RATIO, _FREE = 64, 2**24  # of compression: images hardly compress; a smaller entry may be compressed further


def open_archives(files: Sequence[Path], what: str | None = None) -> Tree:
    """The files in one or more archives, those of the same names included.

    Args:
        files: zip or tar files.
        what: their kind and place, for messages; that of the only one if None.

    Raises:
        InputError: for a file that is damaged, or no archive.
    """
    trees = [ARCHIVES[file.suffix.lower()](file) for file in files]
    return trees[0] if len(trees) == 1 and what is None else JoinedTree(trees, what or f"{trees[0].what} and others")


class _Archive:
    """What a single archive has in common with others: its files are named by its path and theirs."""

    def __init__(self, kind: str, path: Path) -> None:
        self.what, self.root = f"{kind} {path}", path
        self.names: Sequence[str] = ()

    def group(self, number: int) -> int:
        """0, the only archive."""
        return 0

    def shown(self, number: int) -> str:
        """The path of the archive and the name in it."""
        return f"{self.root}/{self.names[number]}"

    def paths(self, numbers: Sequence[int]) -> Sequence[Path]:
        """The archive."""
        return [self.root]


class ZipTree(_Archive):
    """The files in a zip archive, in the sorted order of their names.

    Args:
        path: the archive.

    Raises:
        InputError: if it cannot be read as a zip.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("zip", path)
        try:
            check_regular(path)
            self._archive = zipfile.ZipFile(path)
        except ZIP_ERRORS as error:
            raise _unreadable(self.what, error) from None
        files = [entry for entry in self._archive.infolist() if not entry.is_dir() and _is_shown(entry.filename)]
        # a link is stored as a file with the path that it leads to
        files = [entry for entry in files if not stat.S_ISLNK(entry.external_attr >> 16)]
        self._entries = sorted(files, key=lambda entry: _plain(entry.filename))
        self.names = [_plain(entry.filename) for entry in self._entries]
        self._time = path.stat().st_mtime_ns

    def size_and_time(self, number: int) -> tuple[int, int]:
        """The size of a file, and the modification time of the archive."""
        return self._entries[number].file_size, self._time

    def read(self, number: int, most: int) -> bytes:
        """The content of a file; see `Tree`."""
        entry, name = self._entries[number], self.shown(number)
        size, stored = entry.file_size, entry.compress_size
        if most and size > most:
            raise too_large(name, size, most)
        if size > max(_FREE, _RATIO * stored):
            raise BadImage(name, f"it has {size:,} bytes, but is compressed to {stored:,}, as images hardly are")
        if entry.flag_bits & 1:
            raise BadImage(name, "it is encrypted; save the archive without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage(name, f"it is compressed by method {entry.compress_type} of zip; save it with deflate")
        try:
            with self._archive.open(entry) as file:
                data = file.read(size)
                if len(data) < size or file.read(1):
                    raise ValueError(f"it does not have the {size:,} bytes that its header states")
        except MemoryError:
            raise InputError(f"out of memory while reading {name}: free memory") from None
        except ZIP_ERRORS as error:
            raise BadImage(name, shortened(one_line(error), 200)) from None
        return data


class TarTree(_Archive):
    """The regular files in an uncompressed tar archive, in the sorted order of their names.

    Args:
        path: the archive.

    Raises:
        InputError: if it cannot be read as a tar, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("tar", path)
        names: list[str] = []
        starts, sizes = array("q"), array("q")
        try:
            check_regular(path)
            with tarfile.open(path, "r:") as archive:
                for member in _members(archive, path):
                    if member.isreg() and not member.issparse() and _is_shown(member.name):
                        names.append(_plain(member.name))
                        starts.append(member.offset_data)
                        sizes.append(member.size)
        except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise _unreadable(self.what, error) from None
        order = sorted(range(len(names)), key=names.__getitem__)
        self.names = [names[place] for place in order]
        self._starts, self._sizes = np.asarray(starts)[order], np.asarray(sizes)[order]
        self._time = path.stat().st_mtime_ns

    def size_and_time(self, number: int) -> tuple[int, int]:
        """The size of a file, and the modification time of the archive."""
        return int(self._sizes[number]), self._time

    def read(self, number: int, most: int) -> bytes:
        """The content of a file; see `Tree`."""
        size, name = int(self._sizes[number]), self.shown(number)
        if most and size > most:
            raise too_large(name, size, most)
        try:
            with self.root.open("rb") as file:  # of its own, since several threads read at once
                file.seek(int(self._starts[number]))
                data = file.read(size)
        except OSError as error:
            raise BadImage(name, error.strerror or str(error)) from error
        if len(data) < size:
            raise BadImage(name, f"the archive ends within it, after {len(data):,} of {size:,} bytes; copy it again")
        return data


class JoinedTree:
    """The files of several archives, one after the other: the shards of a data set.

    Args:
        trees: the archives.
        what: kind and place, for messages.
    """

    def __init__(self, trees: Sequence[Tree], what: str) -> None:
        self.what, self.root, self._trees = what, trees[0].root.parent, trees
        self._firsts = np.cumsum([0, *(len(tree.names) for tree in trees)])
        self.names: Sequence[str] = [name for tree in trees for name in tree.names]

    def group(self, number: int) -> int:
        """The number of the archive that contains a file."""
        return int(np.searchsorted(self._firsts, number, side="right")) - 1

    def shown(self, number: int) -> str:
        """The path of the archive and the name in it."""
        tree, place = self._at(number)
        return tree.shown(place)

    def size_and_time(self, number: int) -> tuple[int, int]:
        """The size of a file, and the modification time of its archive."""
        tree, place = self._at(number)
        return tree.size_and_time(place)

    def read(self, number: int, most: int) -> bytes:
        """The content of a file; see `Tree`."""
        tree, place = self._at(number)
        return tree.read(place, most)

    def paths(self, numbers: Sequence[int]) -> Sequence[Path]:
        """The archives."""
        return [tree.root for tree in self._trees]

    def _at(self, number: int) -> tuple[Tree, int]:
        group = self.group(number)
        return self._trees[group], number - int(self._firsts[group])


ARCHIVES: dict[str, Callable[[Path], Tree]] = {".zip": ZipTree, ".tar": TarTree}
"""The archives by the ending of their names."""


def _members(archive: tarfile.TarFile, path: Path) -> Iterable[tarfile.TarInfo]:
    """The members of a tar; an archive that is damaged or truncated is an error."""
    last, size = -1, path.stat().st_size
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # of millions of files the list takes gigabytes
        if member.offset <= last or member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
            raise InputError(f"cannot read tar {path}: it is damaged at byte {member.offset:,}; copy it again")
        last = member.offset
        yield member
    # reading stops at a damaged header as at the zeros that end an archive
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise InputError(f"cannot read tar {path}: it is damaged at byte {archive.offset:,}; copy it again")


def _plain(name: str) -> str:
    """A name with forward slashes, and without `./` in front."""
    return name.replace("\\", "/").removeprefix("./")


def _is_shown(name: str) -> bool:
    """Whether no part of a name begins with a dot, and it is not of the resource forks that macOS adds to a zip."""
    parts = _plain(name).split("/")
    return not any(part.startswith(".") for part in parts) and parts[0] != "__MACOSX"


def _unreadable(what: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or shortened(one_line(error), 200)
    return InputError(f"cannot read {what}: {reason}; is it complete?")
