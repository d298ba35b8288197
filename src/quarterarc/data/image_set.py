"""What evaluation and likelihood need of a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

from torch import Tensor

__all__ = ["ImageSet", "Shape", "Wanted"]

Shape: TypeAlias = tuple[int, int, int]
Wanted: TypeAlias = Callable[[int], bool]
"""Whether the batch with this number is wanted."""


class ImageSet(Protocol):
    """Images of one shape, in a fixed order."""

    what: str
    """What they are, for messages and results."""

    @property
    def count(self) -> int | None:
        """How many; None where only reading them tells."""
        ...

    @property
    def shape(self) -> Shape | None:
        """(C, H, W); None where only reading them tells."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Stands for the images wherever they lie; None where nothing does."""
        ...

    @property
    def identity(self) -> str | None:
        """The same with the times of change: features are cached under it. None forbids caching."""
        ...

    @property
    def sampling(self) -> dict[str, Any] | None:
        """How they were sampled, as JSON types; None for images that were not, or nobody knows."""
        ...

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        """The wanted batches in order, each with its number: uint8 (B, C, H, W). Batch b starts at image b * size."""
        ...
