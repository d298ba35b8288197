"""Held-out images: a share of a data set that training never uses, so that overfitting and memorisation are visible.

Which images these are depends on their number alone: it is the same for every seed, every process and a resumed run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..common.errors import InputError
from ..common.hashes import digest
from .images import ImageData, Numbers, RawBatch
from .order import permutation

__all__ = ["Part", "divide"]

_STREAM = 0x686F6C64  # "hold": separates this order from those of training


def divide(data: ImageData, share: float) -> tuple[Part, Part]:
    """The images for training, and those that are held out: at least one of each.

    Args:
        data: all images.
        share: the share that is held out, in (0, 1).

    Raises:
        InputError: for a stream, whose images have no numbers, or fewer than two images.
    """
    if data.count is None:
        raise InputError(
            f"data.holdout={share:g} needs images whose number is known, not a stream ({data.description}): leave it "
            "out, or give data.memory=auto, with which a hub dataset is downloaded"
        )
    if data.count < 2:
        raise InputError(f"data.holdout={share:g} needs at least 2 images, got {data.description}")
    held = min(max(1, round(share * data.count)), data.count - 1)
    shuffled = permutation(_STREAM, count=data.count)
    trained = Part(data, np.sort(shuffled[held:]))
    trained.description += f"; {held:,} held out of training"
    return trained, Part(data, np.sort(shuffled[:held]))


class Part:
    """Some images of a data set, an `ImageData`.

    Args:
        whole: all images.
        numbers: the numbers of those of this part, ascending, int64 (N,).
    """

    def __init__(self, whole: ImageData, numbers: NDArray[np.int64]) -> None:
        self.whole, self.numbers = whole, numbers
        self.count: int | None = len(numbers)
        self.channels, self.height, self.width = whole.channels, whole.height, whole.width
        self.classes, self.class_names = whole.classes, whole.class_names
        self.labels = None if whole.labels is None else whole.labels[numbers]
        self.passed_over = whole.passed_over
        chosen = hashlib.sha256(numbers.tobytes()).hexdigest()
        self.fingerprint, self.identity = digest(whole.fingerprint, chosen), digest(whole.identity, chosen)
        self.description, self.notes = whole.description, whole.notes

    def content(self) -> str:
        """A hash of the content of all images; see `ImageData`."""
        return self.whole.content()

    @property
    def skipped(self) -> int:
        """The number of images of the whole that are left out."""
        return self.whole.skipped

    @property
    def bad(self) -> Mapping[str, str]:
        """Name and reason of the images of the whole that are left out."""
        return self.whole.bad

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers of the part; see `ImageData`."""
        return self.whole.batch(self.places(numbers))

    def prefetch(self, numbers: Numbers) -> None:
        """Start reading the images of a later batch; see `ImageData`."""
        self.whole.prefetch(self.places(numbers))

    def places(self, numbers: Numbers) -> NDArray[np.int64]:
        """The numbers in the whole of images of this part.

        Raises:
            IndexError: for a number outside 0..count-1.
        """
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self.numbers)):
            raise IndexError(f"image numbers {wanted.min()}..{wanted.max()} are not all within 0..{self.count}")
        return self.numbers[wanted]
