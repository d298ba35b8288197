"""The interface of samplers: a sampler is a generator of states over a descending grid of angles.

A sampler calls the denoiser as `(x, angle) -> Estimate`, and draws fresh noise only by the function `draw` that it
receives, so that the noise of an image does not depend on the other images of its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from torch import Tensor

from ..common.errors import InputError
from ..denoiser import Denoise, call
from ..estimate import Estimate
from ..mean_image import MeanImage
from ..wrappers import Evaluator, Known

__all__ = ["Denoise", "Draw", "LinearSampler", "Sampler", "State", "Weights", "of_rows"]

Draw: TypeAlias = Callable[[Tensor], Tensor]
"""Returns fresh standard normal noise of the shape, dtype and device of its argument."""


@dataclass(frozen=True, eq=False)
class State:
    """One state of a trajectory.

    Attributes:
        x: the points, shape (B, C, H, W).
        angle: their angle.
        estimate: the output of the denoiser there; None at the last angle, where the denoiser is not evaluated.
    """

    x: Tensor
    angle: float
    estimate: Estimate | None


class Sampler(ABC):
    """A rule that moves states along a descending grid of angles: n + 1 angles give n + 1 states, the first being x.

    A subclass is a frozen dataclass whose fields are its options, documented in the section `Attributes:` of its
    docstring. It implements `__call__` and overrides the defaults below where it differs.

    Attributes:
        default_grid: name of the grid used if none is given.
        default_steps: number of steps used with the default grid if none is given; None for the general default.
        renamed: new names of options that had another name in the previous version.
        internal: fields that are no options: set by other code, not by a name and options.
    """

    default_grid: ClassVar[str] = "angle"
    default_steps: ClassVar[int | None] = None
    renamed: ClassVar[Mapping[str, str]] = {}
    internal: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *options: Any, **named: Any) -> Self:
        """An instance; raises an InputError for an option under the name that it had in the previous version."""
        for old in named.keys() & cls.renamed.keys():
            new = cls.renamed[old]
            raise InputError(f"the option '{old}' of {cls.__name__} is called '{new}': {cls.__name__}({new}=...)")
        return super().__new__(cls)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step and image (the NFE of one step)."""
        return 1

    @property
    def free(self) -> int:
        """Number of steps without an evaluation, because their estimate is known."""
        return 0

    def with_free_start(self, mean: MeanImage | None, named: bool) -> Sampler:
        """The sampler for a grid, which may take the mean image as the first estimate; by default this sampler.

        Args:
            mean: the image estimate at the grid's first angle; None if it is unknown, or that angle is below pi/2.
            named: whether the grid is given by name, so that it can have another step for one without an evaluation.
        """
        return self

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        """Raise an InputError for a grid that does not fit the options; by default every grid fits."""
        return

    @abstractmethod
    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid.

        Args:
            denoise: `(x, angle) -> Estimate`; labels are filled in already.
            x: points at the first angle, shape (B, C, H, W).
            angles: descending; the last one is 0 unless a grid ends before the image.
            draw: returns fresh standard normal noise of the shape of its argument, one stream per image.
        """


def of_rows(denoise: Denoise, rows: Tensor) -> Denoise:
    """The denoiser restricted to rows of the batch, int64, shape (B',), with the labels of these images."""
    return denoise.of_rows(rows) if isinstance(denoise, Evaluator | Known) else denoise


@dataclass(frozen=True)
class Weights:
    """The step of a linear rule: x_a = x x_b + image image_hat + noise noise_hat + fresh z, z standard normal."""

    x: float
    image: float
    noise: float
    fresh: float = 0.0


class LinearSampler(Sampler):
    """A sampler with one evaluation per step, linear in x and the two estimates: DDPM, DDIM, Cold and rotation.

    The marginals of the arc are kept where x cos b + image = cos a and (x sin b + noise)^2 + fresh^2 = sin^2 a.

    Attributes:
        jumps: whether the step is the arc through the two estimates, so that it is exact with those of a flow map,
            which then receives the end of the step.
    """

    @property
    def jumps(self) -> bool:
        return False

    @abstractmethod
    def weights(self, b: float, a: float) -> Weights:
        """The weights of the step from angle b to a smaller angle a, in float64."""

    def step(self, x: Tensor, estimate: Estimate, b: float, a: float, draw: Draw) -> Tensor:
        """Apply the weights of the step from b to a."""
        w = self.weights(b, a)
        moved = w.image * estimate.image
        for weight, term in ((w.x, x), (w.noise, estimate.noise)):
            if weight != 0.0:
                moved = moved + weight * term
        return moved + w.fresh * draw(x) if w.fresh != 0.0 else moved

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid."""
        for b, a in pairwise(angles):
            estimate = call(denoise, x, b, to=a if self.jumps else None)
            yield State(x, b, estimate)
            x = self.step(x, estimate, b, a, draw)
        yield State(x, angles[-1], None)
