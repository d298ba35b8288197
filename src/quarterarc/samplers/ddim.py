"""Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..common.errors import InputError
from ..posterior import variance
from .base import LinearSampler, Weights

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """DDIM: the arc through the two estimates, with a chosen amount of fresh noise (Eq. 12).

        x_a = cos a image + sqrt(sin^2 a - s^2) noise + s z         s^2 = eta^2 times the posterior variance

    Attributes:
        eta: amount of fresh noise in [0, 1]. 0 is deterministic (Eq. 6 in Zhang et al. 2023), 1 has DDPM's small
            variance and equals DDPM where the two estimates agree on x.

    Raises:
        InputError: if eta lies outside [0, 1].
    """

    eta: float = 0.0

    renamed: ClassVar[Mapping[str, str]] = {"churn": "eta"}

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta lies in 0..1, got {self.eta!r}")

    @property
    def jumps(self) -> bool:
        return self.eta == 0.0

    def weights(self, b: float, a: float) -> Weights:
        fresh = self.eta * math.sqrt(float(variance(b, a))) if self.eta else 0.0
        # sqrt(sin^2 a - fresh^2), whose difference rounds below 0 near pi/2, without the difference:
        # sin a sqrt(1 - eta^2 + eta^2 tan^2 a / tan^2 b), because sin^2 b - beta = cos^2 b tan^2 a
        kept = math.hypot(math.sqrt((1.0 - self.eta) * (1.0 + self.eta)), self.eta * math.tan(a) / math.tan(b))
        return Weights(0.0, math.cos(a), math.sin(a) * kept, fresh)
