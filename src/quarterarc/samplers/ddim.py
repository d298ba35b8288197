"""Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..common.errors import InputError
from ..posterior import variance
from .base import LinearSampler, Weights

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """x_a = cos a image + sqrt(sin^2 a - s^2) noise + s z, with s^2 = churn^2 times the posterior variance (Eq. 12).

    Attributes:
        churn: in [0, 1] (the paper's eta): 0 is deterministic (Eq. 6 in Zhang et al.), 1 has DDPM's small variance
            and equals it wherever the two estimates agree.

    Raises:
        InputError: if churn lies outside [0, 1].
    """

    churn: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.churn <= 1.0:
            raise InputError(f"churn lies in 0..1, got {self.churn!r}")

    def weights(self, b: float, a: float) -> Weights:
        fresh = self.churn * math.sqrt(float(variance(b, a)))
        # sqrt(sin^2 a - fresh^2) without the difference, which rounds below 0 near pi/2: there it is
        # sin a sqrt(1 - churn^2 + churn^2 tan^2 a / tan^2 b), because sin^2 b - beta = cos^2 b tan^2 a
        kept = math.hypot(math.sqrt((1.0 - self.churn) * (1.0 + self.churn)), self.churn * math.tan(a) / math.tan(b))
        return Weights(0.0, math.cos(a), math.sin(a) * kept, fresh)
