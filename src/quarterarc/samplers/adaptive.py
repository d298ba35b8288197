"""Adaptive: an embedded Runge-Kutta pair on the probability flow, with a step size per image.

The error of a step is estimated as the difference of two methods that share their slopes, and a PI controller
(Gustafsson 1991) chooses the next step from it. The number of evaluations therefore differs between images. The same
integrator computes flow likelihoods and the inversion of images to noise (`quarterarc.likelihood`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..arc import float64
from ..common.errors import InputError, unknown_name
from ..denoiser import angle_range
from .base import Denoise, Draw, Sampler, State, of_rows

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "PAIRS", "Adaptive", "Pair", "check_tolerance", "integrate"]

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called with points, shape (B', D), and their angles, float64 on the CPU, and rows in the batch, both shape (B',)."""


@dataclass(frozen=True)
class Pair:
    """An embedded Runge-Kutta pair, first same as last: the last slope of a step is the first of the next one.

    Attributes:
        order: order of the method that takes the step.
        matrix: row i holds the weights of the earlier slopes in stage i + 1; the last row is the step.
        error: weights of the difference to the embedded method, whose order is order - 1.
    """

    order: int
    matrix: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]


BOGACKI_SHAMPINE = Pair(  # Bogacki & Shampine 1989, 3(2)
    3, ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)
)
DORMAND_PRINCE = Pair(  # Dormand & Prince 1980, 5(4)
    5,
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
PAIRS = {"bogacki-shampine": BOGACKI_SHAMPINE, "dormand-prince": DORMAND_PRINCE}
"""The pairs by name."""

_FIRST, _SMALLEST = 1 / 50, 1e-10  # relative to the interval: the first step, and the smallest step
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
ROUNDINGS = 4.0
"""The smallest tolerance, in roundings of 1: below it rounding errors exceed the tolerance for any step size."""


def integrate(
    velocity: Velocity,
    x: Tensor,
    b: float,
    a: float,
    tolerance: float,
    pair: Pair = DORMAND_PRINCE,
    slope: Tensor | None = None,
    first: Tensor | float = _FIRST,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate dx/dangle = velocity from angle b to angle a, with a step size per point.

    The error of a step from x to x' with error estimate e is, over the D values of the point,

        error = sqrt(mean((e / (tolerance (1 + max(|x|, |x'|))))^2))

    A step with error at most 1 is accepted. The next step is the last one times 0.9 error^(-0.7/p) previous^(0.4/p),
    p the order and previous the error of the accepted step before; a rejected step is repeated at its length times
    0.9 error^(-1/p). The factors are clamped to 1/5..5. A last step shortened to end at a does not reduce the proposed
    next step.

    Args:
        velocity: the right-hand side.
        x: points at angle b, shape (B, D).
        b, a: start and end, in either order.
        tolerance: absolute and relative, in (0, 1).
        pair: the method.
        slope: the velocity at x and b, shape (B, D), if it is known.
        first: the length of the first step relative to |a - b|, one for all points or one per point, shape (B,).

    Returns:
        The points at angle a, shape (B, D); the NFE per point, int64, shape (B,); the proposed next step in radians
        per point, shape (B,).

    Raises:
        InputError: if a step becomes too small, or the velocity is not finite.
    """
    x, rows, way = x.clone(), torch.arange(len(x)), a - b
    done, nfe = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.int64)
    step = torch.as_tensor(first, dtype=torch.float64).expand(len(x)).clone()
    previous = torch.ones(len(x), dtype=torch.float64)
    if slope is None:
        slope, nfe = velocity(x, b + way * done, rows), nfe + 1
    slope = slope.clone()
    while len(rows):
        h, start, point = torch.minimum(step[rows], 1.0 - done[rows]), done[rows], x[rows]
        slopes, moved = [slope[rows]], point
        for weights in pair.matrix:
            moved = point + _weighted(weights, slopes, way * h)
            slopes.append(velocity(moved, b + way * (start + math.fsum(weights) * h), rows))
        nfe[rows] += len(pair.matrix)
        error = _error(_weighted(pair.error, slopes, way * h), point, moved, tolerance)
        if bool(error.isnan().any()):
            angle = b + way * float(start[error.isnan()].min())
            raise InputError(
                f"the flow is not a number near angle {angle:.6g}: check the denoiser's estimates there, and the noise"
            )
        accepted = error <= 1.0
        x[rows[accepted]], slope[rows[accepted]] = moved[accepted], slopes[-1][accepted]
        ends = accepted & (h == 1.0 - start)
        done[rows] = torch.where(accepted, start + h, start)
        proposed = h * _factor(error, previous[rows], accepted, pair.order)
        # the error of a step shortened by the end of the interval is no reason for a shorter next step
        step[rows] = torch.where(ends, torch.maximum(proposed, step[rows].clamp(max=1.0)), proposed)
        previous[rows] = torch.where(accepted, error, previous[rows])
        if bool((step[rows[~ends]] < _SMALLEST).any()):
            angle = b + way * float(done[rows].min())
            raise InputError(
                f"the flow is too steep near angle {angle:.6g} for a tolerance of {tolerance:g}: raise the tolerance"
            )
        rows = rows[~ends]
    return x, nfe, step * abs(way)


def _error(estimate: Tensor, before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """The norm of `integrate` of an error estimate, shape (B', D): float64 on the CPU, shape (B',), at least 1e-10."""
    scaled = estimate / (tolerance * (1.0 + torch.maximum(before.abs(), after.abs())))
    return scaled.square().mean(1).sqrt().cpu().double().clamp(min=1e-10)


def _factor(error: Tensor, previous: Tensor, accepted: Tensor, order: int) -> Tensor:
    """The next step relative to the last one, by the rule of `integrate`; all of shape (B',)."""
    smooth = error ** (-0.7 / order) * previous ** (0.4 / order)
    factor = torch.where(accepted, smooth, error ** (-1.0 / order))
    return (_SAFETY * factor).clamp(_SHRINK, _GROW)


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor], by: Tensor) -> Tensor:
    """The weighted sum of slopes, shape (B', D), times `by`, shape (B',)."""
    total = torch.stack([w * slope for w, slope in zip(weights, slopes, strict=True) if w != 0.0]).sum(0)
    return by.to(total)[:, None] * total


def check_tolerance(tolerance: float) -> None:
    """Raise an InputError unless a tolerance lies in (0, 1)."""
    if not 0.0 < tolerance < 1.0:
        raise InputError(f"the solver's tolerance lies in (0, 1), got {tolerance!r}: 1e-2 is coarse, 1e-5 is fine")


@dataclass(frozen=True)
class Adaptive(Sampler):
    """The probability flow integrated to a tolerance, with a step size per image.

    The grid sets the angles at which states are returned; it has one step by default. The number of evaluations differs
    between images; `Result.nfe` is the mean.

    Attributes:
        tolerance: largest error per step, in (0, 1), absolute and relative; root mean square over pixels (`integrate`).
        pair: `bogacki-shampine` with 3 evaluations per step, for tolerances down to about 1e-3, or `dormand-prince`
            with 6.

    Raises:
        InputError: for a tolerance outside (0, 1), an unknown pair, or a flow that is too steep or not finite.
    """

    tolerance: float = 1e-2
    pair: str = "bogacki-shampine"

    default_steps = 1

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if self.pair not in PAIRS:
            raise unknown_name("pair", self.pair, PAIRS)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step of the method; the number of steps depends on the image."""
        return len(PAIRS[self.pair].matrix)

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid."""
        smallest, largest = angle_range(denoise)
        shape, dtype = x.shape[1:], x.dtype
        finest = ROUNDINGS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        if self.tolerance < finest:
            kind = str(dtype).removeprefix("torch.")
            raise InputError(
                f"a tolerance of {self.tolerance:g} is below the precision of {kind}: take at least {finest:.1g}, or "
                "noise in float64"
            )
        points, radians = float64(x).flatten(1), torch.full((len(x),), _FIRST * (angles[0] - angles[-1]))

        def velocity(points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
            angle = angle.clamp(smallest, largest)
            estimate = of_rows(denoise, rows)(points.to(dtype).reshape(-1, *shape), angle)
            return float64(estimate.velocity(angle)).flatten(1)

        for b, a in pairwise(angles):
            estimate = denoise(x, max(b, smallest))
            yield State(x, b, estimate)
            slope = float64(estimate.velocity(b)).flatten(1)
            points, _, radians = integrate(
                velocity, points, b, a, self.tolerance, PAIRS[self.pair], slope, (radians / (b - a)).clamp(max=1.0)
            )
            x = points.reshape(x.shape).to(dtype)
        yield State(x, angles[-1], None)
