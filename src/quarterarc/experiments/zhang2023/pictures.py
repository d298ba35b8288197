"""Figures 6 to 10: images from the same noise by method and steps, and image estimates along the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

from ...report import Series, responsive_chart
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Picture, Section, Table
from ..scales import Scale
from .ablation import DDIM, DDPM, DDPM_SMALL, OURS, Row

__all__ = ["PROGRESS", "SAMPLES"]

OURS_L2 = replace(OURS.in_norm("l2"), label="ours, l2 norm")
WITHOUT_GRADIENT = Row("ours without the gradient update", OURS.arm)
"""Figure 8's sampler: DDIM's update with the network of `ours`."""

SHEETS = (DDPM, DDPM_SMALL, DDIM, OURS, WITHOUT_GRADIENT, OURS_L2)
FOLLOWED = (DDPM, DDIM, OURS, DDPM_SMALL, OURS_L2)
"""The rows of Figure 9: those of the paper first."""
PAPERS = FOLLOWED[:3]


def _sheet(scale: Scale, row: Row, steps: int, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "pictures",
        sampler=row.sampler,
        steps=steps,
        grid="uniform",
        images=scale.shown,
        options=row.options,
    )


def file_name(label: str) -> str:
    """A label as the name of a file: "ddpm-small-variance-not-clipped"."""
    return "-".join(label.lower().replace(",", " ").split())


def _shown_steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 50, 100, 200)


def _sample_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_sheet(scale, row, steps, seeds[0]) for row in SHEETS for steps in _shown_steps(scale)]


def _sample_report(measured: Measurements) -> Findings:
    scale, seed = measured.scale, measured.seeds[0]
    sections = []
    for steps in _shown_steps(scale):
        pictures = []
        for row in SHEETS:
            cell = _sheet(scale, row, steps, seed)
            if "picture" in measured[cell]:
                name = f"{file_name(row.label)}-{steps}"
                pictures.append(Picture(name, measured.picture(cell), f"{row.label}, {steps} steps"))
        sections.append(Section(f"{steps} steps", "", pictures))
    text = (
        f"The first {scale.shown} images of seed {seed}, without selection. Images at the same position start from the "
        "same noise in all sheets. The grid is that of DDIM's published code. DDPM has its published sampler, with the "
        "large variance and clipped image estimates. 'ours without the gradient update' is DDIM's update with the "
        "network of 'ours', as in Figure 8. Networks are trained with squared norms (mse) unless a row states the l2 "
        "norm."
    )
    return Findings([Section("The contact sheets", text), *sections])


SAMPLES = Experiment(
    "samples",
    "What do the images look like, by method and number of steps?",
    "Zhang, Ehinger & Drummond 2023, Figures 6, 7, 8 and 10",
    _sample_cells,
    _sample_report,
)


# --- Figure 9 -------------------------------------------------------------------------------------------------------

CLOSE = (0.4, 0.2, 0.1)
"""Root mean square differences of pixels in [-1, 1]."""


def _trajectory(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "progress",
        sampler=row.sampler,
        steps=scale.all_steps,
        grid="time",
        images=scale.shown,
        options=row.options,
        close=CLOSE,
        columns=11,
        rows=min(6, scale.shown),
    )


def _progress_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_trajectory(scale, row, seed) for row in FOLLOWED for seed in seeds]


def _first_close(measured: Measurements, row: Row, seed: int, within: float) -> list[int]:
    return [int(step) for step in measured[_trajectory(measured.scale, row, seed)]["close"][str(within)]]


def _progress_report(measured: Measurements) -> Findings:
    scale, first = measured.scale, measured.seeds[0]
    stable = [
        row for row in FOLLOWED if all("picture" in measured[_trajectory(scale, row, seed)] for seed in measured.seeds)
    ]
    pictures = [
        Picture(
            f"progress-{file_name(row.label)}",
            measured.picture(_trajectory(scale, row, first)),
            f"{row.label}: image estimates after "
            f"{', '.join(map(str, measured[_trajectory(scale, row, first)]['columns']))} steps",
        )
        for row in stable
    ]
    series = [
        Series(
            row.label,
            measured[_trajectory(scale, row, first)]["columns"],
            measured[_trajectory(scale, row, first)]["distance"],
        )
        for row in stable
    ]
    chart = responsive_chart(
        series, "Difference of the image estimate from the final image", "steps", "root mean square difference"
    )
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
        "The step from which the image estimate stays close to the final image",
        ["median over images", *(f"difference ≤ {within:g}" for within in CLOSE)],
        rows,
        f"Each trajectory has {scale.all_steps} steps. The difference is the root mean square over the pixels of an "
        "image, with values in [-1, 1], from the last image of the same trajectory.",
    )
    return Findings(
        [
            Section(
                "Figure 9",
                "Each row shows one trajectory; rows at the same position start from the same noise in all sheets. "
                "DDPM has its published sampler, with the large variance and clipped image estimates. Columns show the "
                "estimate of the final image after the given numbers of steps; the last column is the final image.",
                pictures,
            ),
            Section(
                "When the image is decided",
                "",
                [Chart("distance", chart, "Mean over the images of the first seed."), table],
            ),
        ],
        _progress_claims(measured, stable),
    )


def _progress_claims(measured: Measurements, stable: Sequence[Row]) -> list[Claim]:
    if not set(PAPERS) <= set(stable):
        return []
    *others, ours = PAPERS
    source = "Zhang et al., section 5 and Figure 9"

    def faster(text: str, factor: float, note: str = "") -> Claim:
        def steps(row: Row, within: float, times: float = 1.0) -> list[float]:
            return [times * fmean(_first_close(measured, row, seed, within)) for seed in measured.seeds]

        comparisons = [
            Comparison(f"difference ≤ {within:g}, against {row.label}", steps(ours, within, factor), steps(row, within))
            for row in others
            for within in CLOSE
        ]
        return Claim(text, source, comparisons, note)

    return [
        faster(
            "The image estimate of 'ours' is close to its final image after fewer steps than that of DDPM and DDIM.",
            1.0,
        ),
        faster(
            "'ours' is three times as fast: three times its number of steps is lower than that of DDPM and DDIM.",
            3.0,
            "steps are those of each method's own schedule; the linear schedule spends many near pure noise",
        ),
    ]


PROGRESS = Experiment(
    "progress",
    "At which step is the image decided?",
    "Zhang, Ehinger & Drummond 2023, Figure 9",
    _progress_cells,
    _progress_report,
)
