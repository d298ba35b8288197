"""Table 2: the effect of schedule, both estimates, gradient loss and gradient sampler, alone and combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...samplers import sampler as named_sampler
from ...training.network import parameters
from ..arms import Arm, arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison
from ..findings import Findings, Part, Section, Table
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, order_table, quality_chart, values_at

__all__ = [
    "ABLATION",
    "BOTH",
    "DDIM",
    "DDPM",
    "DDPM_SMALL",
    "GRIDS",
    "NORMS",
    "OURS",
    "PAPER_ROWS",
    "PUBLISHED_DDPM",
    "Row",
    "about_norms",
    "solver_steps",
]

NORMS = {"mse": "squared norms", "l2": "unsquared norms"}
"""The norms of the errors in training: Zhang et al. print unsquared ones, and the code that they build on squares
them."""
_ABOUT_NORMS = {
    "mse": "squared norms (mse), as DDPM's and DDIM's code",
    "l2": "unsquared norms (l2), as Zhang et al. print them in Eq. 5, 7 and 12",
}


def about_norms(scale: Scale) -> str:
    """A sentence about the norms in which the arms of a scale are trained."""
    groups = [f"with {_ABOUT_NORMS[norm]}" for norm in scale.norms]
    if len(groups) == 1:
        return f"All arms are trained {groups[0]}."
    return f"Arms are trained in two groups: {groups[0]}, and {groups[1]}."


@dataclass(frozen=True)
class Row:
    """A row of the table: a network with its sampler.

    Attributes:
        label: the label in the paper.
        arm: the network.
        sampler: the sampler's name.
        through: a wrapper of the denoiser, a name of `measures.WRAPPERS`.
        options: the options of the sampler, pairs of name and value.
        grid: the grid of this row, whatever that of the table; None for the table's.
    """

    label: str
    arm: Arm
    sampler: str = "ddim"
    through: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    grid: str | None = None

    def cell(self, scale: Scale, steps: int, seed: int, grid: str = "time") -> Cell:
        """The quality at `steps` network evaluations per image, or fewer if the sampler cannot make exactly as many."""
        return self.at(scale, solver_steps(self.sampler, steps), seed, grid)

    def at(self, scale: Scale, steps: int, seed: int, grid: str = "time", images: int | None = None) -> Cell:
        """The quality at a number of steps, whatever its number of network evaluations."""
        chosen, options = self.grid or grid, dict(self.options)
        return quality(
            scale, self.arm, seed, self.sampler, steps, grid=chosen, through=self.through, images=images, **options
        )

    def in_norm(self, norm: str) -> Row:
        """The row with a network that is trained in this norm."""
        return replace(self, arm=self.arm.in_norm(norm))


def solver_steps(sampler: str, evaluations: int) -> int:
    """The largest number of steps with at most this many evaluations, and at least 1: 2 steps of `rk4` for 10."""
    return max(1, evaluations // named_sampler(sampler).evaluations)


PUBLISHED_DDPM = (("clip", True), ("variance", "large"))
"""DDPM's options in the code of Ho et al. and in that of DDIM: the large variance, and clipped image estimates."""

DDIM = Row("DDIM", arm("noise", "linear"))
DDPM = Row("DDPM", DDIM.arm, "ddpm", options=PUBLISHED_DDPM)
DDPM_SMALL = Row("DDPM, small variance, not clipped", DDIM.arm, "ddpm")
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
"""The seven rows of Table 2. `sin` is the schedule `arc`, `both` the head with its own loss; `ours` is trained by Eq.
12 and sampled by Eq. 13."""

QUAD = replace(DDIM, label="DDIM, quad grid", grid="quad")
"""DDIM as published for CIFAR-10."""

PLAIN, BY_DDIM, VELOCITY, COLD = (
    Row("sin + both, γ = 0, gradient sampler", BOTH.arm, "euler"),
    Row("sin + both, γ = 1, DDIM sampler", OURS.arm),
    Row("sin + velocity head, DDIM sampler", arm("velocity", "arc")),
    Row("Cold Diffusion (image head, sin)", arm("image", "arc"), "cold"),
)
TEN = Row("sin + both, γ = 10, gradient sampler", arm("both", "arc", gamma=10.0), "euler")
BETWEEN = (
    PLAIN,
    Row("sin + both, γ = 0.1, gradient sampler", arm("both", "arc", gamma=0.1), "euler"),
    BY_DDIM,
    TEN,
    VELOCITY,
    COLD,
    Row("DDIM + sin, clipped", arm("noise", "arc"), through="clipped"),
    Row("DDIM + both, projected", arm("both", "linear"), through="projected"),
    Row("DDIM + sin + both, projected", BOTH.arm, through="projected"),
)
"""Rows that are not in the paper: the loss and the sampler of `ours` separately, other weights of the gradient loss,
other heads, and clipped or projected estimates."""

SOLVERS = ("euler", "rotation", "midpoint", "heun", "rk4")
BY_SOLVER = tuple(Row(f"ours, {name}", OURS.arm, name) for name in SOLVERS)
"""`ours` with other solvers, at equal NFE."""

ROWS = (*PAPER_ROWS, *BETWEEN, *BY_SOLVER)

GRIDS = {"time": "grid from T", "uniform": "grid of DDIM's code"}
"""The grids of the paper's rows. The paper does not state its grid; its code is built on DDIM's."""


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    cells = [
        row.in_norm(norm).cell(scale, steps, seed, grid)
        for norm in scale.norms
        for row in (*ROWS, QUAD)
        for seed in seeds
        for grid in GRIDS
        for steps in scale.table_steps
        if grid == "time" or row in PAPER_ROWS
    ]
    cold = [
        _cold(scale, norm)(steps, seed)
        for norm in scale.norms
        for seed in seeds
        for steps in (*scale.table_steps, scale.all_steps)
    ]
    return [*cells, *cold]


def _at(scale: Scale, row: Row, grid: str = "time") -> CellAt:
    return partial(row.cell, scale, grid=grid)


def _cold(scale: Scale, norm: str) -> CellAt:
    """Cold Diffusion on as many images at all numbers of steps as at T steps."""
    return partial(COLD.in_norm(norm).at, scale, images=scale.few)


def _report(measured: Measurements) -> Findings:
    scale = measured.scale
    sections = [Section("Norms", about_norms(scale)), Section("The cost of the second head", "", [_heads(scale)])]
    for norm in scale.norms:
        sections += _sections(measured, norm)
    return Findings(sections, [claim for norm in scale.norms for claim in _claims(measured, norm)])


def _heads(scale: Scale) -> Table:
    """The number of parameters of the scale's network with one estimate and with both, counted in the networks."""
    counts = {name: parameters(OURS.arm.recipe(scale, 0), name) for name in ("noise", "both")}
    rows = [[name, f"{count:,}", f"{100 * (count / counts['noise'] - 1):+.2f} %"] for name, count in counts.items()]
    return Table("Parameters", ["head", "parameters", "against one estimate"], rows)


def _sections(measured: Measurements, norm: str) -> list[Section]:
    """The tables of the arms that are trained in one norm."""
    scale, steps, words = measured.scale, measured.scale.table_steps, NORMS[norm]

    def rows(chosen: Sequence[Row], grid: str = "time") -> dict[str, CellAt]:
        return {row.label: _at(scale, row.in_norm(norm), grid) for row in chosen}

    sections = []
    for grid, on in GRIDS.items():
        shown = rows((*PAPER_ROWS, QUAD) if grid == "uniform" else PAPER_ROWS, grid)
        parts: list[Part] = [
            grid_table(measured, f"Table 2, {on}, {words}", shown, steps),
            quality_chart(measured, f"ablation-{norm}-{grid}", shown, steps, "fid"),
            order_table(measured, shown, steps),
        ]
        sections.append(Section(f"The seven rows of Table 2, {on}, {words}", ABOUT_GRIDS[grid], parts))
    solvers = rows(BY_SOLVER)
    cold = {COLD.label: _cold(scale, norm)}
    sections += [
        Section(
            f"Rows that are not in the paper, {words}",
            "The grid starts from T. The loss and the sampler of 'ours' separately, other weights γ of the gradient "
            "loss, and other heads. Clipped: the image estimate is clamped to [-1, 1] and the noise estimate derived "
            "from it. Projected: both estimates are moved so that image · cos + noise · sin = x, which does not change "
            "their velocity.",
            [grid_table(measured, f"Further combinations, {words}", rows(BETWEEN), steps)],
        ),
        Section(
            f"'ours' with other solvers, at equal NFE, {words}",
            "The grid starts from T.",
            [
                grid_table(measured, f"Solvers, {words}", solvers, steps, unit="evaluations"),
                quality_chart(measured, f"solvers-{norm}", solvers, steps, "fid"),
            ],
        ),
        Section(
            f"Cold Diffusion up to T steps, {words}",
            f"Measured on {scale.few:,} images at all numbers of steps, because a Frechet distance depends on the "
            "number of images.",
            [grid_table(measured, f"Cold Diffusion, {words}", cold, (*steps, scale.all_steps))],
        ),
    ]
    return sections


ABOUT_GRIDS = {
    "time": (
        "'sin' is the schedule of the arc and 'β*' its table of β clipped at 0.999: they differ only in the last "
        "angle. 'ours' differs from 'DDIM + sin + both' in loss and sampler; the tables below change them one at a "
        "time. Sampling starts from pure noise at the largest angle at which the network is defined. On the arc this "
        "angle is close to π/2, where the image is derived from a noise estimate by a division by almost 0: the first "
        "step amplifies the errors of a noise head. This is not the grid of DDIM's authors. With two estimates DDIM's "
        "update does not use x, so that the disagreement of the two estimates accumulates over the steps; the gradient "
        "sampler's update keeps x."
    ),
    "uniform": (
        "DDIM's published code evaluates at t = 1, 1 + k, 1 + 2 k, ... with k = T // steps, and starts from pure noise "
        "at the largest of these times, which avoids the end of the arc, where a noise head is worst. The more steps, "
        "the closer the start is to T. Its grid `quad`, which it uses for CIFAR-10, starts at 0.8 T and has finer "
        "steps near the image."
    ),
}


def _claims(measured: Measurements, norm: str) -> list[Claim]:
    """The claims, tested with arms that are trained in one norm."""
    scale, steps = measured.scale, measured.scale.table_steps
    source = "Zhang et al., section 3.3"

    def at(row: Row) -> CellAt:
        return _at(scale, row.in_norm(norm))

    def better(text: str, claimed: Row, other: Row, origin: str = source, unit: str = "steps") -> Claim:
        compared = [compare(measured, at(claimed), at(other), count, label=f"{count} {unit}") for count in steps]
        return Claim(f"{text[:-1]} ({GRIDS['time']}, {norm}).", origin, compared)

    claims = [claim for grid in GRIDS for claim in _row_claims(measured, grid, norm)]
    nearest, cold = "the nearest alternative; not in the paper", "Zhang et al., section 4, on Cold Diffusion"
    claims += [
        better("The gradient loss lowers the Frechet distance (γ = 1 against γ = 0, gradient sampler).", OURS, PLAIN),
        better("The gradient loss with γ = 10 lowers it (against γ = 0, gradient sampler).", TEN, PLAIN),
        better(
            "The gradient sampler has a lower Frechet distance than DDIM's update, with the same network.",
            OURS,
            BY_DDIM,
        ),
        better("'ours' has a lower Frechet distance than one velocity head under DDIM.", OURS, VELOCITY, nearest),
        better("'ours' has a lower Frechet distance than Cold Diffusion.", OURS, COLD, cold),
    ]
    all_steps, by_steps = scale.all_steps, _cold(scale, norm)
    claims.append(
        Claim(
            f"Cold Diffusion needs all T steps: its Frechet distance is lowest there ({GRIDS['time']}, {norm}).",
            cold,
            [
                Comparison(
                    f"{all_steps} steps against {count}",
                    values_at(measured, by_steps, all_steps),
                    values_at(measured, by_steps, count),
                )
                for count in steps
            ],
        )
    )
    claims += [
        better(
            f"{name} has a lower Frechet distance than Euler at equal NFE.",
            Row(name, OURS.arm, solver),
            OURS,
            unit="evaluations",
        )
        for name, solver in (("RK2 (midpoint)", "midpoint"), ("RK4", "rk4"))
    ]
    return claims


def _row_claims(measured: Measurements, grid: str, norm: str) -> list[Claim]:
    """The paper's claims about its seven rows."""
    steps = measured.scale.table_steps
    cells = {row.label: _at(measured.scale, row.in_norm(norm), grid) for row in (*PAPER_ROWS, QUAD)}

    def better(text: str, claimed: str, other: str, counts: Sequence[int] = steps) -> Claim:
        return Claim(
            f"{text[:-1]} ({GRIDS[grid]}, {norm}).",
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
    if grid == "uniform":
        claims.append(better("'ours' has a lower Frechet distance than DDIM on its quad grid.", "ours", QUAD.label))
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
