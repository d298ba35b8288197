"""Reading the keys and values of an LMDB file, with every page checked.

The library `lmdb` maps the file into memory and trusts its pages, so that a damaged page or a truncated file ends the
process by a signal, which no program can handle. Here pages are read as bytes, and each number in them is checked
before it is used: a damaged file is an error, whatever it contains. Nothing is written, not even a lock file.

The format is that of LMDB 0.9 (`MDB_DATA_VERSION` 1, all releases since 2012) on 64-bit little-endian machines, see
https://github.com/LMDB/lmdb/blob/LMDB_0.9.33/libraries/liblmdb/mdb.c. A file is a B+ tree of pages: branch pages
contain page numbers, leaf pages contain keys with their values, and large values have overflow pages of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..storage.files import check_regular

__all__ = ["DamagedLmdb", "Entry", "LmdbFile"]

_HEADER = struct.Struct("<QHHHH")  # page number, -, flags, end of the node offsets, start of the nodes
_OVERFLOW = struct.Struct("<QHHI")  # page number, -, flags, number of pages
_NODE = struct.Struct("<HHHH")  # low and high half of a size or page number, flags, size of the key
_META = struct.Struct("<IIQQ")  # magic number, version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, branch, leaf and overflow pages, entries, root page
_LAST = struct.Struct("<QQ")  # last page, transaction
_BRANCH, _LEAF, _LARGE = 1, 2, 4  # flags of pages
_ON_PAGES, _SUBTREE, _DUPLICATES = 1, 2, 4  # flags of nodes
_MAGIC, _VERSION, _NO_PAGE = 0xBEEFC0DE, 1, 2**64 - 1
_PAGE_SIZES = [2**power for power in range(9, 17)]
_DEEPEST = 32  # LMDB's own limit


class DamagedLmdb(ValueError):
    """A file that is no LMDB, is damaged or truncated, or uses features that image sets do not have."""


class Entry(NamedTuple):
    """A key, and the place of its value: `size` bytes from byte `start` of the file."""

    key: bytes
    start: int
    size: int


class LmdbFile:
    """The main database of an LMDB file.

    Args:
        path: the file, usually `data.mdb`.

    Raises:
        DamagedLmdb: if it is not an LMDB file of the format above.
        OSError: if it cannot be read, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = check_regular(path).st_size
        with path.open("rb") as file:
            first = file.read(_PAGE_SIZES[0])
            self._page = self._meta(first)[0]
            file.seek(self._page)
            metas = [self._meta(first), self._meta(file.read(_PAGE_SIZES[0]))]
        # of two states of the database, the newer one
        self._page, self._flags, self._depth, self._count, self._root, self._last, _ = max(metas, key=lambda m: m[-1])
        if self._flags & _DUPLICATES:
            raise DamagedLmdb("several values per key are not supported")

    def _meta(self, data: bytes) -> tuple[int, int, int, int, int, int, int]:
        """Page size, flags, depth, entries, root page, last page and transaction of a meta page."""
        if len(data) < _PAGE_SIZES[0]:
            raise DamagedLmdb(f"it has {self._size:,} bytes, which is no LMDB file")
        magic, version, *_ = _META.unpack_from(data, 16)
        if magic != _MAGIC:
            raise DamagedLmdb("it is no LMDB file")
        if version != _VERSION:
            raise DamagedLmdb(f"it has version {version} of the format; {_VERSION} is supported")
        page, *_ = _TREE.unpack_from(data, 40)
        _, flags, depth, *_, entries, root = _TREE.unpack_from(data, 88)
        last, transaction = _LAST.unpack_from(data, 136)
        if page not in _PAGE_SIZES:
            raise DamagedLmdb(f"its pages of {page:,} bytes have no size of LMDB")
        return page, flags, depth, entries, root, last, transaction

    def entries(self) -> Iterator[Entry]:
        """All keys in order, with the places of their values. Reads the pages of keys, but no values on own pages.

        Raises:
            DamagedLmdb: at the first page that contradicts the format.
            OSError: if the file cannot be read.
        """
        count, before, seen = 0, None, set()
        with self._path.open("rb") as file:
            pages = [
                iter([self._root] if self._root != _NO_PAGE else [])
            ]  # of each level of the tree, those that are not read yet
            while pages:
                number = next(pages[-1], None)
                if number is None:
                    pages.pop()
                    continue
                if number in seen or len(pages) > min(self._depth, _DEEPEST):
                    raise DamagedLmdb(f"its page {number} is a child of two pages, or lies too deep")
                seen.add(number)
                file.seek(self._start(number, self._page))
                page = file.read(self._page)
                if len(pages) < self._depth:
                    pages.append(iter(self._children(number, page)))
                    continue
                for entry in self._leaf(number, page):
                    # in the order of bytes, unless the database has another one
                    if before is not None and not self._flags and entry.key <= before:
                        raise DamagedLmdb(f"the keys of its page {number} are not in order")
                    before, count = entry.key, count + 1
                    yield entry
        if count != self._count:
            raise DamagedLmdb(f"it has {count:,} of {self._count:,} entries")

    def read(self, start: int, size: int) -> bytes:
        """The value of an entry.

        Raises:
            DamagedLmdb: if the page of the value contradicts the format, or the file has become shorter.
            OSError: if the file cannot be read.
        """
        with self._path.open("rb") as file:
            if start % self._page == _OVERFLOW.size:  # on its own pages, since no value in a leaf begins there
                number = start // self._page
                file.seek(start - _OVERFLOW.size)
                head = file.read(_OVERFLOW.size)
                if len(head) < _OVERFLOW.size:
                    raise DamagedLmdb("the file has become shorter")
                own, _, flags, pages = _OVERFLOW.unpack(head)
                if (own, flags) != (number, _LARGE) or _OVERFLOW.size + size > pages * self._page:
                    raise DamagedLmdb(f"its page {number} is damaged")
            else:
                file.seek(start)
            value = file.read(size)
        if len(value) < size:
            raise DamagedLmdb("the file has become shorter")
        return value

    def _start(self, number: int, size: int) -> int:
        """The byte at which a page begins, from which `size` bytes lie in the file."""
        if number > self._last:
            raise DamagedLmdb(f"it names page {number:,} of {self._last + 1:,}")
        if number * self._page + size > self._size:
            raise DamagedLmdb(f"it is truncated: it has {self._size:,} of {(self._last + 1) * self._page:,} bytes")
        return number * self._page

    def _nodes(self, number: int, page: bytes, kind: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Low, high, flags, size and start of the key of each node of a page."""
        own, _, flags, low, high = _HEADER.unpack_from(page)
        if (own, flags) != (number, kind) or low % 2 or not _HEADER.size < low <= high <= len(page):
            raise DamagedLmdb(f"its page {number} is damaged")
        for (offset,) in struct.iter_unpack("<H", page[_HEADER.size : low]):
            if not high <= offset <= len(page) - _NODE.size:
                raise DamagedLmdb(f"its page {number} is damaged")
            *node, size = _NODE.unpack_from(page, offset)
            if offset + _NODE.size + size > len(page):
                raise DamagedLmdb(f"its page {number} is damaged")
            yield node[0], node[1], node[2], size, offset + _NODE.size

    def _children(self, number: int, page: bytes) -> list[int]:
        """The page numbers of a branch page."""
        return [low | high << 16 | flags << 32 for low, high, flags, _, _ in self._nodes(number, page, _BRANCH)]

    def _leaf(self, number: int, page: bytes) -> Iterator[Entry]:
        for low, high, flags, length, start in self._nodes(number, page, _LEAF):
            key, size, place = page[start : start + length], low | high << 16, start + length
            if flags & ~_ON_PAGES:
                what = "named databases are" if flags & _SUBTREE else "several values per key are"
                raise DamagedLmdb(f"{what} not supported (page {number})")
            if flags & _ON_PAGES:
                if place + 8 > len(page):
                    raise DamagedLmdb(f"its page {number} is damaged")
                (other,) = struct.unpack_from("<Q", page, place)
                yield Entry(key, self._start(other, _OVERFLOW.size + size) + _OVERFLOW.size, size)
            elif place + size > len(page):
                raise DamagedLmdb(f"its page {number} is damaged")
            else:
                yield Entry(key, number * self._page + place, size)
