"""Splits of a data set, train, val and test, by the names of folders, files and arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.errors import InputError
from .spec import DataSpec

__all__ = ["SPLIT_OF", "by_word", "check_no_split", "files_of_split", "split_of_folder", "words_of"]

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
"""The split that a usual name stands for."""


def check_no_split(spec: DataSpec, what: str) -> None:
    """Raise an InputError if a split is set for a source without splits, where it would have no effect."""
    if spec.split != "train":
        raise InputError(f"{what} has no split '{spec.split}'; give the files of that split themselves as the source")


def words_of(name: str) -> set[str]:
    """The words of a name in lower case: `train`, `00000` and `parquet` of `train-00000.parquet`."""
    return set(re.findall(r"[^\W_]+", name.lower()))


def by_word(names: Iterable[str], split: str) -> tuple[list[str], list[str]]:
    """The names with the split as a word, or else with another usual name of it; and the names without any split."""
    words = {name: words_of(name) for name in names}
    chosen = [name for name, parts in words.items() if split.lower() in parts]
    if not chosen:
        wanted = SPLIT_OF.get(split.lower())
        chosen = [name for name, parts in words.items() if wanted and any(SPLIT_OF.get(p) == wanted for p in parts)]
    return chosen, [name for name, parts in words.items() if not parts & SPLIT_OF.keys()]


def files_of_split(folder: Path, files: Iterable[str], split: str) -> list[Path]:
    """The files of a folder (relative paths), tables or archives, that belong to a split, sorted.

    As on the hub, a file belongs to the split whose name is a word of its path: `data/train-00000-of-00002.parquet`. If
    no path contains the name of a split, all files belong to `train`.

    Raises:
        InputError: if no file belongs to the split.
    """
    names = sorted(files)
    chosen, others = by_word(names, split)
    if not chosen and (split != "train" or len(others) < len(names)):
        raise InputError(f"no file of {folder} has the split '{split}' in its name (files: {_some(names)})")
    return [folder / name for name in chosen or names]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def split_of_folder(spec: DataSpec, what: str, names: Sequence[str]) -> tuple[list[int], str]:
    """The images of a split, where the folders at the top are the splits of a data set: train, val, test.

    Args:
        spec: its `split`.
        what: the source, for messages.
        names: the relative names of all images.

    Returns:
        The places of the images to use, and a note about the others, or an empty text.

    Raises:
        InputError: if there is no such split.
    """
    tops = {name.partition("/")[0] for name in names if "/" in name}
    splits = {top: SPLIT_OF.get(top.lower(), "") for top in sorted(tops)}
    if not (len(splits) > 1 and all(splits.values()) and all("/" in name for name in names)):
        check_no_split(spec, what)
        return list(range(len(names))), ""
    wanted = SPLIT_OF.get(spec.split.lower(), spec.split)
    chosen = [place for place, name in enumerate(names) if splits[name.partition("/")[0]] == wanted]
    if not chosen:
        raise InputError(f"{what} has no split '{spec.split}' (splits: {', '.join(splits)}): set data.split")
    others = ", ".join(top for top, split in splits.items() if split != wanted)
    left = len(names) - len(chosen)
    return chosen, f"{what}: the split '{spec.split}' has {len(chosen):,} images; {left:,} in {others} are left out"
