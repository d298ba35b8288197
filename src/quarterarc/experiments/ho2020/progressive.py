"""Progressive generation: image estimates over time (Figures 6 and 10), and images that share a latent (Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence

from ...report import Series, responsive_chart
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Picture, Section, Table
from ..scales import Scale
from ..zhang2023.ablation import DDPM, OURS, Row

__all__ = ["PROGRESSIVE"]

METHODS = (DDPM, Row("ours, DDPM sampler", OURS.arm, "ddpm", options=DDPM.options), OURS)
"""DDPM's sampler is the published one, with the large variance and clipped image estimates."""
SHARES = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Fractions of the steps after which the estimates are measured."""
SHARED_AT = (1.0, 0.75, 0.5, 0.25)
"""Fractions of T at which images share their x_t."""


def _shown(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "progress",
        sampler=row.sampler,
        steps=scale.all_steps,
        grid="time",
        images=min(8, scale.shown),
        options=row.options,
        close=(0.2,),
        columns=13,
        rows=min(8, scale.shown),
    )


def _estimates(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "estimates",
        sampler=row.sampler,
        steps=scale.all_steps,
        grid="time",
        images=scale.few,
        shares=SHARES,
        metrics=("fid",),
        options=row.options,
    )


def _shared(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(row.arm, seed, "shared", steps=scale.all_steps, images=8, shares=SHARED_AT, options=row.options)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for row in METHODS
        for seed in seeds
        for cell in (
            _shown(scale, row, seed),
            _estimates(scale, row, seed),
            *([_shared(scale, row, seed)] if row.sampler == "ddpm" else []),
        )
    ]


def _report(measured: Measurements) -> Findings:
    scale, seed = measured.scale, measured.seeds[0]
    stable = [row for row in METHODS if "picture" in measured[_shown(scale, row, seed)]]
    pictures = [
        Picture(
            f"estimates-{place}",
            measured.picture(_shown(scale, row, seed)),
            f"{row.label}: image estimates along the trajectory, from the first step (left) to the final image (right)",
        )
        for place, row in enumerate(stable)
    ]
    series = []
    for row in stable:
        values = measured[_estimates(scale, row, seed)]
        series.append(Series(row.label, values["steps"], values["fid"]))
    chart = responsive_chart(series, "Frechet distance of the image estimates", "steps", "Frechet distance", log_y=True)
    noisy = [row for row in stable if row.sampler == "ddpm"]
    latents = [
        Picture(
            f"shared-{place}",
            measured.picture(_shared(scale, row, seed)),
            f"{row.label}: the images of a row share x_t, at t = {', '.join(f'{share:g} T' for share in SHARED_AT)}",
        )
        for place, row in enumerate(noisy)
    ]
    rows = [
        [
            row.label,
            *(
                spread([measured[_shared(scale, row, s)]["apart"][place] for s in measured.seeds])
                for place in range(len(SHARED_AT))
            ),
        ]
        for row in noisy
    ]
    table = Table(
        "Difference of images that share x_t",
        ["", *(f"t = {share:g} T" for share in SHARED_AT)],
        rows,
        "Root mean square difference of pixels in [-1, 1], mean over pairs of images.",
    )
    return Findings(
        [
            Section(
                "Image estimates over time",
                "",
                [*pictures, Chart("estimates", chart, f"Measured on {scale.few} images per point.")],
            ),
            Section("Images that share a latent", "", [*latents, table]),
        ],
        _claims(measured, noisy),
    )


def _claims(measured: Measurements, noisy: Sequence[Row]) -> list[Claim]:
    claims = []
    for row in noisy[:1]:
        apart = [measured[_shared(measured.scale, row, seed)]["apart"] for seed in measured.seeds]
        claims.append(
            Claim(
                "The smaller t, the more similar are images that share x_t.",
                "Ho et al., section 4.3 and Figure 7",
                [
                    Comparison(
                        f"t = {SHARED_AT[place + 1]:g} T against {SHARED_AT[place]:g} T",
                        [differences[place + 1] for differences in apart],
                        [differences[place] for differences in apart],
                    )
                    for place in range(len(SHARED_AT) - 1)
                ],
            )
        )
        distances = [measured[_estimates(measured.scale, row, seed)]["fid"] for seed in measured.seeds]
        claims.append(
            Claim(
                "The image estimates improve throughout the reverse process.",
                "Ho et al., Figure 10",
                [
                    Comparison(
                        f"after {SHARES[place + 1]:g} of the steps against {SHARES[place]:g}",
                        [values[place + 1] for values in distances],
                        [values[place] for values in distances],
                    )
                    for place in range(len(SHARES) - 1)
                ],
            )
        )
    return claims


PROGRESSIVE = Experiment(
    "progressive",
    "Which features of an image are decided at which time?",
    "Ho, Jain & Abbeel 2020, Figures 6, 7 and 10",
    _cells,
    _report,
)
