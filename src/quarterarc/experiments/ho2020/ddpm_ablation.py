"""Table 2: predicting the posterior's mean against the noise, the bound against the simple loss, learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..arms import Arm, arm
from ..base import Experiment, Measured
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..scales import Scale

__all__ = ["DDPM_ABLATION", "SIMPLE", "Row", "bits"]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: as in the paper.
        arm: the network.
        variance: of a step, in sampling and in the bound.
    """

    label: str
    arm: Arm
    variance: str = "large"


SIMPLE = Row("ε prediction, ‖ε − ε̂‖² (L simple)", arm("noise", "linear"))
ROWS = (
    Row("μ̃ prediction, L, learned diagonal Σ", arm("mean+variance", "linear", objective="vlb"), "learned"),
    Row("μ̃ prediction, L, fixed isotropic Σ", arm("mean", "linear", objective="vlb", variance="large")),
    Row("μ̃ prediction, ‖μ̃ − μ̂‖²", arm("mean", "linear")),
    Row("ε prediction, L, learned diagonal Σ", arm("noise+variance", "linear", objective="vlb"), "learned"),
    Row("ε prediction, L, fixed isotropic Σ", arm("noise", "linear", objective="vlb", variance="large")),
    SIMPLE,
)
"""The six rows of Table 2. Fixed variances are β, the larger of the paper's two choices."""


def bits(
    scale: Scale,
    arm: Arm,
    seed: int,
    split: str,
    variance: str | None,
    name: str = "bits-per-dim",
    through: str | None = None,
) -> Cell:
    """Bits a dimension of training or test images."""
    count = scale.likelihood_images if name == "bits-per-dim" else max(1, min(64, scale.likelihood_images // 4))
    terms = None if scale.terms is None else min(scale.terms, scale.all_steps - 1)
    more = {} if through is None else {"through": through}
    return Cell.of(arm, seed, "bits", bits=name, split=split, variance=variance, images=count, terms=terms, **more)


def _sampled(scale: Scale, row: Row, seed: int) -> Cell:
    metrics = ("fid", "is") if "is" in scale.metrics or scale.features in ("inception", "classifier") else ("fid",)
    return quality(scale, row.arm, seed, "ddpm", scale.all_steps, metrics=metrics, variance=row.variance)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for row in ROWS
        for seed in seeds
        for cell in (
            _sampled(scale, row, seed),
            *(bits(scale, row.arm, seed, split, row.variance) for split in ("test", "train")),
        )
    ]


def _values(measured: Measured, row: Row, name: str) -> list[float]:
    if name.startswith("bits"):
        split = name.partition(" ")[2]
        return measured.by_seed(lambda seed: bits(measured.scale, row.arm, seed, split, row.variance), "bits_per_dim")
    return measured.by_seed(lambda seed: _sampled(measured.scale, row, seed), name)


def _why_unstable(measured: Measured, row: Row) -> str:
    found = [measured[_sampled(measured.scale, row, seed)].get("unstable", "") for seed in measured.seeds]
    return next((str(why) for why in found if why), "")


def _report(measured: Measured) -> Findings:
    columns = {"IS": "is", "FID": "fid", "bits/dim, test": "bits test", "bits/dim, train": "bits train"}
    rows, notes = [], []
    for row in ROWS:
        why = _why_unstable(measured, row)
        if why:
            notes.append(f"{row.label}: {why}.")
        line = [row.label]
        for name in columns.values():
            values = _values(measured, row, name)
            finite = [value for value in values if value == value]
            line.append(spread(finite) if finite else "unstable" if why else "none")
        rows.append(line)
    table = Table(
        "Table 2",
        ["objective", *columns],
        rows,
        "IS: inception score, higher is better; FID: Frechet distance, lower is better; both by this scale's features. "
        + " ".join(notes),
    )
    text = (
        f"The schedule is linear, the sampler DDPM's with all {measured.scale.all_steps} steps and the row's variance, "
        "without clipping. An arm whose loss or whose images left the finite numbers is called unstable; one that the "
        "paper calls so may well train at another scale."
    )
    return Findings([Section("Parameterisation and objective", text, [table])], _claims(measured))


def _claims(measured: Measured) -> list[Claim]:
    mean_learned, mean_fixed, mean_simple, noise_learned, noise_fixed, simple = ROWS
    source = "Ho et al., Table 2 and section 4.2"

    def better(text: str, name: str, one: Row, others: Sequence[Row], where: str = source) -> Claim:
        lower = name != "is"
        return Claim(
            text,
            where,
            [
                Comparison(
                    f"against '{other.label}'", _values(measured, one, name), _values(measured, other, name), lower
                )
                for other in others
            ],
        )

    return [
        better("The simple loss gives the best FID of all.", "fid", simple, ROWS[:-1]),
        better("The simple loss gives the best inception score of all.", "is", simple, ROWS[:-1]),
        better(
            "Predicting μ̃ with its unweighted square does worse than with the bound.", "fid", mean_fixed, [mean_simple]
        ),
        better("With μ̃, learning the variance gives worse samples than fixing it.", "fid", mean_fixed, [mean_learned]),
        better(
            "With ε, learning the variance gives worse samples than fixing it.", "fid", noise_fixed, [noise_learned]
        ),
        better(
            "The bound as the loss gives better bits/dim than the simple loss.",
            "bits test",
            noise_fixed,
            [simple],
            "Ho et al., section 4.1 and Table 1",
        ),
    ]


DDPM_ABLATION = Experiment(
    "ddpm-ablation",
    "What should the network predict, and by which loss?",
    "Ho, Jain & Abbeel 2020, Table 2",
    _cells,
    _report,
)
