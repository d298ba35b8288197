"""Ancestral sampling (Ho, Jain & Abbeel 2020, Algorithm 2), on any grid of angles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..common.errors import InputError, unknown_name
from ..estimate import Estimate
from ..posterior import mean_weights, step_variance, variance
from .base import Draw, LinearSampler, Weights

__all__ = ["DDPM"]

VARIANCES = ("large", "small", "learned")


@dataclass(frozen=True)
class DDPM(LinearSampler):
    """DDPM: x_a drawn from a Gaussian around the posterior mean given the image estimate; no noise in the last step.

    Attributes:
        variance: `small`, `large` or `learned`. `small` is the variance of the posterior, `large` is beta_{b|a} (the
            two choices of section 3.2); `learned` interpolates between them by the network's output (Nichol & Dhariwal
            2021, Eq. 15).

    Raises:
        InputError: for another name, or `learned` with a denoiser without a learned variance.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown_name("variance", self.variance, VARIANCES)

    def weights(self, b: float, a: float) -> Weights:
        return _weights(self.variance == "large", b, a)

    def step(self, x: Tensor, estimate: Estimate, b: float, a: float, draw: Draw) -> Tensor:
        if self.variance != "learned":
            return super().step(x, estimate, b, a, draw)
        fraction = estimate.variance_fraction
        if fraction is None:
            raise InputError(
                "the variance 'learned' needs a network that learned one (a head like 'noise+variance'): "
                "use 'large' or 'small'"
            )
        w = self.weights(b, a)
        mean = w.x * x + w.image * estimate.image
        if a == 0.0:
            return mean
        log_large, log_small = _log_variances(b, a)
        return mean + (0.5 * (fraction * log_large + (1.0 - fraction) * log_small)).exp() * draw(x)


@lru_cache(maxsize=4096)  # the steps of one grid are those of every batch
def _weights(large: bool, b: float, a: float) -> Weights:
    image, x = mean_weights(b, a)
    chosen = step_variance(b, a) if large else variance(b, a)
    return Weights(float(x), float(image), 0.0, float(chosen.sqrt()) if a > 0.0 else 0.0)


@lru_cache(maxsize=4096)
def _log_variances(b: float, a: float) -> tuple[float, float]:
    """The logarithms of the large and of the small variance."""
    return float(step_variance(b, a).log()), float(variance(b, a).log())
