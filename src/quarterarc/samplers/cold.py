"""Cold Diffusion with noise as the degradation (Bansal et al. 2022): D(image, angle) = cos image + sin noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..arc import mix
from .base import Denoise, Draw, LinearSampler, State, Weights

__all__ = ["Cold", "ColdImproved", "ColdNaive"]


@dataclass(frozen=True)
class Cold(LinearSampler):
    """x_a = cos a image + sin a (x - cos b image)/sin b: the noise is what the image leaves of x (Eq. 8)."""

    def weights(self, b: float, a: float) -> Weights:
        ratio = math.sin(a) / math.sin(b)
        return Weights(ratio, math.cos(a) - ratio * math.cos(b), 0.0)


@dataclass(frozen=True)
class ColdNaive:
    """Bansal et al., Algorithm 1: x_a = D(image, a), with the noise that the trajectory began with."""

    evaluations = 1

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        noise = x
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            x = mix(estimate.image, noise, a)
        yield State(x, angles[-1], None)


@dataclass(frozen=True)
class ColdImproved:
    """Bansal et al., Algorithm 2: x_a = x - D(image, b) + D(image, a), with the noise the trajectory began with."""

    evaluations = 1

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        noise = x
        for b, a in pairwise(angles):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            x = x - mix(estimate.image, noise, b) + mix(estimate.image, noise, a)
        yield State(x, angles[-1], None)
