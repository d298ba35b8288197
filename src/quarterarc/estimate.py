"""What a denoiser says about a point of the arc: an image and a noise, both at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from .arc import Angle, mix, velocity

__all__ = ["Denoise", "Estimate"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of image and noise behind x = cos(angle) image + sin(angle) noise.

    The two need not agree: `residual` says by how much they miss x. A sampler uses both as they are given and
    never derives one from the other.

    Attributes:
        image: the image estimate, shape (B, C, H, W), usually in [-1, 1].
        noise: the noise estimate, shape (B, C, H, W).
        variance_fraction: where a network learned the variance of DDPM's step, v in
            log variance = v log beta + (1 - v) log posterior variance, shape (B, C, H, W)
            (Nichol & Dhariwal 2021, Eq. 15); nominally in [0, 1]. None if it did not.
    """

    image: Tensor
    noise: Tensor
    variance_fraction: Tensor | None = None

    def velocity(self, angle: Angle) -> Tensor:
        """The estimate of dx/dangle at this angle (Zhang et al. 2023, Eq. 11, per unit angle)."""
        return velocity(self.image, self.noise, angle)

    def residual(self, x: Tensor, angle: Angle) -> Tensor:
        """X - cos(angle) image - sin(angle) noise: zero where the two estimates agree on x."""
        return x - mix(self.image, self.noise, angle)


Denoise: TypeAlias = Callable[..., Estimate]
"""Any callable `(x, angle) -> Estimate`, or `(x, angle, labels) -> Estimate` where there are labels."""
