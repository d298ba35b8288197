"""Atomic writes: a file or folder appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from .temporary import sweep_beside, temporary

__all__ = [
    "check_regular",
    "check_writable",
    "flush",
    "make_folder",
    "parse_json",
    "read_json",
    "read_regular",
    "read_text",
    "replace_file",
    "replace_folder",
    "write_json",
]

_WINDOWS = os.name == "nt"


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and check that it is writable.

    Raises:
        InputError: if it cannot be created, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # without a name, where the system has such files
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {path}: {error.strerror or error}") from None
    return path


def check_writable(file: Path) -> None:
    """Raise an InputError if a file cannot be written, before long work for it begins. Creates nothing."""
    if file.is_dir():
        raise InputError(f"cannot write to {file}: it is a folder; give a file, such as {file / 'result.json'}")
    if file.exists() and not file.is_file():  # a FIFO or a device, which would be replaced
        raise InputError(f"cannot write to {file}: it is not a regular file; give the path of a file")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"cannot write {file}: {folder} is not a writable folder")


@contextmanager
def replace_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` at the end of the block, or removed on an error.

    A new file has the permissions of the umask; a replaced one keeps its own.

    Args:
        path: the file to write or replace.
        durable: flush to disk before the rename, so that a power failure cannot leave an empty file. False saves time
            for files that are cheap to write again.

    Raises:
        OSError: naming `path`, if it cannot be written, or is a FIFO, a device or a socket, which a file would replace.
    """
    if path.exists() and not path.is_dir():  # of a folder the system has an error of its own
        check_regular(path)
    beside = temporary(path)
    if durable:
        sweep_beside(path)
    try:
        yield beside
        with suppress(OSError):  # there is none yet, or a file system without permissions
            shutil.copymode(path, beside)
        if durable:
            flush(beside)
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` at the end of the block, or removed on an error.

    The files in it are flushed to disk before the rename. `path` itself must not exist.
    """
    beside = temporary(path)
    sweep_beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for entry in beside.iterdir():
            flush(entry)
        flush(beside)
        os.rename(beside, path)
        flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file.

    Raises:
        OSError: if it is missing, a folder, or a FIFO, device or socket: opening these may wait without an end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return status


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_regular(path: str | Path, most: int = 0) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: the largest size in bytes; 0 for no limit.

    Raises:
        OSError: as for `check_regular`, and for a larger file.
    """
    check_regular(path)
    # Not blocking, and checked again: the file may have been replaced by a FIFO.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if most and status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {most:,}", str(path))
        return file.read(most + 1 if most else -1)


def write_json(path: Path, value: Any) -> None:
    """Write a value of JSON types, indented, replacing the file."""
    with replace_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, most: int = 2**26) -> Any:
    """The value of a JSON file of at most `most` bytes.

    Raises:
        InputError: if the file is missing, too large or not JSON.
    """
    try:
        return parse_json(read_text(path, most))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON: {error}") from None


def read_text(path: Path, most: int) -> str:
    """The content of a regular file of UTF-8 text of at most `most` bytes.

    Raises:
        InputError: if the file is missing, too large, a FIFO, a device or a socket, or not text.
    """
    try:
        return read_regular(path, most).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start:,}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is not JSON, is nested too deep, or has a whole number of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > 2**63:  # neither an array nor a float may be able to hold it
        raise ValueError(f"the number {digits[:20]}... is too large")
    return int(digits)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk: a rename may otherwise reach the disk before the content."""
    if _WINDOWS and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)  # there, fsync fails if it cannot write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
