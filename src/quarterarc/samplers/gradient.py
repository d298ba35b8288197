"""Runge-Kutta on the arc's ODE, dx/dangle = v(x, angle) (Zhang et al. 2023, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..denoiser import angle_range
from ..errors import InputError
from .base import Denoise, Draw, State

__all__ = ["EULER", "HEUN", "MIDPOINT", "RK4", "Gradient", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau of an explicit Runge-Kutta method.

    Attributes:
        order: the method's order of convergence.
        matrix: row i holds the weights of the slopes before stage i; its sum is the node of the stage.
        weights: of the slopes in the step, summing to 1.

    Raises:
        InputError: if the shapes do not fit an explicit method or the weights do not sum to 1.
    """

    order: int
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.matrix] != list(range(len(self.weights))):
            raise InputError("row i of an explicit tableau has i entries, one for each stage before it")
        if not math.isclose(math.fsum(self.weights), 1.0, abs_tol=1e-15):
            raise InputError(f"a tableau's weights sum to 1, got {math.fsum(self.weights)!r}")

    @property
    def nodes(self) -> tuple[float, ...]:
        """Where in the step each stage lies, 0..1: the row sums of the matrix."""
        return tuple(math.fsum(row) for row in self.matrix)


EULER = Tableau(1, ((),), (1.0,))  # Eq. 13
MIDPOINT = Tableau(2, ((), (1 / 2,)), (0.0, 1.0))
HEUN = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class Gradient:
    """An explicit Runge-Kutta method on dx/dangle = v.

    A stage at an angle below what the denoiser is defined at (a network that estimates the image alone says nothing
    of the noise at 0) is asked at its smallest angle instead.

    Attributes:
        tableau: the method.
    """

    tableau: Tableau

    @property
    def evaluations(self) -> int:
        """One a stage."""
        return len(self.tableau.weights)

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """The states at every angle of the grid; a state's estimate is that of the first stage."""
        smallest, _ = angle_range(denoise)
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            slopes = [estimate.velocity(b)]
            for row, node in zip(self.tableau.matrix[1:], self.tableau.nodes[1:], strict=True):
                angle = max(b + node * (a - b), smallest)
                slopes.append(denoise(_advance(x, a - b, row, slopes), angle).velocity(angle))
            x = _advance(x, a - b, self.tableau.weights, slopes)
        yield State(x, angles[-1], None)


def _advance(x: Tensor, by: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            x = x + by * weight * slope
    return x
