"""Figure 8: interpolation between two images, of their latents x_t and of their noises under the flow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Picture, Section, Table
from ..scales import Scale
from ..zhang2023.ablation import DDPM, OURS, Row

__all__ = ["INTERPOLATION"]

METHODS = (DDPM, OURS)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Fractions of T at which the latents are mixed."""
PAIRS, WEIGHTS = 2, 9


def _cell(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(
        row.arm,
        seed,
        "interpolation",
        steps=scale.all_steps,
        shares=SHARES,
        pairs=PAIRS,
        weights=WEIGHTS,
        options=DDPM.options,  # mixtures of x_t are decoded by DDPM, whatever the network
    )


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(scale, row, seed) for row in METHODS for seed in seeds]


def _error(measured: Measurements, row: Row, method: str) -> list[float]:
    return [fmean(measured[_cell(measured.scale, row, seed)]["missed"][method]) for seed in measured.seeds]


def _report(measured: Measurements) -> Findings:
    scale, seed = measured.scale, measured.seeds[0]
    stable = [row for row in METHODS if "picture" in measured[_cell(scale, row, seed)]]
    shares = ", ".join(f"{share:g} T" for share in SHARES)
    pictures = [
        Picture(
            f"interpolation-{row.label.lower()}",
            measured.picture(_cell(scale, row, seed)),
            f"{row.label}. The outer columns are the two images. Rows of each pair: mixtures of their x_t at t = "
            f"{shares}, decoded by DDPM; in the last row spherical interpolations of the noises that the flow assigns "
            "to them, decoded by the flow.",
        )
        for row in stable
    ]
    rows = [
        [
            row.label,
            *(spread(_error(measured, row, str(share))) for share in SHARES),
            spread(_error(measured, row, "flow")),
        ]
        for row in stable
    ]
    table = Table(
        "Difference of the decoded first image from the image",
        ["", *(f"t = {s:g} T" for s in SHARES), "flow"],
        rows,
        f"Root mean square difference of pixels in [-1, 1], mean over {PAIRS} pairs of images. The error tolerance of "
        "the flow's inversion is 1e-4.",
    )
    return Findings([Section("Figure 8", "", [*pictures, table])], _claims(measured, stable))


def _claims(measured: Measurements, stable: Sequence[Row]) -> list[Claim]:
    claims = []
    for row in stable:
        values = {str(share): _error(measured, row, str(share)) for share in SHARES}
        claims.append(
            Claim(
                f"{row.label}: the larger t, the less of the images is preserved.",
                "Ho et al., section 4.4 and Figures 8 and 9",
                [
                    Comparison(f"t = {fewer:g} T against {more:g} T", values[str(fewer)], values[str(more)])
                    for fewer, more in pairwise(SHARES)
                ],
            )
        )
        claims.append(
            Claim(
                f"{row.label}: the flow, which is inverted exactly, reconstructs the image better than mixing at any "
                "x_t.",
                "a property of the probability flow",
                [
                    Comparison(f"against t = {share:g} T", _error(measured, row, "flow"), values[str(share)])
                    for share in SHARES
                ],
            )
        )
    return claims


INTERPOLATION = Experiment(
    "interpolation",
    "What does interpolation between two images look like?",
    "Ho, Jain & Abbeel 2020, Figure 8",
    _cells,
    _report,
)
