"""The effect of both estimates and of the gradient sampler on other schedules than the arc; not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..arms import arm
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim
from ..findings import Findings, Part, Section
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, quality_chart
from .ablation import GRIDS, NORMS, Row, about_norms

__all__ = ["ROBUSTNESS"]

ON = ("arc", "linear", "cosine", "quadratic", "jsd")


ABOUT = {
    "uniform": (
        "The grid is that of DDIM's published code, on which Zhang et al. build. All verdicts are about this setting."
    ),
    "time": (
        "Beside it, the grid that starts from pure noise at T. On the schedules that end at π/2 a noise head divides "
        "by almost 0 in the first step, which decides its result: its authors do not use this grid, and it has no "
        "verdicts."
    ),
}
"""The grids, and what they are."""


def _rows(schedule: str, norm: str) -> tuple[Row, ...]:
    loss = arm("both", schedule, gamma=1.0)
    rows = (
        Row("noise, DDIM", arm("noise", schedule)),
        Row("both, DDIM", arm("both", schedule)),
        Row("both, gradient sampler", arm("both", schedule), "euler"),
        Row("both and gradient loss, DDIM", loss),
        Row("both and gradient loss, gradient sampler", loss, "euler"),
        Row("both and gradient loss, rotation", loss, "rotation"),
    )
    return tuple(row.in_norm(norm) for row in rows)


def _steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 20, 50)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        row.cell(scale, steps, seed, grid)
        for norm in scale.norms
        for schedule in ON
        for row in _rows(schedule, norm)
        for seed in seeds
        for grid in ABOUT
        for steps in _steps(scale)
    ]


def _at(scale: Scale, schedule: str, norm: str, grid: str) -> dict[str, CellAt]:
    return {row.label: partial(row.cell, scale, grid=grid) for row in _rows(schedule, norm)}


def _report(measured: Measurements) -> Findings:
    scale = measured.scale
    sections, claims = [Section("Method", f"{about_norms(measured.scale)} {' '.join(ABOUT.values())}")], list[Claim]()
    for norm in scale.norms:
        words = NORMS[norm]
        for schedule in ON:
            parts = list[Part]()
            for grid in ABOUT:
                at = _at(scale, schedule, norm, grid)
                parts += [
                    grid_table(measured, f"Schedule {schedule}, {GRIDS[grid]}, {words}", at, _steps(scale)),
                    quality_chart(measured, f"on-{schedule}-{norm}-{grid}", at, _steps(scale), "fid"),
                ]
            sections.append(Section(f"Schedule {schedule}, {words}", "", parts))
            claims += _claims(measured, schedule, norm)
        claims += _against_jsd(measured, norm)
    return Findings(sections, claims)


def _against_jsd(measured: Measurements, norm: str) -> list[Claim]:
    """Whether the arc is better than `jsd`, the schedule that is nearest to it, method by method."""
    scale = measured.scale
    arc, jsd = (_at(scale, schedule, norm, "uniform") for schedule in ("arc", "jsd"))
    return [
        Claim(
            f"'{label}' has a lower Frechet distance on the arc than on the schedule jsd ({norm}).",
            "not in the paper, which does not compare the arc with jsd",
            [compare(measured, arc[label], jsd[label], steps) for steps in _steps(scale)],
        )
        for label in arc
    ]


def _claims(measured: Measurements, schedule: str, norm: str) -> list[Claim]:
    at = _at(measured.scale, schedule, norm, "uniform")

    def better(text: str, claimed: str, other: str) -> Claim:
        return Claim(
            f"On the schedule {schedule}, {text[:-1]} ({norm}).",
            "Zhang et al., sections 3.2 and 3.3, tested on several schedules",
            [compare(measured, at[claimed], at[other], steps) for steps in _steps(measured.scale)],
        )

    return [
        better("estimating both lowers the Frechet distance.", "both, DDIM", "noise, DDIM"),
        better(
            "the gradient loss lowers the Frechet distance.",
            "both and gradient loss, gradient sampler",
            "both, gradient sampler",
        ),
        better(
            "the gradient sampler lowers the Frechet distance.",
            "both and gradient loss, gradient sampler",
            "both and gradient loss, DDIM",
        ),
        better(
            "both estimates, gradient loss and gradient sampler together lower the Frechet distance.",
            "both and gradient loss, gradient sampler",
            "noise, DDIM",
        ),
    ]


ROBUSTNESS = Experiment(
    "robustness",
    "Do both estimates, gradient loss and gradient sampler help on other schedules?",
    "Extends Zhang, Ehinger & Drummond 2023, sections 3.2 and 3.3",
    _cells,
    _report,
)
