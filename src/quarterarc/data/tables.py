"""Images in the columns of tables: saved Hugging Face datasets, datasets of the hub, `Dataset` objects.

The library `datasets` gives all of them as memory-mapped Arrow tables. Two things of it are not used, on purpose:

- Its `Image` feature, which would open any path or address in image cells: images are read as bytes, and only by
  `encoded`, whose rule for paths is that of `cell_files`.
- Its fingerprints, which differ from machine to machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.optional import need
from ..common.progress import shown
from ..common.text import one_line
from ..storage.files import check_regular, read_json
from .cell_files import download_folders, file_of_cell, read_cell_file
from .columns import Columns, read_labels, schema_columns
from .decode import BadImage, Encoded, too_large
from .labels import Labels, limited
from .spec import DataSpec
from .splits import check_no_split
from .trees import size_and_time

__all__ = [
    "TableSource",
    "dataset_source",
    "encoded",
    "hub_source",
    "open_hub",
    "quiet",
    "saved_source",
]


def encoded(
    value: Any, name: str, folder: Path | None = None, downloads: Sequence[Path] = (), most: int = 0
) -> Encoded:
    """The image in a cell: bytes, a path, a mapping with `bytes` or `path`, or a decoded image.

    Args:
        value: the cell.
        name: the image, for messages.
        folder: the folder of the table, below which a path may name a file; None if it has none.
        downloads: see `cell_files.download_folders`.
        most: the largest size of an encoded image in bytes; 0 for no limit.

    Raises:
        BadImage: if the cell is empty or holds something else, or its path is not allowed or cannot be read.
    """
    path = None
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
    elif isinstance(value, str):
        path, value = value, None
    if isinstance(value, bytes) and most and len(value) > most:
        raise too_large(name, len(value), most)
    if isinstance(value, bytes | Image.Image):
        return value
    if value is not None:
        raise BadImage(name, f"the cell holds {type(value).__name__}, not the bytes of an image")
    if path is None or path == "":
        raise BadImage(name, "the cell is empty")
    return read_cell_file(path, folder, name, downloads, most)


class TableSource:
    """Rows of a dataset of the library `datasets`, memory-mapped or in memory: access in any order is fast.

    Args:
        dataset: a `datasets.Dataset`.
        columns: its image and label columns.
        what: the source, for messages.
        fingerprint: see `Source`.
        identity: see `Source`.
        folder: the folder of the table, below which paths in image cells may name files; None if it has none.
        limit: only the first rows; with labels those of each class.
        downloads: see `cell_files.download_folders`.
        tables: the files of the table.
        most: the largest size of an encoded image in bytes, checked before it is copied; 0 for no limit.
    """

    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        dataset: Any,
        columns: Columns,
        what: str,
        fingerprint: str,
        identity: str,
        folder: Path | None = None,
        limit: int | None = None,
        downloads: Sequence[Path] = (),
        tables: Sequence[Path] = (),
        most: int = 0,
    ) -> None:
        if len(dataset) == 0:
            raise InputError(f"{what} has no rows")
        self.what, self._folder = what, folder
        self.downloads, self._tables, self._most = downloads, tables, most
        dataset = dataset.with_format("arrow")  # in which features decode nothing and transforms do not apply
        self.labels: Labels | None = None
        if columns.label:
            self.labels = read_labels(dataset.select_columns([columns.label])[:].column(0), columns, what)
        self._numbers = limited(self.labels, len(dataset), limit)  # of the rows that are used
        self.count = len(self._numbers)
        if self.count < len(dataset):
            dataset = dataset.select(self._numbers)
            if self.labels is not None:
                self.labels = self.labels._replace(numbers=self.labels.numbers[self._numbers])
                fingerprint, identity = digest(fingerprint, self.count), digest(identity, self.count)
        images = dataset.select_columns([columns.image])
        # Row by row where rows are shuffled or selected, because slicing would copy all images into memory.
        self._images = images[:].column(0) if images._indices is None else _Rows(images)
        self.fingerprint, self.identity = fingerprint, identity

    @property
    def files(self) -> Sequence[Path]:
        """The files of the table, and those that its cells name."""
        return [*self._tables, *self._files_of_cells()]

    def _files_of_cells(self) -> Iterator[Path]:
        import pyarrow as arrow

        chunks = self._images.chunks if isinstance(self._images, arrow.ChunkedArray) else []
        first = 0
        for chunk in chunks:
            if arrow.types.is_struct(chunk.type) and chunk.field("bytes").null_count:
                for row, (path, data) in enumerate(zip(chunk.field("path"), chunk.field("bytes"), strict=True)):
                    with suppress(BadImage):  # raised when the image is read
                        if not data.is_valid:
                            number = first + row
                            folder, name = self.folder_of(number), self.name(number)
                            yield file_of_cell(path.as_py(), folder, name, self.downloads)
            first += len(chunk)

    def name(self, number: int) -> str:
        """The source and the row."""
        return f"{self.what} row {self._numbers[number]}"

    def folder_of(self, number: int) -> Path | None:
        """The folder that paths in a row are relative to."""
        return self._folder

    def read(self, number: int) -> Encoded:
        """The image of a row, as it is stored."""
        cell, name = self._images[number], self.name(number)
        size = _size_of(cell)
        if self._most and size > self._most:
            raise too_large(name, size, self._most)
        return encoded(cell.as_py(), name, self.folder_of(number), self.downloads, self._most)


def _size_of(cell: Any) -> int:
    """The bytes of the image in an Arrow cell, without a copy; 0 for a path and an empty cell."""
    import pyarrow.types as types

    if types.is_struct(cell.type) and cell.is_valid:
        cell = cell["bytes"]
    binary = types.is_binary(cell.type) or types.is_large_binary(cell.type)
    return cell.as_buffer().size if binary and cell.is_valid else 0


class _Rows:
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, number: int) -> Any:
        return self._dataset[number].column(0)[0]


def dataset_source(spec: DataSpec, dataset: Any) -> TableSource:
    """A `datasets.Dataset` object, in its current order and selection; its transforms are not applied."""
    what = "the dataset"
    columns = schema_columns(spec, dataset.features.arrow_schema, what)
    source = TableSource(
        dataset, columns, what, "", "", limit=spec.limit, downloads=download_folders(), most=spec.max_bytes
    )
    content, place = hashlib.sha256(), hashlib.sha256()
    for number in range(source.count):
        cell = source._images[number].as_py()
        path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, Mapping) else (cell, cell)
        if isinstance(data, bytes):
            content.update(hashlib.sha256(data).digest())
            continue
        try:  # as for a folder: the name and size of the file stand for its content
            file = file_of_cell(path, None, source.name(number), source.downloads)
        except BadImage:  # raised when the image is read
            content.update(repr(cell).encode())
        else:
            size, time = size_and_time(file)
            content.update(repr((file.name, size)).encode())
            place.update(repr((path, time)).encode())
    labels = source.labels and (source.labels.numbers.tobytes(), source.labels.classes)
    source.fingerprint = digest(source.count, content.hexdigest(), labels)
    source.identity = digest(source.fingerprint, place.hexdigest())
    return source


def saved_source(spec: DataSpec, folder: Path) -> TableSource:
    """A folder written by `datasets`' `save_to_disk`: a dataset, or a dictionary of splits. Memory-mapped."""
    what = f"saved dataset {folder}"
    datasets = need("datasets", "datasets", "reading a saved dataset")
    try:
        if (folder / "dataset_dict.json").exists():
            splits = read_json(folder / "dataset_dict.json")["splits"]
            if spec.split not in splits:
                raise InputError(f"{what} has no split '{spec.split}' (splits: {', '.join(splits)})")
            folder = folder / spec.split
        else:
            check_no_split(spec, what)
        _check_saved(folder)
        with quiet(datasets):
            dataset = datasets.Dataset.load_from_disk(str(folder), keep_in_memory=False)
        # Arrow trusts the offsets in a mapped file: a wrong one would end the process when its row is read.
        dataset.data.table.validate(full=True)
        files = [Path(file["filename"]) for file in dataset.cache_files]
        listing = tuple((os.path.relpath(file, folder), file.stat().st_size) for file in files)
    except InputError:
        raise
    except Exception as error:  # of `datasets` and pyarrow, for any damaged file
        raise InputError(f"cannot read {what}: {one_line(error)[:300]}; save it again") from error
    what = f"{what} {spec.split}"
    columns = schema_columns(spec, dataset.features.arrow_schema, what)
    identity = digest(str(folder.resolve()), *listing, [size_and_time(file) for file in files])
    return TableSource(
        dataset, columns, what, digest(*listing), identity, folder, spec.limit, tables=files, most=spec.max_bytes
    )


def _check_saved(folder: Path) -> None:
    """Raise an InputError unless the Arrow files of a saved dataset are regular files of its own folder."""
    state = read_json(folder / "state.json")
    read_json(folder / "dataset_info.json")
    names = [entry["filename"] for entry in state["_data_files"]]
    if len(set(names)) < len(names):
        raise InputError(f"{folder / 'state.json'} names the file {names[0]!r} or another one twice")
    for file in names:
        real = Path(os.path.realpath(folder / file))
        if Path(file).name != file or real.parent != Path(os.path.realpath(folder)):
            raise InputError(
                f"{folder / 'state.json'} names the file {file!r}, which does not lie in the folder itself"
            )
        check_regular(real)


def hub_source(spec: DataSpec, hub_id: str, cache_dir: Path | None, progress: bool = True) -> TableSource:
    """A dataset of the hub, downloaded once to the cache of `datasets` (or to `cache_dir`) and memory-mapped."""
    dataset = open_hub(spec, hub_id, cache_dir, streaming=False, progress=progress)
    what = f"hub:{hub_id} {spec.split}"
    columns = schema_columns(spec, dataset.features.arrow_schema, what)
    downloads = download_folders(hub_id, cache_dir)
    content = (hub_id, spec.split, dataset.num_rows, sorted(dataset.info.download_checksums or ()))
    return TableSource(
        dataset,
        columns,
        what,
        digest(*content),
        digest("None", *content),
        limit=spec.limit,
        downloads=downloads,
        most=spec.max_bytes,
    )


def open_hub(spec: DataSpec, hub_id: str, cache_dir: Path | None, streaming: bool, progress: bool = True) -> Any:
    """`datasets.load_dataset` for `owner/name` or `owner/name:config`, with its errors in one line."""
    datasets = need("datasets", "datasets", "reading datasets of the hub")
    name, _, config = hub_id.partition(":")
    try:
        with quiet(datasets, progress):
            return datasets.load_dataset(
                name, config or None, split=spec.split, streaming=streaming, cache_dir=cache_dir and str(cache_dir)
            )
    except Exception as error:  # of `datasets`, of the hub's client, of the network
        raise InputError(
            f"cannot open {name} on the hub, split '{spec.split}': {one_line(error)[:300]}; without a network, give a "
            "local copy as the source: its *.parquet files, a folder made by save_to_disk, or a folder of images"
        ) from error


@contextmanager
def quiet(datasets: Any, progress: bool = True) -> Iterator[None]:
    """No bars of `datasets` without `progress` or a terminal, and no log lines about errors, which are raised."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    silence = not (shown(progress) or datasets.are_progress_bars_disabled())
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if silence:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if silence:
            datasets.enable_progress_bars()
