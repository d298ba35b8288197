"""Hub datasets that are streamed over the network, not downloaded.

Example k of a stream is a function of the seed and k, so that runs resume and processes share work without state. The
rows of epoch e (the shards of the dataset, shuffled with seed + e) are divided into blocks of 1,024, and each block is
shuffled with a permutation drawn from (seed, e, block); the epochs follow one another. `batch` accepts any numbers, but
is fast for ascending ones only: every process iterates over all rows and decodes those in its batches, and a number
from an earlier block restarts the stream. A resumed run skips rows in the same way: those of the first epoch, which
determines the length of an epoch, and those of the current epoch before the first example. A stream in parts
(`split_stream`) has such a sequence for each, of which a process iterates over its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.text import one_line
from .columns import Columns, choose_columns, schema_columns
from .decode import BadImage, Pixels, read_pixels
from .images import ImageData, Numbers, RawBatch, in_order
from .order import permutation
from .spec import DataSpec
from .split_stream import SplitStream
from .tables import encoded

__all__ = ["BLOCK", "StreamedImages", "stream_dataset"]

logger = logging.getLogger("quarterarc")

_LOGGED_BAD = 10  # unusable rows that are named in the log
BLOCK = 1024  # rows per shuffled block: about 100 MB of encoded 256x256 images
Row = Mapping[str, Any]


class _Block(NamedTuple):
    first: int  # example number of its first image
    epoch: int
    start: int  # rows of the epoch before it
    rows: list[Row]
    order: NDArray[np.int64]  # offset in the block -> row


class StreamedImages:
    """Images of a stream without an end (`count` is None), numbered as the documentation of this module describes.

    With `skip_bad` an unreadable image is replaced by the next readable one of its block.

    Args:
        spec: the preparation of the images.
        rows: returns the rows of an epoch, from the start, in a fixed order.
        columns: the columns of image and label.
        what: the stream, for messages.
        device: the device of the batches.
        seed: the seed of the shuffling.
        key: further numbers that the shuffling depends on.
        block: rows per shuffled block; `BLOCK` if None.
    """

    def __init__(
        self,
        spec: DataSpec,
        rows: Callable[[int], Iterable[Row]],
        columns: Columns,
        what: str,
        device: torch.device,
        seed: int = 0,
        key: tuple[int, ...] = (),
        block: int | None = None,
    ) -> None:
        self._spec, self._rows, self._columns, self._what = spec, rows, columns, what
        self._device, self._key, self._size = device, (seed, *key), block or BLOCK
        self._length: int | None = None  # rows per epoch, known after the end of the first one
        self._blocks: Iterator[_Block] | None = None
        self._block: _Block | None = None
        self._next: Future[_Block] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._bad: dict[tuple[int, int], str] = {}
        self.count: int | None = None
        self.channels: int = spec.channels
        self.height, self.width = spec.height, spec.width
        self.classes = columns.classes if spec.labels else None
        self.class_names: Sequence[str] = columns.names if spec.labels else ()
        self.labels: NDArray[np.int64] | None = None
        self.passed_over: Mapping[str, str] = {}
        self.notes: Sequence[str] = ()
        self.fingerprint = self.identity = digest(what, columns, spec.limit)
        self.description = f"{what}: a stream of images, fingerprint {self.fingerprint}"

    def content(self) -> str:
        """Empty, since a stream is not read before it is used; see `ImageData`."""
        return ""

    @property
    def skipped(self) -> int:
        """The number of rows replaced so far in this process, counted once per epoch."""
        return len(self._bad)

    @property
    def bad(self) -> Mapping[str, str]:
        """Name and reason of the rows replaced so far in this process."""
        return {self._name(epoch, row): reason for (epoch, row), reason in sorted(self._bad.items())}

    def _name(self, epoch: int, row: int) -> str:
        return f"{self._what} row {row} of epoch {epoch}"

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers (B,), in this order; fast if they are not below those of earlier calls.

        Raises:
            BadImage: naming an image that cannot be read (with `skip_bad`: if its whole block cannot).
            InputError: if the stream is empty, or ends with an error.
        """
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if wanted.size and wanted.min() < 0:
            raise IndexError(f"image number {wanted.min()} is negative")
        images = np.empty((len(wanted), self.channels, self.height, self.width), np.uint8)
        labels = np.zeros(len(wanted), np.int64)

        def places() -> Iterator[tuple[int, _Block, int]]:
            for place in np.argsort(wanted, kind="stable"):
                block = self._block_of(int(wanted[place]))
                yield int(place), block, int(wanted[place]) - block.first

        for place, pixels, label in in_order(self._read, places()):
            images[place], labels[place] = pixels.transpose(2, 0, 1), label
        return RawBatch(
            torch.from_numpy(images).to(self._device),
            torch.from_numpy(labels).to(self._device) if self._spec.labels else None,
        )

    def prefetch(self, numbers: Numbers) -> None:
        """No effect: the next block is always read ahead."""

    def _read(self, task: tuple[int, _Block, int]) -> tuple[int, Pixels, int]:
        """Decode an image, or with `skip_bad` the next readable one of its block."""
        place, block, offset = task
        for step in range(len(block.rows)):
            index = int(block.order[(offset + step) % len(block.rows)])
            row, name = block.rows[index], self._name(block.epoch, block.start + index)
            try:
                pixels = read_pixels(
                    encoded(row.get(self._columns.image), name, most=self._spec.max_bytes), self._spec, name
                )
            except BadImage as error:
                if not self._spec.skip_bad:
                    raise
                if len(self._bad) < _LOGGED_BAD and (block.epoch, block.start + index) not in self._bad:
                    logger.warning("skipped %s: %s", name, error.reason)
                self._bad[block.epoch, block.start + index] = error.reason
                last = error
            else:
                return place, pixels, self._label(row, name)
        raise last

    def _label(self, row: Row, name: str) -> int:
        if not self._spec.labels:
            return 0
        label = row.get(self._columns.label or "")
        if label is None or not 0 <= label < (self.classes or 0):
            raise InputError(f"{name}: column '{self._columns.label}' holds {label}; expected 0..{self.classes}-1")
        return int(label)

    def _block_of(self, number: int) -> _Block:
        if self._blocks is None or (self._block is not None and number < self._block.first):
            self._blocks, self._block, self._next = self._blocks_from(number), None, None
        while self._block is None or number >= self._block.first + len(self._block.rows):
            # A single thread advances the generator, so that the next block is read while this one is decoded.
            advance = partial(next, self._blocks)
            coming = self._next or self._reader.submit(advance)
            try:
                self._block = coming.result()
            except Exception as error:
                self._blocks = self._block = self._next = None
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{self._what} ended with an error: {one_line(error)}; resume when it can be reached again"
                ) from error
            self._next = self._reader.submit(advance)
        return self._block

    def _blocks_from(self, number: int) -> Iterator[_Block]:
        """The blocks from the epoch of `number` on, without end; from the first epoch if the length is unknown."""
        while True:
            epoch, start = number // self._length if self._length else 0, 0
            rows = iter(self._rows(epoch))
            while block := list(islice(rows, self._size)):
                order = permutation(*self._key, epoch, start // self._size, count=len(block))
                first = epoch * (self._length or 0) + start
                yield _Block(first, epoch, start, block, order)
                start += len(block)
            if start == 0 or start != (self._length or start):
                raise InputError(
                    f"{self._what} ended after {start} rows" + (f", not {self._length}" if self._length else "")
                )
            self._length = start
            number = max(number, (epoch + 1) * start)


def stream_dataset(spec: DataSpec, dataset: Any, what: str, device: torch.device, seed: int) -> ImageData:
    """The images of a `datasets.IterableDataset`."""
    import datasets

    if dataset.features is None:  # columns that are not declared have the kinds of the first row
        first: Row = next(iter(dataset), {})
        columns = choose_columns(spec, {name: _kind_of_cell(cell) for name, cell in first.items()}, {}, what)
    else:
        columns = schema_columns(spec, dataset.features.arrow_schema, what)
    if spec.labels and columns.classes is None:
        raise InputError(
            f"{what}: column '{columns.label}' does not declare how many classes it has, which a stream needs; "
            "download the dataset instead (memory: memory) or train without labels"
        )
    if dataset.features is not None:  # the other columns may hold images or sounds, which would be opened
        dataset = dataset.select_columns([name for name in (columns.image, columns.label) if name])
    if dataset.features is not None and hasattr(dataset.features[columns.image], "decode_example"):
        dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
    if spec.stream_parts > 1:
        return _in_parts(spec, dataset, columns, what, device, seed)
    if spec.limit:
        dataset = dataset.take(spec.limit)  # before shuffling, so that every epoch has the same rows
    return StreamedImages(spec, _shuffled(dataset, seed), columns, what, device, seed)


def _in_parts(
    spec: DataSpec, dataset: Any, columns: Columns, what: str, device: torch.device, seed: int
) -> SplitStream:
    count = spec.stream_parts
    if dataset.num_shards < count:
        raise InputError(
            f"{what} has {dataset.num_shards} files, fewer than data.stream_parts={count}: give at most that many parts"
        )
    if spec.limit:
        raise InputError("data.limit takes the first images of a stream, whatever its parts: leave out one of the two")
    parts = [
        StreamedImages(
            spec, _shuffled(dataset.shard(count, part, contiguous=False), seed), columns, f"{what} part {part}",
            device, seed, (part,), max(1, BLOCK // count),
        )
        for part in range(count)
    ]  # fmt: skip
    return SplitStream(parts, what, digest(what, columns, count))


def _shuffled(dataset: Any, seed: int) -> Callable[[int], Iterable[Row]]:
    """The rows of an epoch, with the files of the dataset in an order of this epoch."""
    return lambda epoch: dataset.shuffle(seed=seed + epoch, buffer_size=1)


def _kind_of_cell(cell: Any) -> str:
    if isinstance(cell, bytes | Mapping) or hasattr(cell, "getexif"):
        return "encoded"
    if isinstance(cell, str):
        return "text"
    return "integer" if isinstance(cell, int) else type(cell).__name__
