"""The definition of an experiment: the cells that it needs, and the findings that it draws from them."""

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
from .measuring import cell_folder, measure
from .scales import Scale

__all__ = ["Experiment", "Measurements"]


class Measurements:
    """The values of the cells of an experiment.

    Args:
        lab: the lab that measures; a cell that has been measured is read from its cache.
        seeds: the seeds of the experiment.
    """

    def __init__(self, lab: Lab, seeds: Sequence[int]) -> None:
        self.lab, self.seeds = lab, tuple(seeds)

    @property
    def scale(self) -> Scale:
        """The scale of the experiment."""
        return self.lab.scale

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        return measure(self.lab, cell)

    def by_seed(self, cell: Callable[[int], Cell], name: str) -> list[float]:
        """One value per seed, by name; NaN where the arm was unstable.

        Args:
            cell: seed -> cell.
            name: the name of the value: "fid".
        """
        values = [self[cell(seed)].get(name) for seed in self.seeds]
        return [math.nan if value is None else float(value) for value in values]

    @cached_property
    def floor(self) -> float | None:
        """The Frechet distance between a random subset of the training images and all of them.

        The subset has as many images as one measurement. A perfect model of the training images would score this
        distance. None if the subset would be more than half of the training images, or too small for a covariance of
        full rank.
        """
        features = self.lab.reference.saved.vectors["pool"]
        count, dimensions = features.shape
        if not 2 * dimensions <= self.scale.images <= count / 2:
            return None
        rows = permutation(0, count=count)[: self.scale.images]
        return frechet_distance(self.lab.reference.saved.statistics["pool"], Statistics.of(features[rows]))

    def picture(self, cell: Cell) -> Path:
        """The path of the PNG that a cell wrote."""
        return cell_folder(self.lab, cell) / str(self[cell]["picture"])


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        name: the name on the command line.
        title: the question that the experiment answers.
        source: the paper, with its table, figure or section.
        cells: (scale, seeds) -> all cells that the experiment measures.
        report: measurements -> findings.
    """

    name: str
    title: str
    source: str
    cells: Callable[[Scale, Sequence[int]], list[Cell]]
    report: Callable[[Measurements], Findings]
