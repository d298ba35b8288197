"""Cold Diffusion with noise as the degradation (Bansal et al. 2022): D(image, angle) = cos image + sin noise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..arc import mix
from .base import Denoise, Draw, LinearSampler, Sampler, State, Weights

__all__ = ["Cold", "ColdImproved", "ColdNaive"]


@dataclass(frozen=True)
class Cold(LinearSampler):
    """Cold Diffusion with the noise that remains in x (Eq. 8): x_a = cos a image + sin a (x - cos b image) / sin b."""

    def weights(self, b: float, a: float) -> Weights:
        ratio = math.sin(a) / math.sin(b)
        return Weights(ratio, math.cos(a) - ratio * math.cos(b), 0.0)


class _FixedNoise(Sampler):
    """A rule of Bansal et al., whose degradation D keeps the first noise of the trajectory."""

    @abstractmethod
    def step(self, x: Tensor, image: Tensor, noise: Tensor, b: float, a: float) -> Tensor:
        """The step from x at angle b to angle a, given the image estimate and the first noise."""

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        noise = x
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            x = self.step(x, estimate.image, noise, b, a)
        yield State(x, angles[-1], None)


@dataclass(frozen=True)
class ColdNaive(_FixedNoise):
    """Cold Diffusion, Bansal et al., Algorithm 1: x_a = D(image, a)."""

    def step(self, x: Tensor, image: Tensor, noise: Tensor, b: float, a: float) -> Tensor:
        return mix(image, noise, a)


@dataclass(frozen=True)
class ColdImproved(_FixedNoise):
    """Cold Diffusion, Bansal et al., Algorithm 2: x_a = x - D(image, b) + D(image, a)."""

    def step(self, x: Tensor, image: Tensor, noise: Tensor, b: float, a: float) -> Tensor:
        return x - mix(image, noise, b) + mix(image, noise, a)
