"""Table 2: what schedule, both estimates, gradient loss and gradient sampler bring, alone and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ...samplers import sampler as named_sampler
from ..arms import Arm, arm
from ..base import Experiment, Measured
from ..cells import Cell, quality
from ..claims import Claim, Comparison
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
    """

    label: str
    arm: Arm
    sampler: str = "ddim"

    def cell(self, scale: Scale, steps: int, seed: int) -> Cell:
        """Its measurement: as many steps as make `steps` evaluations, or the next fewer that the solver can."""
        return quality(scale, self.arm, seed, self.sampler, solver_steps(self.sampler, steps))


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
)
"""Rows that the paper lacks: the loss and the sampler of ours apart, other weights, other heads."""

SOLVERS = ("euler", "rotation", "midpoint", "heun", "rk4")
BY_SOLVER = tuple(Row(f"ours, {name}", OURS.arm, name) for name in SOLVERS)
"""Ours by solver, at equal NFE."""

ROWS = (*PAPER_ROWS, *BETWEEN, *BY_SOLVER)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [row.cell(scale, steps, seed) for row in ROWS for seed in seeds for steps in scale.table_steps]


def _at(scale: Scale, row: Row) -> CellAt:
    return partial(row.cell, scale)


def _report(measured: Measured) -> Findings:
    scale, steps = measured.scale, measured.scale.table_steps
    by_label = {row.label: _at(scale, row) for row in ROWS}
    paper = {row.label: by_label[row.label] for row in PAPER_ROWS}
    table = partial(grid_table, measured, steps=steps)
    return Findings(
        [
            Section(
                "The paper's seven rows",
                "β* is the arc's table of β, clipped at 0.999, and sin the arc itself, so that they differ in the last "
                "angle alone. Ours differs from the row with sin and both in loss and sampler; the next table takes "
                "these apart.",
                [
                    table("Table 2", paper, note="As many evaluations as steps."),
                    quality_chart(measured, "ablation", paper, steps, "fid"),
                ],
            ),
            Section(
                "Rows that the paper lacks",
                "",
                [table("Between the rows", {r.label: by_label[r.label] for r in BETWEEN})],
            ),
            Section(
                "Ours by solver, at equal NFE",
                "Columns are evaluations. Where a solver cannot make exactly so many, what it made stands in brackets.",
                [
                    table("Solvers", {r.label: by_label[r.label] for r in BY_SOLVER}),
                    quality_chart(measured, "solvers", {r.label: by_label[r.label] for r in BY_SOLVER}, steps, "fid"),
                ],
            ),
            Section("How sure the orders are", "", [order_table(measured, paper, steps)]),
        ],
        _claims(measured),
    )


def _claims(measured: Measured) -> list[Claim]:
    scale, steps = measured.scale, measured.scale.table_steps
    row = {each.label: _at(scale, each) for each in ROWS}

    def better(text: str, one: str, other: str, where: Sequence[int] = steps) -> Claim:
        return Claim(
            text,
            "Zhang et al., Table 2 and section 5.1",
            [compare(measured, row[one], row[other], count) for count in where],
        )

    few, many = [count for count in steps if count < 20] or [steps[0]], [count for count in steps if count > 20]
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
        claims.append(
            better("Above 20 steps, the arc brings more than both estimates.", "DDIM + sin", "DDIM + both", many)
        )
    ours, plain = row["ours"], row["sin + both, gradient sampler (γ = 0)"]
    claims += [
        Claim(
            "The gradient loss improves the model (γ = 1 against 0, the same sampler).",
            "Zhang et al., section 3.3",
            [compare(measured, ours, plain, count) for count in steps],
        ),
        Claim(
            "The gradient sampler improves on DDIM's update (the same network).",
            "Zhang et al., section 3.3",
            [compare(measured, ours, row["sin + both, gradient loss γ = 1, DDIM sampler"], count) for count in steps],
        ),
        *(
            Claim(
                f"{name} improves on Euler at equal NFE.",
                "Zhang et al., section 3.3",
                [_at_equal_nfe(measured, row[f"ours, {solver}"], ours, count) for count in steps],
            )
            for name, solver in (("RK2 (midpoint)", "midpoint"), ("RK4", "rk4"))
        ),
    ]
    return claims


def _at_equal_nfe(measured: Measured, one: CellAt, other: CellAt, evaluations: int) -> Comparison:
    return compare(measured, one, other, evaluations, label=f"{evaluations} evaluations")


ABLATION = Experiment(
    "ablation",
    "What does each part bring, alone and together?",
    "Zhang, Ehinger & Drummond 2023, Table 2",
    _cells,
    _report,
)
