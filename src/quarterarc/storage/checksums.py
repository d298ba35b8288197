"""Checksums of the files of a checkpoint, stored when they are written and compared when they are read.

config.json holds the SHA-256 of the other files (`checksums`), and it and tuned.json their own (`checksum`). Files of
version 0.1 have none and are read without the comparison.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from .files import read_json, write_json

__all__ = ["OF_FILES", "DamagedFile", "checksums_of", "read_sealed", "sha256", "verify", "write_sealed"]

OF_FILES, OWN = "checksums", "checksum"


class DamagedFile(InputError):
    """A file of a checkpoint cannot be read, or its content is not what was written."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(folder: Path) -> dict[str, dict[str, str]]:
    """The entry of config.json with the checksums of the files in a folder."""
    return {OF_FILES: {path.name: sha256(path) for path in sorted(folder.iterdir())}}


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own checksum."""
    write_json(path, {**value, OWN: _own(value)})


def read_sealed(path: Path) -> Any:
    """The value of a JSON file, without its checksum if it has one.

    Raises:
        DamagedFile: if it is missing, is not JSON, or does not match its checksum.
    """
    try:
        value = read_json(path)
    except InputError as error:
        raise DamagedFile(str(error)) from None
    if isinstance(value, dict) and OWN in value and value.pop(OWN) != _own(value):
        raise _damaged(path)
    return value


def verify(path: Path, config: Mapping[str, Any]) -> None:
    """Compare a file with its checksum in the config.json beside it, if it has one.

    Raises:
        DamagedFile: if they differ, or the file cannot be read.
    """
    sums = config.get(OF_FILES)
    if not isinstance(sums, dict) or path.name not in sums:
        return
    try:
        same = sha256(path) == sums[path.name]
    except OSError as error:
        raise DamagedFile(f"cannot read {path}: {error.strerror or error}") from None
    if not same:
        raise _damaged(path)


def _own(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it is read back: with lists in place of tuples
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> DamagedFile:
    entries = f'"{OWN}"' if path.suffix == ".json" else f'"{OWN}" and "{OF_FILES}" in config.json'
    return DamagedFile(
        f"{path} is damaged: its SHA-256 is not that of what was written: restore it from a copy, or use another "
        f"checkpoint (if you changed it on purpose, remove the entry {entries})"
    )
