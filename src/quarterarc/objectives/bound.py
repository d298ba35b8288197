"""The variational bound, term by term (Ho, Jain & Abbeel 2020, Eq. 5; Nichol & Dhariwal 2021, section 3.1).

    L_T     = KL(q(x_T | image) || N(0, I))
    L_{t-1} = KL(q(x_{t-1} | x_t, image) || p(x_{t-1} | x_t))       both Gaussian
    L_0     = -log p(image | x_1)                                   a Gaussian discretised to 256 levels

Images are 8-bit levels scaled to [-1, 1]; terms are in nats per dimension, one per image, shape (B,). Two objectives
are made of them: `vlb` is one term of the bound at a random t, times T; `hybrid` adds 0.001 of it to the error of the
noise (Nichol & Dhariwal 2021, Eq. 16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..arc import Angle, float64, spread
from ..common.errors import InputError, unknown_name
from ..estimate import Estimate
from ..posterior import mean_weights, step_variance, variance
from ..schedules import Schedule
from .base import NORMS, Losses, check_norm

__all__ = [
    "VARIANCES",
    "VLB",
    "Hybrid",
    "discretised_log_likelihood",
    "gaussian_kl",
    "log_variance",
    "prior_term",
    "step_term",
]

HALF_BIN = 1.0 / 255.0
"""Half the distance of two 8-bit levels in [-1, 1]."""

HYBRID_WEIGHT = 0.001
"""Weight of the bound in the objective `hybrid` (Nichol & Dhariwal 2021, Eq. 16)."""

VARIANCES: tuple[str, ...] = ("small", "large", "learned")
"""The variances of p(x_{t-1} | x_t) by name: DDPM's two fixed ones, or that of a head with a learned variance."""


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(N(mean_q, variance_q) || N(mean_p, variance_p)) in nats, elementwise; arguments broadcast."""
    difference = log_variance_q - log_variance_p
    return 0.5 * (difference.expm1() - difference + (mean_q - mean_p) ** 2 * (-log_variance_p).exp())


def discretised_log_likelihood(image: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the mass of N(mean, variance) in the bin of an image's 8-bit level, elementwise.

    The bin of level y is [y - 1/255, y + 1/255]; the outer two extend to infinity, so that the 256 masses sum to 1. The
    difference of the two CDFs is computed from their logarithms, in the tail where neither rounds to 1.
    """
    inverse_std = (-0.5 * log_variance).exp()
    low = torch.where(image < -1.0 + HALF_BIN, -math.inf, (image - HALF_BIN - mean) * inverse_std)
    high = torch.where(image > 1.0 - HALF_BIN, math.inf, (image + HALF_BIN - mean) * inverse_std)
    # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): above the mean, mirror, so that both logarithms stay accurate
    mirrored = low + high > 0.0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    # an open bin has no lower term, and an infinite value must not enter the gradient, where 0 times infinity is NaN:
    # neither its CDF nor the logarithm of a difference that rounds to 0 is computed there
    open_below = torch.isinf(low)
    log_high = torch.special.log_ndtr(high)
    log_ratio = torch.special.log_ndtr(low.masked_fill(open_below, 0.0)) - log_high
    share = torch.log(-torch.expm1(log_ratio.masked_fill(open_below, -1.0)))
    return log_high + share.masked_fill(open_below, 0.0)


def log_variance(estimate: Estimate, b: Angle, a: Angle, schedule: Schedule, kind: str, like: Tensor) -> Tensor:
    """The log variance of p(x_a | x_b) for training steps b -> a of a schedule, broadcasting over `like`.

    The posterior variance of t = 1 is 0: both fixed variances use that of t = 2 there, as the code of Ho et al. and of
    Nichol & Dhariwal does, since beta_1 would make L_0 much larger. A learned variance fraction lies between that and
    beta_1; a learned log variance is used as it is, at t = 1 too.

    Args:
        estimate: the output of the denoiser, for its learned variance.
        b, a: angles of t and t - 1, one for all images or one per image, shape (B,).
        schedule: the training schedule.
        kind: "small", "large" or "learned", as for `quarterarc.samplers.DDPM`.
        like: the images, for shape, dtype and device.

    Raises:
        InputError: for another kind, or "learned" without a learned variance in the estimate.
    """
    small, large = variance(b, a), step_variance(b, a)
    last, decoder = float64(a) == 0.0, _decoder_variance(schedule)
    log_small = torch.where(last, decoder, small).log()
    if kind == "small":
        return spread(log_small, like)
    if kind == "large":
        return spread(torch.where(last, decoder, large).log(), like)
    if kind != "learned":
        raise unknown_name("variance", kind, VARIANCES)
    if estimate.log_variance is not None:
        return estimate.log_variance
    if estimate.variance_fraction is None:
        raise InputError("the variance 'learned' needs a head that learns one, such as 'noise+variance'")
    fraction = estimate.variance_fraction
    return fraction * spread(large.log(), like) + (1.0 - fraction) * spread(log_small, like)


def _decoder_variance(schedule: Schedule) -> Tensor:
    """The variance of L_0: the posterior variance of t = 2; beta_1 for a schedule of one step."""
    if schedule.steps == 1:
        return step_variance(schedule.end, 0.0)
    return variance(schedule.angle(2.0), schedule.angle(1.0))


def step_term(
    estimate: Estimate, image: Tensor, x: Tensor, b: Tensor, a: Tensor, schedule: Schedule, kind: str = "small"
) -> Tensor:
    """L_{t-1}, or L_0 where a = 0, in nats per dimension, one per image, shape (B,).

    Args:
        estimate: the output of the denoiser at x.
        image: the true images, 8-bit levels in [-1, 1], shape (B, C, H, W).
        x: the points at angle b, shape (B, C, H, W).
        b, a: angles of t and t - 1, float64, shape (B,).
        schedule: the training schedule.
        kind: the variance of p: "small", "large" or "learned".
    """
    image_weight, x_weight = (spread(weight, x) for weight in mean_weights(b, a))
    mean_p = image_weight * estimate.image + x_weight * x
    mean_q = image_weight * image + x_weight * x
    log_p = log_variance(estimate, b, a, schedule, kind, x).expand_as(x)
    last = spread(float64(a) == 0.0, x).bool()
    log_q = torch.where(last, log_p, spread(variance(b, a).clamp(min=1e-300).log(), x).expand_as(x))
    terms = torch.where(
        last, -discretised_log_likelihood(image, mean_p, log_p), gaussian_kl(mean_q, log_q, mean_p, log_p)
    )
    return terms.flatten(1).mean(1)


def prior_term(image: Tensor, schedule: Schedule) -> Tensor:
    """L_T = KL(N(cos image, sin^2) || N(0, 1)) in nats per dimension, one per image, shape (B,); 0 if T is at pi/2."""
    end = torch.tensor(schedule.end, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    kl = gaussian_kl(end.cos() * image.double(), 2.0 * end.sin().log(), zero, zero)
    return kl.flatten(1).mean(1).to(image.dtype)


@dataclass(frozen=True)
class VLB:
    """The objective `vlb`: T L_{t-1} in bits per dimension; its mean over t is the bound without L_T.

    Attributes:
        variance: variance of p: "learned", "small" or "large".

    Raises:
        InputError: for an unknown variance.
    """

    variance: str = "learned"

    def __post_init__(self) -> None:
        _check_variance(self.variance)

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch; arguments as for `Objective`."""
        total = _weighted_term(estimate, image, x, times, schedule, self.variance, 1.0)
        return Losses.of(total, estimate, image, noise, x, schedule.angle(times))


@dataclass(frozen=True)
class Hybrid:
    """The objective `hybrid`: error of the noise + 0.001 `vlb` (Nichol & Dhariwal 2021, Eq. 16).

    The estimates of image and noise are detached in the second term, which trains the variance alone.

    Attributes:
        variance: variance of p: "learned", "small" or "large".
        norm: the norm of the error of the noise, one of `NORMS`.

    Raises:
        InputError: for an unknown variance or norm.
    """

    variance: str = "learned"
    norm: str = "mse"

    def __post_init__(self) -> None:
        _check_variance(self.variance)
        check_norm(self.norm)

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch; arguments as for `Objective`."""
        detached = replace(estimate, image=estimate.image.detach(), noise=estimate.noise.detach())
        bound = _weighted_term(detached, image, x, times, schedule, self.variance, HYBRID_WEIGHT)
        total = NORMS[self.norm](estimate.noise - noise) + bound
        return Losses.of(total, estimate, image, noise, x, schedule.angle(times))


def _weighted_term(
    estimate: Estimate, image: Tensor, x: Tensor, times: Tensor, schedule: Schedule, variance: str, weight: float
) -> Tensor:
    """A weight times T L_{t-1}, in bits per dimension, shape (B,)."""
    weight = schedule.steps / math.log(2.0) * weight
    return weight * step_term(
        estimate, image, x, schedule.angle(times), schedule.angle(times - 1.0), schedule, variance
    )


def _check_variance(name: str) -> None:
    if name not in VARIANCES:
        raise unknown_name("variance", name, VARIANCES)
