"""Table 2: what schedule, both estimates, gradient loss and gradient sampler bring, alone and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ...samplers import sampler as named_sampler
from ..arms import Arm, arm
from ..base import Experiment, Measured
from ..cells import Cell, quality
from ..claims import Claim
from ..findings import Findings, Section
from ..reading import CellAt, compare, grid_table, order_table, quality_chart
from ..scales import Scale

__all__ = ["ABLATION", "BOTH", "DDIM", "OURS", "PAPER_ROWS", "Row", "solver_steps"]


@dataclass(frozen=True)
class Row:
    """A row of the table: a network, and how it is sampled.

    Attributes:
        label: as in the paper.
        arm: the network.
        sampler: the sampler.
        through: what stands between them, if anything.
    """

    label: str
    arm: Arm
    sampler: str = "ddim"
    through: str | None = None

    def cell(self, scale: Scale, steps: int, seed: int, grid: str = "time") -> Cell:
        """Its measurement: as many steps as make `steps` evaluations, or the next fewer that the solver can."""
        steps = solver_steps(self.sampler, steps)
        return quality(scale, self.arm, seed, self.sampler, steps, grid=grid, through=self.through)


def solver_steps(sampler: str, evaluations: int) -> int:
    """How many steps of a sampler make this many evaluations, or fewer: 2 of `rk4` for 10."""
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
"""The seven rows of Table 2. `sin` is the schedule `arc`; `both` is the head with its own loss; ours has Eq. 12 as its
loss and Eq. 13 as its sampler."""

BETWEEN = (
    Row("sin + both, gradient sampler (γ = 0)", arm("both", "arc"), "euler"),
    Row("sin + both, gradient loss γ = 0.1, gradient sampler", arm("both", "arc", gamma=0.1), "euler"),
    Row("sin + both, gradient loss γ = 1, DDIM sampler", arm("both", "arc", gamma=1.0)),
    Row("sin + both, gradient loss γ = 10, gradient sampler", arm("both", "arc", gamma=10.0), "euler"),
    Row("sin + velocity head", arm("velocity", "arc")),
    Row("Cold Diffusion (image head, sin)", arm("image", "arc"), "cold"),
    Row("DDIM + sin, clipped", arm("noise", "arc"), through="clipped"),
    Row("DDIM + both, projected", arm("both", "linear"), through="projected"),
    Row("DDIM + sin + both, projected", arm("both", "arc"), through="projected"),
)
"""Rows that the paper lacks: the loss and the sampler of ours apart, other weights, other heads, and estimates that are
clipped, or made to agree with x."""

SOLVERS = ("euler", "rotation", "midpoint", "heun", "rk4")
BY_SOLVER = tuple(Row(f"ours, {name}", OURS.arm, name) for name in SOLVERS)
"""Ours by solver, at equal NFE."""

ROWS = (*PAPER_ROWS, *BETWEEN, *BY_SOLVER)


GRIDS = {"time": "from pure noise", "leading": "on the grid of DDIM's code"}
"""The grids of the paper's rows. The paper does not name its own; its code is built on DDIM's."""


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


def _report(measured: Measured) -> Findings:
    scale, steps = measured.scale, measured.scale.table_steps

    def rows(some: Sequence[Row], grid: str = "time") -> dict[str, CellAt]:
        return {row.label: _at(scale, row, grid) for row in some}

    sections = [
        Section(
            f"The paper's seven rows, {words}",
            ABOUT_GRIDS[grid],
            [
                grid_table(measured, f"Table 2, {words}", rows(PAPER_ROWS, grid), steps, note="NFE is the steps."),
                quality_chart(measured, f"ablation-{grid}", rows(PAPER_ROWS, grid), steps, "fid"),
                order_table(measured, rows(PAPER_ROWS, grid), steps),
            ],
        )
        for grid, words in GRIDS.items()
    ]
    between, solvers = rows(BETWEEN), rows(BY_SOLVER)
    sections += [
        Section(
            "Rows that the paper lacks",
            "The loss and the sampler of ours apart, other weights and other heads. Clipped: the image estimate is "
            "kept within [-1, 1] and the noise derived from it. Projected: the two estimates are made to agree with x, "
            "which leaves their velocity as it is.",
            [grid_table(measured, "Between the rows", between, steps)],
        ),
        Section(
            "Ours by solver, at equal NFE",
            "Where a solver cannot make exactly so many evaluations, what it made stands in brackets.",
            [
                grid_table(measured, "Solvers", solvers, steps, unit="evaluations"),
                quality_chart(measured, "solvers", solvers, steps, "fid"),
            ],
        ),
    ]
    return Findings(sections, _claims(measured))


ABOUT_GRIDS = {
    "time": (
        "β* is the arc's table of β, clipped at 0.999, and sin the arc itself: they differ in the last angle alone. "
        "Ours differs from the row with sin and both in loss and sampler; further tables take these apart. All begin "
        "with pure noise at the largest angle at which the network is defined. On the arc that is close to π/2, where "
        "an image derived from a noise estimate has been divided by nearly 0: the errors of a noise head are "
        "multiplied by what cos gains in the first step. With both heads DDIM's update drops x itself, so that what "
        "the two estimates disagree by adds up over the steps; the gradient sampler keeps x."
    ),
    "leading": (
        "DDIM's published code begins k = T/steps below the end, with pure noise there: a noise head is spared the end "
        "of the arc. More steps begin closer to it."
    ),
}


def _claims(measured: Measured) -> list[Claim]:
    steps = measured.scale.table_steps
    row = {each.label: _at(measured.scale, each) for each in ROWS}
    ours, plain = row["ours"], row["sin + both, gradient sampler (γ = 0)"]
    by_ddim = row["sin + both, gradient loss γ = 1, DDIM sampler"]
    source = "Zhang et al., section 3.3"
    claims = [claim for grid in GRIDS for claim in _row_claims(measured, grid)]
    claims += [
        Claim(text, source, [compare(measured, one, other, count) for count in steps])
        for text, one, other in (
            ("The gradient loss improves the model (γ = 1 against 0, the same sampler).", ours, plain),
            ("The gradient sampler improves on DDIM's update (the same network).", ours, by_ddim),
        )
    ]
    claims += [
        Claim(
            f"{name} improves on Euler at equal NFE.",
            source,
            [compare(measured, row[f"ours, {solver}"], ours, n, label=f"{n} evaluations") for n in steps],
        )
        for name, solver in (("RK2 (midpoint)", "midpoint"), ("RK4", "rk4"))
    ]
    return claims


def _row_claims(measured: Measured, grid: str) -> list[Claim]:
    """What the paper says of its own rows."""
    steps = measured.scale.table_steps
    row = {each.label: _at(measured.scale, each, grid) for each in PAPER_ROWS}

    def better(text: str, one: str, other: str, where: Sequence[int] = steps) -> Claim:
        return Claim(
            f"{text} ({GRIDS[grid]})",
            "Zhang et al., Table 2 and section 5.1",
            [compare(measured, row[one], row[other], count) for count in where],
        )

    few, many = [count for count in steps if count < 20] or steps[:1], [count for count in steps if count > 20]
    claims = [
        better("The schedule β* lowers the Frechet distance of DDIM.", "DDIM + β*", "DDIM"),
        better("The arc lowers the Frechet distance of DDIM.", "DDIM + sin", "DDIM"),
        better("Both estimates lower the Frechet distance of DDIM.", "DDIM + both", "DDIM"),
        better("Both estimates help on the arc.", "DDIM + sin + both", "DDIM + sin"),
        better("Both estimates help with β*.", "DDIM + β* + both", "DDIM + β*"),
        better("The arc helps where both are estimated.", "DDIM + sin + both", "DDIM + both"),
        *(better(f"Ours is better than '{each.label}'.", "ours", each.label) for each in PAPER_ROWS[:-1]),
        better("Below 20 steps, both estimates bring more than the arc.", "DDIM + both", "DDIM + sin", few),
    ]
    if many:
        text = "Above 20 steps, the arc brings more than both estimates."
        claims.append(better(text, "DDIM + sin", "DDIM + both", many))
    return claims


ABLATION = Experiment(
    "ablation",
    "What does each part bring, alone and together?",
    "Zhang, Ehinger & Drummond 2023, Table 2",
    _cells,
    _report,
)
