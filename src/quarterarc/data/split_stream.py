"""Streams in parts, each from files of its own, so that a process of several reads its own share of a dataset.

Example k is example k // P of part k % P, for P parts. The trainer gives process r of n the examples r, r + n, r + 2n,
...; where n divides P they lie in P / n parts, which no other process reads. The order does not depend on n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .images import ImageData, Numbers, RawBatch

__all__ = ["SplitStream"]


class SplitStream:
    """Images of a stream without an end (`count` is None) that has several parts.

    A part is opened when its first image is needed. Parts of different lengths begin their epochs at different times:
    the images of a shorter one occur more often.

    Args:
        parts: streams of the same shape and classes.
        what: the stream, for the log.
        fingerprint: identifies the stream and its number of parts.
    """

    def __init__(self, parts: Sequence[ImageData], what: str, fingerprint: str) -> None:
        first = parts[0]
        self.parts = parts
        self.count: int | None = None
        self.channels, self.height, self.width = first.channels, first.height, first.width
        self.classes, self.class_names, self.notes = first.classes, first.class_names, first.notes
        self.labels, self.passed_over = first.labels, first.passed_over
        self.fingerprint = self.identity = fingerprint
        self.description = f"{what}: a stream of images in {len(parts)} parts, fingerprint {fingerprint}"

    def content(self) -> str:
        """Empty, since a stream is not read before it is used; see `ImageData`."""
        return ""

    @property
    def skipped(self) -> int:
        """The number of rows replaced so far in this process, counted once per epoch."""
        return sum(part.skipped for part in self.parts)

    @property
    def bad(self) -> Mapping[str, str]:
        """Name and reason of the rows replaced so far in this process."""
        return {name: reason for part in self.parts for name, reason in part.bad.items()}

    def batch(self, numbers: Numbers) -> RawBatch:
        """The images with these numbers; see `ImageData`; fast if they ascend, as in a stream."""
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if wanted.size and wanted.min() < 0:
            raise IndexError(f"image number {wanted.min()} is negative")
        part_of = wanted % len(self.parts)
        used = np.unique(part_of).tolist() or [0]
        batches = [self.parts[part].batch(wanted[part_of == part] // len(self.parts)) for part in used]
        back = torch.from_numpy(np.argsort(np.argsort(part_of, kind="stable")))
        images, labels = torch.cat([batch.images for batch in batches]), None
        if self.classes is not None:
            labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        back = back.to(images.device)
        return RawBatch(images[back], None if labels is None else labels[back])

    def prefetch(self, numbers: Numbers) -> None:
        """No effect: the next block of every part in use is always read ahead."""
