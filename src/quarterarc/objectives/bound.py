"""The variational bound, term by term (Ho, Jain & Abbeel 2020, Eq. 5; Nichol & Dhariwal 2021, section 3.1).

    L_T     = KL(q(x_T | image) || N(0, I))
    L_{t-1} = KL(q(x_{t-1} | x_t, image) || p(x_{t-1} | x_t))       both Gaussian
    L_0     = -log p(image | x_1)                                   a Gaussian discretised to 256 levels

Images are 8-bit levels scaled to [-1, 1]; everything is in nats a dimension, shape (B,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arc import Angle, float64, spread
from ..common.errors import InputError, unknown_name
from ..estimate import Estimate
from ..posterior import mean_weights, step_variance, variance
from ..schedules import Schedule

__all__ = ["VARIANCES", "discretised_log_likelihood", "gaussian_kl", "log_variance", "prior_term", "step_term"]

HALF_BIN = 1.0 / 255.0

VARIANCES: tuple[str, ...] = ("small", "large", "learned")
"""What the variance of p may be."""


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(N(mean_q, variance_q) || N(mean_p, variance_p)) in nats, element by element; arguments broadcast."""
    difference = log_variance_q - log_variance_p
    return 0.5 * (difference.expm1() - difference + (mean_q - mean_p) ** 2 * (-log_variance_p).exp())


def discretised_log_likelihood(image: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the mass that N(mean, variance) gives to an image's own 8-bit level, element by element.

    The level at y owns [y - 1/255, y + 1/255]; the outer two reach to infinity, so that the 256 masses sum to 1. The
    difference of the two CDFs is taken between their logarithms, in the tail where neither rounds to 1.
    """
    inverse_std = (-0.5 * log_variance).exp()
    low = torch.where(image < -1.0 + HALF_BIN, -math.inf, (image - HALF_BIN - mean) * inverse_std)
    high = torch.where(image > 1.0 - HALF_BIN, math.inf, (image + HALF_BIN - mean) * inverse_std)
    # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): above the mean, mirror, so that both logarithms stay accurate
    mirrored = low + high > 0.0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    # an open end contributes nothing, and must not reach the gradient: 0 times infinity is not a number. So nothing
    # infinite is computed there, neither its CDF nor the logarithm of a difference that rounds to 0.
    open_below = torch.isinf(low)
    log_high = torch.special.log_ndtr(high)
    log_ratio = torch.special.log_ndtr(low.masked_fill(open_below, 0.0)) - log_high
    share = torch.log(-torch.expm1(log_ratio.masked_fill(open_below, -1.0)))
    return log_high + share.masked_fill(open_below, 0.0)


def log_variance(estimate: Estimate, b: Angle, a: Angle, schedule: Schedule, kind: str, like: Tensor) -> Tensor:
    """The log variance of p(x_a | x_b) for training steps b -> a of a schedule, broadcasting over `like`.

    `kind` is "small", "large" or "learned" as for `quarterarc.samplers.DDPM`. The posterior variance of t = 1 is 0;
    both fixed variances there are that of t = 2, as in the code of Ho et al. and of Nichol & Dhariwal: beta_1 would
    cost the decoder dearly. The learned one lies between that and beta_1.
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
    if estimate.variance_fraction is None:
        raise InputError("the variance 'learned' needs a head that learned one, such as 'noise+variance'")
    fraction = estimate.variance_fraction
    return fraction * spread(large.log(), like) + (1.0 - fraction) * spread(log_small, like)


def _decoder_variance(schedule: Schedule) -> Tensor:
    """The posterior variance of t = 2, which stands in for that of t = 1; beta_1 where there is no t = 2."""
    if schedule.steps == 1:
        return step_variance(schedule.end, 0.0)
    return variance(schedule.angle(2.0), schedule.angle(1.0))


def step_term(
    estimate: Estimate, image: Tensor, x: Tensor, b: Tensor, a: Tensor, schedule: Schedule, kind: str = "small"
) -> Tensor:
    """L_{t-1}, or L_0 where a = 0, of each image, in nats a dimension, shape (B,).

    Args:
        estimate: what the denoiser says at x.
        image: the true images, 8-bit levels in [-1, 1], shape (B, C, H, W).
        x: the point at angle b.
        b, a: angles of t and t - 1, float64, shape (B,).
        schedule: whose steps they are.
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
    """L_T of each image, KL(N(cos image, sin^2) || N(0, 1)) in nats a dimension, shape (B,); 0 where T is at pi/2."""
    end = torch.tensor(schedule.end, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    kl = gaussian_kl(end.cos() * image.double(), 2.0 * end.sin().log(), zero, zero)
    return kl.flatten(1).mean(1).to(image.dtype)
