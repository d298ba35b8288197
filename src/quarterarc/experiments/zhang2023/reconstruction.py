"""Figure 4: errors of the image and noise estimates by time, for networks that estimate one of them or both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...report import Series, responsive_chart
from ..arms import arm
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale
from .ablation import NORMS, OURS, about_norms

__all__ = ["RECONSTRUCTION"]

ARMS = {
    "image only": arm("image"),
    "noise only": arm("noise"),
    "both": arm("both"),
    "both, gradient loss": OURS.arm,
}
WHAT = ("image", "noise", "velocity")
TIMES = 40


def _cell(scale: Scale, label: str, norm: str, seed: int) -> Cell:
    return Cell.of(ARMS[label].in_norm(norm), seed, "reconstruction", images=min(scale.images, 1000), times=TIMES)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(scale, label, norm, seed) for norm in scale.norms for label in ARMS for seed in seeds]


def _curve(
    measured: Measurements, label: str, norm: str, seed: int, what: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times as fractions of T, and the mean and standard deviation over images of the mean squared error."""
    values = measured[_cell(measured.scale, label, norm, seed)]
    return (
        np.array(values["times"]) / measured.scale.all_steps,
        np.array(values[what]["mean"]),
        np.array(values[what]["std"]),
    )


def _interval_error(
    measured: Measurements, label: str, norm: str, seed: int, what: str, low: float, high: float
) -> float:
    """The mean error over times t with low T < t <= high T."""
    times, mean, _ = _curve(measured, label, norm, seed, what)
    inside = mean[(times > low) & (times <= high)]
    return float(inside.mean()) if len(inside) else float("nan")


PARTS = {
    "t ≤ T/3 (last third of sampling)": (0.0, 1 / 3),
    "T/3 < t ≤ 2T/3": (1 / 3, 2 / 3),
    "t > 2T/3 (first third of sampling)": (2 / 3, 1.0),
}


def _report(measured: Measurements) -> Findings:
    text = (
        "x is a training image mixed with noise at time t, equal for all arms, so that the true image and noise are "
        "known. The paper does not state which x it uses. A network that estimates only the image or only the noise "
        f"gets the other estimate from x by a division by cos or sin, which amplifies its error where they are small. "
        f"{about_norms(measured.scale)} The errors of the charts and tables are squared for both."
    )
    sections = [Section("Method", text)]
    for norm in measured.scale.norms:
        sections += _sections(measured, norm)
    return Findings(sections, [claim for norm in measured.scale.norms for claim in _claims(measured, norm)])


def _sections(measured: Measurements, norm: str) -> list[Section]:
    """Charts and tables of the arms that are trained in one norm."""
    sections = []
    for what in WHAT:
        series = []
        for label in ARMS:
            curves = [_curve(measured, label, norm, seed, what) for seed in measured.seeds]
            mean, std = (np.mean([curve[place] for curve in curves], axis=0) for place in (1, 2))
            series.append(
                Series(label, (curves[0][0] * measured.scale.all_steps).tolist(), mean.tolist(), std.tolist())
            )
        chart = responsive_chart(
            series, f"Mean squared error of the {what} by t", "t", "mean squared error", log_y=True
        )
        rows = [
            [
                label,
                *(
                    spread([_interval_error(measured, label, norm, seed, what, *part) for seed in measured.seeds])
                    for part in PARTS.values()
                ),
            ]
            for label in ARMS
        ]
        caption = "Lines are means over images; bands are one standard deviation over images, as in the paper."
        sections.append(
            Section(
                f"Error of the {what}, {NORMS[norm]}",
                "",
                [
                    Chart(f"error-{what}-{norm}", chart, caption),
                    Table(f"Mean squared error of the {what}, mean over times, {NORMS[norm]}", ["", *PARTS], rows),
                ],
            )
        )
    return sections


def _claims(measured: Measurements, norm: str) -> list[Claim]:
    source = "Zhang et al., section 3.2 and Figure 4"

    def better(text: str, what: str, claimed: str, others: Sequence[str], part: str) -> Claim:
        def values(label: str) -> list[float]:
            return [_interval_error(measured, label, norm, seed, what, *PARTS[part]) for seed in measured.seeds]

        return Claim(
            f"{text[:-1]} ({norm}).",
            source,
            [Comparison(f"against '{other}'", values(claimed), values(other)) for other in others],
        )

    last, _, first = PARTS
    return [
        better(
            "In the first third of sampling, a network with both estimates has a lower image error than one with the "
            "noise estimate alone.",
            "image",
            "both",
            ["noise only"],
            first,
        ),
        better(
            "In the last third of sampling, a network with both estimates has a lower image error than one with a "
            "single estimate.",
            "image",
            "both",
            ["image only", "noise only"],
            last,
        ),
        better(
            "In the last third of sampling, a network with both estimates has a lower noise error than one with a "
            "single estimate.",
            "noise",
            "both",
            ["image only", "noise only"],
            last,
        ),
    ]


RECONSTRUCTION = Experiment(
    "reconstruction",
    "How large are the errors of the estimates, by time?",
    "Zhang, Ehinger & Drummond 2023, Figure 4",
    _cells,
    _report,
)
