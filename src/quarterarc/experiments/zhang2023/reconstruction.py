"""Figure 4: the errors of the image and of the noise by time, for networks that estimate one of them, or both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...report import Series, line_chart
from ..arms import arm
from ..base import Experiment, Measured
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale
from .ablation import OURS

__all__ = ["RECONSTRUCTION"]

ARMS = {
    "image only": arm("image"),
    "noise only": arm("noise"),
    "both": arm("both"),
    "both, gradient loss": OURS.arm,
}
WHAT = ("image", "noise", "velocity")
TIMES = 40


def _cell(scale: Scale, label: str, seed: int) -> Cell:
    return Cell.of(ARMS[label], seed, "reconstruction", images=min(scale.images, 1000), times=TIMES)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(scale, label, seed) for label in ARMS for seed in seeds]


def _curve(measured: Measured, label: str, seed: int, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times as a share of T, and mean and standard deviation over images of the mean square error."""
    found = measured[_cell(measured.scale, label, seed)]
    return (
        np.array(found["times"]) / measured.scale.all_steps,
        np.array(found[what]["mean"]),
        np.array(found[what]["std"]),
    )


def _stretch(measured: Measured, label: str, seed: int, what: str, low: float, high: float) -> float:
    """The mean error over the times from `low` T to `high` T."""
    times, mean, _ = _curve(measured, label, seed, what)
    here = mean[(times > low) & (times <= high)]
    return float(here.mean()) if len(here) else float("nan")


PARTS = {
    "last third of sampling (t below T/3)": (0.0, 1 / 3),
    "middle third": (1 / 3, 2 / 3),
    "first third of sampling (t above 2T/3)": (2 / 3, 1.0),
}


def _report(measured: Measured) -> Findings:
    sections = []
    for what in WHAT:
        series = []
        for label in ARMS:
            curves = [_curve(measured, label, seed, what) for seed in measured.seeds]
            mean, std = (np.mean([curve[place] for curve in curves], axis=0) for place in (1, 2))
            series.append(
                Series(label, (curves[0][0] * measured.scale.all_steps).tolist(), mean.tolist(), std.tolist())
            )
        chart = line_chart(series, f"Mean square error of the {what} by t", "t", "mean square error", log_y=True)
        rows = [
            [
                label,
                *(
                    spread([_stretch(measured, label, seed, what, *part) for seed in measured.seeds])
                    for part in PARTS.values()
                ),
            ]
            for label in ARMS
        ]
        caption = "Lines are means over images, bands one standard deviation over images, as in the paper."
        sections.append(
            Section(
                f"The {what}", "", [Chart(f"error-{what}", chart, caption), Table(f"{what} error", ["", *PARTS], rows)]
            )
        )
    text = (
        "x is a training image mixed with noise at each t, the same for all arms, so that the true image and noise are "
        "known; the papers do not say what they took. An estimate that a network does not make itself is derived from "
        "x and the other, which divides by cos or sin: that is where one estimate alone goes wrong."
    )
    return Findings([Section("How it is measured", text), *sections], _claims(measured))


def _claims(measured: Measured) -> list[Claim]:
    source = "Zhang et al., section 3.2 and Figure 4"

    def better(text: str, what: str, claimed: str, others: Sequence[str], part: str) -> Claim:
        def values(label: str) -> list[float]:
            return [_stretch(measured, label, seed, what, *PARTS[part]) for seed in measured.seeds]

        return Claim(text, source, [Comparison(f"against '{each}'", values(claimed), values(each)) for each in others])

    last, _, first = PARTS
    return [
        better(
            "In the first steps of sampling, both estimates have a lower image error than the noise alone.",
            "image",
            "both",
            ["noise only"],
            first,
        ),
        better(
            "In the last steps of sampling, both estimates have a lower image error than either alone.",
            "image",
            "both",
            ["image only", "noise only"],
            last,
        ),
        better(
            "In the last steps of sampling, both estimates have a lower noise error than either alone.",
            "noise",
            "both",
            ["image only", "noise only"],
            last,
        ),
    ]


RECONSTRUCTION = Experiment(
    "reconstruction",
    "How wrong are the estimates, by time?",
    "Zhang, Ehinger & Drummond 2023, Figure 4",
    _cells,
    _report,
)
