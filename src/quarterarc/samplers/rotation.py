"""Rotation: a step along the circle through the point with the estimated velocity as its tangent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .base import LinearSampler, Weights

__all__ = ["Rotation"]


@dataclass(frozen=True)
class Rotation(LinearSampler):
    """Rotation: x_a = cos(b - a) x - sin(b - a) v, with the estimated velocity v = cos b noise - sin b image.

    Exact for any number of steps if image and noise estimates are constant, unlike Euler. Equal to DDIM where the two
    estimates agree on x; where they disagree, rotation keeps the residual in x and DDIM drops it.
    """

    @property
    def jumps(self) -> bool:
        return True

    def weights(self, b: float, a: float) -> Weights:
        s = math.sin(b - a)
        return Weights(math.cos(b - a), s * math.sin(b), -s * math.cos(b))
