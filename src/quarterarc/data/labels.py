"""Class labels: from text, from the names of folders, from dataset.json and from files beside the images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.errors import InputError
from ..common.text import counted
from ..storage.files import parse_json
from .spec import DataSpec
from .splits import SPLIT_OF
from .trees import Tree

__all__ = [
    "Labels", "check_highest", "check_labels_from", "classes_of", "is_label_file", "limited", "subfolders",
    "tree_labels",
]  # fmt: skip

LISTING = "dataset.json"
"""The file in which EDM and StyleGAN store labels."""
SIDECAR = ".cls"
"""The ending of a file with the label of the image of the same name, as in a WebDataset."""
_LARGEST_LISTING, _LARGEST_LABEL = 2**28, 1000  # bytes
_MOST_CLASSES = 100_000  # that fewer images may have
_MOST_DIGITS = 1000  # of a class name that is a number: Python converts at most 4,300


class Labels(NamedTuple):
    """The class of each image: `numbers` int64 (N,) in 0..classes-1, and the names of the classes, if they have any."""

    numbers: NDArray[np.int64]
    classes: int
    names: tuple[str, ...] = ()


def classes_of(texts: Sequence[str], among: Collection[str] | None = None) -> Labels:
    """Labels from text: the classes are the distinct texts in sorted order, by number if all are numbers.

    Args:
        texts: one per image.
        among: further texts that are classes.
    """
    names = sorted({*texts, *(among or ())})
    if all(name.isdecimal() and len(name) <= _MOST_DIGITS for name in names):
        names.sort(key=int)
    number_of = {name: number for number, name in enumerate(names)}
    return Labels(np.array([number_of[text] for text in texts], dtype=np.int64), len(names), tuple(names))


def limited(labels: Labels | None, count: int, limit: int | None) -> NDArray[np.int64]:
    """The numbers of the images that `DataSpec.limit` selects, ascending: the first ones, with labels of each class.

    Args:
        labels: the labels of all images; None without labels.
        count: the number of images.
        limit: the largest number of images to use; None for all.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    if labels is None:
        return np.arange(limit)
    by_class = np.argsort(labels.numbers, kind="stable")
    starts = np.searchsorted(labels.numbers[by_class], np.arange(labels.classes))
    rank = np.empty(count, dtype=np.int64)  # the place of an image among those of its class
    rank[by_class] = np.arange(count) - starts[labels.numbers[by_class]]
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def check_highest(highest: int, count: int, what: str, advice: str = "number the classes from 0") -> None:
    """Raise an InputError if the highest label of images would mean far more classes than images."""
    if highest >= max(_MOST_CLASSES, count):
        raise InputError(
            f"{what}: labels up to {highest:,} would be as many classes for {counted(count, 'image')}; {advice}"
        )


def check_labels_from(spec: DataSpec, what: str, *kinds: str) -> None:
    """Raise an InputError if labels of another kind are set than a source can have."""
    if spec.labels not in (False, True, *kinds):
        known = " or ".join(f"data.labels={kind}" for kind in (*kinds, "true"))
        raise InputError(f"{what} has no labels by '{spec.labels}': give {known}")


# --- trees of files ----------------------------------------------------------------------------------------------


def tree_labels(spec: DataSpec, tree: Tree, images: Sequence[int], chosen: Sequence[int]) -> Labels:
    """The labels of images in a tree of files.

    Args:
        spec: `labels`, `label_level` and `split`.
        tree: the files.
        images: the numbers of all images in it, of all splits: those of all are classes.
        chosen: the numbers of the images whose labels are returned.
    """
    check_labels_from(spec, tree.what, "folder", "file")
    if spec.labels == "file" or (spec.labels is True and (LISTING in tree.names or _sidecars(tree))):
        return _listed_labels(tree, chosen) if LISTING in tree.names else _sidecar_labels(tree, images, chosen)
    of_image = dict(zip(images, _folder_classes(spec, tree, [tree.names[place] for place in images]), strict=True))
    return classes_of([of_image[place] for place in chosen], set(of_image.values()))


def _folder_classes(spec: DataSpec, tree: Tree, names: Sequence[str]) -> list[str]:
    """The name of the folder of each image that is its class."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    loose = next((name for name, folder in zip(names, folders, strict=True) if not folder), None)
    if loose is not None:
        raise InputError(
            f"labels are the names of the subfolders of {tree.root}, but {loose} lies in none; "
            "move it into one or train without labels"
        )
    tops = {folder[0].lower() for folder in folders}
    if len(tops) > 1 and tops <= SPLIT_OF.keys():
        folders = [folder[1:] for folder in folders]
        if not all(folders):
            raise InputError(
                f"the subfolders of {tree.root} are splits ({', '.join(sorted(tops))}), not classes, and not all "
                "images lie in a folder of a class within them: train without labels (data.labels=false)"
            )
    if spec.label_level != "auto":
        return [_at_level(folder, spec.label_level, name) for folder, name in zip(folders, names, strict=True)]
    while len({folder[0] for folder in folders}) == 1 and all(len(folder) > 1 for folder in folders):
        folders = [folder[1:] for folder in folders]
    return [folder[0] for folder in folders]


def _at_level(folder: Sequence[str], level: int, name: str) -> str:
    place = level - 1 if level > 0 else level
    if not -len(folder) <= place < len(folder):
        raise InputError(
            f"data.label_level={level}: {name} lies {len(folder)} folders deep; give a level that all images have, "
            "such as 1 for the top or -1 for the folder of the image"
        )
    return folder[place]


def _listed_labels(tree: Tree, chosen: Sequence[int]) -> Labels:
    """The labels in dataset.json, {"labels": [["00000/img00000000.png", 5], ...]}."""
    listing = f"{LISTING} of {tree.what}"
    try:
        listed = parse_json(tree.read(tree.names.index(LISTING), _LARGEST_LISTING))
    except ValueError as error:  # a BadImage is one, too
        raise InputError(f"cannot read {listing}: {error}") from None
    entries = listed.get("labels") if isinstance(listed, Mapping) else None
    if not entries:
        raise InputError(f"{listing} has no labels: train without labels, or give data.labels=folder")
    try:
        label_of = {str(name).replace("\\", "/"): label for name, label in dict(entries).items()}
    except (TypeError, ValueError):
        raise InputError(f'{listing}: "labels" is not a list of pairs, [["a.png", 0], ...]') from None
    missing = next((tree.names[place] for place in chosen if tree.names[place] not in label_of), None)
    if missing is not None:
        raise InputError(f"{listing} has no label of {missing}: add it, or give data.labels=folder")
    return _as_labels([label_of[tree.names[place]] for place in chosen], [*label_of.values()], listing)


def _as_labels(values: Sequence[Any], all_values: Sequence[Any], what: str) -> Labels:
    """Labels from whole numbers, the largest of all of which is the last class, or from text."""
    if all(isinstance(value, str) for value in all_values):
        return classes_of(values, set(all_values))
    wrong = next((v for v in all_values if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < 2**31), None)
    if wrong is not None:
        raise InputError(f"{what} has the label {str(wrong)[:80]!r}; classes are whole numbers from 0, or text")
    check_highest(max(all_values), len(all_values), what)
    return Labels(np.array(values, dtype=np.int64), max(all_values) + 1)


def is_label_file(name: str) -> bool:
    """Whether a file of a tree holds labels."""
    return name == LISTING or name.endswith(SIDECAR)


def _sidecars(tree: Tree) -> bool:
    return any(name.endswith(SIDECAR) for name in tree.names)


def _sidecar_labels(tree: Tree, images: Sequence[int], chosen: Sequence[int]) -> Labels:
    """The labels in files beside the images: 000.cls has that of 000.jpg, a whole number or text.

    The labels of all images are classes. Those that are not chosen need none.
    """
    place_of = {
        (tree.group(place), name.removesuffix(SIDECAR)): place
        for place, name in enumerate(tree.names)
        if name.endswith(SIDECAR)
    }
    needed, text_of = {*chosen}, {}
    for place in images:
        stem = str(PurePosixPath(tree.names[place]).with_suffix(""))
        key = stem[: stem.rfind("/") + 1] + stem.rpartition("/")[2].partition(".")[0]  # that of a WebDataset
        group = tree.group(place)
        beside = place_of.get((group, stem), place_of.get((group, key)))
        if beside is None and place not in needed:
            continue
        if beside is None:
            raise InputError(
                f"{tree.shown(place)} has no label: data.labels=file reads {LISTING} (EDM's layout), or a file with "
                f"the ending {SIDECAR} beside each image (WebDataset)"
            )
        text = tree.read(beside, _LARGEST_LABEL).decode("utf-8", errors="replace").strip()
        if not text:
            raise InputError(f"{tree.shown(beside)} is empty; it holds a class, a whole number or text")
        text_of[place] = text
    values: dict[int, Any] = dict(text_of)
    if all(text.isdecimal() for text in text_of.values()):
        values = {place: int(text) for place, text in text_of.items()}
    return _as_labels([values[place] for place in chosen], [*values.values()], tree.what)


def subfolders(tree: Tree, images: Sequence[int], most: int = 3) -> str:
    """The folders that could be classes: "3 subfolders (cat, dog, ...)"; empty if there are none, or loose images."""
    try:
        classes = _folder_classes(DataSpec(source="x", size=1), tree, [tree.names[place] for place in images])
    except InputError:
        return ""
    names = sorted(set(classes))
    if len(names) < 2:
        return ""
    return f"{len(names):,} subfolders ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
