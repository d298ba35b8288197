"""What a denoiser says about a point of the arc: an image and a noise, both at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .arc import ROUNDING, Angle, cos_sin, mix, velocity
from .common.errors import unknown_name

__all__ = ["PROJECTIONS", "Estimate"]


PROJECTIONS = ("velocity", "image", "noise")
"""What `Estimate.projected` can keep."""


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

    def projected(self, x: Tensor, angle: Angle, keep: str = "velocity") -> Estimate:
        """Estimates that agree on x, x = cos image + sin noise, by giving up one thing they say.

        With the residual r = x - cos image - sin noise:

        | keep     | image         | noise         | what stays                                              |
        |----------|---------------|---------------|---------------------------------------------------------|
        | velocity | image + cos r | noise + sin r | the velocity                                            |
        | image    | image         | noise + r/sin | the image; at 0, where x tells no noise, the noise too  |
        | noise    | image + r/cos | noise         | the noise; at pi/2, where x tells no image, the image too|

        The truth agrees on x, and `velocity` is the nearest pair that does: by Pythagoras the summed squared error of
        image and noise falls by exactly |r|^2, whatever the network. See docs/residual.md.

        Args:
            x: the point that was asked about.
            angle: its angle.
            keep: one of `PROJECTIONS`.

        Raises:
            InputError: for another name.
        """
        if keep not in PROJECTIONS:
            raise unknown_name("projection", keep, PROJECTIONS)
        residual = self.residual(x, angle)
        c, s = cos_sin(angle, x)
        if keep == "velocity":
            return replace(self, image=self.image + c * residual, noise=self.noise + s * residual)
        weight = torch.as_tensor(s if keep == "image" else c, dtype=x.dtype, device=x.device)
        moved = torch.where(weight.abs() < ROUNDING, 0.0, residual / weight)
        if keep == "image":
            return replace(self, noise=self.noise + moved)
        return replace(self, image=self.image + moved)

    def moved(self, by: Tensor, angle: float, share: float) -> Estimate:
        """What to say at x + by instead of x: the image takes a share of the difference and the noise the rest.

        cos image + sin noise moves by exactly `by`, so that estimates which agreed on x agree on x + by. With share 0
        the image stays, with share 1 the noise; for Gaussian data of deviation s the truth is
        s^2 / (s^2 + tan^2 angle), by direction.

        Args:
            by: how far x has moved, shape (B, C, H, W).
            angle: its angle, in (0, pi/2).
            share: of the image.
        """
        image, noise = share / math.cos(angle), (1.0 - share) / math.sin(angle)
        return replace(self, image=self.image + image * by, noise=self.noise + noise * by)
