"""Figure 8: between two images, mixed at x_t and decoded; and along the flow, which the arc makes invertible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from ..base import Experiment, Measured
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Picture, Section, Table
from ..scales import Scale
from ..zhang2023.ablation import OURS, Row
from .ddpm_ablation import SIMPLE

__all__ = ["INTERPOLATION"]

METHODS = (Row("DDPM", SIMPLE.arm), OURS)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of T, at which images are mixed."""
PAIRS, WEIGHTS = 2, 9


def _cell(scale: Scale, row: Row, seed: int) -> Cell:
    return Cell.of(row.arm, seed, "interpolation", steps=scale.all_steps, shares=SHARES, pairs=PAIRS, weights=WEIGHTS)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(scale, row, seed) for row in METHODS for seed in seeds]


def _missed(measured: Measured, row: Row, where: str) -> list[float]:
    return [fmean(measured[_cell(measured.scale, row, seed)]["missed"][where]) for seed in measured.seeds]


def _report(measured: Measured) -> Findings:
    scale, seed = measured.scale, measured.seeds[0]
    stable = [row for row in METHODS if "picture" in measured[_cell(scale, row, seed)]]
    shares = ", ".join(f"{share:g} T" for share in SHARES)
    pictures = [
        Picture(
            f"interpolation-{row.label.lower()}",
            measured.picture(_cell(scale, row, seed)),
            f"{row.label}. Outer columns: the two images. Rows, for each pair: mixed at t = {shares} and decoded by "
            "DDPM's sampler; then the two images' own noises, interpolated on the sphere and decoded by the flow.",
        )
        for row in stable
    ]
    rows = [
        [
            row.label,
            *(spread(_missed(measured, row, str(share))) for share in SHARES),
            spread(_missed(measured, row, "flow")),
        ]
        for row in stable
    ]
    table = Table(
        "How far the decoded first image is from the image itself",
        ["", *(f"t = {s:g} T" for s in SHARES), "flow"],
        rows,
        f"Root mean square difference on the scale -1..1, mean of {PAIRS} pairs. The flow is inverted to "
        "a tolerance of 1e-4.",
    )
    return Findings([Section("Figure 8", "", [*pictures, table])], _claims(measured, stable))


def _claims(measured: Measured, stable: Sequence[Row]) -> list[Claim]:
    claims = []
    for row in stable:
        values = {str(share): _missed(measured, row, str(share)) for share in SHARES}
        claims.append(
            Claim(
                f"{row.label}: the larger t, the coarser and the more varied what is kept of the images.",
                "Ho et al., section 4.4 and Figures 8 and 9",
                [
                    Comparison(f"t = {fewer:g} T against {more:g} T", values[str(fewer)], values[str(more)])
                    for fewer, more in pairwise(SHARES)
                ],
            )
        )
        claims.append(
            Claim(
                f"{row.label}: the deterministic inversion gives the image back better than any mixing at x_t.",
                "the flow of the arc is invertible",
                [
                    Comparison(f"against t = {share:g} T", _missed(measured, row, "flow"), values[str(share)])
                    for share in SHARES
                ],
            )
        )
    return claims


INTERPOLATION = Experiment(
    "interpolation",
    "What lies between two images?",
    "Ho, Jain & Abbeel 2020, Figure 8",
    _cells,
    _report,
)
