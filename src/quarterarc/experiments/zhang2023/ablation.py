"""Table 2: the effect of schedule, both estimates, gradient loss and gradient sampler, alone and combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ...samplers import sampler as named_sampler
from ..arms import Arm, arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim
from ..findings import Findings, Section
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, order_table, quality_chart

__all__ = ["ABLATION", "BOTH", "DDIM", "OURS", "PAPER_ROWS", "Row", "solver_steps"]


@dataclass(frozen=True)
class Row:
    """A row of the table: a network with its sampler.

    Attributes:
        label: the label in the paper.
        arm: the network.
        sampler: the sampler's name.
        through: a wrapper of the denoiser, a name of `measures.WRAPPERS`.
    """

    label: str
    arm: Arm
    sampler: str = "ddim"
    through: str | None = None

    def cell(self, scale: Scale, steps: int, seed: int, grid: str = "time") -> Cell:
        """The quality at `steps` network evaluations per image, or fewer if the sampler cannot make exactly as many."""
        steps = solver_steps(self.sampler, steps)
        return quality(scale, self.arm, seed, self.sampler, steps, grid=grid, through=self.through)


def solver_steps(sampler: str, evaluations: int) -> int:
    """The largest number of steps with at most this many evaluations, and at least 1: 2 steps of `rk4` for 10."""
    return max(1, evaluations // named_sampler(sampler).evaluations)


DDIM = Row("DDIM", arm("noise", "linear"))
BOTH = Row("DDIM + sin + both", arm("both", "arc"))
OURS = Row("ours", arm("both", "arc", gamma=1.0), "euler")

PAPER_ROWS = (
    DDIM,
    Row("DDIM + β*", arm("noise", "beta-star")),
    Row("DDIM + sin", arm("noise", "arc")),
    Row("DDIM + both", arm("both", "linear")),
    BOTH,
    Row("DDIM + β* + both", arm("both", "beta-star")),
    OURS,
)
"""The seven rows of Table 2. `sin` is the schedule `arc`, `both` the head with its own squared error; `ours` is trained
by Eq. 12 and sampled by Eq. 13."""

BETWEEN = (
    Row("sin + both, γ = 0, gradient sampler", arm("both", "arc"), "euler"),
    Row("sin + both, γ = 0.1, gradient sampler", arm("both", "arc", gamma=0.1), "euler"),
    Row("sin + both, γ = 1, DDIM sampler", arm("both", "arc", gamma=1.0)),
    Row("sin + both, γ = 10, gradient sampler", arm("both", "arc", gamma=10.0), "euler"),
    Row("sin + velocity head", arm("velocity", "arc")),
    Row("Cold Diffusion (image head, sin)", arm("image", "arc"), "cold"),
    Row("DDIM + sin, clipped", arm("noise", "arc"), through="clipped"),
    Row("DDIM + both, projected", arm("both", "linear"), through="projected"),
    Row("DDIM + sin + both, projected", arm("both", "arc"), through="projected"),
)
"""Rows that are not in the paper: the loss and the sampler of `ours` separately, other weights of the gradient loss,
other heads, and clipped or projected estimates."""

SOLVERS = ("euler", "rotation", "midpoint", "heun", "rk4")
BY_SOLVER = tuple(Row(f"ours, {name}", OURS.arm, name) for name in SOLVERS)
"""`ours` with other solvers, at equal NFE."""

ROWS = (*PAPER_ROWS, *BETWEEN, *BY_SOLVER)


GRIDS = {"time": "grid from T", "leading": "grid of DDIM's code"}
"""The grids of the paper's rows. The paper does not state its grid; its code is built on DDIM's."""


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        row.cell(scale, steps, seed, grid)
        for row in ROWS
        for seed in seeds
        for grid in GRIDS
        for steps in scale.table_steps
        if grid == "time" or row in PAPER_ROWS
    ]


def _at(scale: Scale, row: Row, grid: str = "time") -> CellAt:
    return partial(row.cell, scale, grid=grid)


def _report(measured: Measurements) -> Findings:
    scale, steps = measured.scale, measured.scale.table_steps

    def rows(chosen: Sequence[Row], grid: str = "time") -> dict[str, CellAt]:
        return {row.label: _at(scale, row, grid) for row in chosen}

    sections = [
        Section(
            f"The seven rows of Table 2, {words}",
            ABOUT_GRIDS[grid],
            [
                grid_table(measured, f"Table 2, {words}", rows(PAPER_ROWS, grid), steps),
                quality_chart(measured, f"ablation-{grid}", rows(PAPER_ROWS, grid), steps, "fid"),
                order_table(measured, rows(PAPER_ROWS, grid), steps),
            ],
        )
        for grid, words in GRIDS.items()
    ]
    between, solvers = rows(BETWEEN), rows(BY_SOLVER)
    sections += [
        Section(
            "Rows that are not in the paper",
            "The loss and the sampler of 'ours' separately, other weights γ of the gradient loss, and other heads. "
            "Clipped: the image estimate is clamped to [-1, 1] and the noise estimate derived from it. Projected: both "
            "estimates are moved so that image · cos + noise · sin = x, which does not change their velocity.",
            [grid_table(measured, "Further combinations", between, steps)],
        ),
        Section(
            "'ours' with other solvers, at equal NFE",
            "",
            [
                grid_table(measured, "Solvers", solvers, steps, unit="evaluations"),
                quality_chart(measured, "solvers", solvers, steps, "fid"),
            ],
        ),
    ]
    return Findings(sections, _claims(measured))


ABOUT_GRIDS = {
    "time": (
        "'sin' is the schedule of the arc and 'β*' its table of β clipped at 0.999: they differ only in the last "
        "angle. "
        "'ours' differs from 'DDIM + sin + both' in loss and sampler; the tables below change them one at a time. "
        "Sampling starts from pure noise at the largest angle at which the network is defined. On the arc this angle "
        "is close to π/2, where the image is derived from a noise estimate by a division by almost 0: the first step "
        "amplifies the errors of a noise head. With two estimates DDIM's update does not use x, so that the "
        "disagreement of the two estimates accumulates over the steps; the gradient sampler's update keeps x."
    ),
    "leading": (
        "DDIM's published code starts from pure noise at t = T - T/steps + 1, which avoids the end of the arc, where a "
        "noise head is worst. The more steps, the closer the start is to T."
    ),
}


def _claims(measured: Measurements) -> list[Claim]:
    steps = measured.scale.table_steps
    cells = {row.label: _at(measured.scale, row) for row in ROWS}
    ours, plain = cells["ours"], cells["sin + both, γ = 0, gradient sampler"]
    by_ddim = cells["sin + both, γ = 1, DDIM sampler"]
    source = "Zhang et al., section 3.3"
    claims = [claim for grid in GRIDS for claim in _row_claims(measured, grid)]
    claims += [
        Claim(text, source, [compare(measured, claimed, other, count) for count in steps])
        for text, claimed, other in (
            ("The gradient loss lowers the Frechet distance (γ = 1 against γ = 0, gradient sampler).", ours, plain),
            (
                "The gradient sampler has a lower Frechet distance than DDIM's update, with the same network.",
                ours,
                by_ddim,
            ),
        )
    ]
    claims += [
        Claim(
            f"{name} has a lower Frechet distance than Euler at equal NFE.",
            source,
            [compare(measured, cells[f"ours, {solver}"], ours, n, label=f"{n} evaluations") for n in steps],
        )
        for name, solver in (("RK2 (midpoint)", "midpoint"), ("RK4", "rk4"))
    ]
    return claims


def _row_claims(measured: Measurements, grid: str) -> list[Claim]:
    """The paper's claims about its seven rows."""
    steps = measured.scale.table_steps
    cells = {row.label: _at(measured.scale, row, grid) for row in PAPER_ROWS}

    def better(text: str, claimed: str, other: str, counts: Sequence[int] = steps) -> Claim:
        return Claim(
            f"{text[:-1]} ({GRIDS[grid]}).",
            "Zhang et al., Table 2 and section 5.1",
            [compare(measured, cells[claimed], cells[other], count) for count in counts],
        )

    few, many = [count for count in steps if count < 20] or steps[:1], [count for count in steps if count > 20]
    claims = [
        better("The schedule β* lowers the Frechet distance of DDIM.", "DDIM + β*", "DDIM"),
        better("The arc lowers the Frechet distance of DDIM.", "DDIM + sin", "DDIM"),
        better("Estimating both image and noise lowers the Frechet distance of DDIM.", "DDIM + both", "DDIM"),
        better("Estimating both lowers the Frechet distance on the arc.", "DDIM + sin + both", "DDIM + sin"),
        better("Estimating both lowers the Frechet distance with β*.", "DDIM + β* + both", "DDIM + β*"),
        better("The arc lowers the Frechet distance where both are estimated.", "DDIM + sin + both", "DDIM + both"),
        *(
            better(f"'ours' has a lower Frechet distance than '{row.label}'.", "ours", row.label)
            for row in PAPER_ROWS[:-1]
        ),
        better(
            "Below 20 steps, estimating both lowers the Frechet distance more than the arc does.",
            "DDIM + both",
            "DDIM + sin",
            few,
        ),
    ]
    if many:
        text = "Above 20 steps, the arc lowers the Frechet distance more than estimating both does."
        claims.append(better(text, "DDIM + sin", "DDIM + both", many))
    return claims


ABLATION = Experiment(
    "ablation",
    "What do schedule, both estimates, loss and sampler contribute, alone and combined?",
    "Zhang, Ehinger & Drummond 2023, Table 2",
    _cells,
    _report,
)
