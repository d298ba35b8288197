"""Figures 2 and 3, and the singularities of section 3.1: the schedules themselves. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...report import Series, line_chart
from ...schedules import SCHEDULES as NAMES
from ...schedules import Schedule
from ...schedules import schedule as named_schedule
from ..base import Experiment, Measured
from ..cells import Cell
from ..claims import Claim, Comparison
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale

__all__ = ["SCHEDULES"]

POINTS = 200


def _no_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return []


def speed_by_alpha_bar(schedule: Schedule, t: np.ndarray, images: float = 1.0) -> np.ndarray:
    """Root mean square of dx/d alpha_bar a pixel: |image/(2 cos) - noise/(2 sin)| for independent image and noise.

    `images` is the mean square of a pixel; that of the noise is 1. Without bound at both ends (section 3.1).
    """
    angle = schedule.angles[t]
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 * np.sqrt(images / np.cos(angle) ** 2 + 1.0 / np.sin(angle) ** 2))


def speed_by_angle(schedule: Schedule, t: np.ndarray, images: float = 1.0) -> np.ndarray:
    """Root mean square of dx/d angle a pixel, |cos noise - sin image|: between that of image and noise."""
    angle = schedule.angles[t]
    return np.asarray(np.sqrt(images * np.sin(angle) ** 2 + np.cos(angle) ** 2))


def _report(measured: Measured) -> Findings:
    steps = measured.scale.all_steps
    tables = {name: named_schedule(name, steps) for name in NAMES}
    shown = np.unique(np.linspace(1, steps, POINTS).round().astype(int))

    def chart(name: str, title: str, y: str, values: dict[str, np.ndarray], caption: str, log_y: bool = False) -> Chart:
        series = [Series(label, shown.tolist(), curve.tolist()) for label, curve in values.items()]
        return Chart(name, line_chart(series, title, "t", y, log_y=log_y), caption)

    beta = chart(
        "beta",
        "β by t",
        "β",
        {name: table.beta[shown] for name, table in tables.items()},
        "Figure 2, on a logarithmic axis so that all schedules can be told apart.",
        log_y=True,
    )
    alpha_bar = chart(
        "alpha-bar",
        "ᾱ by t",
        "ᾱ",
        {n: table.alpha_bar[shown] for n, table in tables.items()},
        "Figure 3. linear and sigmoid keep ᾱ near 0 for the last third; jsd is a straight line, arc half a cosine.",
    )
    arc = tables["arc"]
    inner = shown[shown < steps]
    speeds = Chart(
        "speeds",
        line_chart(
            [
                Series("by ᾱ", inner.tolist(), speed_by_alpha_bar(arc, inner).tolist()),
                Series("by angle", inner.tolist(), speed_by_angle(arc, inner).tolist()),
            ],
            "How fast x moves (root mean square a pixel)",
            "t of the schedule arc",
            "|dx/dᾱ|, |dx/dη|",
            log_y=True,
        ),
        "Image and noise of unit variance. By ᾱ the motion has no bound at either end, by angle it is 1 everywhere.",
    )
    rows = [
        [
            name,
            f"{table.beta[1]:.3g}",
            f"{table.beta[-1]:.3g}",
            f"{table.alpha_bar[-1]:.3g}",
            f"{int((table.alpha_bar[1:] < 0.01).sum())}",
            f"{np.abs(np.diff(table.angles)).max() / (np.pi / 2) * steps:.2f}",
        ]
        for name, table in tables.items()
    ]
    table = Table(
        "The schedules",
        ["", "β at t = 1", "β at T", "ᾱ at T", "times with ᾱ < 0.01", "largest step in angle, of the mean of arc"],
        rows,
        f"T = {steps}. A time with ᾱ < 0.01 is spent on images that are all but noise.",
    )
    return Findings(
        [
            Section("Figures 2 and 3", "", [beta, alpha_bar, table]),
            Section("The singularities", "dx/dᾱ = x0/(2√ᾱ) − ε/(2√(1−ᾱ)) and dx/dη = −sin η x0 + cos η ε.", [speeds]),
        ],
        _claims(tables, steps),
    )


def _claims(tables: dict[str, Schedule], steps: int) -> list[Claim]:
    arc, linear, jsd = tables["arc"], tables["linear"], tables["jsd"]
    ends, source = np.array([1, steps - 1]), "Zhang et al., section 3.1"
    middle = float(speed_by_alpha_bar(arc, np.array([steps // 2]))[0])
    by_alpha_bar = speed_by_alpha_bar(arc, ends)
    by_angle = speed_by_angle(arc, np.arange(1, steps))
    wasted = [float((table.alpha_bar[1:] < 0.01).mean()) for table in (arc, linear)]
    drops = [float(np.abs(np.diff(table.alpha_bar)).max()) for table in (arc, linear, jsd)]
    return [
        Claim(
            "By ᾱ the motion of x has a singularity at either end.",
            source,
            [
                Comparison(f"|dx/dᾱ| at t = {t} is more than in the middle", [middle], [float(value)], exact=True)
                for t, value in zip(ends, by_alpha_bar, strict=True)
            ],
            "it grows as 1/sin and 1/cos, without bound as T grows",
        ),
        Claim(
            "By angle it has none.",
            source,
            [
                Comparison(
                    "the largest |dx/dη| is at most 1 + 1e-12, for images of unit variance",
                    [float(by_angle.max())],
                    [1.0 + 1e-12],
                    exact=True,
                )
            ],
        ),
        Claim(
            "linear has most of its ᾱ near 0.",
            "Zhang et al., section 2.1",
            [Comparison("share of times with ᾱ < 0.01, arc against linear", [wasted[0]], [wasted[1]], exact=True)],
        ),
        Claim(
            "arc is smoother than linear: it loses less information in any one step.",
            source,
            [Comparison("largest drop of ᾱ in a step, arc against linear", [drops[0]], [drops[1]], exact=True)],
            f"jsd, a straight line, drops by {drops[2]:.3g}, the least that any schedule can have at its worst",
        ),
    ]


SCHEDULES = Experiment(
    "schedules",
    "How do the schedules walk along the arc?",
    "Zhang, Ehinger & Drummond 2023, Figures 2 and 3, section 3.1",
    _no_cells,
    _report,
)
