"""Where images come from: a source counts its images, names them, and hands them over encoded, by number.

Here are the digits, folders of images and LSUN's LMDB; `tables` has parquet files and Hugging Face datasets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.errors import InputError
from .decode import ENDINGS, BadImage, Encoded, read_file
from .spec import DataSpec

__all__ = [
    "DigitSource",
    "FolderSource",
    "Labels",
    "LmdbSource",
    "Part",
    "Source",
    "check_no_split",
    "digest",
    "need",
    "parts_of",
]


class Labels(NamedTuple):
    """The class of each image: `numbers` int64 (N,) in 0..classes-1."""

    numbers: NDArray[np.int64]
    classes: int


class Part(NamedTuple):
    """A run of consecutive images and the function that reads one of them by its number."""

    numbers: range
    read: Callable[[int], Encoded]


class Source(Protocol):
    """Images that can be reached by number 0..count-1, from several threads at once."""

    what: str
    """What it is, for messages: `folder cats`."""
    count: int
    labels: Labels | None
    fingerprint: str
    """Identifies the content wherever it lies: 12 hexadecimal digits."""
    identity: str
    """Identifies the content where it lies, times of change included: the key of what is cached about it."""

    def name(self, number: int) -> str:
        """What one image is called in messages: a path, or the row of a table."""
        ...

    def parts(self, size: int) -> Iterator[Part]:
        """All images in order, at most `size` at a time: the way to read everything once."""
        ...

    def read(self, number: int) -> Encoded:
        """One image; `BadImage` if it is not there. Only after `prepare`."""
        ...

    def prepare(self, cache_dir: Path) -> None:
        """Make `read` fast for images in any order; may write under `cache_dir`."""
        ...


def digest(*items: object) -> str:
    """12 hexadecimal digits that stand for the written form of `items`."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:12]


def need(module: str, extra: str, what: str) -> Any:
    """Import an optional dependency; `InputError` saying how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"reading {what} needs {module.partition('.')[0]}, which is not installed: "
            f"pip install 'quarterarc[{extra}]'"
        ) from error


def check_no_split(spec: DataSpec, what: str) -> None:
    """Refuse a split for a source that has none, where it would be ignored silently."""
    if spec.split != "train":
        raise InputError(f"{what} has no split '{spec.split}'; give the files of that split themselves as the source")


def parts_of(read: Callable[[int], Encoded], count: int, size: int) -> Iterator[Part]:
    """The parts of a source in which every image is equally near."""
    return (Part(range(first, min(first + size, count)), read) for first in range(0, count, size))


class _Random:
    """A source in which every image is equally near: `parts` and `prepare` follow from `read`."""

    count: int

    def read(self, number: int) -> Encoded:
        raise NotImplementedError

    def parts(self, size: int) -> Iterator[Part]:
        return parts_of(self.read, self.count, size)

    def prepare(self, cache_dir: Path) -> None:
        pass


class DigitSource(_Random):
    """The 1,797 handwritten digits of 8x8 pixels that come with the package, with labels 0..9.

    Test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; as in scikit-learn's `load_digits`, with its values 0..16
    stored as round(value * 255 / 16). `DIGITS.md` beside the file says more.
    """

    what = "digits"

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


class FolderSource(_Random):
    """Every image under a folder, in the sorted order of relative paths; other files are passed over.

    Endings count in either case. Links to folders are followed, each folder once. Names that begin with a dot do not
    count.
    """

    def __init__(self, spec: DataSpec, folder: Path) -> None:
        self.what = f"folder {folder}"
        check_no_split(spec, self.what)
        self._folder = folder
        found = sorted(files_under(folder, ENDINGS))
        if not found:
            raise InputError(f"no images under {folder}; looked for files that end in {', '.join(ENDINGS)}")
        self._files = found[: spec.limit]
        self.count = len(self._files)
        self.labels = self._read_labels(found) if spec.labels else None
        sizes, times = zip(*(_size_and_time(folder / file) for file in self._files), strict=True)
        self.fingerprint = digest(list(zip(self._files, sizes, strict=True)))
        self.identity = digest(str(folder.resolve()), self.fingerprint, times)

    def name(self, number: int) -> str:
        return str(self._folder / self._files[number])

    def read(self, number: int) -> Encoded:
        name = self.name(number)
        return read_file(name, name)

    def _read_labels(self, found: Sequence[str]) -> Labels:
        """The first-level subfolders are the classes; those beyond the limit count too."""
        loose = next((file for file in found if "/" not in file), None)
        if loose is not None:
            raise InputError(
                f"labels are the names of the subfolders of {self._folder}, but {loose} lies in none; "
                "move it into one or train without labels"
            )
        classes = {name: number for number, name in enumerate(sorted({file.partition("/")[0] for file in found}))}
        numbers = [classes[file.partition("/")[0]] for file in self._files]
        return Labels(np.array(numbers, dtype=np.int64), len(classes))


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # a broken link: reading it will say so
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def files_under(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """The relative paths, with forward slashes and in no particular order, of files with one of the endings.

    Raises:
        InputError: for a folder that may not be read, which must not count as empty.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(endings) and not name.startswith("."):
                yield (Path(here) / name).relative_to(folder).as_posix()


class LmdbSource(_Random):
    """An LMDB folder as LSUN distributes them: the values are encoded images, in the order of their keys; no labels."""

    def __init__(self, spec: DataSpec, folder: Path) -> None:
        self.what = f"LMDB {folder}"
        check_no_split(spec, self.what)
        if spec.labels:
            raise InputError(f"{self.what} has no labels; train without labels")
        self.labels: Labels | None = None
        self._lmdb = need("lmdb", "lmdb", "an LMDB folder")
        try:
            self._environment = _environment(folder.resolve(), self._lmdb)
            with self._environment.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                self._keys = _Strings(islice(keys, spec.limit))
        except self._lmdb.Error as error:
            raise InputError(f"cannot read {self.what}: {error}; is data.mdb complete?") from error
        self.count = len(self._keys)
        if self.count == 0:
            raise InputError(f"{self.what} is empty")
        stat = (folder / "data.mdb").stat()
        self.fingerprint = digest(self._keys.text, self.count)
        self.identity = digest(str(folder.resolve()), self.fingerprint, stat.st_size, stat.st_mtime_ns)

    def name(self, number: int) -> str:
        return f"{self.what} key {self._keys[number].decode(errors='replace')}"

    def read(self, number: int) -> Encoded:
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(self._keys[number])
        except self._lmdb.Error as error:
            raise BadImage(self.name(number), str(error)) from error
        if value is None:
            raise BadImage(self.name(number), "the key has gone")
        return bytes(value)


_ENVIRONMENTS: WeakValueDictionary[Path, Any] = WeakValueDictionary()


def _environment(folder: Path, lmdb: Any) -> Any:
    """An LMDB may be open only once in a process, so sources of the same folder share it.

    Raises:
        InputError: for a file shorter than its own last page, where reading on would end the process (a bus error).
    """
    environment = _ENVIRONMENTS.get(folder)
    if environment is None:
        environment = lmdb.open(
            str(folder), readonly=True, lock=False, readahead=False, create=False, max_spare_txns=64
        )
        size = (folder / "data.mdb").stat().st_size
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if size < expected:
            raise InputError(
                f"{folder / 'data.mdb'} is truncated: it has {size:,} of {expected:,} bytes; copy it again"
            )
        _ENVIRONMENTS[folder] = environment
    return environment


class _Strings:
    """Many short byte strings in one: millions of keys in little more memory than their text."""

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
