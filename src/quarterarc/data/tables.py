"""Images in the columns of tables: parquet files, saved Hugging Face datasets, and datasets of the hub.

Needs the `datasets` extra; only the hub needs more of it than pyarrow. Nothing here unpickles anything.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError
from .decode import BadImage, Encoded, read_file
from .sources import Labels, Part, check_no_split, digest, need, parts_of
from .spec import DataSpec

__all__ = ["Columns", "TableSource", "encoded", "hub_source", "open_hub", "parquet_source", "saved_source"]

_SPLITS = {"train", "test", "valid", "validation", "val", "dev", "eval"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; `classes` is None where the table does not say how many there are."""

    image: str
    label: str | None
    classes: int | None


def choose_columns(spec: DataSpec, kinds: Mapping[str, str], classes: Mapping[str, int], what: str) -> Columns:
    """Find the columns of a table.

    Args:
        spec: what to look for; its named columns are taken, others are found by type, then by name.
        kinds: every column with its kind: `image` (declared so), `encoded` (bytes, or bytes and a path), `integer`, or
            another word.
        classes: the columns declared to hold classes, and how many there are.
        what: the table, for messages.

    Raises:
        InputError: if a column is missing, is not of a usable kind, or cannot be told; the columns are listed.
    """
    image = spec.image_column or _only(
        [name for name, kind in kinds.items() if kind == "image"],
        [name for name, kind in kinds.items() if kind == "encoded"],
        named=("image", "img"),
    )
    if image is None or kinds.get(image) not in ("image", "encoded"):
        raise _no_column("image_column", image, "encoded images (bytes, or bytes and a path)", kinds, what)
    if not spec.labels:
        return Columns(image, None, None)
    label = spec.label_column or _only(
        list(classes), [name for name, kind in kinds.items() if kind == "integer"], named=("label", "labels")
    )
    if label is None or kinds.get(label) != "integer":
        raise _no_column("label_column", label, "whole numbers", kinds, what)
    return Columns(image, label, classes.get(label))


def _only(*choices: Sequence[str], named: tuple[str, str]) -> str | None:
    """The one column of the first choice that leaves no doubt: alone of its kind, or bearing the usual name."""
    for names in choices:
        usual = [name for name in named if name in names]
        if usual or len(names) == 1:
            return usual[0] if usual else names[0]
    return None


def _no_column(field: str, name: str | None, expected: str, kinds: Mapping[str, str], what: str) -> InputError:
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    if name is None:
        return InputError(f"{what}: cannot tell which column holds {expected}; set {field} (columns: {listed})")
    if name not in kinds:
        return InputError(f"{what} has no column '{name}'; set {field} (columns: {listed})")
    return InputError(f"{what}: column '{name}' holds no {expected}; set {field} (columns: {listed})")


def encoded(value: Any, name: str, folder: Path | None = None) -> Encoded:
    """The image in one cell: bytes, a mapping with `bytes` or `path`, or an image already decoded.

    Raises:
        BadImage: if the cell is empty, or its path cannot be read. A relative path is relative to `folder`.
    """
    path = None
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
    if value is not None:
        return value
    if not path:
        raise BadImage(name, "the cell is empty")
    if "://" not in path:
        return read_file((folder or Path()) / path, name)
    with _as_bad_image(name), need("fsspec", "datasets", "images by address").open(path, "rb") as file:
        return bytes(file.read())


@contextmanager
def _as_bad_image(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadImage(name, " ".join(str(error).split())) from error


def _schema_columns(spec: DataSpec, schema: Any, what: str) -> Columns:
    """`choose_columns` for an Arrow schema, with what Hugging Face's metadata in it declares."""
    features: dict[str, Any] = {}
    with suppress(KeyError, TypeError, ValueError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    kinds = {field.name: _kind(field.type, features.get(field.name)) for field in schema}
    classes = {
        name: len(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and kinds.get(name) == "integer"
    }
    return choose_columns(spec, kinds, classes, what)


def _kind(arrow_type: Any, feature: Any) -> str:
    import pyarrow.types as types

    if types.is_struct(arrow_type) and {"bytes", "path"} <= {field.name for field in arrow_type}:
        return "image" if isinstance(feature, dict) and feature.get("_type") == "Image" else "encoded"
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return "encoded"
    if types.is_integer(arrow_type) or types.is_boolean(arrow_type):
        return "integer"
    return str(arrow_type)


def _read_labels(cells: Any, columns: Columns, what: str) -> Labels:
    """Check a column of classes (Arrow, chunked); without a declared number, the largest class is the last one."""
    if cells.null_count:
        raise InputError(f"{what}: column '{columns.label}' has {cells.null_count} rows without a label")
    numbers = np.asarray(cells.to_numpy(zero_copy_only=False)).astype(np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    classes = columns.classes or high + 1
    if low < 0 or high >= classes:
        raise InputError(
            f"{what}: column '{columns.label}' holds {low}..{high}; classes are numbered from 0"
            + (f" to {classes - 1}" if columns.classes else "")
        )
    return Labels(numbers, classes)


class TableSource:
    """An Arrow table that lies memory-mapped on disk or in memory: every row is equally near."""

    def __init__(
        self, spec: DataSpec, table: Any, what: str, identity: tuple[object, ...], folder: Path | None = None
    ) -> None:
        columns = _schema_columns(spec, table.schema, what)
        table = table.slice(0, spec.limit)
        if table.num_rows == 0:
            raise InputError(f"{what} has no rows")
        self.what, self.count, self._folder = what, table.num_rows, folder
        self.labels = _read_labels(table.column(columns.label), columns, what) if columns.label else None
        self._images = table.column(columns.image)
        self.fingerprint = digest(*identity)
        self.identity = digest(str(folder and folder.resolve()), *identity)

    def name(self, number: int) -> str:
        """`what` and the row."""
        return f"{self.what} row {number}"

    def read(self, number: int) -> Encoded:
        """The image of one row, as it is stored."""
        return encoded(self._images[number].as_py(), self.name(number), self._folder)

    def parts(self, size: int) -> Iterator[Part]:
        """All rows in order."""
        return parts_of(self.read, self.count, size)

    def prepare(self, cache_dir: Path) -> None:
        """Nothing to do."""


def saved_source(spec: DataSpec, folder: Path) -> TableSource:
    """A folder written by `datasets`' `save_to_disk`: one dataset, or a dictionary of splits. Memory-mapped."""
    what = f"saved dataset {folder}"
    arrow = need("pyarrow", "datasets", "a saved dataset")
    try:
        if (folder / "dataset_dict.json").exists():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            if spec.split not in splits:
                raise InputError(f"{what} has no split '{spec.split}' (splits: {', '.join(splits)})")
            folder = folder / spec.split
        else:
            check_no_split(spec, what)
        files = [folder / entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
        tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
        table = arrow.concat_tables(tables)
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {what}: {_line(error)}; save it again") from error
    return TableSource(spec, table, f"{what} {spec.split}", _listing(files, folder), folder)


def parquet_source(spec: DataSpec, files: Sequence[Path], what: str) -> ParquetSource:
    """The rows of parquet files, one file after the other."""
    need("pyarrow.parquet", "datasets", "parquet files")
    return ParquetSource(spec, files, what)


def parquet_files(folder: Path, files: Iterable[str], split: str) -> list[Path]:
    """Those of a folder's parquet files (relative paths) that belong to a split, sorted.

    As on the hub, a file belongs to the split whose name is a word of its path: `data/train-00000-of-00002.parquet`. If
    no path has the name of any split in it, all files belong.
    """
    words = {file: set("".join(c if c.isalnum() else " " for c in file.lower()).split()) for file in sorted(files)}
    chosen = [file for file, parts in words.items() if split.lower() in parts]
    if not chosen and (split != "train" or any(parts & _SPLITS for parts in words.values())):
        raise InputError(f"no parquet file of {folder} has the split '{split}' in its name (files: {_some(words)})")
    return [folder / file for file in chosen or words]


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f", and {len(listed) - most} more" if len(listed) > most else "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _listing(files: Sequence[Path], folder: Path) -> tuple[object, ...]:
    return tuple((os.path.relpath(file, folder), file.stat().st_size) for file in files)


class ParquetSource:
    """Parquet files, their rows counted through.

    A row group can only be read whole. `parts` goes through them one by one; for images in any order, `prepare` copies
    the image column to one memory-mapped Arrow file in the cache.
    """

    def __init__(self, spec: DataSpec, files: Sequence[Path], what: str) -> None:
        self.what, self._files, self._spec = what, files, spec
        counts = []
        for file in files:
            with self._opened(file) as parquet:
                columns = _schema_columns(spec, parquet.schema_arrow, str(file))
                counts.append(parquet.metadata.num_rows)
                if file == files[0]:
                    self._columns = columns
                elif columns != self._columns:
                    raise InputError(f"{file} has other columns or classes than {files[0]}; give them as two sources")
        self._firsts = np.cumsum([0, *counts])
        self.count = min(int(self._firsts[-1]), spec.limit or sys.maxsize)
        if self.count == 0:
            raise InputError(f"{what} has no rows")
        self.labels = self._labels()
        listing = [(file.name, file.stat().st_size) for file in files]
        self.fingerprint = digest(listing, self._columns)
        self.identity = digest(
            self.fingerprint, [(str(file.resolve()), file.stat().st_mtime_ns) for file in files], self.count
        )
        self._copy: Any = None  # the image column as a memory-mapped Arrow array

    def name(self, number: int) -> str:
        """The file, and the row in it."""
        file = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return f"{self._files[file]} row {number - self._firsts[file]}"

    def parts(self, size: int) -> Iterator[Part]:
        """All rows in order, with no more than one row group of a file in memory."""
        for first, batch in self._batches(self._columns.image, size):
            yield Part(range(first, first + len(batch)), _CellReader(self, batch.column(0), first).read)

    def read(self, number: int) -> Encoded:
        """The image of one row, from the copy that `prepare` made."""
        if self._copy is None:
            raise RuntimeError("prepare the source before reading rows in any order")
        return encoded(self._copy[number].as_py(), self.name(number), self.folder_of(number))

    def folder_of(self, number: int) -> Path:
        """The folder of the file that a row is in: paths in the row start there."""
        return self._files[int(np.searchsorted(self._firsts, number, side="right")) - 1].parent

    def prepare(self, cache_dir: Path) -> None:
        """Copy the image column to the cache, unless that has been done already; several processes wait for one."""
        import pyarrow as arrow
        from filelock import FileLock

        target = cache_dir / "tables" / f"{self.identity}.arrow"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    self._write(target)
                self._copy = arrow.ipc.open_file(arrow.memory_map(str(target))).read_all().column(0)
        except (OSError, arrow.ArrowException) as error:
            raise InputError(
                f"cannot copy {self.what} to {target} for reading in any order: {_line(error)}; "
                "make room there, choose another cache folder, or keep the pixels in memory (memory: memory)"
            ) from error

    def _write(self, target: Path) -> None:
        import pyarrow as arrow

        beside = target.with_suffix(".part")
        batches = (batch for _, batch in self._batches(self._columns.image, 256))
        first = next(batches)
        try:
            with arrow.OSFile(str(beside), "wb") as sink, arrow.ipc.new_file(sink, first.schema) as writer:
                for batch in chain([first], batches):
                    writer.write_batch(batch)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def _labels(self) -> Labels | None:
        import pyarrow as arrow

        if self._columns.label is None:
            return None
        batches = [batch for _, batch in self._batches(self._columns.label, 1 << 16)]
        return _read_labels(arrow.Table.from_batches(batches).column(0), self._columns, self.what)

    def _batches(self, column: str, size: int) -> Iterator[tuple[int, Any]]:
        """One column as record batches of at most `size` rows, each with the number of its first row."""
        first = 0
        for file in self._files:
            with self._opened(file) as parquet:
                for batch in parquet.iter_batches(batch_size=size, columns=[column]):
                    if first >= self.count:
                        return
                    yield first, batch.slice(0, self.count - first)
                    first += len(batch)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[Any]:
        import pyarrow as arrow
        import pyarrow.parquet

        try:
            with arrow.parquet.ParquetFile(file, memory_map=True) as parquet:
                yield parquet
        except (OSError, arrow.ArrowException) as error:
            raise InputError(f"cannot read {file} as parquet: {_line(error)}; is it complete?") from error


@dataclass(frozen=True)
class _CellReader:
    source: ParquetSource
    cells: Any
    first: int

    def read(self, number: int) -> Encoded:
        cell = self.cells[number - self.first].as_py()
        return encoded(cell, self.source.name(number), self.source.folder_of(number))


def hub_source(spec: DataSpec, hub_id: str, cache_dir: Path | None) -> TableSource:
    """A dataset of the hub, downloaded once to the cache of `datasets` (or to `cache_dir`) and memory-mapped."""
    dataset = open_hub(spec, hub_id, cache_dir, streaming=False)
    identity = (hub_id, spec.split, dataset.num_rows, sorted(dataset.info.download_checksums or ()))
    return TableSource(spec, dataset.with_format("arrow")[:], f"hub:{hub_id} {spec.split}", identity)


def open_hub(spec: DataSpec, hub_id: str, cache_dir: Path | None, streaming: bool) -> Any:
    """`datasets.load_dataset` for `owner/name` or `owner/name:config`, its errors in one line."""
    datasets = need("datasets", "datasets", "datasets of the hub")
    name, _, config = hub_id.partition(":")
    try:
        with _quiet_in_a_pipe(datasets):
            return datasets.load_dataset(
                name, config or None, split=spec.split, streaming=streaming, cache_dir=cache_dir and str(cache_dir)
            )
    except Exception as error:  # of datasets, of the hub's client, of the network
        raise InputError(
            f"cannot open {name} on the hub, split '{spec.split}': {_line(error)[:300]}; without a network, give a "
            "local copy as the source: its *.parquet files, a folder made by save_to_disk, or a folder of images"
        ) from error


@contextmanager
def _quiet_in_a_pipe(datasets: Any) -> Iterator[None]:
    """No progress bars of `datasets` where there is no terminal, and no lines of the hub's client about its retries."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    silence = not (sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    if silence:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        client.setLevel(level)
        if silence:
            datasets.enable_progress_bars()
