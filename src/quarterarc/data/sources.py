"""Image sources: encoded images by number, with names and labels.

This module has the digits, folders of images and LSUN's LMDB; `tables` has parquet files and Hugging Face datasets,
`memory` has tensors, arrays and lists of PIL images.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.errors import InputError
from ..common.hashes import digest
from .containers import CONTAINERS, how_to_use
from .decode import BadImage, Encoded, read_file, too_large
from .formats import ENDINGS, passed_over
from .lmdb_file import DamagedLmdb, LmdbFile
from .spec import DataSpec

__all__ = ["DigitSource", "FolderSource", "Labels", "LmdbSource", "Source", "check_no_split", "classes_of", "digest"]


class Labels(NamedTuple):
    """The class of each image: `numbers` int64 (N,) in 0..classes-1, and the names of the classes, if they have any."""

    numbers: NDArray[np.int64]
    classes: int
    names: tuple[str, ...] = ()


def classes_of(texts: Sequence[str]) -> Labels:
    """Labels from text: the classes are the distinct texts in sorted order, by number if all are numbers."""
    names = sorted(set(texts))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    number_of = {name: number for number, name in enumerate(names)}
    return Labels(np.array([number_of[text] for text in texts], dtype=np.int64), len(names), tuple(names))


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


def check_no_split(spec: DataSpec, what: str) -> None:
    """Raise an InputError if a split is set for a source without splits, where it would have no effect."""
    if spec.split != "train":
        raise InputError(f"{what} has no split '{spec.split}'; give the files of that split themselves as the source")


class DigitSource:
    """The 1,797 handwritten digits of 8x8 pixels that come with the package, with labels 0..9.

    Test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; as in scikit-learn's `load_digits`, with its values 0..16
    stored as round(value * 255 / 16). See `DIGITS.md` beside the file.
    """

    what = "digits"
    notes: Sequence[str] = ()
    files: Sequence[Path] = ()

    def __init__(self, spec: DataSpec) -> None:
        check_no_split(spec, "digits")
        with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as stored:
            self._images = stored["images"][: spec.limit]
            labels = stored["labels"][: spec.limit].astype(np.int64)
        self.count = len(self._images)
        self.labels = Labels(labels, 10) if spec.labels else None
        self.fingerprint = self.identity = digest(self._images.tobytes(), labels.tobytes())

    def name(self, number: int) -> str:
        return f"digit {number}"

    def read(self, number: int) -> Encoded:
        return Image.fromarray(self._images[number])


_SPLITS = {"train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval"}


class FolderSource:
    """The images under a folder, recursively, in the sorted order of their relative paths.

    Files with other endings and names that begin with a dot are ignored; endings match in either case. Links to folders
    are followed, once per folder.
    """

    def __init__(self, spec: DataSpec, folder: Path) -> None:
        self.what = f"folder {folder}"
        check_no_split(spec, self.what)
        self._folder, self._most = folder, spec.max_bytes
        names = sorted(files_under(folder, ("",)))
        files = [name for name in names if name.lower().endswith(ENDINGS)]
        if not files:
            raise InputError(f"no images under {folder}; {_held_instead(folder, names)}")
        others = passed_over(name for name in names if not name.lower().endswith(ENDINGS))
        self.notes: Sequence[str] = [f"{self.what}: passed over {others}"] if others else []
        self._files = files[: spec.limit]
        self.count = len(self._files)
        self.labels = self._read_labels(files) if spec.labels else None
        sizes, times = zip(*(size_and_time(folder / file) for file in self._files), strict=True)
        self.fingerprint = digest(list(zip(self._files, sizes, strict=True)))
        self.identity = digest(str(folder.resolve()), self.fingerprint, times)

    @property
    def files(self) -> Sequence[Path]:
        return [self._folder / file for file in self._files]

    def name(self, number: int) -> str:
        return str(self._folder / self._files[number])

    def read(self, number: int) -> Encoded:
        name = self.name(number)
        return read_file(name, name, self._most)

    def _read_labels(self, files: Sequence[str]) -> Labels:
        """Labels by first-level subfolder; the classes are those of all files, also beyond the limit."""
        if (self._folder / "dataset.json").exists():
            raise InputError(
                f"{self._folder} has a dataset.json (EDM's layout), whose labels are not read: move the images "
                "into one subfolder per class, or train without labels (data.labels=false)"
            )
        loose = next((file for file in files if "/" not in file), None)
        if loose is not None:
            raise InputError(
                f"labels are the names of the subfolders of {self._folder}, but {loose} lies in none; "
                "move it into one or train without labels"
            )
        classes = {name: number for number, name in enumerate(sorted({file.partition("/")[0] for file in files}))}
        if {name.lower() for name in classes} <= _SPLITS:
            split = next((name for name in classes if name.lower().startswith("train")), min(classes))
            raise InputError(
                f"the subfolders of {self._folder} are splits ({', '.join(classes)}), not classes: give one of them, "
                f"data.source={self._folder / split}, or train without labels (data.labels=false)"
            )
        inner = {file.split("/")[1] for file in files if file.count("/") > 1}
        if len(classes) == 1 and len(inner) > 1:
            raise InputError(
                f"all images of {self._folder} lie in its one subfolder, which would be the only class: if the "
                f"classes are the subfolders of that ({', '.join(sorted(inner)[:3])}, ...), give "
                f"data.source={self._folder / min(classes)}, else train without labels (data.labels=false)"
            )
        numbers = [classes[file.partition("/")[0]] for file in self._files]
        return Labels(np.array(numbers, dtype=np.int64), len(classes), tuple(classes))


def _held_instead(folder: Path, names: Sequence[str]) -> str:
    """What a folder without images has instead, and what to do."""
    container = next((folder / name for name in names if name.lower().endswith(CONTAINERS)), None)
    advice = container and how_to_use(container)
    held = f"it has {passed_over(names)}" if names else "it has no files"
    if advice:
        return f"{held}: {container}: {advice}"
    if any(name.lower().endswith((".heic", ".heif")) for name in names):
        return f"{held}; HEIC is not read: convert the files to JPEG or PNG"
    return f"{held}; expected files that end in {', '.join(ENDINGS)}"


def size_and_time(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds; -1 for a missing file."""
    try:
        stat = file.stat()
    except OSError:  # a broken link: `read` raises the error that names it
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def files_under(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """The relative paths, with forward slashes and in arbitrary order, of the files with one of the endings.

    Raises:
        InputError: for a folder without read permission, which must not count as empty.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(path)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(endings) and not name.startswith("."):
                yield (Path(path) / name).relative_to(folder).as_posix()


class LmdbSource:
    """An LMDB folder in LSUN's format: the values are encoded images, in the order of their keys; no labels."""

    notes: Sequence[str] = ()

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
