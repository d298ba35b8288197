"""Table 2: posterior mean or noise as the target, bound or simple loss, learned or fixed variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..arms import Arm, arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..scales import Scale

__all__ = ["CLIPPED", "DDPM_ABLATION", "SIMPLE", "Row", "bits"]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: the label in the paper.
        arm: the network.
        variance: the variance of the reverse steps, in sampling and in the bound.
        clip: whether sampling and the bound clip the image estimate, as Ho et al.'s code does where the network
            estimates the noise (`p_sample`, `calc_bpd_loop`). The code uses the estimate of μ̃ as it is.
    """

    label: str
    arm: Arm
    variance: str = "large"
    clip: bool = True

    def bits(self, scale: Scale, seed: int, split: str) -> Cell:
        """Bits per dimension of training or test images."""
        return bits(scale, self.arm, seed, split, self.variance, through=CLIPPED if self.clip else None)


CLIPPED = "clipped"
"""The wrapper of image estimates in the bound of Ho et al.'s code."""
SIMPLE = Row("ε prediction, ‖ε − ε̂‖² (L simple)", arm("noise", "linear"))
_LEARNED, _INTERPOLATED = "learned diagonal Σ", "Σ between β and β̃ (Nichol & Dhariwal)"
ROWS = (
    Row(f"μ̃ prediction, L, {_LEARNED}", arm("mean+log-variance", "linear", objective="vlb"), "learned", False),
    Row(
        "μ̃ prediction, L, fixed isotropic Σ",
        arm("mean", "linear", objective="vlb", variance="large"),
        clip=False,
    ),
    Row("μ̃ prediction, ‖μ̃ − μ̂‖²", arm("mean", "linear"), clip=False),
    Row(f"ε prediction, L, {_LEARNED}", arm("noise+log-variance", "linear", objective="vlb"), "learned"),
    Row("ε prediction, L, fixed isotropic Σ", arm("noise", "linear", objective="vlb", variance="large")),
    SIMPLE,
)
"""The six rows of Table 2. A fixed variance is β, the larger of the paper's two choices; a learned one is the network's
output, used as log variance."""
LATER = (
    Row(f"μ̃ prediction, L, {_INTERPOLATED}", arm("mean+variance", "linear", objective="vlb"), "learned", False),
    Row(f"ε prediction, L, {_INTERPOLATED}", arm("noise+variance", "linear", objective="vlb"), "learned"),
)
"""The learned variance of Nichol & Dhariwal (2021), which lies between β and the posterior variance; not in the
paper."""

UNCOMPRESSED = 8.0
"""Bits per dimension of 8-bit images without any model: a network whose bound on its own training images is above it
has failed to train."""


def bits(
    scale: Scale,
    arm: Arm,
    seed: int,
    split: str,
    variance: str | None,
    name: str = "bits-per-dim",
    through: str | None = None,
) -> Cell:
    """Bits per dimension of training or test images."""
    count = scale.likelihood_images if name == "bits-per-dim" else max(1, min(64, scale.likelihood_images // 4))
    terms = None if scale.terms is None else min(scale.terms, scale.all_steps - 1)
    more = {} if through is None else {"through": through}
    return Cell.of(arm, seed, "bits", bits=name, split=split, variance=variance, images=count, terms=terms, **more)


def _sampled(scale: Scale, row: Row, seed: int) -> Cell:
    metrics = ("fid", "is") if "is" in scale.metrics or scale.features in ("inception", "classifier") else ("fid",)
    options: dict[str, Any] = {"variance": row.variance} | ({"clip": True} if row.clip else {})
    return quality(scale, row.arm, seed, "ddpm", scale.all_steps, metrics=metrics, **options)


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for row in (*ROWS, *LATER)
        for seed in seeds
        for cell in (
            _sampled(scale, row, seed),
            *(row.bits(scale, seed, split) for split in ("test", "train")),
        )
    ]


def _values(measured: Measurements, row: Row, name: str) -> list[float]:
    if name.startswith("bits"):
        split = name.partition(" ")[2]
        return measured.by_seed(lambda seed: row.bits(measured.scale, seed, split), "bits_per_dim")
    return measured.by_seed(lambda seed: _sampled(measured.scale, row, seed), name)


def _why_unstable(measured: Measurements, row: Row) -> str:
    reasons = [measured[_sampled(measured.scale, row, seed)].get("unstable", "") for seed in measured.seeds]
    return next((str(reason) for reason in reasons if reason), "")


def _failed(measured: Measurements, row: Row) -> bool:
    """Whether the bound of a network of this row is worse than no model, on the images that it was trained on."""
    return any(value > UNCOMPRESSED for value in _values(measured, row, "bits train"))


def _report(measured: Measurements) -> Findings:
    columns = {"IS": "is", "FID": "fid", "bits/dim, test": "bits test", "bits/dim, train": "bits train"}
    rows, notes = [], []
    for row in (*ROWS, *LATER):
        why = _why_unstable(measured, row)
        if why:
            notes.append(f"{row.label}: {why}.")
        line = [row.label + (" (failed to train)" if _failed(measured, row) else "")]
        for name in columns.values():
            values = _values(measured, row, name)
            finite = [value for value in values if value == value]
            line.append(spread(finite) if finite else "unstable" if why else "none")
        rows.append(line)
    table = Table(
        "Table 2",
        ["objective", *columns],
        rows,
        "IS: inception score, higher is better. FID: Frechet distance, lower is better. Both use "
        f"'{measured.scale.features}' features. bits/dim: the variational bound, lower is better. " + " ".join(notes),
    )
    text = (
        f"The schedule is linear. The sampler is DDPM's with {measured.scale.all_steps} steps and the row's variance. "
        "Sampler and bound clip the image estimate where the network estimates ε, as the code of Ho et al. does; an "
        "estimate of μ̃ is used as it is. A learned diagonal Σ is the network's output, used as log variance; the last "
        "two rows, which are not in the paper, interpolate between the two fixed variances. Losses are squared norms. "
        "An arm is unstable if its loss or its images become NaN or infinite; rows that are unstable in the paper can "
        "be stable at this scale, and vice versa. An arm has failed to train if its bound on the training images is "
        f"above {UNCOMPRESSED:g} bits/dim, the size of the uncompressed images: claims about such rows have no verdict."
    )
    return Findings([Section("Prediction target and objective", text, [table])], _claims(measured))


def _claims(measured: Measurements) -> list[Claim]:
    mean_learned, mean_fixed, mean_simple, noise_learned, noise_fixed, simple = ROWS
    source = "Ho et al., Table 2 and section 4.2"

    def better(text: str, name: str, claimed: Row, others: Sequence[Row], paper: str = source) -> Claim:
        lower = name != "is"
        failed = [row.label for row in (claimed, *others) if _failed(measured, row)]
        compared = [] if claimed.label in failed else [other for other in others if other.label not in failed]
        return Claim(
            text,
            paper,
            [
                Comparison(
                    f"against '{other.label}'", _values(measured, claimed, name), _values(measured, other, name), lower
                )
                for other in compared
            ],
            f"not compared, because they failed to train: {', '.join(failed)}" if failed else "",
        )

    return [
        better("The simple loss with ε prediction has the lowest FID.", "fid", simple, ROWS[:-1]),
        better("The simple loss with ε prediction has the highest inception score.", "is", simple, ROWS[:-1]),
        better(
            "With μ̃ prediction, the unweighted squared error has a higher FID than the bound.",
            "fid",
            mean_fixed,
            [mean_simple],
        ),
        better(
            "With μ̃ prediction, a learned variance has a higher FID than a fixed one.",
            "fid",
            mean_fixed,
            [mean_learned],
        ),
        better(
            "With ε prediction, a learned variance has a higher FID than a fixed one.",
            "fid",
            noise_fixed,
            [noise_learned],
        ),
        better(
            "Training by the bound gives fewer bits/dim than training by the simple loss.",
            "bits test",
            noise_fixed,
            [simple],
            "Ho et al., section 4.1 and Table 1",
        ),
    ]


DDPM_ABLATION = Experiment(
    "ddpm-ablation",
    "Which prediction target, loss and variance are best?",
    "Ho, Jain & Abbeel 2020, Table 2",
    _cells,
    _report,
)
