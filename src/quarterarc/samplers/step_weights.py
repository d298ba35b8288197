"""The weights of a multistep step: integrals of the flow, exact for polynomials and for Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from ..arc import FINEST, NOISE_END, octave, octave_to_angle, spread
from ..common.devices import send
from ..estimate import Estimate

__all__ = ["CLOCKS", "NoiseWeights", "StepWeights", "fresh_noise", "gaussian_weights", "step_weights"]

CLOCKS = ("octave", "angle")

_POINTS, _SHARES = leggauss(48)  # relative 1e-14 on steps as long as the whole arc


@dataclass(frozen=True)
class StepWeights:
    """A step as weights: x_a = x x_b + sum_j image_j image_hat_j + noise_j noise_hat_j.

    Attributes:
        x: weight of the point at the start of the step, float64.
        image, noise: weights of the estimates at the nodes, float64; a noise weight may be a tensor with one value per
            image, shape (B,).
    """

    x: float
    image: tuple[float, ...]
    noise: tuple[float | Tensor, ...]

    def apply(self, x: Tensor, estimates: Sequence[Estimate]) -> Tensor:
        """Apply the step to x, shape (B, *), with the estimates at the nodes, oldest first."""
        moved = x if self.x == 1.0 else self.x * x
        for image, noise, estimate in zip(self.image, self.noise, estimates, strict=True):
            if image != 0.0:
                moved = moved + image * estimate.image
            if isinstance(noise, Tensor):
                moved = moved + spread(noise, x) * estimate.noise
            elif noise != 0.0:
                moved = moved + noise * estimate.noise
        return moved

    def __add__(self, other: StepWeights) -> StepWeights:
        """The sum of the weights, aligned at the last node."""
        count = max(len(self.image), len(other.image))

        def added(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
            padded = [(0.0,) * (count - len(values)) + values for values in (first, second)]
            return tuple(map(sum, zip(*padded, strict=True)))

        return StepWeights(self.x + other.x, added(self.image, other.image), added(self.noise, other.noise))


@lru_cache(maxsize=4096)
def step_weights(
    form: str, clock: str, b: float, a: float, nodes: tuple[float, ...], coarsest: float, eta: float = 0.0
) -> StepWeights:
    """The weights of the step from angle b to angle a through estimates at the nodes, exact to rounding.

    In the form `both` these are the weights for width 0; `NoiseWeights` returns those for other widths.

    Args:
        form, clock: as for `Multistep`.
        b, a: start and end of the step; b is not pi/2 in the noise form, nor 0 in the image form.
        nodes: distinct angles.
        coarsest: the argument of `quarterarc.arc.octave`, for the clock `octave`.
        eta: as for `Multistep`; in the image form only.
    """
    at, none = np.array(nodes), np.zeros(len(nodes))
    if form == "image" and a == 0.0:  # x_a is the value of the polynomial at 0
        return _rounded(0.0, _lagrange(at, np.zeros(1), clock, coarsest)[:, 0], none)
    angles, shares = _quadrature(form, clock, b, a, coarsest)
    weights = _lagrange(at, angles, clock, coarsest) * shares
    if form == "velocity":
        return _rounded(1.0, -np.sin(at) * weights.sum(1), np.cos(at) * weights.sum(1))
    if form == "both":
        return _rounded(1.0, -weights @ np.sin(angles), weights @ np.cos(angles))
    if form == "noise":
        return _rounded(math.cos(a) / math.cos(b), none, math.cos(a) * weights.sum(1))
    excess, fresh = fresh_noise(b, a, eta)
    decay = (math.tan(a) / np.tan(angles)) ** excess
    kept = math.sin(a) / math.sin(b) * math.sqrt(1.0 - fresh**2)
    return _rounded(kept, math.sin(a) * (1.0 + excess) * (weights * decay).sum(1), none)


Step: TypeAlias = tuple[float, float, tuple[float, ...]]
"""A step of a polynomial: its start b, its end a, and the nodes; as for `step_weights`."""


class NoiseWeights:
    """The weights of the noise estimates in the form `both` with one width per image, for the steps of a trajectory.

        int cos(angle) l_j(angle) s_w(angle) / s_w(node_j)          l_j the Lagrange polynomial of node j

    The numbers of all steps are copied to the device at once.

    Args:
        clock, coarsest: as for `step_weights`.
        steps: the steps.
        dtype, device: those of the squared widths.
    """

    def __init__(
        self, clock: str, coarsest: float, steps: Sequence[Step], dtype: torch.dtype, device: torch.device
    ) -> None:
        tables = [_noise_integrand(clock, *step, coarsest) for step in steps]
        numbers = send(torch.from_numpy(np.concatenate([[], *tables])), device, dtype)
        self._tables = dict(zip(steps, numbers.split([len(table) for table in tables]), strict=True))

    def __call__(self, step: Step, squared: Tensor) -> tuple[Tensor, ...]:
        """The weights of a step, one tensor of shape (B,) per node, for squared widths w^2 of shape (B,)."""
        table, nodes = self._tables[step], len(step[2])
        inverse, weights = table[: len(_POINTS) + nodes], table[len(_POINTS) + nodes :].view(nodes, -1)
        sizes = (1.0 + squared[:, None] * inverse).rsqrt()  # s_w, shape (B, angles and nodes)
        at_angles, at_nodes = sizes.split([len(_POINTS), nodes], 1)
        return ((at_angles[:, None] * weights).sum(2) / at_nodes).unbind(1)


def gaussian_weights(b: float, a: float, squared: Tensor) -> StepWeights:
    """The step from b to a by the estimates at b, exact for Gaussian data of width w around each image.

        x_a = cos a image_hat + (S_a S_b - cos a cos b w^2) / sin b noise_hat        S = sqrt(sin^2 + w^2 cos^2)

    since for Gaussian data of mean m, x - cos m is proportional to S along the flow, and m = image_hat - w^2 cot b
    noise_hat. For width 0 it is DDIM's step, which ends in the image estimate. If the two estimates do not agree on x,
    the residual is kept: x moves by as much as the point that they agree on.

    Args:
        b, a: descending; b above 0.
        squared: w^2, shape (B,), or (1,) for all images.
    """
    (sin_b, cos_b), (sin_a, cos_a) = ((math.sin(angle), math.cos(angle)) for angle in (b, a))
    sizes = ((sin_b**2 + squared * cos_b**2) * (sin_a**2 + squared * cos_a**2)).sqrt()
    # the difference S_a S_b - cos a cos b w^2 without cancellation; clamped since it is 0 / 0 at width 0, angle 0
    squares = sin_a**2 * sin_b**2 + squared * (sin_a**2 * cos_b**2 + sin_b**2 * cos_a**2)
    noise = squares / (sizes + cos_a * cos_b * squared).clamp(min=1e-30) / sin_b
    return StepWeights(1.0, (cos_a - cos_b,), (noise - sin_b,))


@lru_cache(maxsize=4096)
def _noise_integrand(clock: str, b: float, a: float, nodes: tuple[float, ...], coarsest: float) -> np.ndarray:
    """Tan^-2 at the angles of the quadrature and at the nodes, then the weights of cos l_j, node by node."""
    angles, shares = _quadrature("both", clock, b, a, coarsest)
    weights = _lagrange(np.array(nodes), angles, clock, coarsest) * shares * np.cos(angles)
    return np.concatenate([np.tan(np.concatenate([angles, nodes])) ** -2.0, weights.ravel()])


def fresh_noise(b: float, a: float, eta: float) -> tuple[float, float]:
    """Fresh noise in the step from b to a: tau^2 of the reverse process, and the deviation of the fresh noise / sin a.

    The reverse process with tau^2 times DDPM's noise keeps the marginals for any tau (Xue et al. 2023, Eq. 9):

        x_a = sin a / sin b r^(tau^2) x_b + sin a (1 + tau^2) int (cot / cot a)^(tau^2) image d cot
              + sin a sqrt(1 - r^(2 tau^2)) z,                                          r = tan a / tan b

    and tau is chosen such that the fresh noise is DDIM's with this eta, sin a eta sqrt(1 - r^2); tau is 1 for eta 1.
    """
    if eta == 0.0 or a == 0.0:
        return 0.0, 0.0
    left = math.sin(b - a) * math.sin(b + a) / (math.sin(b) * math.cos(a)) ** 2  # 1 - r^2
    fresh = eta * math.sqrt(min(left, 1.0))
    if eta == 1.0 or b >= NOISE_END:  # from pure noise r is 0, and the limit of tau^2 is 0 for eta < 1
        return float(eta == 1.0), fresh
    return math.log1p(-(fresh**2)) / (2.0 * math.log(math.tan(a) / math.tan(b))), fresh


def _rounded(x: float, image: np.ndarray, noise: np.ndarray) -> StepWeights:
    return StepWeights(x, tuple(map(float, image)), tuple(map(float, noise)))


def _quadrature(form: str, clock: str, b: float, a: float, coarsest: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles and quadrature weights from b to a, over tan (noise form), cot (image form) or the angle (the others).

    The variable of integration makes the integrand smooth up to the end of the arc: log(1 + tan), log(1 + cot), and
    the octave.
    """

    def over(first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        half = (last - first) / 2
        return first + half * (_POINTS + 1.0), half * _SHARES

    if form == "noise":
        w, shares = over(math.log1p(math.tan(b)), math.log1p(math.tan(a)))
        return np.arctan(np.expm1(w)), shares * np.exp(w)
    if form == "image":
        w, shares = over(math.log1p(1.0 / math.tan(b)), math.log1p(1.0 / math.tan(a)))
        return np.arctan2(1.0, np.expm1(w)), shares * np.exp(w)
    if clock == "angle":
        return over(b, a)
    w, shares = over(float(octave(b, coarsest)), float(octave(a, coarsest)))
    angles = octave_to_angle(w, coarsest)
    sine, cosine = np.sin(angles), np.cos(angles)
    pace = (1.0 - FINEST / coarsest) / ((sine + FINEST * cosine) * (cosine + sine / coarsest) * math.log(2.0))
    return angles, shares / pace


def _lagrange(nodes: np.ndarray, angles: np.ndarray, clock: str, coarsest: float) -> np.ndarray:
    """The Lagrange polynomials of the nodes in a clock, at the given angles; shape (nodes, angles)."""
    if clock == "octave":
        nodes, angles = octave(nodes, coarsest), octave(angles, coarsest)
    values = np.ones((len(nodes), len(angles)))
    for i, node in enumerate(nodes):
        for other in np.delete(nodes, i):
            values[i] *= (angles - other) / (node - other)
    return values
