"""Which rule with fresh noise is best from 16 to 64 evaluations; not in the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..scales import Scale
from ..tables import CellAt, grid_table, quality_chart, values_at
from .ablation import OURS, PUBLISHED_DDPM

__all__ = ["STOCHASTIC", "Rule"]

TUNED_ON, REPORTED_ON = 1, 0
"""Draws of noise: settings are chosen on one and reported on the other."""


@dataclass(frozen=True)
class Rule:
    """A sampler with its options and grid.

    Attributes:
        label: the label in the tables.
        sampler: the sampler's name; one evaluation per step.
        options: its options, pairs of name and value.
        grid: the grid.
    """

    label: str
    sampler: str
    options: tuple[tuple[str, Any], ...] = ()
    grid: str = "octave"

    def cell(self, scale: Scale, steps: int, seed: int, draw: int = REPORTED_ON) -> Cell:
        """The quality with the estimates projected, as those of a loaded network are."""
        return quality(
            scale,
            OURS.arm,
            seed,
            self.sampler,
            steps,
            grid=self.grid,
            through="loaded",
            draw=draw,
            **dict(self.options),
        )


FAMILIES: dict[str, tuple[Rule, ...]] = {
    "multistep": (Rule("multistep", "multistep"),),
    "multistep with fresh noise": tuple(
        Rule(f"multistep, order {order}, η = {eta:g}", "multistep", (("eta", eta), ("order", order)))
        for order in (2, 3)
        for eta in (0.25, 0.5, 0.75, 1.0)
    ),
    "ddpm": tuple(
        Rule(f"ddpm, {words}, grid {grid}", "ddpm", options, grid)
        for words, options in (("small variance", ()), ("large variance, clipped", PUBLISHED_DDPM))
        for grid in ("angle", "octave")
    ),
}
"""Rules by family. A family of several rules is tuned: the best of them on other noise is taken, for each number of
steps. Orders above 1 with fresh noise are second-order stochastic solvers and higher (Xue et al. 2023)."""

DETERMINISTIC, FRESH, DDPM = FAMILIES
RULES = tuple(rule for rules in FAMILIES.values() for rule in rules)


def _counts(scale: Scale) -> tuple[int, ...]:
    return scale.at(16, 32, 64)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        rule.cell(scale, steps, seed, draw)
        for rule in RULES
        for seed in seeds
        for draw in (REPORTED_ON, TUNED_ON)
        for steps in _counts(scale)
    ]


def _best(measured: Measurements, family: str, steps: int) -> Rule:
    """The rule of a family with the lowest mean Frechet distance on the noise for tuning."""

    def mean(rule: Rule) -> float:
        return fmean(values_at(measured, partial(rule.cell, measured.scale, draw=TUNED_ON), steps))

    return min(FAMILIES[family], key=mean)


def _values(measured: Measurements, family: str, steps: int) -> list[float]:
    return values_at(measured, partial(_best(measured, family, steps).cell, measured.scale), steps)


def _report(measured: Measurements) -> Findings:
    scale, counts = measured.scale, _counts(measured.scale)
    at: dict[str, CellAt] = {rule.label: partial(rule.cell, scale) for rule in RULES}
    rows = [
        [
            family,
            *(
                f"{spread(_values(measured, family, steps))} ({_best(measured, family, steps).label})"
                for steps in counts
            ),
        ]
        for family in FAMILIES
    ]
    tuned = Table(
        "The best rule of each family",
        ["Frechet distance", *(f"{count} evaluations" for count in counts)],
        rows,
        "The rule in brackets has the lowest mean on other noise than that of the table.",
        (0, *range(1, len(counts) + 1)),
    )
    text = (
        "The network is that of 'ours', with projected estimates, as a loaded network has them. A family of several "
        "rules "
        "is tuned: its best rule on one draw of noise is reported on another. Multistep rules with fresh noise "
        "integrate the image estimate in the reverse process with that noise, with orders 2 and 3."
    )
    every = [
        part
        for metric in scale.metrics
        for part in (
            grid_table(measured, f"{metric} of every rule", at, counts, metric, unit="evaluations"),
            quality_chart(measured, "stochastic", at, counts, metric),
        )
    ]
    return Findings([Section("Method", text, [tuned]), Section("Every rule", "", every)], _claims(measured))


def _claims(measured: Measurements) -> list[Claim]:
    def better(claimed: str, other: str) -> Claim:
        comparisons = [
            Comparison(f"{n} evaluations", _values(measured, claimed, n), _values(measured, other, n))
            for n in _counts(measured.scale)
        ]
        return Claim(f"'{claimed}' has a lower Frechet distance than '{other}'.", "docs/samplers.md", comparisons)

    return [better(DDPM, DETERMINISTIC), better(FRESH, DETERMINISTIC), better(FRESH, DDPM)]


STOCHASTIC = Experiment(
    "stochastic",
    "Which rule with fresh noise is best from 16 to 64 evaluations?",
    "not in the papers",
    _cells,
    _report,
)
