"""Figures 6 to 10: images from the same noise by method and steps, and image estimates along the way."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from ...report import Series, line_chart
from ..base import Experiment, Measured
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Picture, Section, Table
from ..scales import Scale
from .ablation import Row
from .steps import METHODS

__all__ = ["PROGRESS", "SAMPLES"]

THREE = METHODS[:3]
"""DDPM, DDIM, ours."""


def _grid(scale: Scale, row: Row, steps: int, seed: int) -> Cell:
    return Cell.of(
        row.arm, seed, "pictures", sampler=row.sampler, steps=steps, grid="time", images=scale.shown, options=()
    )


def _shown_steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 50, 100, 200)


def _sample_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_grid(scale, row, steps, seeds[0]) for row in THREE for steps in _shown_steps(scale)]


def _sample_report(measured: Measured) -> Findings:
    scale, seed = measured.scale, measured.seeds[0]
    sections = []
    for steps in _shown_steps(scale):
        pictures = []
        for row in THREE:
            cell = _grid(scale, row, steps, seed)
            if "picture" in measured[cell]:
                name = f"{row.label.lower()}-{steps}"
                pictures.append(Picture(name, measured.picture(cell), f"{row.label}, {steps} steps"))
        sections.append(Section(f"{steps} steps", "", pictures))
    text = (
        f"The first {scale.shown} images of seed {seed}; nothing is picked out. All begin with the same noise, "
        "image by image, so that images in the same place can be compared."
    )
    return Findings([Section("What is shown", text), *sections])


SAMPLES = Experiment(
    "samples",
    "What do the images look like, by method and steps?",
    "Zhang, Ehinger & Drummond 2023, Figures 6, 7, 8 and 10",
    _sample_cells,
    _sample_report,
)


# --- Figure 9 -------------------------------------------------------------------------------------------------------

CLOSE = (0.4, 0.2, 0.1)
"""Root mean square differences on the scale -1..1."""


def _way(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "progress",
        sampler=row.sampler,
        steps=scale.all_steps,
        grid="time",
        images=scale.shown,
        options=(),
        close=CLOSE,
        columns=11,
        rows=min(6, scale.shown),
    )


def _progress_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_way(scale, row, seed) for row in THREE for seed in seeds]


def _first_close(measured: Measured, row: Row, seed: int, within: float) -> list[int]:
    return [int(step) for step in measured[_way(measured.scale, row, seed)]["close"][str(within)]]


def _progress_report(measured: Measured) -> Findings:
    scale, first = measured.scale, measured.seeds[0]
    stable = [row for row in THREE if all("picture" in measured[_way(scale, row, seed)] for seed in measured.seeds)]
    pictures = [
        Picture(
            f"progress-{row.label.lower()}",
            measured.picture(_way(scale, row, first)),
            f"{row.label}: image "
            f"estimates after {', '.join(map(str, measured[_way(scale, row, first)]['columns']))} steps",
        )
        for row in stable
    ]
    series = [
        Series(row.label, measured[_way(scale, row, first)]["columns"], measured[_way(scale, row, first)]["distance"])
        for row in stable
    ]
    chart = line_chart(series, "How far the image estimate is from the end", "steps", "root mean square difference")
    rows = [
        [
            row.label,
            *(
                spread([median(_first_close(measured, row, seed, within)) for seed in measured.seeds])
                for within in CLOSE
            ),
        ]
        for row in stable
    ]
    table = Table(
        "The step from which the image estimate stays close to the trajectory's own end",
        ["median over images", *(f"within {within:g}" for within in CLOSE)],
        rows,
        f"Of {scale.all_steps} steps. Within: the root mean square difference a pixel on the scale -1..1.",
    )
    return Findings(
        [
            Section(
                "Figure 9",
                "Each row is one image; all three begin with the same noise. From left to right the "
                "estimate of the finished image; the last column is the image.",
                pictures,
            ),
            Section("When it is decided", "", [Chart("distance", chart, "Mean over images."), table]),
        ],
        _progress_claims(measured, stable),
    )


def _progress_claims(measured: Measured, stable: Sequence[Row]) -> list[Claim]:
    if len(stable) < len(THREE):
        return []
    *others, ours = stable
    source = "Zhang et al., section 5 and Figure 9"

    def faster(text: str, factor: float, note: str = "") -> Claim:
        def steps(row: Row, within: float, times: float = 1.0) -> list[float]:
            return [times * fmean(_first_close(measured, row, seed, within)) for seed in measured.seeds]

        comparisons = [
            Comparison(f"within {within:g}, against {row.label}", steps(ours, within, factor), steps(row, within))
            for row in others
            for within in CLOSE
        ]
        return Claim(text, source, comparisons, note)

    return [
        faster("The image estimate of ours is close to its end after fewer steps.", 1.0),
        faster(
            "Three times faster than DDPM and DDIM: three times the steps of ours are fewer.",
            3.0,
            "steps count on each method's own schedule: on the linear one many are spent near pure noise",
        ),
    ]


PROGRESS = Experiment(
    "progress",
    "When is an image decided?",
    "Zhang, Ehinger & Drummond 2023, Figure 9",
    _progress_cells,
    _progress_report,
)
