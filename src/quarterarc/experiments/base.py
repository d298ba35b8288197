"""What an experiment is: which cells it needs, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.order import permutation
from ..evaluation.frechet import frechet_distance
from ..evaluation.statistics import Statistics
from .cells import Cell
from .findings import Findings
from .lab import Lab
from .scales import Scale

__all__ = ["Experiment", "Measured"]


class Measured:
    """What the cells of a plan found.

    Args:
        lab: where they are kept; every cell that is asked for has been measured.
        seeds: those of the plan.
    """

    def __init__(self, lab: Lab, seeds: Sequence[int]) -> None:
        self.lab, self.seeds = lab, tuple(seeds)

    @property
    def scale(self) -> Scale:
        """The scale."""
        return self.lab.scale

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        return self.lab.measured(cell)

    def by_seed(self, cell: Callable[[int], Cell], name: str) -> list[float]:
        """One value of the cells of all seeds; not a number where an arm was unstable."""
        found = [self[cell(seed)].get(name) for seed in self.seeds]
        return [math.nan if value is None else float(value) for value in found]

    @cached_property
    def floor(self) -> float | None:
        """The Frechet distance of as many training images, chosen at random, from all of them.

        None where so many are most of them, or too few for their features.

        What a perfect model of the training images would score, and no model has to beat.
        """
        features = self.lab.reference.features["pool"]
        count, dimensions = features.shape
        if not 2 * dimensions <= self.scale.images <= count / 2:
            return None
        rows = permutation(0, count=count)[: self.scale.images]
        return frechet_distance(self.lab.reference.moments["pool"], Statistics.of(features[rows]))

    def picture(self, cell: Cell) -> Path:
        """The picture that a cell made."""
        return self.lab.folder(cell) / str(self[cell]["picture"])


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        name: what the command line calls it.
        title: what it asks, in a few words.
        source: where the paper has it.
        cells: (scale, seeds) -> everything that it measures.
        report: what it says of that.
    """

    name: str
    title: str
    source: str
    cells: Callable[[Scale, Sequence[int]], list[Cell]]
    report: Callable[[Measured], Findings]
