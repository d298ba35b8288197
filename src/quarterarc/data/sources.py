"""Image sources: encoded images by number, with names and labels.

This module has the digits, images in folders and archives, and LSUN's LMDB; `tables` has parquet files and Hugging Face
datasets, `memory` has tensors, arrays and lists of PIL images.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from PIL import Image

from ..common.errors import InputError
from ..common.hashes import digest
from .containers import CONTAINERS, how_to_use
from .decode import BadImage, Encoded, too_large
from .formats import ENDINGS, counted_by_ending, why_not
from .labels import Labels, check_labels_from, is_label_file, limited, subfolders, tree_labels
from .lmdb_file import DamagedLmdb, LmdbFile
from .spec import DataSpec
from .splits import check_no_split, split_of_folder
from .trees import Tree

__all__ = ["DigitSource", "FileSource", "LmdbSource", "Source"]


class Source(Protocol):
    """Encoded images by number, 0..count-1, in any order and from several threads at once."""

    what: str
    """Kind and place, for messages: `folder cats`."""
    count: int
    labels: Labels | None
    fingerprint: str
    """Identifies the content independent of its location: 12 hexadecimal digits."""
    identity: str
    """Identifies the content at its place, with modification times: the key of cached results."""
    notes: Sequence[str]
    """Lines for the log, such as the files of a folder that are not used."""
    passed_over: Mapping[str, str]
    """The files of a folder or archive that are not read as images, with the reason."""

    @property
    def files(self) -> Sequence[Path]:
        """The files whose content is that of the source; empty if the fingerprint is a hash of the content."""
        ...

    def name(self, number: int) -> str:
        """The name of an image in messages: a path, or a row of a table."""
        ...

    def read(self, number: int) -> Encoded:
        """The encoded image.

        Raises:
            BadImage: if it is missing.
        """
        ...


class DigitSource:
    """The 1,797 handwritten digits of 8x8 pixels that come with the package, with labels 0..9.

    Test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; as in scikit-learn's `load_digits`, with its values 0..16
    stored as round(value * 255 / 16). See `DIGITS.md` beside the file.
    """

    what = "digits"
    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})
    files: Sequence[Path] = ()

    def __init__(self, spec: DataSpec) -> None:
        check_no_split(spec, "digits")
        check_labels_from(spec, "digits")
        with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as stored:
            images, labels = stored["images"], stored["labels"].astype(np.int64)
        numbers = limited(Labels(labels, 10) if spec.labels else None, len(images), spec.limit)
        self._images, labels = images[numbers], labels[numbers]
        self.count = len(self._images)
        self.labels = Labels(labels, 10) if spec.labels else None
        self.fingerprint = self.identity = digest(self._images.tobytes(), labels.tobytes())

    def name(self, number: int) -> str:
        return f"digit {number}"

    def read(self, number: int) -> Encoded:
        return Image.fromarray(self._images[number])


class FileSource:
    """The images in a tree of files, a folder or archives, in the order of the tree.

    Files with other endings are passed over; endings match in either case.

    Args:
        spec: limit, split and labels.
        tree: the files.

    Attributes:
        passed_over: the files that are not read as images, with the reason.
    """

    def __init__(self, spec: DataSpec, tree: Tree) -> None:
        self.what, self._tree, self._most = tree.what, tree, spec.max_bytes
        images = [place for place, name in enumerate(tree.names) if name.lower().endswith(ENDINGS)]
        if not images:
            raise InputError(f"no images under {tree.root}; {_held_instead(tree.root, tree.names)}")
        of_split, note = split_of_folder(spec, self.what, [tree.names[place] for place in images])
        chosen = [images[place] for place in of_split]
        labels = tree_labels(spec, tree, images, chosen) if spec.labels else None
        self.passed_over: Mapping[str, str] = _not_read(tree, {*images}, spec)
        others = counted_by_ending(self.passed_over)
        self.notes: Sequence[str] = [line for line in (others and f"{self.what}: passed over {others}", note) if line]
        if labels is None and (folders := subfolders(tree, images)):
            self.notes = [*self.notes, f"its {folders} would be classes with data.labels=folder"]
        numbers = limited(labels, len(chosen), spec.limit)
        self._places = [chosen[number] for number in numbers.tolist()]
        self.labels = labels and labels._replace(numbers=labels.numbers[numbers])
        self.count = len(self._places)
        sizes, times = zip(*(tree.size_and_time(place) for place in self._places), strict=True)
        names = [tree.names[place] for place in self._places]
        self.fingerprint = digest(list(zip(names, sizes, strict=True)))
        self.identity = digest(str(tree.root.resolve()), self.fingerprint, times)

    @property
    def files(self) -> Sequence[Path]:
        return self._tree.paths(self._places)

    def name(self, number: int) -> str:
        return self._tree.shown(self._places[number])

    def read(self, number: int) -> Encoded:
        return self._tree.read(self._places[number], self._most)


_MOST_NAMED = 100_000  # files that are passed over


def _not_read(tree: Tree, images: Set[int], spec: DataSpec) -> dict[str, str]:
    """The files that are not read, with the reason; those with labels are, if labels are used."""
    others = (place for place in range(len(tree.names)) if place not in images)
    if spec.labels:
        others = (place for place in others if not is_label_file(tree.names[place]))
    return {tree.shown(place): why_not(tree.names[place]) for place in islice(others, _MOST_NAMED)}


def _held_instead(folder: Path, names: Sequence[str]) -> str:
    """What a folder without images has instead, and what to do."""
    container = next((folder / name for name in names if name.lower().endswith(CONTAINERS)), None)
    advice = container and how_to_use(container)
    held = f"it has {counted_by_ending(names)}" if names else "it has no files"
    if advice:
        return f"{held}: {container}: {advice}"
    if any(name.lower().endswith((".heic", ".heif")) for name in names):
        return f"{held}; HEIC is not read: convert the files to JPEG or PNG"
    return f"{held}; expected files that end in {', '.join(ENDINGS)}"


class LmdbSource:
    """An LMDB folder in LSUN's format: the values are encoded images, in the order of their keys; no labels."""

    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})

    def __init__(self, spec: DataSpec, folder: Path) -> None:
        self.what = f"LMDB {folder}"
        check_no_split(spec, self.what)
        if spec.labels:
            raise InputError(f"{self.what} has no labels; train without labels")
        self.labels: Labels | None = None
        self.files: Sequence[Path] = (folder / "data.mdb",)
        self._most = spec.max_bytes
        starts, sizes = array("q"), array("q")
        try:
            self._file = LmdbFile(folder / "data.mdb")

            def keys() -> Iterator[bytes]:
                for key, start, size in islice(self._file.entries(), spec.limit):
                    starts.append(start)
                    sizes.append(size)
                    yield key

            self._keys = _Strings(keys())
        except (DamagedLmdb, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read {self.what}: {reason}; copy data.mdb again") from error
        self._starts, self._sizes = np.asarray(starts), np.asarray(sizes)
        self.count = len(self._keys)
        if self.count == 0:
            raise InputError(f"{self.what} is empty")
        stat = (folder / "data.mdb").stat()
        self.fingerprint = digest(self._keys.text, self.count)
        self.identity = digest(str(folder.resolve()), self.fingerprint, stat.st_size, stat.st_mtime_ns)

    def name(self, number: int) -> str:
        return f"{self.what} key {self._keys[number].decode(errors='replace')}"

    def read(self, number: int) -> Encoded:
        size = int(self._sizes[number])
        if size > self._most:
            raise too_large(self.name(number), size, self._most)
        try:
            return self._file.read(int(self._starts[number]), size)
        except (DamagedLmdb, OSError) as error:
            raise BadImage(self.name(number), getattr(error, "strerror", None) or str(error)) from error


class _Strings:
    """Many short byte strings in one buffer: millions of keys in little more memory than their text."""

    def __init__(self, strings: Iterable[bytes]) -> None:
        text, ends = bytearray(), [0]
        for string in strings:
            text += string
            ends.append(len(text))
        self.text = bytes(text)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.text[self._ends[number] : self._ends[number + 1]]
