"""Bits per dimension by terms of the bound (Table 1), and rate against distortion (Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...report import Series, responsive_chart
from ..arms import Arm, arm
from ..base import Experiment, Measurements
from ..cells import Cell
from ..claims import Claim, Comparison, spread
from ..findings import Chart, Findings, Section, Table
from ..scales import Scale
from ..zhang2023.ablation import OURS
from .ddpm_ablation import CLIPPED, SIMPLE, bits

__all__ = ["LIKELIHOOD", "RATE_DISTORTION"]


@dataclass(frozen=True)
class Model:
    """A network, and the name of a wrapper between it and the bound."""

    arm: Arm
    through: str | None = None

    def bits(self, scale: Scale, seed: int, split: str, variance: str) -> Cell:
        """Bits per dimension of training or test images by the bound."""
        return bits(scale, self.arm, seed, split, variance, through=self.through)

    def flow_bits(self, scale: Scale, seed: int) -> Cell:
        """Bits per dimension of test images by the flow, which clipping would change."""
        through = None if self.through == CLIPPED else self.through
        return bits(scale, self.arm, seed, "test", None, "flow-bits-per-dim", through)


MODELS: dict[str, Model] = {
    "DDPM, L simple": Model(SIMPLE.arm, CLIPPED),
    "DDPM, bound": Model(arm("noise", "linear", objective="vlb", variance="large"), CLIPPED),
    "ours": Model(OURS.arm),
    "ours, projected": Model(OURS.arm, "projected"),
}
"""The bound uses the image estimate alone, at all noise levels. Where x is almost the image, an error of the estimate
costs many bits, unless the estimates are projected to agree with x."""

_CLIPS = "In the bound of the rows called DDPM, image estimates are clipped to [-1, 1], as in the code of Ho et al."
RAW = MODELS["ours"]
"""Its rate is outside the range of the charts."""
SPLITS = ("train", "test")
VARIANCES = ("small", "large")


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for model in MODELS.values()
        for seed in seeds
        for cell in (
            *(model.bits(scale, seed, split, variance) for split in SPLITS for variance in VARIANCES),
            model.flow_bits(scale, seed),
        )
    ]


def _part(measured: Measurements, model: Model, split: str, variance: str, part: str) -> list[float]:
    """A part of the bound, averaged over images, one value per seed."""
    values = []
    for seed in measured.seeds:
        bound = measured[model.bits(measured.scale, seed, split, variance)]
        values.append(float(bound[part]["mean"]) if part in bound else float("nan"))
    return values


def _total(measured: Measurements, model: Model, split: str, variance: str) -> list[float]:
    return measured.by_seed(lambda seed: model.bits(measured.scale, seed, split, variance), "bits_per_dim")


def _flow(measured: Measurements, model: Model) -> list[float]:
    return measured.by_seed(lambda seed: model.flow_bits(measured.scale, seed), "bits_per_dim")


def _shown(values: Sequence[float]) -> str:
    return spread(values) if all(value == value for value in values) else "none"


def _report(measured: Measurements) -> Findings:
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
    terms = "all terms" if scale.terms is None else f"{min(scale.terms, scale.all_steps - 1)} random terms per image"
    table = Table(
        "Bits per dimension",
        ["", "test", "train", "prior L_T", "middle L_1..T-1", "decoder L_0", "flow, test"],
        rows,
        f"Lower is better. The bound is measured on {scale.likelihood_images:,} images with {terms}; its three parts "
        "are those of the test images. The flow's value is the likelihood of another model, the deterministic flow, on "
        "up to 64 images; it is not comparable with the bound.",
    )
    return Findings([Section("Terms of the variational bound", _CLIPS, [table])], _claims(measured))


def _claims(measured: Measurements) -> list[Claim]:
    def total(label: str, split: str = "test", variance: str = "large") -> list[float]:
        return _total(measured, MODELS[label], split, variance)

    simple = MODELS["DDPM, L simple"]
    decoder = _part(measured, simple, "test", "large", "decoder")
    half = [value / 2 for value in total("DDPM, L simple")]
    return [
        Claim(
            "Training by the bound gives fewer bits/dim than training by the simple loss.",
            "Ho et al., Table 1",
            [Comparison("test images", total("DDPM, bound"), total("DDPM, L simple"))],
        ),
        Claim(
            "Test images need at most 0.03 bits/dim more than training images: the model does not overfit.",
            "Ho et al., section 4.1",
            [
                Comparison(
                    f"{label}: test against training + 0.03",
                    total(label),
                    [value + 0.03 for value in total(label, "train")],
                )
                for label in ("DDPM, L simple",)
            ],
        ),
        Claim(
            "More than half of the code length is the decoder's term L_0, which describes imperceptible distortions.",
            "Ho et al., section 4.3: 1.97 of 3.75 bits/dim",
            [Comparison("half of the total against L_0", half, decoder)],
        ),
    ]


LIKELIHOOD = Experiment(
    "likelihood",
    "How many bits per dimension does an image take, and in which terms of the bound?",
    "Ho, Jain & Abbeel 2020, Table 1 and section 4.3",
    _cells,
    _report,
)


# --- Figure 5 -------------------------------------------------------------------------------------------------------


def _rate_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [model.bits(scale, seed, "test", "small") for model in MODELS.values() for seed in seeds]


def _curve(measured: Measurements, model: Model, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Times, rate and distortion, in ascending order of time; None without them."""
    by_time = measured[model.bits(measured.scale, seed, "test", "small")].get("by_time")
    if by_time is None:
        return None
    middle = (np.array(by_time["low"]) + np.array(by_time["high"])) / 2
    return middle, np.array(by_time["rate"]), np.array(by_time["distortion"])


def _rate_report(measured: Measurements) -> Findings:
    curves = {label: _curve(measured, model, measured.seeds[0]) for label, model in MODELS.items()}
    known = {label: curve for label, curve in curves.items() if curve is not None}

    def chart(name: str, title: str, x: str, y: str, places: tuple[int, int], caption: str) -> Chart:
        series = [
            Series(label, curve[places[0]].tolist(), curve[places[1]].tolist())
            for label, curve in known.items()
            if MODELS[label] != RAW
        ]
        return Chart(name, responsive_chart(series, title, x, y), caption)

    by_time = "Distortion is the root mean squared error of the image estimate for pixels in 0..255."
    rows = [
        [label, *(spread([value]) for value in (rate[0], distortion[0], _at_rate(rate, distortion, 0.5 * rate[0])))]
        for label, (_, rate, distortion) in known.items()
    ]
    table = Table(
        "Rate and distortion", ["", "rate, bits/dim", "distortion at t = 1", "distortion at half the rate"], rows
    )
    sections = [
        Section(
            "Figure 5",
            "Test images, small variance, first seed. 'ours' without projection is outside the range of the charts and "
            f"only in the table. {_CLIPS}",
            [
                chart("distortion-time", "Distortion by t", "t", "RMSE (0..255)", (0, 2), by_time),
                chart(
                    "rate-time",
                    "Rate by t",
                    "t",
                    "bits/dim",
                    (0, 1),
                    "The bits per dimension that have been transmitted when the receiver has x_t.",
                ),
                chart("rate-distortion", "Distortion against rate", "rate (bits/dim)", "RMSE (0..255)", (1, 2), ""),
                table,
            ],
        ),
    ]
    return Findings(sections, [_steep(measured)])


def _at_rate(rate: np.ndarray, distortion: np.ndarray, wanted: float) -> float:
    """The distortion at a rate, by linear interpolation; the rate decreases with t."""
    return float(np.interp(wanted, rate[::-1], distortion[::-1]))


def _steep(measured: Measurements) -> Claim:
    """The claim that the first fifth of the rate removes most of the distortion."""
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
        "Distortion decreases steeply at low rates: most bits describe imperceptible detail.",
        "Ho et al., section 4.3 and Figure 5",
        [Comparison("decrease over the first fifth of the rate against the rest", early, late, lower=False)]
        if early
        else (),
    )


RATE_DISTORTION = Experiment(
    "rate-distortion",
    "How does distortion depend on rate in progressive compression?",
    "Ho, Jain & Abbeel 2020, Figure 5",
    _rate_cells,
    _rate_report,
)
