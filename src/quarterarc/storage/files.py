"""Writing files so that a reader, or the next run, never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import InputError

__all__ = ["check_writable", "make_folder", "read_json", "replace_file", "replace_folder", "write_json"]


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and see that it can be written to.

    Raises:
        InputError: if it cannot be made, or nothing can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the folder {path}: {error.strerror or error}") from None
    return path


def check_writable(file: Path) -> None:
    """Refuse a file that cannot be written, before hours are spent on what goes there; makes nothing."""
    if file.is_dir():
        raise InputError(
            f"cannot write to {file}: it is a folder; give the file itself, such as {file / 'result.json'}"
        )
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"cannot write {file}: {folder} is no folder that can be written to")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block it becomes `path` at once, or is removed on error.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        _to_disk(beside)
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill; at the end of the block it becomes `path` at once, or is removed on error.

    `path` itself must not exist.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for entry in beside.iterdir():
            _to_disk(entry)
        _to_disk(beside)
        os.rename(beside, path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs, in place of what was there."""
    with replace_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _to_disk(path: Path) -> None:
    """Have the kernel write a file or a folder's names out, so that a power cut cannot reorder it after a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
