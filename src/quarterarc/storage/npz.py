"""Arrays in npz files.

Those that are read come from anyone: what an entry claims is checked before memory is allocated for it. Those that are
written need not fit into memory.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.errors import InputError
from ..common.text import one_line, shortened
from .files import replace_file

__all__ = ["ZIP_ERRORS", "Header", "Npz", "Rows", "write_npz"]

_MOST_ENTRIES = 1_000
_RATIO = 16  # of compression; numbers hardly compress
_DEFLATE = 1032  # the largest ratio of deflate
ZIP_ERRORS = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `zipfile` and NumPy raise on damaged files; NotImplementedError, of versions of zip, is a RuntimeError."""


class Header(NamedTuple):
    """Shape, order and type of an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


class Npz:
    """An npz file.

    Args:
        path: a regular file.

    Attributes:
        names: the names of its arrays.

    Raises:
        InputError: if it is not a zip archive, or has more than 1,000 entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
        except ZIP_ERRORS as error:
            reason = shortened(one_line(error), 200)
            raise InputError(f"{path} is not an npz file ({reason}); a pickle is never loaded") from None
        if len(self._entries) > _MOST_ENTRIES:
            raise InputError(f"{path} has {len(self._entries):,} entries; an npz of images or statistics has a few")
        self.names = tuple(name.removesuffix(".npy") for name in self._entries if name.endswith(".npy"))

    def entry(self, name: str) -> zipfile.ZipInfo:
        """The entry of an array, whose CRC and size identify its content."""
        return self._entries[f"{name}.npy"]

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Header, IO[bytes]]]:
        """The header of an array and its bytes, which are read in the block.

        Raises:
            InputError: for an entry that is damaged, encrypted, compressed in another way than NumPy does, holds
                Python objects, or claims more bytes than it can have; and for damage found in the block.
        """
        entry = self.entry(name)
        if entry.flag_bits & 1:
            raise InputError(f"{self.path} is encrypted: save it without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{self.path}: its {name} is compressed by method {entry.compress_type} of zip, which NumPy does not "
                "write: save it by numpy.savez_compressed"
            )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as file:
                yield self._header(name, file), file
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"out of memory while reading {name} in {self.path}: free memory") from None
        except ZIP_ERRORS as error:
            reason = shortened(one_line(error), 200)
            raise InputError(f"{self.path} is damaged ({reason}): copy it again") from None

    def read(self, name: str, free: int = 2**28) -> NDArray[Any]:
        """An array. One of more than `free` bytes is an error if it is compressed more than 16 times.

        Raises:
            InputError: as for `opened`.
        """
        with self.opened(name) as (header, file):
            size = math.prod(header.shape) * header.dtype.itemsize
            stored = self.entry(name).compress_size
            if size > max(free, _RATIO * stored):
                raise InputError(
                    f"{self.path}: its {name} of shape {header.shape} takes {size:,} bytes, but is compressed to "
                    f"{stored:,}, as numbers hardly are: save it by numpy.savez"
                )
            data = file.read(size)
            if len(data) < size or file.read(1):
                raise InputError(f"{self.path} is damaged: its {name} has not the {size:,} bytes of its shape")
        order = "F" if header.fortran else "C"
        return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)  # type: ignore[call-overload]

    def _header(self, name: str, file: IO[bytes]) -> Header:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            header = Header(*read(file))
        except (ValueError, OSError, EOFError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{self.path} is damaged: its {name} is not an array ({shortened(one_line(error), 200)})"
            ) from None
        if header.dtype.hasobject:
            raise InputError(
                f"{self.path}: its {name} holds a pickle, which is never loaded: save arrays of numbers; images are "
                "uint8 (N, H, W, C)"
            )
        if not header.dtype.itemsize:
            raise InputError(
                f"{self.path}: its {name} has elements of 0 bytes ({header.dtype}): save arrays of numbers"
            )
        size = math.prod(header.shape) * header.dtype.itemsize
        entry = self.entry(name)
        stored = min(entry.file_size, _DEFLATE * entry.compress_size + len(header.shape), _DEFLATE * self._size())
        if min(header.shape, default=0) < 0 or size > stored:
            raise InputError(
                f"{self.path} is damaged: its {name} of shape {header.shape} takes {size:,} bytes, of which it has "
                f"{stored:,}"
            )
        return header

    def _size(self) -> int:
        return self.path.stat().st_size


class Rows(NamedTuple):
    """An array that is written part by part.

    Attributes:
        shape: the shape of the whole.
        dtype: its type, which is that of the parts.
        parts: arrays that follow each other along the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Iterable[NDArray[Any]]


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any] | Rows], durable: bool = True) -> None:
    """Write arrays of numbers or text to an npz, not compressed, replacing the file; equal arrays give equal bytes.

    Args:
        path: the file; it appears when it is complete.
        arrays: the arrays by name.
        durable: as for `replace_file`.

    Raises:
        OSError: if it cannot be written.
    """
    with replace_file(path, durable) as beside, zipfile.ZipFile(beside, "w") as archive:
        for name, array in arrays.items():
            rows = array if isinstance(array, Rows) else Rows(array.shape, array.dtype, [array])
            header = {
                "descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": rows.shape
            }  # fmt: skip
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in rows.parts:
                    file.write(np.ascontiguousarray(part).data.cast("B") if part.size else b"")
