"""Figures 2 and 3, and the singularities of section 3.1: properties of the schedules, without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...report import Series, responsive_chart
from ...schedules import SCHEDULES as NAMES
from ...schedules import Schedule
from ...schedules import schedule as named_schedule
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale

__all__ = ["SCHEDULES"]

POINTS = 200


def _no_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return []


def speed_by_alpha_bar(schedule: Schedule, t: np.ndarray, images: float = 1.0) -> np.ndarray:
    """Root mean square of dx/d alpha_bar per pixel, image / (2 cos) - noise / (2 sin), at the times `t`.

    Image and noise are independent. The noise has variance 1 and the pixels of the image the mean square `images`. The
    result grows without bound at both ends of the arc (section 3.1).
    """
    angle = schedule.angles[t]
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 * np.sqrt(images / np.cos(angle) ** 2 + 1.0 / np.sin(angle) ** 2))


def speed_by_angle(schedule: Schedule, t: np.ndarray, images: float = 1.0) -> np.ndarray:
    """Root mean square of dx/d angle per pixel, noise cos - image sin, at the times `t`."""
    angle = schedule.angles[t]
    return np.asarray(np.sqrt(images * np.sin(angle) ** 2 + np.cos(angle) ** 2))


def _report(measured: Measurements) -> Findings:
    steps = measured.scale.all_steps
    tables = {name: named_schedule(name, steps) for name in NAMES}
    shown = np.unique(np.linspace(1, steps, POINTS).round().astype(int))

    def chart(name: str, title: str, y: str, values: dict[str, np.ndarray], caption: str, log_y: bool = False) -> Chart:
        series = [Series(label, shown.tolist(), curve.tolist()) for label, curve in values.items()]
        return Chart(name, responsive_chart(series, title, "t", y, log_y=log_y), caption)

    beta = chart(
        "beta",
        "β by t",
        "β",
        {name: table.beta[shown] for name, table in tables.items()},
        "Figure 2, with a logarithmic axis that separates all schedules.",
        log_y=True,
    )
    alpha_bar = chart(
        "alpha-bar",
        "ᾱ by t",
        "ᾱ",
        {n: table.alpha_bar[shown] for n, table in tables.items()},
        "Figure 3. ᾱ of linear and sigmoid is near 0 for about the last third of t; ᾱ of jsd is a straight line, that "
        "of arc half a period of a cosine.",
    )
    arc = tables["arc"]
    inner = shown[shown < steps]
    speeds = Chart(
        "speeds",
        responsive_chart(
            [
                Series("|dx/dᾱ|", inner.tolist(), speed_by_alpha_bar(arc, inner).tolist()),
                Series("|dx/dη|", inner.tolist(), speed_by_angle(arc, inner).tolist()),
            ],
            "Speed of x (root mean square per pixel)",
            "t of the schedule arc",
            "speed",
            log_y=True,
        ),
        "Image and noise of unit variance. The speed by ᾱ grows without bound at both ends; the speed by angle is 1.",
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
        ["", "β at t = 1", "β at T", "ᾱ at T", "times with ᾱ < 0.01", "largest step in angle (1 = uniform)"],
        rows,
        f"T = {steps}. At times with ᾱ < 0.01 images are almost pure noise. A step in angle of 1 is (π/2)/T, the step "
        "of a schedule with uniform angles.",
    )
    return Findings(
        [
            Section("Figures 2 and 3", "", [beta, alpha_bar, table]),
            Section(
                "Singularities",
                "η is the angle; dx/dᾱ = x0/(2√ᾱ) − ε/(2√(1−ᾱ)) and dx/dη = −sin η x0 + cos η ε.",
                [speeds],
            ),
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
            "As a function of ᾱ, the derivative of x is singular at both ends.",
            source,
            [
                Comparison(
                    f"|dx/dᾱ| in the middle against t = {t}, where it is larger", [middle], [float(value)], exact=True
                )
                for t, value in zip(ends, by_alpha_bar, strict=True)
            ],
            "it grows as 1/sin and 1/cos towards the ends, without bound as T grows",
        ),
        Claim(
            "As a function of the angle, the derivative of x has no singularity.",
            source,
            [
                Comparison(
                    "largest |dx/dη| against 1 + 1e-12, for images of unit variance",
                    [float(by_angle.max())],
                    [1.0 + 1e-12],
                    exact=True,
                )
            ],
        ),
        Claim(
            "The linear schedule has more values of ᾱ near 0 than the arc.",
            "Zhang et al., section 2.1",
            [Comparison("fraction of times with ᾱ < 0.01, arc against linear", [wasted[0]], [wasted[1]], exact=True)],
        ),
        Claim(
            "The arc is smoother than the linear schedule: its largest loss of information in one step is smaller.",
            source,
            [Comparison("largest decrease of ᾱ in one step, arc against linear", [drops[0]], [drops[1]], exact=True)],
            f"jsd, whose ᾱ is a straight line, has {drops[2]:.3g}, the smallest possible value",
        ),
    ]


SCHEDULES = Experiment(
    "schedules",
    "How do the schedules move along the arc?",
    "Zhang, Ehinger & Drummond 2023, Figures 2 and 3, section 3.1",
    _no_cells,
    _report,
)
