"""Quality against training images: the paper trains 1.1 M iterations with both estimates, DDIM 4.4 M."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from ...report import Series, line_chart
from ..arms import Arm, arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale

__all__ = ["TRAINING_SPEED"]

SHARES = (0.125, 0.25, 0.5, 1.0)

METHODS: dict[str, Callable[[float], Arm]] = {
    "noise, linear": lambda share: arm("noise", "linear", share=share),
    "noise, arc": lambda share: arm("noise", "arc", share=share),
    "both, arc": lambda share: arm("both", "arc", share=share),
}
"""All are sampled by DDIM: the paper's Figure 8 does not use the gradient sampler either."""


def _cell(scale: Scale, method: str, share: float, steps: int, seed: int) -> Cell:
    return quality(scale, METHODS[method](share), seed, "ddim", steps)


def _steps(scale: Scale) -> tuple[int, ...]:
    return scale.at(10, 100)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        _cell(scale, method, share, steps, seed)
        for method in METHODS
        for share in SHARES
        for seed in seeds
        for steps in _steps(scale)
    ]


def _values(measured: Measurements, method: str, share: float, steps: int) -> list[float]:
    return measured.by_seed(lambda seed: _cell(measured.scale, method, share, steps, seed), "fid")


def _report(measured: Measurements) -> Findings:
    training = measured.scale.recipe.training
    images = [round(share * training.steps) * training.batch for share in SHARES]
    sections, claims = [], []
    for steps in _steps(measured.scale):
        by_method = {method: [_values(measured, method, share, steps) for share in SHARES] for method in METHODS}
        several = len(measured.seeds) > 1
        chart = line_chart(
            [
                Series(method, images, [fmean(v) for v in values], [stdev(v) for v in values] if several else None)
                for method, values in by_method.items()
            ],
            f"Frechet distance at {steps} steps by number of images seen in training",
            "images seen in training",
            "Frechet distance",
            log_x=True,
            log_y=True,
        )
        rows = [[method, *(spread(values) for values in by_method[method])] for method in METHODS]
        table = Table(
            f"Frechet distance at {steps} steps of DDIM", ["images seen in training", *(f"{n:,}" for n in images)], rows
        )
        sections.append(Section(f"Sampled in {steps} steps", "", [table, Chart(f"training-{steps}", chart)]))
        claims.append(
            Claim(
                "With a quarter of the training, both estimates on the arc have a lower Frechet distance than the "
                "noise "
                f"estimate on the linear schedule with all of it ({steps} steps).",
                "Zhang et al., section 5 and Figure 8",
                [Comparison("Frechet distance", by_method["both, arc"][1], by_method["noise, linear"][-1])],
                "the paper compares images after 1.1 M and 4.4 M iterations visually",
            )
        )
        claims.append(
            Claim(
                "On the arc, both estimates have a lower Frechet distance than the noise estimate after equal "
                "training "
                f"({steps} steps).",
                "Zhang et al., section 5",
                [
                    Comparison(f"{n:,} images", both, noise)
                    for n, both, noise in zip(images, by_method["both, arc"], by_method["noise, arc"], strict=True)
                ],
            )
        )
    text = "Each point is a network trained from scratch on that number of images, not a checkpoint of a longer run."
    return Findings([Section("Method", text), *sections], claims)


TRAINING_SPEED = Experiment(
    "training-speed",
    "How much training does each method need?",
    "Zhang, Ehinger & Drummond 2023, section 5 and Figure 8",
    _cells,
    _report,
)
