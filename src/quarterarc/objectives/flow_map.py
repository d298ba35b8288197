"""The objective `flow-map`: a flow map from scratch, without Jacobian-vector products (SoFlow 2025, on the arc).

For an image, noise, a jump from angle b to a, and a share s of it, with m = b - s (b - a):

    x_b = mix(image, noise, b)         v = cos b noise - sin b image, the conditional velocity
    x_m = cos(b - m) x_b - sin(b - m) v                     = mix(image, noise, m), since the conditional arc is exact
    X   = jump from x_b to a           F = its velocity at b
    X'  = jump from x_m to a, without gradient, with the same dropout
    q   = (X' - X)/(b - m)             loss = mean <F, w q>, w and q without gradient

The gradient of <F, q> is that of |X' - X|^2/(2 sin(b - a)(b - m)), and for s -> 0 its expectation vanishes for the
exact flow map alone; the bias is linear in s. A share of the examples has a = b and the ordinary loss of the velocity,
w |F - v|^2. The weight w = (mean q^2 + 1e-3)^-p lets large errors count less (Geng et al. 2024).

A head that also estimates the tangent (`both+tangent`) is trained on it with every example, by the same loss of the
velocity, and x_m lies along s v + (1 - s) v', where v' is the velocity of that estimate without gradient. Both have the
flow's velocity as their expectation, and v' has no variance: for small s the comparison is one of networks, without
noise, as in a distillation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..arc import mix, rotate, spread, velocity
from ..common.errors import InputError
from ..estimate import Estimate
from ..schedules import Schedule
from .base import Losses, Objective, mse

__all__ = ["FlowMap", "MapObjective"]

SHORTEST = 1e-3
"""The shortest jump that is trained, in radians; shorter ones are steps of the denoiser itself."""


@runtime_checkable
class MapObjective(Objective, Protocol):
    """An objective of flow maps, which draws jumps, and evaluates the denoiser itself.

    As an ordinary `Objective` it is the loss on the diagonal, for jumps of length 0.
    """

    def angles(self, uniform: Tensor, largest: float, progress: float, smallest: float = 0.0) -> tuple[Tensor, Tensor]:
        """Start and end of the jump of each example: float64, shape (B,), on the CPU, end <= start <= largest.

        Args:
            uniform: independent numbers in [0, 1), float64, shape (B, 3), on the CPU.
            largest: the largest angle of the denoiser.
            progress: the share of the run that is done, in [0, 1).
            smallest: the smallest angle at which the denoiser is evaluated.
        """
        ...

    def losses(
        self,
        denoise: Callable[..., Estimate],
        image: Tensor,
        noise: Tensor,
        start: Tensor,
        end: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> Losses:
        """The losses of a batch.

        Args:
            denoise: `(x, angle, labels, to=...)`; every call has the same dropout.
            image, noise: shape (B, C, H, W).
            start, end: the jumps, as `angles` returned them.
            labels: classes, int64, shape (B,), or None.
            progress: as for `angles`.
        """
        ...


@dataclass(frozen=True)
class FlowMap:
    """Consistency of the jumps of a flow map from angle b to a, by the equations of this module.

    Attributes:
        diagonal: share of the examples whose jump has length 0.
        first_share: share s of a jump after which the jump that it is compared with starts, at the start of the run
            (in a distillation 0.1); exponential in between.
        last_share: the same share at the end of the run (in a distillation 0.1).
        start_mean, start_width: log tan b is normal with this mean and standard deviation (in a distillation 0.5 and
            1.8), up to tan b = 80.
        end_mean, end_width: log tan a is normal with this mean and standard deviation, where that is below b.
        power: power p of the weight (mean q^2 + 1e-3)^-p of an example; 0 weighs all equally.
        residual: weight of the residual of the estimates on the diagonal, for heads with two estimates.
        tangent: weight of the loss of the tangent, for heads that estimate it.

    Raises:
        InputError: for a value outside its range.
    """

    diagonal: float = 0.25
    first_share: float = 1.0
    last_share: float = 0.05
    start_mean: float = -0.9
    start_width: float = 1.6
    end_mean: float = -3.5
    end_width: float = 1.6
    power: float = 0.75
    residual: float = 0.0
    tangent: float = 1.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("diagonal", self.diagonal, 0.0, 1.0),
            ("first_share", self.first_share, 1e-3, 1.0),
            ("last_share", self.last_share, 1e-3, 1.0),
            ("start_width", self.start_width, 0.0, 10.0),
            ("end_width", self.end_width, 0.0, 10.0),
            ("start_mean", self.start_mean, -10.0, 10.0),
            ("end_mean", self.end_mean, -10.0, 10.0),
            ("power", self.power, 0.0, 1.0),
            ("residual", self.residual, 0.0, math.inf),
            ("tangent", self.tangent, 0.0, math.inf),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"{name} of the objective 'flow-map' lies in {low:g}..{high:g}, got {value!r}")

    def angles(self, uniform: Tensor, largest: float, progress: float, smallest: float = 0.0) -> tuple[Tensor, Tensor]:
        """Start and end of each jump; see `MapObjective`."""
        first, second, third = uniform.unbind(1)
        most = min(largest, math.atan(80.0))
        start = _log_normal(first, self.start_mean, self.start_width).clamp(max(SHORTEST, smallest), most)
        end = torch.minimum(_log_normal(second, self.end_mean, self.end_width), start - SHORTEST).clamp(min=smallest)
        return start, torch.where(third < self.diagonal, start, end)

    def share(self, progress: float) -> float:
        """The share s of a jump after this share of the run."""
        return float(self.first_share * (self.last_share / self.first_share) ** progress)

    def losses(
        self,
        denoise: Callable[..., Estimate],
        image: Tensor,
        noise: Tensor,
        start: Tensor,
        end: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> Losses:
        """The losses of a batch; see `MapObjective`."""
        x, part = mix(image, noise, start), self.share(progress) * (start - end)
        estimate = denoise(x, start, labels, to=end)
        with torch.no_grad():
            image, noise, x_middle = self.step(estimate, image, noise, x, start, part, labels, progress)
            middle = start - part
            target = denoise(x_middle, middle, labels, to=end).velocity(middle)
            ends = rotate(x_middle, target, end - middle)[0] - rotate(x, estimate.velocity(start), end - start)[0]
        return self.compare(estimate, image, noise, x, start, ends, part)

    def step(
        self,
        estimate: Estimate,
        image: Tensor,
        noise: Tensor,
        x: Tensor,
        start: Tensor,
        part: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The step to the middle angle.

        Args:
            estimate: that of the jumps.
            image, noise, start, labels, progress: as for `losses`.
            x: the points at the angle start.
            part: b - m.

        Returns:
            Image and noise whose velocity at x is the flow's in expectation, and the point at start - part.
        """
        along = velocity(image, noise, start)
        if estimate.tangent is not None:
            share = self.share(progress)
            along = share * along + (1.0 - share) * estimate.tangent.velocity(start)
        return image, noise, rotate(x, along, -part)[0]

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses on the diagonal; arguments as for `Objective`."""
        start = schedule.angle(times)
        return self.compare(estimate, image, noise, x, start, torch.zeros_like(x), torch.zeros_like(start))

    def compare(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, start: Tensor, ends: Tensor, part: Tensor
    ) -> Losses:
        """The losses of jumps.

        Args:
            estimate: that of the jumps.
            image, noise: those whose velocity is compared on the diagonal.
            x, start: where the jumps start.
            ends: X' - X.
            part: b - m; 0 on the diagonal, negative towards the noise.
        """
        jump = estimate.velocity(start)
        with torch.no_grad():
            on_diagonal = spread(part == 0.0, x).bool()
            error = jump - velocity(image, noise, start)
            q = torch.where(on_diagonal, 2.0 * error, ends / spread(part.where(part != 0.0, 1.0), x))
            size = mse(torch.where(on_diagonal, error, q))
            weight = (size + 1e-3) ** -self.power
            direction = weight.reshape(on_diagonal.shape) * q
        surrogate = (jump * direction).flatten(1).mean(1)
        total = weight * size + (surrogate - surrogate.detach())  # the value of the loss, the gradient of <F, w q>
        if self.residual:
            total = total + self.residual * on_diagonal.flatten() * mse(estimate.residual(x, start))
        if estimate.tangent is not None:
            total = total + self.tangent * self._loss_of_velocity(estimate.tangent, image, noise, start)
        return Losses.of(total, estimate, image, noise, x, start)

    def _loss_of_velocity(self, estimate: Estimate, image: Tensor, noise: Tensor, start: Tensor) -> Tensor:
        """The weighted squared error of the velocity per example."""
        size = mse(estimate.velocity(start) - velocity(image, noise, start))
        return (size.detach() + 1e-3) ** -self.power * size


def _log_normal(uniform: Tensor, mean: float, width: float) -> Tensor:
    """Angles whose log tangent is normal: the quantiles of uniform numbers."""
    return (mean + width * torch.special.ndtri(uniform)).exp().atan()
