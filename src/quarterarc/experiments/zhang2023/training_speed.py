"""Quality against training images: the paper trains 1.1 M iterations with both estimates, DDIM 4.4 M."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean, stdev

from ...report import Series, responsive_chart
from ..arms import arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Part, Section, Table
from ..scales import Scale
from .ablation import GRIDS, NORMS, about_norms
from .robustness import ABOUT

__all__ = ["TRAINING_SPEED"]

SHARES = (0.125, 0.25, 0.5, 1.0)

METHODS = {"noise, linear": ("noise", "linear"), "noise, arc": ("noise", "arc"), "both, arc": ("both", "arc")}
"""Head and schedule. All are sampled by DDIM: the paper's Figure 8 does not use the gradient sampler either."""


def _cell(scale: Scale, method: str, norm: str, grid: str, share: float, steps: int, seed: int) -> Cell:
    return quality(scale, arm(*METHODS[method], share=share).in_norm(norm), seed, "ddim", steps, grid=grid)


def _steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 100)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        _cell(scale, method, norm, grid, share, steps, seed)
        for norm in scale.norms
        for method in METHODS
        for share in SHARES
        for seed in seeds
        for grid in ABOUT
        for steps in _steps(scale)
    ]


def _values(measured: Measurements, norm: str, grid: str, steps: int) -> dict[str, list[list[float]]]:
    """Frechet distances by method: for each share of the training, one value per seed."""
    return {
        method: [
            measured.by_seed(partial(_cell, measured.scale, method, norm, grid, share, steps), "fid")
            for share in SHARES
        ]
        for method in METHODS
    }


def _images(measured: Measurements, method: str) -> list[int]:
    """The number of images of each share of a method's training."""
    recipes = [arm(*METHODS[method], share=share).recipe(measured.scale, measured.seeds[0]) for share in SHARES]
    return [recipe.training.steps * recipe.training.batch for recipe in recipes]


def _report(measured: Measurements) -> Findings:
    text = (
        "Each point is a network trained from scratch on that number of images, not a checkpoint of a longer run. "
        f"{about_norms(measured.scale)} {' '.join(ABOUT.values())}"
    )
    sections, claims = [Section("Method", text)], list[Claim]()
    for norm in measured.scale.norms:
        for steps in _steps(measured.scale):
            parts = [part for grid in ABOUT for part in _parts(measured, norm, grid, steps)]
            sections.append(Section(f"Sampled in {steps} steps, {NORMS[norm]}", "", parts))
            claims += _claims(measured, norm, steps)
    return Findings(sections, claims)


def _parts(measured: Measurements, norm: str, grid: str, steps: int) -> list[Part]:
    by_method = _values(measured, norm, grid, steps)
    several, where = len(measured.seeds) > 1, f"{GRIDS[grid]}, {NORMS[norm]}"
    chart = responsive_chart(
        [
            Series(
                method,
                _images(measured, method),
                [fmean(v) for v in values],
                [stdev(v) for v in values] if several else None,
            )
            for method, values in by_method.items()
        ],
        f"Frechet distance at {steps} steps, {where}",
        "images seen in training",
        "Frechet distance",
        log_x=True,
        log_y=True,
    )
    rows = [[method, *(spread(values) for values in by_method[method])] for method in METHODS]
    header = ["images seen in training", *(f"{share:g} of all" for share in SHARES)]
    note = "; ".join(f"all of '{method}': {_images(measured, method)[-1]:,} images" for method in METHODS)
    table = Table(f"Frechet distance at {steps} steps of DDIM, {where}", header, rows, note)
    return [table, Chart(f"training-{steps}-{norm}-{grid}", chart)]


def _claims(measured: Measurements, norm: str, steps: int) -> list[Claim]:
    by_method = _values(measured, norm, "uniform", steps)
    return [
        Claim(
            "With a quarter of the training, both estimates on the arc have a lower Frechet distance than the noise "
            f"estimate on the linear schedule with all of it ({steps} steps, {norm}).",
            "Zhang et al., section 5 and Figure 8",
            [Comparison("Frechet distance", by_method["both, arc"][1], by_method["noise, linear"][-1])],
            "the paper compares images after 1.1 M and 4.4 M iterations visually",
        ),
        Claim(
            "On the arc, both estimates have a lower Frechet distance than the noise estimate after equal training "
            f"({steps} steps, {norm}).",
            "Zhang et al., section 5",
            [
                Comparison(f"{share:g} of the training", both, noise)
                for share, both, noise in zip(SHARES, by_method["both, arc"], by_method["noise, arc"], strict=True)
            ],
        ),
    ]


TRAINING_SPEED = Experiment(
    "training-speed",
    "How much training does each method need?",
    "Zhang, Ehinger & Drummond 2023, section 5 and Figure 8",
    _cells,
    _report,
)
