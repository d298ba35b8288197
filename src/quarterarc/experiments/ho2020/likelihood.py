"""Bits a dimension by terms, of training and test images (Table 1), and rate against distortion (Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...report import Series, line_chart
from ..arms import Arm, arm
from ..base import Experiment, Measured
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale
from ..zhang2023.ablation import OURS
from .ddpm_ablation import SIMPLE, bits

__all__ = ["LIKELIHOOD", "RATE_DISTORTION"]


@dataclass(frozen=True)
class Model:
    """A network, and what stands between it and the bound, if anything."""

    arm: Arm
    through: str | None = None

    def bits(self, scale: Scale, seed: int, split: str, variance: str | None, name: str = "bits-per-dim") -> Cell:
        """Bits a dimension of training or test images."""
        return bits(scale, self.arm, seed, split, variance, name, self.through)


MODELS: dict[str, Model] = {
    "DDPM, L simple": Model(SIMPLE.arm),
    "DDPM, bound": Model(arm("noise", "linear", objective="vlb", variance="large")),
    "ours": Model(OURS.arm),
    "ours, projected": Model(OURS.arm, "projected"),
}
"""The bound takes the image estimate at its word, however little noise is left: an error that x itself does not have
costs many bits, unless the estimates are made to agree with x."""

RAW = MODELS["ours"]
"""Its rate is so far off that no chart could hold it beside the others."""
SPLITS = ("train", "test")
VARIANCES = ("small", "large")


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for model in MODELS.values()
        for seed in seeds
        for cell in (
            *(model.bits(scale, seed, split, variance) for split in SPLITS for variance in VARIANCES),
            model.bits(scale, seed, "test", None, "flow-bits-per-dim"),
        )
    ]


def _part(measured: Measured, model: Model, split: str, variance: str, part: str) -> list[float]:
    """A part of the bound, mean over images, by seed."""
    values = []
    for seed in measured.seeds:
        found = measured[model.bits(measured.scale, seed, split, variance)]
        values.append(float(found[part]["mean"]) if part in found else float("nan"))
    return values


def _total(measured: Measured, model: Model, split: str, variance: str) -> list[float]:
    return measured.by_seed(lambda seed: model.bits(measured.scale, seed, split, variance), "bits_per_dim")


def _flow(measured: Measured, model: Model) -> list[float]:
    return measured.by_seed(
        lambda seed: model.bits(measured.scale, seed, "test", None, "flow-bits-per-dim"), "bits_per_dim"
    )


def _shown(values: Sequence[float]) -> str:
    return spread(values) if all(value == value for value in values) else "none"


def _report(measured: Measured) -> Findings:
    rows = [
        [
            f"{label}, {variance} variance",
            _shown(_total(measured, model, "test", variance)),
            _shown(_total(measured, model, "train", variance)),
            *(_shown(_part(measured, model, "test", variance, part)) for part in ("prior", "middle", "decoder")),
            _shown(_flow(measured, model)) if variance == VARIANCES[0] else "",
        ]
        for label, model in MODELS.items()
        for variance in VARIANCES
    ]
    scale = measured.scale
    terms = "all terms" if scale.terms is None else f"{min(scale.terms, scale.all_steps - 1)} terms drawn an image"
    table = Table(
        "Bits a dimension",
        ["", "test", "train", "prior L_T", "middle L_1..T-1", "decoder L_0", "flow, test"],
        rows,
        f"Lower is better. {scale.likelihood_images:,} images, {terms}; terms are of test images. The flow's is a "
        "density of its own, of up to 64 images, not a bound of the same model.",
    )
    return Findings([Section("The bound by terms", "", [table])], _claims(measured))


def _claims(measured: Measured) -> list[Claim]:
    def total(label: str, split: str = "test", variance: str = "large") -> list[float]:
        return _total(measured, MODELS[label], split, variance)

    simple = MODELS["DDPM, L simple"]
    decoder = _part(measured, simple, "test", "large", "decoder")
    half = [value / 2 for value in total("DDPM, L simple")]
    return [
        Claim(
            "The bound as the loss gives better bits/dim than the simple loss.",
            "Ho et al., Table 1",
            [Comparison("test images", total("DDPM, bound"), total("DDPM, L simple"))],
        ),
        Claim(
            "The gap between training and test images is at most 0.03 bits/dim: no overfitting.",
            "Ho et al., section 4.1",
            [
                Comparison(
                    f"{label}: test against train + 0.03",
                    total(label),
                    [value + 0.03 for value in total(label, "train")],
                )
                for label in ("DDPM, L simple",)
            ],
        ),
        Claim(
            "More than half of the codelength describes imperceptible distortions: the decoder's term.",
            "Ho et al., section 4.3: 1.97 of 3.75 bits/dim",
            [Comparison("half the total against L_0", half, decoder)],
        ),
    ]


LIKELIHOOD = Experiment(
    "likelihood",
    "How many bits does a pixel take, and where do they go?",
    "Ho, Jain & Abbeel 2020, Table 1 and section 4.3",
    _cells,
    _report,
)


# --- Figure 5 -------------------------------------------------------------------------------------------------------


def _rate_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [model.bits(scale, seed, "test", "small") for model in MODELS.values() for seed in seeds]


def _curve(measured: Measured, model: Model, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Times, rate and distortion, by rising time."""
    found = measured[model.bits(measured.scale, seed, "test", "small")].get("by_time")
    if found is None:
        return None
    middle = (np.array(found["low"]) + np.array(found["high"])) / 2
    return middle, np.array(found["rate"]), np.array(found["distortion"])


def _rate_report(measured: Measured) -> Findings:
    curves = {label: _curve(measured, model, measured.seeds[0]) for label, model in MODELS.items()}
    known = {label: curve for label, curve in curves.items() if curve is not None}

    def chart(name: str, title: str, x: str, y: str, places: tuple[int, int], caption: str) -> Chart:
        series = [
            Series(label, curve[places[0]].tolist(), curve[places[1]].tolist())
            for label, curve in known.items()
            if MODELS[label] != RAW
        ]
        return Chart(name, line_chart(series, title, x, y), caption)

    by_time = "Distortion is the root mean square error of the image estimate on the scale 0..255."
    rows = [
        [label, *(f"{value:.3g}" for value in (rate[0], distortion[0], _at_rate(rate, distortion, 0.5 * rate[0])))]
        for label, (_, rate, distortion) in known.items()
    ]
    table = Table(
        "Rate and distortion", ["", "rate, bits/dim", "distortion at t = 1", "distortion at half the rate"], rows
    )
    sections = [
        Section(
            "Figure 5",
            "Test images, small variance, the first seed. Ours unprojected is in the table alone: no chart holds it.",
            [
                chart("distortion-time", "Distortion by t", "t", "RMSE (0..255)", (0, 2), by_time),
                chart(
                    "rate-time",
                    "Rate by t",
                    "t",
                    "bits/dim",
                    (0, 1),
                    "What a receiver has been told once it knows x_t.",
                ),
                chart("rate-distortion", "Distortion against rate", "rate (bits/dim)", "RMSE (0..255)", (1, 2), ""),
                table,
            ],
        ),
    ]
    return Findings(sections, [_steep(measured)])


def _at_rate(rate: np.ndarray, distortion: np.ndarray, wanted: float) -> float:
    """The distortion at a rate; the rate falls with t."""
    return float(np.interp(wanted, rate[::-1], distortion[::-1]))


def _steep(measured: Measured) -> Claim:
    """Most of the distortion goes in the first fifth of the rate."""
    early, late = [], []
    for seed in measured.seeds:
        curve = _curve(measured, MODELS["DDPM, L simple"], seed)
        if curve is None:
            continue
        _, rate, distortion = curve
        fifth = _at_rate(rate, distortion, 0.2 * rate[0])
        early.append(float(distortion[-1] - fifth))
        late.append(float(fifth - distortion[0]))
    return Claim(
        "Distortion falls steeply where the rate is low: most bits describe what cannot be seen.",
        "Ho et al., section 4.3 and Figure 5",
        [Comparison("fall over the first fifth of the rate against the rest", early, late, lower=False)]
        if early
        else (),
    )


RATE_DISTORTION = Experiment(
    "rate-distortion",
    "How does progressive compression fare?",
    "Ho, Jain & Abbeel 2020, Figure 5",
    _rate_cells,
    _rate_report,
)
