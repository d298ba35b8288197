"""All solvers with the same network: quality against network evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...samplers import sampler as named_sampler
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, spread
from ..findings import Findings, Section, Table
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, order_table, quality_chart
from .ablation import OURS

__all__ = ["SOLVERS", "Solver"]


@dataclass(frozen=True)
class Solver:
    """A row of the table: a sampler with options.

    Attributes:
        label: the label in the table.
        sampler: the sampler's name.
        options: its options.
        grid: the name of the grid.
        through: a wrapper of the denoiser, a name of `measures.WRAPPERS`.
    """

    label: str
    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: str = "time"
    through: str | None = None

    def cell(self, scale: Scale, evaluations: int, seed: int) -> Cell:
        """The quality at `evaluations` network evaluations per image, or at the next lower number that is possible."""
        steps = max(1, evaluations // named_sampler(self.sampler, **self.options).evaluations)
        return quality(scale, OURS.arm, seed, self.sampler, steps, grid=self.grid, through=self.through, **self.options)


COMPARED = (
    Solver("DDPM, small variance", "ddpm"),
    Solver("DDPM, large variance", "ddpm", {"variance": "large"}),
    Solver("DDIM", "ddim"),
    Solver("DDIM, projected", "ddim", through="projected"),
    Solver("DDIM, η = 0.5", "ddim", {"eta": 0.5}),
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
"""The rows of the tables; the grid is uniform in time unless the label states another one."""

TOLERANCES = (1e-1, 1e-2, 1e-3)


def _to_tolerance(scale: Scale, tolerance: float, seed: int) -> Cell:
    """The adaptive solver at a tolerance, with steps chosen per image."""
    return quality(scale, OURS.arm, seed, "adaptive", 1, tolerance=tolerance)


def _evaluations(scale: Scale) -> tuple[int, ...]:
    return scale.at(8, 16, 32, 64)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    fixed = [solver.cell(scale, n, seed) for solver in COMPARED for seed in seeds for n in _evaluations(scale)]
    return fixed + [_to_tolerance(scale, tolerance, seed) for tolerance in TOLERANCES for seed in seeds]


def _report(measured: Measurements) -> Findings:
    scale, counts = measured.scale, _evaluations(measured.scale)
    at: dict[str, CellAt] = {solver.label: partial(solver.cell, scale) for solver in COMPARED}
    stable = {
        label: cell
        for label, cell in at.items()
        if all("unstable" not in measured[cell(n, seed)] for n in counts for seed in measured.seeds)
    }
    return Findings(
        [
            Section(
                "At equal numbers of network evaluations",
                "The network is that of 'ours'. The grid is uniform in time unless a row states another one.",
                [
                    grid_table(measured, "Solvers", at, counts, unit="evaluations"),
                    quality_chart(measured, "solvers", at, counts, "fid"),
                ],
            ),
            Section(
                "Adaptive steps",
                "The adaptive solver follows the flow to a given error tolerance; the number of its network "
                "evaluations "
                "depends on the image.",
                [_tolerance_table(measured)],
            ),
            Section("Ranking", "", [order_table(measured, stable, counts, unit="evaluations")]),
        ],
        _claims(measured, at, counts),
    )


def _tolerance_table(measured: Measurements) -> Table:
    rows = []
    for tolerance in TOLERANCES:
        columns = [measured.by_seed(partial(_to_tolerance, measured.scale, tolerance), n) for n in ("fid", "nfe")]
        rows.append([f"{tolerance:g}", *map(spread, columns)])
    return Table("Adaptive solver", ["tolerance", "Frechet distance", "network evaluations per image, mean"], rows)


def _claims(measured: Measurements, at: dict[str, CellAt], counts: Sequence[int]) -> list[Claim]:
    source = "Zhang et al., section 3.1, on higher-order solvers"
    claims = [
        Claim(
            f"{name} has a lower Frechet distance than Euler at equal NFE.",
            source,
            [compare(measured, at[name], at["Euler"], n, label=f"{n} evaluations") for n in counts],
        )
        for name in ("midpoint", "Heun", "RK4")
    ]
    claims.append(
        Claim(
            "The rotation along the arc has a lower Frechet distance than Euler's straight step.",
            "the geometry of the arc",
            [compare(measured, at["rotation"], at["Euler"], n, label=f"{n} evaluations") for n in counts],
        )
    )
    return claims


SOLVERS = Experiment(
    "solvers",
    "Which solver is best at equal network evaluations?",
    "Zhang, Ehinger & Drummond 2023, sections 3.1 and 3.3",
    _cells,
    _report,
)
