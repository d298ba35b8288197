"""Rotation: follow the circle that point and tangent define."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .base import LinearSampler, Weights

__all__ = ["Rotation"]


@dataclass(frozen=True)
class Rotation(LinearSampler):
    """x_a = cos(b - a) x - sin(b - a) v, with the estimated velocity v = cos b noise - sin b image.

    Exact at any number of steps while image and noise estimates stay the same, where Euler is not. Equal to DDIM
    where the two estimates agree with x; where they do not, rotation trusts x.
    """

    def weights(self, b: float, a: float) -> Weights:
        s = math.sin(b - a)
        return Weights(math.cos(b - a), s * math.sin(b), -s * math.cos(b))
