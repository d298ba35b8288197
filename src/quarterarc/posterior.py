"""The Gaussian algebra of one step between two angles, from b (noisier) to a (cleaner), 0 <= a < b <= pi/2.

    alpha_{b|a} = cos^2 b / cos^2 a
    beta_{b|a}  = 1 - alpha_{b|a} = sin(b - a) sin(b + a) / cos^2 a          (no cancellation)
    q(x_a | x_b, image) = N(mean, beta_{b|a} sin^2 a / sin^2 b)
    mean = cos a beta_{b|a} / sin^2 b  image  +  (cos b / cos a)(sin^2 a / sin^2 b)  x_b

Ho, Jain & Abbeel 2020, Eq. 6 and 7. Angles are floats or tensors of shape (B,); results are float64 tensors,
0-dimensional for floats. The step of an image needs scalars only, so no function of this module takes images.
"""

from __future__ import annotations

from torch import Tensor

from .arc import Angle, float64

__all__ = ["mean_weights", "step_variance", "variance"]


def step_variance(b: Angle, a: Angle) -> Tensor:
    """beta_{b|a}, the variance that the forward process adds from a to b, in (0, 1]: DDPM's "large" variance."""
    b, a = float64(b), float64(a)
    return (b - a).sin() * (b + a).sin() / a.cos() ** 2


def variance(b: Angle, a: Angle) -> Tensor:
    """The variance of q(x_a | x_b, image), 0 at a = 0: DDPM's "small" variance."""
    return step_variance(b, a) * (float64(a).sin() / float64(b).sin()) ** 2


def mean_weights(b: Angle, a: Angle) -> tuple[Tensor, Tensor]:
    """The weights of image and x_b in the mean of q(x_a | x_b, image); (1, 0) at a = 0."""
    beta, b, a = step_variance(b, a), float64(b), float64(a)
    return a.cos() * beta / b.sin() ** 2, b.cos() / a.cos() * (a.sin() / b.sin()) ** 2
