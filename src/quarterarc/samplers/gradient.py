"""Runge-Kutta on the probability flow, dx/dangle = v(x, angle) (Zhang et al. 2023, section 3.3), in any form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..arc import NOISE_END
from ..common.errors import InputError, unknown_name
from ..denoiser import angle_range
from ..estimate import Estimate
from .base import Denoise, Draw, Sampler, State
from .forms import FORMS, Form

__all__ = ["EULER", "HEUN", "MIDPOINT", "RK4", "Gradient", "Tableau", "runge_kutta"]


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau of an explicit Runge-Kutta method.

    Attributes:
        order: order of convergence of the method.
        matrix: row i holds the weights of the earlier slopes in stage i; its sum is the node of the stage.
        weights: weights of the slopes in the step; they sum to 1.

    Raises:
        InputError: if the shapes do not fit an explicit method, the node of a stage after the first is not above 0, or
            the weights do not sum to 1.
    """

    order: int
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.matrix] != list(range(len(self.weights))):
            raise InputError("row i of an explicit tableau has i entries, one per earlier stage")
        if any(node <= 0.0 for node in self.nodes[1:]):
            raise InputError(f"a tableau's stages after the first have nodes above 0, got {self.nodes}")
        if not math.isclose(math.fsum(self.weights), 1.0, abs_tol=1e-15):
            raise InputError(f"a tableau's weights sum to 1, got {math.fsum(self.weights)!r}")

    @property
    def nodes(self) -> tuple[float, ...]:
        """The position of each stage in the step, 0..1: the row sums of the matrix."""
        return tuple(math.fsum(row) for row in self.matrix)


EULER = Tableau(1, ((),), (1.0,))  # Eq. 13
MIDPOINT = Tableau(2, ((), (1 / 2,)), (0.0, 1.0))
HEUN = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class Gradient(Sampler):
    """An explicit Runge-Kutta method on one form of the flow, d(x / scale) = estimate d(clock).

    A network that estimates the image alone does not determine the noise at 0, and close to 0 its error is divided by
    the sine. In the velocity form a step with a stage below the denoiser's smallest angle is therefore taken by the
    midpoint rule. In the noise and image forms the step to 0 is Euler's: Heun in the noise form is then EDM's
    deterministic sampler (Karras et al. 2022, Algorithm 1), and n steps of an s-stage method cost s (n - 1) + 1
    evaluations.

    Attributes:
        tableau: the method.
        form: coordinates of the ODE: `velocity`, `noise` or `image`.

    Raises:
        InputError: for an unknown form, or a grid from pi/2 in the noise form, whose clock is infinite there.
    """

    tableau: Tableau
    form: str = "velocity"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown_name("form", self.form, FORMS)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step: one per stage."""
        return len(self.tableau.weights)

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        """Raise an InputError for a grid from pi/2 in the noise form."""
        form = FORMS[self.form]
        if angles[0] >= NOISE_END and not form.at_noise:
            raise InputError(f"the {form.name} form is not defined at pi/2: start below it, or use form='velocity'")

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid; the estimate of a state is that of the first stage."""
        self.check(angles)
        form = FORMS[self.form]
        smallest, _ = angle_range(denoise)
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            x = runge_kutta(denoise, x, estimate, form, self.tableau, b, a, smallest)
        yield State(x, angles[-1], None)


def runge_kutta(
    denoise: Denoise, x: Tensor, estimate: Estimate, form: Form, tableau: Tableau, b: float, a: float, smallest: float
) -> Tensor:
    """One step from x at angle b to angle a; see `Gradient`.

    Args:
        denoise: evaluated at every stage but the first.
        x: points, shape (B, C, H, W).
        estimate: the estimate at x and b, the first stage.
        form, tableau: the ODE and the method.
        b, a: descending.
        smallest: the denoiser's smallest angle; no stage is evaluated below it.
    """
    tableau = _fitting(tableau, form, b, a, smallest)
    slopes = [form.read(estimate, b)]
    for row, node in zip(tableau.matrix[1:], tableau.nodes[1:], strict=True):
        at = form.angle((1.0 - node) * form.clock(b) + node * form.clock(a))
        angle = max(at, smallest)
        slopes.append(form.read(denoise(_advance(x, form, b, at, row, slopes), angle), angle))
    return _advance(x, form, b, a, tableau.weights, slopes)


def _fitting(tableau: Tableau, form: Form, b: float, a: float, smallest: float) -> Tableau:
    """The method for the step from b to a: `tableau`, or Euler or midpoint at the end of the arc."""
    if a == 0.0 and not form.at_image:
        return EULER
    last = max(tableau.nodes)
    lowest = form.angle((1.0 - last) * form.clock(b) + last * form.clock(a))
    return MIDPOINT if last > 0.0 and lowest < smallest else tableau


def _advance(x: Tensor, form: Form, b: float, a: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The step from b to a with a constant estimate, the weighted mean of the slopes."""
    share, by = form.scale(a) / form.scale(b), form.weight(b, a) / math.fsum(weights)
    moved = x if share == 1.0 else share * x
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            moved = moved + by * weight * slope
    return moved
