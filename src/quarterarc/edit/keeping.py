"""Inpainting: samplers that make the unknown pixels of an image and keep the known ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..arc import mix
from ..denoiser import Denoise
from ..posterior import step_variance
from ..samplers import Draw, Sampler, State
from ..wrappers import Known

__all__ = ["Kept", "Resampled", "back", "moves"]


@dataclass(frozen=True, eq=False)
class Inpainting(Sampler):
    """A sampler that makes the unknown pixels of images by another one.

    Attributes:
        inner: the sampler.
        image: the known pixels, shape (B, C, H, W) or (1, C, H, W).
        unknown: true where a pixel is not known, bool, shape (B, 1, H, W) or (1, 1, H, W).
    """

    inner: Sampler
    image: Tensor
    unknown: Tensor

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    @property
    def free(self) -> int:
        return self.inner.free

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        self.inner.check(angles)


@dataclass(frozen=True, eq=False)
class Kept(Inpainting):
    """Any sampler, of a denoiser whose estimate has the known pixels in their place (`Known`): the method `project`.

    Each known pixel moves along the arc from its own noise to its value, and the network sees it there.
    """

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid."""
        image = self.image.to(x)
        for state in self.inner(Known(denoise, image, self.unknown), x, angles, draw):
            last = state.angle == angles[-1] == 0.0  # a solver reaches the known pixels up to its error
            yield State(torch.where(self.unknown, state.x, image), 0.0, None) if last else state


@dataclass(frozen=True, eq=False)
class Resampled(Inpainting):
    """RePaint (Lugmayr et al. 2022, algorithm 1) on the arc: the method `resample`.

    After a step from b to a, the known pixels are drawn anew at a, cos a image + sin a z. Some angles are returned to
    by the forward process, x_b = (cos b / cos a) x_a + sqrt(beta_{b|a}) z, and sampled again, so that the new pixels
    adapt to the known ones.

    Attributes:
        inner: the rule of a step, linear.
        resamplings: number of times that a part of the grid is sampled.
        jump: steps of such a part.
    """

    resamplings: int
    jump: int

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid, when it is left for the last time."""
        image = self.image.to(x)
        steps = moves(len(angles) - 1, self.resamplings, self.jump)
        last = {start: number for number, (start, _) in enumerate(steps)}
        for number, (start, end) in enumerate(steps):
            b, a = angles[start], angles[end]
            if end < start:
                x = back(x, b, a, draw(x))
                continue
            first, after = self.inner(denoise, x, (b, a), draw)
            if last[start] == number:
                yield first
            known = image if a == 0.0 else mix(image, draw(x), a)
            x = torch.where(self.unknown, after.x, known)
        yield State(x, angles[-1], None)


def back(x: Tensor, a: float, b: float, fresh: Tensor) -> Tensor:
    """The forward process from angle a to a larger angle b, below pi/2, given standard normal noise."""
    return math.cos(b) / math.cos(a) * x + float(step_variance(b, a).sqrt()) * fresh


def moves(steps: int, resamplings: int, jump: int) -> list[tuple[int, int]]:
    """The moves of RePaint between the places of a grid: (k, k + 1) is a step, (k, k - jump) goes back.

    From one step before the image, and from every `jump` steps before that, the trajectory goes back `jump` steps,
    `resamplings` - 1 times; never to the first angle, where nothing would be left of it.
    """
    back = {steps - 1 - part * jump: resamplings - 1 for part in range(steps)}
    place, made = 0, list[tuple[int, int]]()
    while place < steps:
        made.append((place, place + 1))
        place += 1
        if back.get(place, 0) > 0 and place - jump > 0:
            back[place] -= 1
            made.append((place, place - jump))
            place -= jump
    return made
