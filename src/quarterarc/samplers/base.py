"""What every sampler is: a generator of states over a descending grid of angles.

A sampler knows a denoiser only as a callable `(x, angle) -> Estimate`, and draws fresh noise only through the
function it is given, so that one image's noise never depends on its neighbours in the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

from torch import Tensor

from ..estimate import Denoise, Estimate

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


class Sampler(Protocol):
    """A rule that moves states down a grid of angles: n + 1 angles give n + 1 states, the first being x itself.

    A sampler may also say the name of the grid it is best on, `default_grid`, and its `default_steps`, and refuse
    angles that it does not go with before anything is done, `check(angles)`.

    Attributes:
        evaluations: how often a step asks the denoiser (the NFE of one step).
    """

    @property
    def evaluations(self) -> int: ...

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]: ...


def of_rows(denoise: Denoise, rows: Tensor) -> Denoise:
    """The denoiser for some images of the batch, by their row numbers: one that knows labels has one for each."""
    if hasattr(denoise, "of_rows"):
        chosen: Denoise = denoise.of_rows(rows)
        return chosen
    return denoise


@dataclass(frozen=True)
class Weights:
    """The step of a linear rule: x_a = x x_b + image image_hat + noise noise_hat + fresh z."""

    x: float
    image: float
    noise: float
    fresh: float = 0.0


class LinearSampler(ABC):
    """A sampler whose step asks once and is linear in what it is told: DDPM, DDIM, Cold and rotation.

    The step keeps to the arc where x cos b + image = cos a and (x sin b + noise)^2 + fresh^2 = sin^2 a.
    """

    evaluations = 1

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
