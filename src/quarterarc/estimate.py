"""The output of a denoiser at a point of the arc: estimates of image and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from .arc import ROUNDING, Angle, cos_sin, mix, velocity
from .common.devices import send
from .common.errors import unknown_name

__all__ = ["PROJECTIONS", "Estimate"]


PROJECTIONS = ("velocity", "image", "noise")
"""The names of the projections, by what `Estimate.projected` keeps."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of the image and noise of x = cos(angle) image + sin(angle) noise.

    The two need not agree with x: `residual` is the difference. A sampler uses both as they are, and never derives one
    from the other.

    Attributes:
        image: the image estimate, shape (B, C, H, W), usually in [-1, 1].
        noise: the noise estimate, shape (B, C, H, W).
        variance_fraction: of a network that learned the variance of DDPM's step, v in
            log variance = v log beta + (1 - v) log posterior variance, shape (B, C, H, W)
            (Nichol & Dhariwal 2021, Eq. 15); nominally in [0, 1]. None for other networks.
        log_variance: of a network whose output is the log variance of DDPM's step itself, shape (B, C, H, W) (Ho et al.
            2020, Table 2). None for other networks.
        tangent: of a flow map that also estimates the tangent, the estimate of a denoiser at the same point, which
            training compares jumps with. None for other networks.
    """

    image: Tensor
    noise: Tensor
    variance_fraction: Tensor | None = None
    log_variance: Tensor | None = None
    tangent: Estimate | None = field(default=None, kw_only=True)

    @property
    def learned_variance(self) -> bool:
        """Whether the network learned the variance of DDPM's step, in one of the two forms."""
        return self.variance_fraction is not None or self.log_variance is not None

    def velocity(self, angle: Angle) -> Tensor:
        """The estimate of dx/dangle at an angle (Zhang et al. 2023, Eq. 11, per unit angle)."""
        return velocity(self.image, self.noise, angle)

    def residual(self, x: Tensor, angle: Angle) -> Tensor:
        """The residual x - cos(angle) image - sin(angle) noise, shape (B, C, H, W); 0 if the estimates agree on x."""
        return x - mix(self.image, self.noise, angle)

    def projected(self, x: Tensor, angle: Angle, keep: str = "velocity") -> Estimate:
        """The projection onto estimates that agree on x, x = cos image + sin noise, keeping one quantity.

        With the residual r = x - cos image - sin noise:

        | keep     | image         | noise         | unchanged                                                     |
        |----------|---------------|---------------|---------------------------------------------------------------|
        | velocity | image + cos r | noise + sin r | the velocity                                                  |
        | image    | image         | noise + r/sin | the image; at 0, where x does not determine the noise, both   |
        | noise    | image + r/cos | noise         | the noise; at pi/2, where x does not determine the image, both|

        The true image and noise agree on x, and `velocity` gives the nearest such pair: by Pythagoras it reduces the
        summed squared error of image and noise by exactly |r|^2, for every network. See docs/residual.md.

        Args:
            x: the point at which the estimates were evaluated, shape (B, C, H, W).
            angle: its angle, one for all images or one per image, shape (B,).
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
        at = s if keep == "image" else c
        # a number is filled in on the device, which does not wait for a copy
        weight = send(at, x.device, x.dtype) if isinstance(at, Tensor) else x.new_full((), at)
        moved = (residual / weight).masked_fill(weight.abs() < ROUNDING, 0.0)
        if keep == "image":
            return replace(self, noise=self.noise + moved)
        return replace(self, image=self.image + moved)

    def moved(self, by: Tensor, angle: float, share: float) -> Estimate:
        """An extrapolation of the estimates from x to x + by, at the same angle.

        cos image + sin noise changes by exactly `by`: estimates that agree on x agree on x + by afterwards. The image
        takes a share of the change and the noise the rest. For Gaussian data with standard deviation s along a
        direction the exact share along it is s^2 / (s^2 + tan^2 angle).

        Args:
            by: displacement of x, shape (B, C, H, W).
            angle: the angle of x, in (0, pi/2).
            share: share of the image in the change; 0 keeps the image, 1 keeps the noise.
        """
        image, noise = share / math.cos(angle), (1.0 - share) / math.sin(angle)
        return replace(self, image=self.image + image * by, noise=self.noise + noise * by)
