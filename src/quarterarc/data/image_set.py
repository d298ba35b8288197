"""`ImageSet`: the protocol of a set of images in evaluation and likelihood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

from torch import Tensor

__all__ = ["ImageSet", "Shape", "Wanted"]

Shape: TypeAlias = tuple[int, int, int]
Wanted: TypeAlias = Callable[[int], bool]
"""Returns whether to read the batch with this number."""


class ImageSet(Protocol):
    """Images of one shape, in a fixed order."""

    what: str
    """The name of the set in messages and results."""

    @property
    def count(self) -> int | None:
        """The number of images; None if unknown before they are read."""
        ...

    @property
    def shape(self) -> Shape | None:
        """(C, H, W); None if unknown before they are read."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Identifies the content independent of its location; None if unknown."""
        ...

    @property
    def identity(self) -> str | None:
        """Identifies the content at its place, with modification times: the key of cached features, or None."""
        ...

    @property
    def sampling(self) -> dict[str, Any] | None:
        """How the images were sampled, as JSON types; None if they were not sampled, or if it is unknown."""
        ...

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        """Pairs of number and batch, uint8 (B, C, H, W), in order; batch b starts at image b * size.

        Args:
            size: images per batch.
            wanted: selects the batches.
        """
        ...
