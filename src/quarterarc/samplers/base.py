"""What every sampler is: a generator of states over a descending grid of angles.

A sampler knows a denoiser only as a callable `(x, angle) -> Estimate`, and draws fresh noise only through the
function it is given, so that one image's noise never depends on its neighbours in the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from torch import Tensor

from ..denoiser import Denoise, Evaluator
from ..estimate import Estimate

__all__ = ["Denoise", "Draw", "LinearSampler", "Sampler", "State", "Weights", "of_rows"]

Draw: TypeAlias = Callable[[Tensor], Tensor]
"""Fresh standard normal noise, shaped like what it is given."""


@dataclass(frozen=True, eq=False)
class State:
    """Where a trajectory stands.

    Attributes:
        x: the points, shape (B, C, H, W).
        angle: their angle.
        estimate: what the denoiser said there; None at the end of the grid, where it is not asked.
    """

    x: Tensor
    angle: float
    estimate: Estimate | None


class Sampler(ABC):
    """A rule that moves states along a descending grid of angles: n + 1 angles give n + 1 states, the first being x.

    A subclass is a frozen dataclass whose fields are its options. It implements `__call__` and overrides what differs
    from the defaults below.
    """

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser per step (the NFE of one step)."""
        return 1

    default_grid: str = "angle"
    """The grid that is used unless another one is given."""
    default_steps: int | None = None
    """The number of steps that is used with the default grid unless another one is given; None for the general one."""

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        """Raise an InputError for a grid that does not fit the options; here every grid does."""
        return

    @abstractmethod
    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """The states at every angle of the grid.

        Args:
            denoise: `(x, angle) -> Estimate`; labels are filled in already.
            x: points at the first angle, shape (B, C, H, W).
            angles: descending, ending at 0.
            draw: returns fresh standard normal noise of the shape of its argument, each image from its own stream.
        """


def of_rows(denoise: Denoise, rows: Tensor) -> Denoise:
    """The denoiser for some images of the batch, by their row numbers, with the labels of these images."""
    return denoise.of_rows(rows) if isinstance(denoise, Evaluator) else denoise


@dataclass(frozen=True)
class Weights:
    """The step of a linear rule: x_a = x x_b + image image_hat + noise noise_hat + fresh z."""

    x: float
    image: float
    noise: float
    fresh: float = 0.0


class LinearSampler(Sampler):
    """A sampler whose step asks once and is linear in what it is told: DDPM, DDIM, Cold and rotation.

    The step keeps to the arc where x cos b + image = cos a and (x sin b + noise)^2 + fresh^2 = sin^2 a.
    """

    @abstractmethod
    def weights(self, b: float, a: float) -> Weights:
        """The weights of the step from angle b to a cleaner angle a, in float64."""

    def step(self, x: Tensor, estimate: Estimate, b: float, a: float, draw: Draw) -> Tensor:
        """The step itself."""
        w = self.weights(b, a)
        moved = w.image * estimate.image
        for weight, what in ((w.x, x), (w.noise, estimate.noise)):
            if weight != 0.0:
                moved = moved + weight * what
        return moved + w.fresh * draw(x) if w.fresh != 0.0 else moved

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """The states at every angle of the grid."""
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            x = self.step(x, estimate, b, a, draw)
        yield State(x, angles[-1], None)
