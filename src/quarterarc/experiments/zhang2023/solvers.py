"""Every solver on the same network: quality against evaluations, and against the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from ...report import Series, line_chart
from ...samplers import sampler as named_sampler
from ..base import Experiment, Measured
from ..cells import Cell, quality
from ..claims import Claim, spread
from ..findings import Chart, Findings, Section, Table
from ..reading import CellAt, compare, grid_table, order_table, quality_chart, values_at
from ..scales import Scale
from .ablation import OURS

__all__ = ["SOLVERS", "Solver"]


@dataclass(frozen=True)
class Solver:
    """A sampler as the table calls it.

    Attributes:
        label: in the table.
        sampler: its name.
        options: its options.
        grid: the grid that it walks.
        through: what stands between network and sampler, if anything.
    """

    label: str
    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: str = "time"
    through: str | None = None

    def cell(self, scale: Scale, evaluations: int, seed: int) -> Cell:
        """As many steps as make so many evaluations, or the next fewer."""
        steps = max(1, evaluations // named_sampler(self.sampler, **self.options).evaluations)
        return quality(scale, OURS.arm, seed, self.sampler, steps, grid=self.grid, through=self.through, **self.options)


COMPARED = (
    Solver("DDPM, small variance", "ddpm"),
    Solver("DDPM, large variance", "ddpm", {"variance": "large"}),
    Solver("DDIM", "ddim"),
    Solver("DDIM, projected", "ddim", through="projected"),
    Solver("DDIM, churn 0.5", "ddim", {"eta": 0.5}),
    Solver("Cold Diffusion", "cold"),
    Solver("rotation", "rotation"),
    Solver("Euler", "euler"),
    Solver("midpoint", "midpoint"),
    Solver("Heun", "heun"),
    Solver("RK4", "rk4"),
    Solver("multistep", "multistep"),
    Solver("multistep, image form, projected", "multistep", {"form": "image"}, through="projected"),
    Solver("rotation, octave grid", "rotation", grid="octave"),
    Solver("multistep, octave grid", "multistep", grid="octave"),
)
"""One line a solver; the grid is uniform in time unless the label says otherwise."""

TOLERANCES = (1e-1, 1e-2, 1e-3)


def _to_tolerance(scale: Scale, tolerance: float, seed: int) -> Cell:
    """The flow of ours to a tolerance, each image in steps of its own."""
    return quality(scale, OURS.arm, seed, "adaptive", 1, tolerance=tolerance)


def _evaluations(scale: Scale) -> tuple[int, ...]:
    return scale.at(8, 16, 32, 64)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    at_once = [solver.cell(scale, n, seed) for solver in COMPARED for seed in seeds for n in _evaluations(scale)]
    return at_once + [_to_tolerance(scale, tolerance, seed) for tolerance in TOLERANCES for seed in seeds]


def _report(measured: Measured) -> Findings:
    scale, counts = measured.scale, _evaluations(measured.scale)
    at: dict[str, CellAt] = {solver.label: partial(solver.cell, scale) for solver in COMPARED}
    rows = [
        [
            solver.label,
            str(named_sampler(solver.sampler, **solver.options).evaluations),
            *(f"{_milliseconds(measured, at[solver.label], n):.3g}" for n in counts),
        ]
        for solver in COMPARED
    ]
    clock = Table(
        "Wall-clock",
        ["milliseconds an image", "evaluations a step", *(f"{n} evaluations" for n in counts)],
        rows,
        f"On {measured.lab.device}, {scale.batch} images at once, features not counted. Other work on the machine is "
        "in these numbers.",
    )
    stable = {
        label: cell
        for label, cell in at.items()
        if all("unstable" not in measured[cell(n, seed)] for n in counts for seed in measured.seeds)
    }
    chart = line_chart(
        [
            Series(
                label,
                [_milliseconds(measured, cell, n) for n in counts],
                [fmean(values_at(measured, cell, n)) for n in counts],
            )
            for label, cell in stable.items()
        ],
        "Frechet distance against time",
        "milliseconds an image",
        "Frechet distance",
        log_x=True,
        log_y=True,
    )
    return Findings(
        [
            Section(
                "By evaluations",
                "The network is ours, the grid uniform in time.",
                [
                    grid_table(measured, "Solvers", at, counts, unit="evaluations"),
                    quality_chart(measured, "solvers", at, counts, "fid"),
                ],
            ),
            Section(
                "To a tolerance",
                "The adaptive solver says where the flow itself leads; what it costs depends on the image.",
                [_tolerance_table(measured)],
            ),
            Section("By the clock", "", [clock, Chart("clock", chart)]),
            Section("How sure the orders are", "", [order_table(measured, stable, counts, unit="evaluations")]),
        ],
        _claims(measured, at, counts),
    )


def _tolerance_table(measured: Measured) -> Table:
    rows = []
    for tolerance in TOLERANCES:
        found = [measured.by_seed(partial(_to_tolerance, measured.scale, tolerance), n) for n in ("fid", "nfe")]
        rows.append([f"{tolerance:g}", *map(spread, found)])
    return Table("Adaptive", ["tolerance", "Frechet distance", "evaluations, mean"], rows)


def _milliseconds(measured: Measured, cell: CellAt, evaluations: int) -> float:
    """Milliseconds an image, mean over seeds."""
    rates = measured.by_seed(lambda seed: cell(evaluations, seed), "images_per_second")
    return 1e3 / fmean(rates)


def _claims(measured: Measured, at: dict[str, CellAt], counts: Sequence[int]) -> list[Claim]:
    source = "Zhang et al., section 3.1: higher-order solvers can be used effectively"
    claims = [
        Claim(
            f"At equal NFE {name} is better than Euler.",
            source,
            [compare(measured, at[name], at["Euler"], n, label=f"{n} evaluations") for n in counts],
        )
        for name in ("midpoint", "Heun", "RK4")
    ]
    claims.append(
        Claim(
            "The exact rotation is better than Euler's straight step.",
            "the geometry of the arc",
            [compare(measured, at["rotation"], at["Euler"], n, label=f"{n} evaluations") for n in counts],
        )
    )
    return claims


SOLVERS = Experiment(
    "solvers",
    "Which solver is best, by evaluations and by the clock?",
    "Zhang, Ehinger & Drummond 2023, sections 3.1 and 3.3",
    _cells,
    _report,
)
