"""Images in parquet files, converted once to a memory-mapped Arrow table below the cache folder.

Two things of the library `datasets` are not used, on purpose:

- Its parquet reader, whose memory grows with the row groups (see `_convert`).
- Its split detection and errors: columns are chosen and checked from the footers of the files before anything is
  converted, so that the error names the file and its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.optional import need
from ..common.text import one_line
from ..storage.files import check_regular
from .columns import Columns, schema_columns
from .spec import DataSpec
from .tables import TableSource, quiet

__all__ = ["ParquetSource", "parquet_source"]

_ROWS = 64  # rows per record batch of the conversion, which bound its memory
_FREE_ROWS = 100_000  # that a file may have beyond one per byte: null rows and repeated ones take no bytes
_FREE_BYTES, _RATIO, _RATIO_OF_64_ROWS = 2**30, 64, 16  # of decoded cells: images are compressed already


class ParquetSource(TableSource):
    """The rows of parquet files, in the order of the files.

    Args:
        spec: chooses the columns.
        files: at least one.
        what: the source, for messages.
        cache_dir: the folder for the Arrow table that `datasets` converts the files to.
        progress: whether to show progress: a bar, or lines in a log file.
    """

    def __init__(self, spec: DataSpec, files: Sequence[Path], what: str, cache_dir: Path, progress: bool) -> None:
        schemas, counts = zip(*(_footer(file) for file in files), strict=True)
        columns = schema_columns(spec, schemas[0], str(files[0]))
        for file, schema in zip(files, schemas, strict=True):
            if schema_columns(spec, schema, str(file)) != columns:
                raise InputError(f"{file} has other columns or classes than {files[0]}; give them as two sources")
        self._files, self._firsts = files, np.cumsum([0, *counts])
        count = int(self._firsts[-1])
        if not columns.label:  # which is read to choose rows of each class
            count = min(count, spec.limit or count)
        if count == 0:
            raise InputError(f"{what} has no rows")
        fingerprint = digest([(file.name, file.stat().st_size) for file in files], columns)
        times = [(str(file.resolve()), file.stat().st_mtime_ns) for file in files]
        identity = digest(fingerprint, times, count)
        dataset = _convert(files, schemas[0], columns, count, identity, what, cache_dir, progress)
        super().__init__(
            dataset, columns, what, fingerprint, identity, limit=spec.limit, tables=files, most=spec.max_bytes
        )

    def name(self, number: int) -> str:
        """The file, and the row in it."""
        file = self._file_of(number)
        return f"{self._files[file]} row {self._numbers[number] - self._firsts[file]}"

    def folder_of(self, number: int) -> Path:
        """The folder of the file that contains a row."""
        return self._files[self._file_of(number)].parent

    def _file_of(self, number: int) -> int:
        return int(np.searchsorted(self._firsts, self._numbers[number], side="right")) - 1


def parquet_source(
    spec: DataSpec, files: Sequence[Path], what: str, cache_dir: Path, progress: bool = True
) -> ParquetSource:
    """The rows of parquet files, one file after the other."""
    need("pyarrow.parquet", "datasets", "reading parquet files")
    return ParquetSource(spec, files, what, cache_dir, progress)


def _footer(file: Path) -> tuple[Any, int]:
    """The Arrow schema and the number of rows of a parquet file, which its size must make possible."""
    with _opened(file) as parquet:
        about = parquet.metadata
        if sum(about.row_group(group).num_rows for group in range(about.num_row_groups)) != about.num_rows:
            raise InputError(f"{file} is damaged: its row groups have not the {about.num_rows:,} rows of its footer")
        size = file.stat().st_size
        if about.num_rows > _FREE_ROWS + size:
            raise InputError(
                f"{file} claims {about.num_rows:,} rows in {size:,} bytes, which cannot hold as many images: remove "
                "its empty and repeated rows"
            )
        return parquet.schema_arrow, about.num_rows


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import pyarrow as arrow
    import pyarrow.parquet

    try:
        check_regular(file)
        with arrow.parquet.ParquetFile(file, memory_map=True) as parquet:
            yield parquet
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:  # the names of columns are text
        raise InputError(f"cannot read {file} as parquet: {one_line(error)}; is it complete?") from error


def _convert(
    files: Sequence[Path],
    schema: Any,
    columns: Columns,
    count: int,
    identity: str,
    what: str,
    cache_dir: Path,
    progress: bool,
) -> Any:
    """The first `count` rows of parquet files as a `datasets.Dataset`, converted once per `identity`.

    `datasets` finds, writes, locks and maps the Arrow table. Its own parquet reader is not used: its peak memory is
    2.7 times a row group, and a file written by pandas is a single row group; by record batches it is a few megabytes.
    """
    import pyarrow as arrow

    datasets = need("datasets", "datasets", "reading parquet files")
    names = [name for name in (columns.image, columns.label) if name]
    # Without the metadata of the schema, images are plain bytes and paths, of which `datasets` opens none.
    features = datasets.Features.from_arrow_schema(arrow.schema([(name, _plain(schema.field(name))) for name in names]))

    Builder: Any = datasets.ArrowBasedBuilder

    class Parquet(Builder):  # type: ignore[misc]
        def _info(self) -> Any:
            return datasets.DatasetInfo(features=features)

        def _split_generators(self, manager: Any) -> list[Any]:
            return [datasets.SplitGenerator("train")]

        def _generate_tables(self) -> Iterator[tuple[int, Any]]:
            first, decoded = 0, 0
            most = max(_FREE_BYTES, _RATIO * sum(file.stat().st_size for file in files))
            for file in files:
                with _opened(file) as parquet:
                    for batch in parquet.iter_batches(batch_size=_batch_rows(parquet, names), columns=names):
                        table = arrow.Table.from_batches([batch]).slice(0, max(count - first, 0)).select(names)
                        if table.num_rows == 0:
                            break
                        table = table.cast(features.arrow_schema)
                        decoded += table.nbytes
                        if decoded > most:
                            raise InputError(
                                f"{file} is a decompression bomb: its first rows take more than {most:,} bytes, "
                                f"{_RATIO} times the size of the files; give its images as files"
                            )
                        yield first, table
                        first += table.num_rows

    target = cache_dir / "tables"
    try:
        with quiet(datasets, progress):
            builder = Parquet(cache_dir=str(target), dataset_name="parquet", hash=identity)
            builder.download_and_prepare()
            return builder.as_dataset("train", in_memory=False)
    except Exception as error:  # of `datasets`, pyarrow and the file system
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        reason = one_line(error.__cause__ or error)[:300]
        raise InputError(
            f"cannot convert {what} to an Arrow table below {target}: {reason}; make room there, or choose another "
            "cache folder (XDG_CACHE_HOME)"
        ) from error


def _batch_rows(parquet: Any, names: Sequence[str]) -> int:
    """Rows per record batch: one where columns are compressed as no images are, so that cells may be huge."""
    about = parquet.metadata
    for group in range(about.num_row_groups):
        columns = [about.row_group(group).column(number) for number in range(about.num_columns)]
        for column in columns:
            if column.path_in_schema.partition(".")[0] in names and (
                column.total_uncompressed_size > max(2**22, _RATIO_OF_64_ROWS * column.total_compressed_size)
            ):
                return 1
    return _ROWS


def _plain(field: Any) -> Any:
    """The type of a column in the Arrow table: `datasets` knows neither categories nor views of text."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(field.type):
        return field.type.value_type
    return arrow.string() if arrow.types.is_string_view(field.type) else field.type
