"""Quality against network evaluations from 1 to 100: flow maps, and samplers of ordinary networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import fmean

from ...samplers import sampler as named_sampler
from ..arms import Arm, arm, distilled
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, quality_chart, title, values_at
from ..zhang2023.ablation import DDIM, OURS

__all__ = ["FEW_EVALUATIONS", "Line"]

EVALUATIONS = (1, 2, 4, 5, 8, 10, 16, 32, 50, 100)
FEW, TEN = 8, 10
"""The largest number of evaluations at which a map is compared, and those of its teacher's best images."""


@dataclass(frozen=True)
class Line:
    """A network with its sampler: a row of the tables and a line of the figure.

    Attributes:
        label: the label.
        arm: the network.
        sampler: the sampler's name, with one evaluation per step.
        grid: the grid; None for the sampler's own.
        fewest, most: the smallest and largest number of evaluations.
        through: a wrapper of the denoiser, a name of `measures.WRAPPERS`.
    """

    label: str
    arm: Arm
    sampler: str
    grid: str | None = None
    fewest: int = 1
    most: int = 100
    through: str | None = "loaded"

    def cell(self, scale: Scale, evaluations: int, seed: int) -> Cell:
        """The quality at a number of network evaluations per image."""
        grid = self.grid or named_sampler(self.sampler).default_grid
        return quality(scale, self.arm, seed, self.sampler, evaluations, grid=grid, through=self.through)

    def counts(self, scale: Scale) -> tuple[int, ...]:
        """The numbers of evaluations at which it is measured."""
        return tuple(count for count in scale.at(*EVALUATIONS) if self.fewest <= count <= self.most)


MULTISTEP, OURS_DDIM, TUNED = (
    Line("ours, multistep", OURS.arm, "multistep"),
    Line("ours, DDIM", OURS.arm, "ddim"),
    Line("ours, multistep, tuned grid", OURS.arm, "multistep", "tuned", 2, TEN),
)
SHORTER = replace(OURS.arm, name=f"{OURS.arm.name}, 2/3 of the training steps", share=2 / 3)
DISTILLED, LAST_THIRD, TANGENT, SCRATCH = (
    Line("flow map, distilled from ours", distilled(OURS.arm), "jump", most=TEN),
    Line("flow map, distilled in the last third", distilled(SHORTER, share=0.5), "jump", most=TEN),
    Line("flow map, from scratch with a tangent", arm("both+tangent", objective="flow-map"), "jump", most=TEN),
    Line("flow map, from scratch", arm("both", objective="flow-map"), "jump", most=TEN),
)
PLAIN = Line("DDIM", DDIM.arm, "ddim", "time", through=None)
TEACHERS, MAPS = (MULTISTEP, OURS_DDIM, TUNED), (DISTILLED, LAST_THIRD, TANGENT, SCRATCH)
LINES = (*TEACHERS, *MAPS, PLAIN)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [line.cell(scale, count, seed) for line in LINES for seed in seeds for count in line.counts(scale)]


def _report(measured: Measurements) -> Findings:
    scale = measured.scale
    at: dict[str, CellAt] = {line.label: partial(line.cell, scale) for line in LINES}
    counts = {line.label: line.counts(scale) for line in LINES}
    steps = scale.at(*EVALUATIONS)
    best = _best(measured)
    return Findings(
        [
            Section(
                "Quality against evaluations",
                "'ours' is the network of Zhang et al.; its estimates are projected, as those of a loaded network are. "
                "The distilled map is a copy of 'ours', trained further on the flow of 'ours' for as many steps, "
                "without data; 'distilled in the last third' is a network trained for two thirds of these steps "
                "and distilled for one third, so that it is trained as long as 'ours' in all. Maps from scratch are "
                "trained as long as 'ours', on the same images; with a tangent, the network has a second pair of "
                "outputs. 'DDIM' has the noise head and the linear schedule. "
                "A grid is tuned to each network and number of steps.",
                [
                    *(
                        part
                        for metric in scale.metrics
                        for part in (
                            grid_table(
                                measured, f"{title(metric)} by evaluations", at, steps, metric, unit="evaluations",
                                counts=counts,
                            ),
                            quality_chart(measured, "evaluations", at, steps, metric, counts=counts),
                        )
                    ),
                    _ratios(measured, best),
                ],
            )
        ],
        _claims(measured, best),
    )  # fmt: skip


def _ten(scale: Scale) -> int:
    return max(count for count in scale.at(*EVALUATIONS) if count <= TEN)


def _few(scale: Scale) -> list[int]:
    return [count for count in scale.at(*EVALUATIONS) if count <= FEW]


def _best(measured: Measurements) -> Line:
    """The teacher's sampler with the lowest mean Frechet distance at ten evaluations."""
    scale, ten = measured.scale, _ten(measured.scale)
    lines = [line for line in TEACHERS if ten in line.counts(scale)]
    return min(lines, key=lambda line: fmean(values_at(measured, partial(line.cell, scale), ten)))


def _ratios(measured: Measurements, best: Line) -> Table:
    """The Frechet distances of few evaluations over that of the teacher's best sampler at ten, seed by seed."""
    scale, ten = measured.scale, _ten(measured.scale)
    bests = values_at(measured, partial(best.cell, scale), ten)
    rows = []
    for line in LINES:
        row = [line.label]
        for count in _few(scale):
            if count not in line.counts(scale):
                row.append("")
                continue
            values = values_at(measured, partial(line.cell, scale), count)
            row.append(spread([value / other for value, other in zip(values, bests, strict=True)]))
        rows.append(row)
    return Table(
        f"Frechet distance relative to '{best.label}' at {ten} evaluations",
        ["", *(f"{count} evaluation{'' if count == 1 else 's'}" for count in _few(scale))],
        rows,
    )


def _claims(measured: Measurements, best: Line) -> list[Claim]:
    scale, ten, source = measured.scale, _ten(measured.scale), "docs/flow-maps.md"
    at = {line: partial(line.cell, scale) for line in LINES}

    def equal(claimed: Line, other: Line) -> Claim:
        both = [count for count in _few(scale) if count in claimed.counts(scale) and count in other.counts(scale)]
        return Claim(
            f"At up to {FEW} evaluations '{claimed.label}' has a lower Frechet distance than '{other.label}'.",
            source,
            [
                compare(measured, at[claimed], at[other], n, label=f"{n} evaluation{'' if n == 1 else 's'}")
                for n in both
            ],
        )

    def against_ten(line: Line, count: int) -> Claim:
        words = {1: "one evaluation", 2: "two evaluations", 4: "four evaluations"}[count]
        comparison = Comparison(
            f"'{best.label}'",
            values_at(measured, at[line], count),
            values_at(measured, at[best], ten),
        )
        return Claim(
            f"In {words} '{line.label}' has a lower Frechet distance than 'ours' by its best sampler in {ten}.",
            source,
            [comparison],
        )

    best_maps, samplers = (DISTILLED, LAST_THIRD, TANGENT), (PLAIN, OURS_DDIM, MULTISTEP, TUNED)
    pairs = [*product(best_maps, samplers), (DISTILLED, LAST_THIRD), (LAST_THIRD, TANGENT), (TANGENT, SCRATCH)]
    return [
        *(against_ten(line, count) for line in best_maps for count in (1, 2, 4) if count in line.counts(scale)),
        *(equal(claimed, other) for claimed, other in pairs),
    ]


FEW_EVALUATIONS = Experiment(
    "few-evaluations",
    "How good are images in 1 to 100 network evaluations, by flow maps and by samplers?",
    "Flow maps (docs/flow-maps.md), not in the papers",
    _cells,
    _report,
)
