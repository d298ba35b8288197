"""Ancestral sampling (Ho, Jain & Abbeel 2020, Algorithm 2), on any grid of angles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..common.errors import InputError, unknown_name
from ..estimate import Estimate
from ..posterior import mean_weights, step_variance, variance
from ..wrappers import Clipped
from .base import Denoise, Draw, LinearSampler, State, Weights

__all__ = ["DDPM"]

VARIANCES = ("large", "small", "learned")


@dataclass(frozen=True)
class DDPM(LinearSampler):
    """DDPM: x_a drawn from a Gaussian around the posterior mean given the image estimate; no noise in the last step.

    Attributes:
        variance: `small`, `large` or `learned`. `small` is the variance of the posterior, `large` is beta_{b|a} (the
            two choices of section 3.2); `learned` needs a head with a learned variance, which is the log variance
            itself (`+log-variance`) or interpolates between the two (`+variance`; Nichol & Dhariwal 2021, Eq. 15).
        clip: clip the image estimate to [-1, 1] in every step. With the large variance this is the sampler of Ho et
            al.'s published code, and the `ddpm_noisy` of DDIM's.

    Raises:
        InputError: for another name, or `learned` with a denoiser without a learned variance.
    """

    variance: str = "small"
    clip: bool = False

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown_name("variance", self.variance, VARIANCES)

    def weights(self, b: float, a: float) -> Weights:
        return _weights(self.variance == "large", b, a)

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        return super().__call__(Clipped(denoise) if self.clip else denoise, x, angles, draw)

    def step(self, x: Tensor, estimate: Estimate, b: float, a: float, draw: Draw) -> Tensor:
        if self.variance != "learned":
            return super().step(x, estimate, b, a, draw)
        if not estimate.learned_variance:
            raise InputError(
                "the variance 'learned' needs a network that learned one (a head like 'noise+variance'): use 'large' "
                "or 'small'"
            )
        w = self.weights(b, a)
        mean = w.x * x + w.image * estimate.image
        if a == 0.0:
            return mean
        return mean + (0.5 * _learned_log_variance(estimate, b, a)).exp() * draw(x)


@lru_cache(maxsize=4096)  # the steps of one grid are those of every batch
def _weights(large: bool, b: float, a: float) -> Weights:
    image, x = mean_weights(b, a)
    chosen = step_variance(b, a) if large else variance(b, a)
    return Weights(float(x), float(image), 0.0, float(chosen.sqrt()) if a > 0.0 else 0.0)


def _learned_log_variance(estimate: Estimate, b: float, a: float) -> Tensor:
    if estimate.log_variance is not None:
        return estimate.log_variance
    log_large, log_small = _log_variances(b, a)
    fraction = estimate.variance_fraction
    assert fraction is not None
    return fraction * log_large + (1.0 - fraction) * log_small


@lru_cache(maxsize=4096)
def _log_variances(b: float, a: float) -> tuple[float, float]:
    """The logarithms of the large and of the small variance."""
    return float(step_variance(b, a).log()), float(variance(b, a).log())
