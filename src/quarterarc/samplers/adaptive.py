"""Adaptive: an embedded Runge-Kutta pair on the probability flow, each image in steps of its own.

The steps follow an estimate of their error, the difference of two methods that share their slopes, by a PI controller
(Gustafsson 1991): so smooth stretches cost little, and the last images of a batch do not pay for the hardest one.
The same integrator carries flow likelihoods, images to noise and back (`quarterarc.flow`).
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
"""Of points, shape (B', D), at angles, float64 on the CPU, shape (B',), which are these rows of the whole batch."""


@dataclass(frozen=True)
class Pair:
    """An embedded pair whose last stage is the step itself, so that its slope opens the next step.

    Attributes:
        order: of the method that makes the step.
        matrix: row i holds the weights of the slopes before stage i + 1; the last row makes the step.
        error: weights of the difference to the embedded method, of order - 1.
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

_FIRST, _SMALLEST = 1 / 50, 1e-10  # shares of the way: the first step, and the one at which a flow is given up
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
ROUNDINGS = 4.0
"""The finest tolerance, in roundings of 1: below, steps shrink for errors that no step is small enough for."""


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
    """Carry points along a flow, each in steps of its own, so that none depends on the others.

    A step is taken where the root mean square of its error over tolerance (1 + |x|) is at most 1. The next step is
    the last one times 0.9 error^(-0.7/p) previous^(0.4/p), p the order, between 1/5 and 5; a step refused is taken
    again, smaller, by its own error alone.

    Args:
        velocity: of the flow.
        x: the points at angle b, shape (B, D).
        b, a: where the flow starts and ends, in either order.
        tolerance: absolute and relative.
        pair: the method.
        slope: the velocity at b, where it is known.
        first: the first step tried, as a share of the way, one for all or one a point, shape (B,).

    Returns:
        The points at angle a; the NFE of each, shape (B,); the radians of the step that each would take next.

    Raises:
        InputError: if a step would have to be too small, or the velocity is not a number.
    """
    x, rows, way = x.clone(), torch.arange(len(x)), a - b
    done, nfe = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.int64)
    step = torch.as_tensor(first, dtype=torch.float64).expand(len(x)).clone()
    previous = torch.ones(len(x), dtype=torch.float64)
    if slope is None:
        slope, nfe = velocity(x, b + way * done, rows), nfe + 1
    slope = slope.clone()
    while len(rows):
        h, start, here = torch.minimum(step[rows], 1.0 - done[rows]), done[rows], x[rows]
        slopes, moved = [slope[rows]], here
        for weights in pair.matrix:
            moved = here + _weighted(weights, slopes, way * h)
            slopes.append(velocity(moved, b + way * (start + math.fsum(weights) * h), rows))
        nfe[rows] += len(pair.matrix)
        missed = _weighted(pair.error, slopes, way * h) / (tolerance * (1.0 + torch.maximum(here.abs(), moved.abs())))
        error = missed.square().mean(1).sqrt().cpu().double().clamp(min=1e-10)
        if bool(error.isnan().any()):
            angle = b + way * float(start[error.isnan()].min())
            raise InputError(
                f"the flow is not a number near angle {angle:.6g}: look at what the denoiser says there, and at the "
                "noise"
            )
        taken = error <= 1.0
        x[rows[taken]], slope[rows[taken]] = moved[taken], slopes[-1][taken]
        ends = taken & (h == 1.0 - start)
        done[rows] = torch.where(taken, start + h, start)
        smooth = error ** (-0.7 / pair.order) * previous[rows] ** (0.4 / pair.order)
        factor = torch.where(taken, smooth, error ** (-1.0 / pair.order))
        # a step cut short by the end says nothing of the one that would have been taken: it may only grow from it
        proposed = h * (_SAFETY * factor).clamp(_SHRINK, _GROW)
        step[rows] = torch.where(ends, torch.maximum(proposed, step[rows].clamp(max=1.0)), proposed)
        previous[rows] = torch.where(taken, error, previous[rows])
        if bool((step[rows[~ends]] < _SMALLEST).any()):
            angle = b + way * float(done[rows].min())
            raise InputError(f"the flow is too steep near angle {angle:.6g} for a tolerance of {tolerance:g}: raise it")
        rows = rows[~ends]
    return x, nfe, step * abs(way)


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor], by: Tensor) -> Tensor:
    """The weighted sum of slopes times a step for each image."""
    total = torch.stack([w * slope for w, slope in zip(weights, slopes, strict=True) if w != 0.0]).sum(0)
    return by.to(total)[:, None] * total


def check_tolerance(tolerance: float) -> None:
    """Raise an InputError unless a tolerance lies in (0, 1)."""
    if not 0.0 < tolerance < 1.0:
        raise InputError(f"the solver's tolerance lies in (0, 1), got {tolerance!r}: 1e-2 is rough, 1e-5 fine")


@dataclass(frozen=True)
class Adaptive(Sampler):
    """The probability flow to a tolerance.

    The grid says only where states are given: two angles, one step, are all it needs, and what it takes if no steps are
    given. How often an image was seen depends on the image; `Result.nfe` is the mean.

    Attributes:
        tolerance: how far a step may miss, root mean square over pixels, absolutely and relative to the value.
        pair: `bogacki-shampine` (3 evaluations a step; for tolerances down to about 1e-3) or `dormand-prince` (6).

    Raises:
        InputError: for a tolerance outside (0, 1), an unknown pair, a flow too steep for the tolerance, or one that is
            not a number.
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
        """Of the smallest step; how many steps there are depends on the image."""
        return len(PAIRS[self.pair].matrix)

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """The states at every angle of the grid."""
        smallest, largest = angle_range(denoise)
        shape, dtype = x.shape[1:], x.dtype
        finest = ROUNDINGS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        if self.tolerance < finest:
            kind = str(dtype).removeprefix("torch.")
            raise InputError(
                f"a tolerance of {self.tolerance:g} is below what {kind} can tell: take at least {finest:.1g}, or "
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
