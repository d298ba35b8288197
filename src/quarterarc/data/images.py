"""Image data sets: batches of uint8 images by number, from a tensor in memory or decoded on demand."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..common.devices import send
from ..common.text import counted
from .content import content_of
from .decode import BadImage, Pixels, read_pixels
from .labels import Labels
from .sources import Source
from .spec import DataSpec

__all__ = ["ImageData", "MappedImages", "MemoryImages", "RawBatch", "decode_all", "is_open", "log_bad"]

logger = logging.getLogger("quarterarc")

_LOGGED_BAD = 10  # images that are named in the log
_CHUNK = 128  # images per task of `decode_all`: amortises the hand-over, and still balances the threads
_AHEAD = 4  # the largest number of batches that `prefetch` keeps

Numbers = Sequence[int] | ArrayLike


class RawBatch(NamedTuple):
    """A batch as it is stored."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor | None
    """int64 (B,) in 0..classes-1; None if the data has no labels."""


class ImageData(Protocol):
    """Images of one shape by number: the return type of `open_data`."""

    channels: int
    height: int
    width: int
    classes: int | None
    """The number of classes; None without labels."""
    class_names: Sequence[str]
    """The names of the classes by label; empty where they have none."""
    labels: NDArray[np.int64] | None
    """The label of each image, (N,); None without labels, and for a stream, whose labels come with its images."""
    fingerprint: str
    """Identifies the content of the source independent of its location: 12 hexadecimal digits."""
    identity: str
    """Identifies the content at its place, with sizes and modification times."""
    description: str
    """One line for the log: the source, the number of images, the fingerprint."""
    notes: Sequence[str]
    """Further lines for the log, such as the files of a folder that are not used."""
    passed_over: Mapping[str, str]
    """The files of a folder or archive that are not read as images, with the reason."""

    def content(self) -> str:
        """A hash of the content, which reads the files of the source, see `content`; independent of their location."""
        ...

    @property
    def count(self) -> int | None:
        """The number of images, without the skipped ones; None for a stream, whose numbers have no end."""
        ...

    @property
    def skipped(self) -> int:
        """The number of images left out by `skip_bad` (in a stream: so far)."""
        ...

    @property
    def bad(self) -> Mapping[str, str]:
        """Name and reason of the images left out by `skip_bad` (in a stream: so far)."""
        ...

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers (B,), in this order, on the device.

        Raises:
            BadImage: naming the image that cannot be read.
            IndexError: for a number outside 0..count-1.
        """
        ...

    def prefetch(self, numbers: Numbers) -> None:
        """Start reading the images of a later `batch(numbers)`. Optional: it changes no result."""
        ...


@cache
def workers() -> ThreadPoolExecutor:
    """The threads that decode: one per processor available to this process, at most 16, shared by all data sets."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(count, 16), thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`map` on the worker threads, with a bounded number of items in flight and errors raised in order."""
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
    source: Source, spec: DataSpec, store: Pixels | None, advance: Callable[[int], object]
) -> dict[int, str]:
    """Decode every image once, into `store` (N, C, H, W), or only to check it.

    Args:
        source: the images.
        spec: how to decode them.
        store: the destination; None to check only.
        advance: receives the number of images decoded since the last call.

    Returns:
        The numbers of the images that `spec.skip_bad` leaves out, with the reason.

    Raises:
        BadImage: for the first image, by number, that cannot be used, unless `spec.skip_bad`.
    """

    def work(numbers: range) -> tuple[int, dict[int, str]]:
        bad = {}
        for number in numbers:
            try:
                pixels = read_pixels(source.read(number), spec, source.name(number))
            except BadImage as error:
                if not spec.skip_bad:
                    raise
                bad[number] = error.reason
            else:
                if store is not None:
                    store[number] = pixels.transpose(2, 0, 1)
        return len(numbers), bad

    bad: dict[int, str] = {}
    chunks = (range(first, min(first + _CHUNK, source.count)) for first in range(0, source.count, _CHUNK))
    for count, failed in in_order(work, chunks):
        advance(count)
        bad |= failed
    return bad


def log_bad(data: ImageData) -> None:
    """Log the first images that `skip_bad` left out, with their reasons."""
    bad = data.bad
    for name in islice(bad, _LOGGED_BAD):
        logger.warning("skipped %s: %s", name, bad[name])
    if len(bad) > _LOGGED_BAD:
        logger.warning("and %d more", len(bad) - _LOGGED_BAD)
        reasons = Counter(_NUMBER.sub("N", reason) for reason in bad.values()).most_common(_LOGGED_BAD)
        logger.warning("skipped by reason: %s", ", ".join(f'{count:,} "{reason}"' for reason, count in reasons))


_NUMBER = re.compile(r"\d[\d,.]*")
"""A number in a reason, such as a size: reasons that differ in it are counted as one."""


def _listed(names: Sequence[str], most: int = 10, longest: int = 40) -> str:
    """Number and name of the classes, for the log: " (0 cat, 1 dog)"; empty without names."""
    lines = [" ".join(name.split()) for name in names[:most]]
    short = [line if len(line) <= longest else f"{line[: longest - 3]}..." for line in lines]
    text = ", ".join(f"{number} {name}" for number, name in enumerate(short))
    return f" ({text}{', ...' if len(names) > most else ''})" if names else ""


class _Images:
    """Attributes, labels and number checks that images in memory and on demand share."""

    def __init__(
        self, source: Source, spec: DataSpec, device: torch.device, bad: Mapping[int, str], where: str,
        notes: Sequence[str],
    ) -> None:  # fmt: skip
        self._source, self._device, self._bad = source, device, bad
        self.passed_over: Mapping[str, str] = source.passed_over
        self.notes: Sequence[str] = (*source.notes, *notes)
        dropped = np.fromiter(bad, dtype=np.int64)
        self._kept = np.delete(np.arange(source.count), dropped)  # image number -> number in the source
        self.count: int = len(self._kept)
        self.channels: int = spec.channels
        self.height, self.width = spec.height, spec.width
        self.skipped: int = len(dropped)
        self.fingerprint, self.identity = source.fingerprint, source.identity
        self.description = (
            f"{source.what}: {counted(self.count, 'image')}"
            + (f" ({self.skipped:,} skipped)" if self.skipped else "")
            + f" {where}, fingerprint {self.fingerprint}"
        )
        labels: Labels | None = source.labels
        if labels is not None:
            self.description += f", {counted(labels.classes, 'class', 'classes')}{_listed(labels.names)}"
        self.classes = labels and labels.classes
        self.class_names: Sequence[str] = labels.names if labels else ()
        self.labels: NDArray[np.int64] | None = None if labels is None else labels.numbers[self._kept]
        self._labels = None if labels is None else torch.from_numpy(self.labels).to(device)

    @property
    def bad(self) -> Mapping[str, str]:
        """Name and reason of the images left out by `skip_bad`."""
        return {self._source.name(number): reason for number, reason in sorted(self._bad.items())}

    def content(self) -> str:
        """A hash of the content; see `ImageData`."""
        return content_of(self._source.files)

    def name(self, number: int) -> str:
        """The name of an image in messages: a file, or a row of a table."""
        return self._source.name(int(self._kept[number]))

    def _numbers(self, numbers: Numbers) -> NDArray[np.int64]:
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1).copy()  # torch.from_numpy needs a writable array
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"image numbers {wanted.min()}..{wanted.max()} are not all within 0..{self.count - 1}")
        return wanted

    def _batch(self, images: Tensor, wanted: NDArray[np.int64]) -> RawBatch:
        labels = None if self._labels is None else self._labels[send(torch.from_numpy(wanted), self._device)]
        return RawBatch(send(images, self._device), labels)


class MemoryImages(_Images):
    """All images as one uint8 tensor `images` (N, C, H, W): usually on `device`, to which batches are moved."""

    def __init__(
        self, source: Source, spec: DataSpec, images: Tensor, bad: Mapping[int, str],
        device: torch.device | None = None, notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(source, spec, device or images.device, bad, "in memory", notes)
        self.images = images

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers; see `ImageData`."""
        wanted = self._numbers(numbers)
        return self._batch(self.images[send(torch.from_numpy(wanted), self.images.device)], wanted)

    def prefetch(self, numbers: Numbers) -> None:
        """No effect: the images are in memory."""


class MappedImages(_Images):
    """Images decoded on demand by all worker threads, and ahead of time after `prefetch`.

    Memory is bounded by the current batch and at most four batches ahead.
    """

    def __init__(
        self, source: Source, spec: DataSpec, device: torch.device, bad: Mapping[int, str], notes: Sequence[str] = ()
    ) -> None:
        super().__init__(source, spec, device, bad, "read on demand", notes)
        self._spec = spec
        self._ahead: OrderedDict[bytes, tuple[Tensor, list[Future[None]]]] = OrderedDict()

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers; see `ImageData`."""
        wanted = self._numbers(numbers)
        key = wanted.tobytes()
        images, tasks = self._ahead.pop(key) if key in self._ahead else self._start(wanted)
        for task in tasks:
            task.result()
        return self._batch(images, wanted)

    def prefetch(self, numbers: Numbers) -> None:
        """Start decoding a later batch; beyond four batches the oldest one is dropped."""
        wanted = self._numbers(numbers)
        if wanted.tobytes() in self._ahead:
            return
        self._ahead[wanted.tobytes()] = self._start(wanted)
        if len(self._ahead) > _AHEAD:
            _, (_, tasks) = self._ahead.popitem(last=False)
            for task in tasks:
                task.cancel()

    def _start(self, wanted: NDArray[np.int64]) -> tuple[Tensor, list[Future[None]]]:
        shape = (len(wanted), self.channels, self.height, self.width)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        chunks = np.array_split(np.arange(len(wanted)), min(len(wanted), 4 * workers()._max_workers) or 1)
        return images, [workers().submit(self._fill, images.numpy(), wanted, rows) for rows in chunks]

    def _fill(self, images: Pixels, wanted: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        for row in rows:
            number = int(self._kept[wanted[row]])
            pixels = read_pixels(self._source.read(number), self._spec, self._source.name(number))
            images[row] = pixels.transpose(2, 0, 1)


def is_open(images: object) -> TypeGuard[ImageData]:
    """Whether images are opened data, an `ImageData`."""
    return hasattr(images, "fingerprint") and hasattr(images, "prefetch")
