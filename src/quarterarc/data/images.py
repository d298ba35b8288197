"""Open image data: uint8 batches by example number, from one tensor on the device or decoded when asked for."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .decode import BadImage, Pixels, read_pixels
from .sources import Labels, Part, Source
from .spec import DataSpec

__all__ = ["ImageData", "MappedImages", "MemoryImages", "RawBatch", "decode_all"]

_PART = 128  # images a worker decodes at a stretch: enough to make handing over cheap, few enough to share out
_AHEAD = 4  # batches that `prefetch` keeps at most

Numbers = Sequence[int] | ArrayLike


@dataclass(frozen=True)
class RawBatch:
    """Images as they are stored, and who they are."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor | None
    """int64 (B,) in 0..classes-1, if labels were asked for."""
    numbers: NDArray[np.int64]
    """The example numbers that were asked for, (B,)."""
    _name: Callable[[int], str]

    @property
    def names(self) -> list[str]:
        """File names, or table rows, for messages; looked up when asked for."""
        return [self._name(int(number)) for number in self.numbers]


class ImageData(Protocol):
    """What `open_data` returns."""

    channels: int
    height: int
    width: int
    classes: int | None
    """How many classes the labels have; None without labels."""
    fingerprint: str
    """Stands for the source's content wherever it lies: 12 hexadecimal digits."""
    description: str
    """One line for the log: the source, how many images, the fingerprint."""

    @property
    def count(self) -> int | None:
        """How many images there are, unreadable ones left out; None for a stream, whose numbers go on for ever."""
        ...

    @property
    def skipped(self) -> int:
        """How many images `skip_bad` has left out (in a stream: so far)."""
        ...

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers (B,), in this order, on the device.

        Raises:
            BadImage: naming the image that cannot be read.
            IndexError: for a number outside 0..count-1.
        """
        ...

    def prefetch(self, numbers: Numbers) -> None:
        """Begin to read what a coming call of `batch` will ask for with the same numbers; never needed."""
        ...


@cache
def workers() -> ThreadPoolExecutor:
    """The threads that decode: one for each processor this process may use, at most 16, shared by all data."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(count, 16), thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`map` on the worker threads, with a bounded number of items under way and errors raised in order."""
    pool = workers()
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * pool._max_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def decode_all(
    source: Source, spec: DataSpec, store: Pixels | None, progress: Callable[[int], object]
) -> dict[int, str]:
    """Decode every image once, into `store` (N, C, H, W) or only to see that it can be done.

    Returns:
        The numbers of the images that `spec.skip_bad` leaves out, with the reason.

    Raises:
        BadImage: for the first image, by number, that cannot be used, unless `spec.skip_bad`.
    """

    def work(part: Part) -> tuple[int, dict[int, str]]:
        bad = {}
        for number in part.numbers:
            try:
                pixels = read_pixels(part.read(number), spec, source.name(number))
            except BadImage as error:
                if not spec.skip_bad:
                    raise
                bad[number] = str(error)
            else:
                if store is not None:
                    store[number] = pixels.transpose(2, 0, 1)
        return len(part.numbers), bad

    bad: dict[int, str] = {}
    for count, failed in in_order(work, source.parts(_PART)):
        progress(count)
        bad |= failed
    return bad


class _Images:
    """What images in memory and on disk have in common: size, labels, names, the numbers of those that are kept."""

    def __init__(self, source: Source, spec: DataSpec, device: torch.device, bad: Iterable[int], where: str) -> None:
        self._source, self._device = source, device
        dropped = np.fromiter(bad, dtype=np.int64)
        self._kept = np.delete(np.arange(source.count), dropped)  # example number -> number in the source
        self.count: int = len(self._kept)
        self.channels: int = spec.channels
        self.height, self.width = spec.height, spec.width
        self.skipped: int = len(dropped)
        self.fingerprint = source.fingerprint
        self.description = (
            f"{source.what}: {self.count:,} images"
            + (f" ({self.skipped:,} skipped)" if self.skipped else "")
            + f" {where}, fingerprint {self.fingerprint}"
        )
        labels: Labels | None = source.labels
        self.classes = labels and labels.classes
        self._labels = None if labels is None else torch.from_numpy(labels.numbers[self._kept]).to(device)

    def _numbers(self, numbers: Numbers) -> NDArray[np.int64]:
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1).copy()  # PyTorch wants an array of its own
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"image numbers {wanted.min()}..{wanted.max()} are not all within 0..{self.count - 1}")
        return wanted

    def _batch(self, images: Tensor, wanted: NDArray[np.int64]) -> RawBatch:
        labels = None if self._labels is None else self._labels[torch.from_numpy(wanted).to(self._device)]
        return RawBatch(images, labels, wanted, lambda number: self._source.name(int(self._kept[number])))


class MemoryImages(_Images):
    """All images as one uint8 tensor `images` (N, C, H, W) on the device, indexed there."""

    def __init__(self, source: Source, spec: DataSpec, images: Tensor, bad: Iterable[int]) -> None:
        super().__init__(source, spec, images.device, bad, "in memory")
        self.images = images

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers; see `ImageData`."""
        wanted = self._numbers(numbers)
        return self._batch(self.images[torch.from_numpy(wanted).to(self._device)], wanted)

    def prefetch(self, numbers: Numbers) -> None:
        """Nothing to do."""


class MappedImages(_Images):
    """Images that are decoded when they are asked for, on all worker threads, ahead of time where `prefetch` says so.

    Memory stays bounded: the batch in hand, and at most four batches ahead.
    """

    def __init__(self, source: Source, spec: DataSpec, device: torch.device, bad: Iterable[int]) -> None:
        super().__init__(source, spec, device, bad, "read on demand")
        self._spec = spec
        self._ahead: OrderedDict[bytes, tuple[Tensor, list[Future[None]]]] = OrderedDict()

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers; see `ImageData`."""
        wanted = self._numbers(numbers)
        key = wanted.tobytes()
        images, parts = self._ahead.pop(key) if key in self._ahead else self._start(wanted)
        for part in parts:
            part.result()
        return self._batch(images.to(self._device, non_blocking=True), wanted)

    def prefetch(self, numbers: Numbers) -> None:
        """Begin to decode a coming batch; the oldest is forgotten when there are more than four."""
        wanted = self._numbers(numbers)
        if wanted.tobytes() in self._ahead:
            return
        self._ahead[wanted.tobytes()] = self._start(wanted)
        if len(self._ahead) > _AHEAD:
            _, (_, parts) = self._ahead.popitem(last=False)
            for part in parts:
                part.cancel()

    def _start(self, wanted: NDArray[np.int64]) -> tuple[Tensor, list[Future[None]]]:
        shape = (len(wanted), self.channels, self.height, self.width)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        rows = np.array_split(np.arange(len(wanted)), min(len(wanted), 4 * workers()._max_workers) or 1)
        return images, [workers().submit(self._fill, images.numpy(), wanted, part) for part in rows]

    def _fill(self, images: Pixels, wanted: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        for row in rows:
            number = int(self._kept[wanted[row]])
            pixels = read_pixels(self._source.read(number), self._spec, self._source.name(number))
            images[row] = pixels.transpose(2, 0, 1)
