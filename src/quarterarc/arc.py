"""The quarter arc between image and noise, and the coordinates that other papers use.

    x(angle) =  cos(angle) image + sin(angle) noise         angle in [0, pi/2]
    v(angle) = -sin(angle) image + cos(angle) noise         = dx / dangle

(x, v) is (image, noise) rotated by the angle; the rest of this library follows from that.
Zhang, Ehinger & Drummond 2023, Eq. 9 and 10; the same arc is the v-prediction of Salimans & Ho 2022.

An angle is a float, or a tensor with one angle per image, shape (B,). Angles are float64; only the coefficients
computed from them are cast to the dtype of the images.
"""

from __future__ import annotations

import math
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from .common.devices import has_float64, send
from .common.errors import InputError

__all__ = [
    "NOISE_END",
    "ROUNDING",
    "Angle",
    "alpha_bar",
    "alpha_bar_to_angle",
    "log_snr",
    "log_snr_to_angle",
    "mix",
    "octave",
    "octave_to_angle",
    "rotate",
    "sigma",
    "sigma_to_angle",
    "through",
    "velocity",
]

Angle: TypeAlias = float | Tensor
Numbers = TypeVar("Numbers", float, np.ndarray)

NOISE_END = math.pi / 2
"""The angle of pure noise; 0 is the angle of the clean image."""

ROUNDING = 1e-7
"""Tolerance of an angle beyond an end of the arc: pi/2 as a float32 is 4.4e-8 too large."""


def mix(image: Tensor, noise: Tensor, angle: Angle) -> Tensor:
    """The point of the arc, x = cos(angle) image + sin(angle) noise (Eq. 9).

    Args:
        image: clean images, shape (B, *), usually in [-1, 1].
        noise: standard normal noise, shape (B, *).
        angle: in [0, pi/2], one for all images or one per image, shape (B,).
    """
    c, s = cos_sin(angle, image)
    return c * image + s * noise


def velocity(image: Tensor, noise: Tensor, angle: Angle) -> Tensor:
    """The tangent of the arc, v = dx/dangle = cos(angle) noise - sin(angle) image (Eq. 10).

    Arguments as for `mix`. Finite on the whole arc: the noise at angle 0, minus the image at pi/2.
    """
    c, s = cos_sin(angle, image)
    return c * noise - s * image


def rotate(x: Tensor, v: Tensor, by: Angle) -> tuple[Tensor, Tensor]:
    """Rotate point and tangent along the arc: from (x, v) at `angle` to (x, v) at `angle + by`.

    Exact for constant image and noise. `rotate(image, noise, angle)` is
    `(mix(...), velocity(...))`, and `rotate(x, v, -angle)` is `(image, noise)` again.

    Args:
        x: points, shape (B, *).
        v: their tangents, shape (B, *).
        by: any angle in radians, also negative; one for all images or one per image, shape (B,).
    """
    c, s = cos_sin(by, x)
    return c * x + s * v, c * v - s * x


def through(x_b: Tensor, b: Angle, x_a: Tensor, a: Angle) -> tuple[Tensor, Tensor]:
    """Image and noise of the one arc through two points: x_b at angle b, and x_a at another angle a.

        image = (sin b x_a - sin a x_b)/sin(b - a)        noise = (cos a x_b - cos b x_a)/sin(b - a)

    For a -> b along the probability flow they become the estimates at x_b that agree on x and on its velocity.

    Args:
        x_b, x_a: points, shape (B, *).
        b, a: their angles, which differ; one for all images or one per image, shape (B,).
    """
    (cos_b, sin_b), (cos_a, sin_a) = cos_sin(b, x_b), cos_sin(a, x_b)
    span = sin_b * cos_a - cos_b * sin_a
    return (sin_b * x_a - sin_a * x_b) / span, (cos_a * x_b - cos_b * x_a) / span


def float64(angle: Angle) -> Tensor:
    """The angle as a float64 tensor, 0-dimensional for a float (float32 on devices without float64).

    A 0-dimensional tensor combines with images of any dtype and device, and changes neither.
    """
    if isinstance(angle, Tensor):
        return angle.double() if has_float64(angle.device) else angle.float()
    return torch.tensor(angle, dtype=torch.float64)


def spread(coefficient: Tensor, like: Tensor) -> Tensor:
    """One coefficient per image, shape (B,), reshaped and cast to multiply `like`, shape (B, *).

    A 0-dimensional coefficient is returned unchanged.

    Raises:
        InputError: unless there is one coefficient, or one per image.
    """
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim > 1 or coefficient.shape[0] not in (1, like.shape[0]):  # `len` of a tensor is slow
        raise InputError(
            f"angles have shape {tuple(coefficient.shape)} but the images {tuple(like.shape)}: "
            f"give one angle, or one per image, shape ({len(like)},)"
        )
    return send(coefficient, like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def cos_sin(angle: Angle, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Cosine and sine of the angle, reshaped and cast to multiply `like`."""
    if isinstance(angle, Tensor):
        angle = float64(angle)
        return spread(angle.cos(), like), spread(angle.sin(), like)
    return math.cos(angle), math.sin(angle)


def alpha_bar(angle: Numbers) -> Numbers:
    """The variance-preserving signal level, alpha_bar = cos^2(angle), in [0, 1]."""
    return np.cos(angle) ** 2


def alpha_bar_to_angle(alpha_bar: Numbers) -> Numbers:
    """The angle at which cos^2(angle) is `alpha_bar`, in [0, 1]; accurate at both ends of the arc."""
    return np.arctan2(np.sqrt(1.0 - alpha_bar), np.sqrt(alpha_bar))


def sigma(angle: Numbers) -> Numbers:
    """The noise level of variance-exploding processes, sigma = tan(angle): x / cos(angle) = image + sigma noise."""
    return np.tan(angle)


def sigma_to_angle(sigma: Numbers) -> Numbers:
    """The angle of the noise level `sigma`, in [0, inf]."""
    return np.arctan(sigma)


def log_snr(angle: Numbers) -> Numbers:
    """The log signal-to-noise ratio, log(cos^2 / sin^2): +inf at the image, -75 at the float64 closest to pi/2."""
    with np.errstate(divide="ignore"):  # the value at 0 is infinite
        return 2.0 * (np.log(np.cos(angle)) - np.log(np.sin(angle)))


def log_snr_to_angle(log_snr: Numbers) -> Numbers:
    """The angle at which log(cos^2 / sin^2) is `log_snr`, in [-inf, inf]."""
    with np.errstate(over="ignore"):  # the arc tangent of infinity is pi/2
        return np.arctan(np.exp(-0.5 * log_snr))


FINEST = 0.3
"""The noise level, in units of [-1, 1] pixels, at which `octave` levels off: weaker noise hides no shapes."""


def octave(angle: Numbers, coarsest: float, finest: float = FINEST) -> Numbers:
    """The noise level in octaves: log2 of sigma, made finite at both ends of the arc.

        log2 (sin + finest cos) / (cos + sin / coarsest)

    Where finest << sigma << coarsest this is half the negative log-SNR in units of log 2; it is log2 finest at angle 0
    and log2 coarsest at pi/2. The content of an image is determined between the two scales, about equally per octave.
    Estimates are therefore nearly polynomials of this coordinate, and evenly spaced steps in it are efficient.

    Args:
        angle: in [0, pi/2].
        coarsest: the noise level above which no image is recognisable: sqrt(D) for D pixel values, as distances between
            images grow with sqrt(D).
        finest: the noise level below which the content no longer changes.
    """
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.log2((sine + finest * cosine) / (cosine + sine / coarsest))


def octave_to_angle(octave: Numbers, coarsest: float, finest: float = FINEST) -> Numbers:
    """The angle of a noise level in octaves, from log2 finest (0) to log2 coarsest (pi/2): the inverse of `octave`."""
    level = 2.0**octave
    return np.arctan2(level - finest, 1.0 - level / coarsest)
