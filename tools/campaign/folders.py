"""Folders: what two results are compared by, and what must hold in a folder at any moment."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["broken", "differences", "files_below", "snapshot"]

TIMES = ("images_per_second", "seconds", "duration", "started", "finished", "checksum")
"""Keys and columns that hold times, which differ from run to run, and the checksum of a file that has them."""

PAGE = "index.html"
"""The page of a run, which is full of times and rates: it must be there and complete."""


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in sorted order, without locks and TensorBoard's events."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock") and "tensorboard" not in path.parts:
            yield path


def snapshot(folder: Path) -> dict[str, Any]:
    """The content of every file by its relative path: numbers without times where known, otherwise a hash."""
    return {str(path.relative_to(folder)): _content(path) for path in files_below(folder)}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The files that differ between two snapshots, in words."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - expected.keys()]
    both = expected.keys() & found.keys()
    lines += [f"{name} differs{_where(expected[name], found[name])}" for name in both if expected[name] != found[name]]
    return sorted(lines)


def broken(folder: Path) -> list[str]:
    """The files under their final names that cannot be read, in words: none may ever be half written."""
    lines = []
    for path in files_below(folder):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue  # not finished yet
        try:
            _read(path)
        except Exception as error:  # any error of any reader means the same
            lines.append(f"{path.relative_to(folder)} is broken: {type(error).__name__}: {error}")
    return lines


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the last line is cut off when read
        for line in whole.splitlines():
            json.loads(line)
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    elif path.suffix == ".yaml":
        import yaml

        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    elif path.suffix in (".md", ".html", ".csv", ".svg"):
        assert path.read_text(encoding="utf-8").rstrip()


def _content(path: Path) -> Any:
    data = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _without_times(json.loads(data))
        if path.suffix == ".jsonl":
            return [_without_times(json.loads(line)) for line in data.decode().splitlines()]
    except ValueError:
        return "not JSON"
    if path.name == PAGE:
        return data.rstrip().endswith(b"</html>")
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(data.decode()))
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in rows]
    return hashlib.sha256(data).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def _where(expected: Any, found: Any, path: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in [*expected, *(found.keys() - expected.keys())]:
            if expected.get(name) != found.get(name):
                return _where(expected.get(name), found.get(name), f"{path}.{name}")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one != other:
                return _where(one, other, f"{path}[{place}]")
    return f" at {path.lstrip('.')}: {str(expected)[:80]} became {str(found)[:80]}" if path else ""
