"""The effect of both estimates and of the gradient sampler on other schedules than the arc; not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..arms import arm
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim
from ..findings import Findings, Section
from ..scales import Scale
from ..tables import CellAt, compare, grid_table, quality_chart
from .ablation import Row

__all__ = ["ROBUSTNESS"]

ON = ("arc", "linear", "cosine", "quadratic", "jsd")


def _rows(schedule: str) -> tuple[Row, ...]:
    loss = arm("both", schedule, gamma=1.0)
    return (
        Row("noise, DDIM", arm("noise", schedule)),
        Row("both, DDIM", arm("both", schedule)),
        Row("both, gradient sampler", arm("both", schedule), "euler"),
        Row("both and gradient loss, DDIM", loss),
        Row("both and gradient loss, gradient sampler", loss, "euler"),
        Row("both and gradient loss, rotation", loss, "rotation"),
    )


def _steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 20, 50)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        row.cell(scale, steps, seed)
        for schedule in ON
        for row in _rows(schedule)
        for seed in seeds
        for steps in _steps(scale)
    ]


def _report(measured: Measurements) -> Findings:
    scale = measured.scale
    sections, claims = [], []
    for schedule in ON:
        at: dict[str, CellAt] = {row.label: partial(row.cell, scale) for row in _rows(schedule)}
        sections.append(
            Section(
                f"Schedule {schedule}",
                "",
                [
                    grid_table(measured, f"Schedule {schedule}", at, _steps(scale)),
                    quality_chart(measured, f"on-{schedule}", at, _steps(scale), "fid"),
                ],
            )
        )
        claims += _claims(measured, schedule, at)
    return Findings(sections, claims)


def _claims(measured: Measurements, schedule: str, at: dict[str, CellAt]) -> list[Claim]:
    def better(text: str, claimed: str, other: str) -> Claim:
        return Claim(
            f"On the schedule {schedule}, {text}",
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
