"""The flow map of a denoiser by solving its probability flow: the reference for trained flow maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .arc import Angle, spread, through
from .common.errors import InputError
from .denoiser import Denoise, Traits, call, traits
from .estimate import Estimate

__all__ = ["SolvedMap"]


@dataclass(frozen=True)
class SolvedMap:
    """A flow map: the classical Runge-Kutta method (order 4) on the probability flow, dx/dangle = v(x, angle).

    Attributes:
        inner: the denoiser, whose two estimates agree on x.
        steps: steps of a jump of any length, 4 evaluations each.

    Raises:
        InputError: for steps below 1.
    """

    inner: Denoise
    steps: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a flow is solved in 1 step or more, got steps={self.steps}")

    @property
    def traits(self) -> Traits:
        """The traits of the inner denoiser, as a flow map."""
        inner = traits(self.inner)
        return replace(inner, maps=True, reverses=True, evaluations=4 * self.steps * inner.evaluations)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        """The estimate of the inner denoiser without `to`, otherwise that whose arc ends at the solved point."""
        if to is None or (not isinstance(to, Tensor) and to == angle):
            return call(self.inner, x, angle, labels)
        return Estimate(*through(x, angle, self.flow(x, angle, to, labels), to))

    def flow(self, x: Tensor, b: Angle, a: Angle, labels: Tensor | None = None) -> Tensor:
        """The point at angle a of the probability flow through x at angle b; a may be larger than b."""
        h = (a - b) / self.steps
        by = spread(h, x) if isinstance(h, Tensor) else h

        def v(x: Tensor, angle: Angle) -> Tensor:
            return call(self.inner, x, angle, labels).velocity(angle)

        for step in range(self.steps):
            at, middle, end = b + step * h, b + (step + 0.5) * h, b + (step + 1) * h
            k1 = v(x, at)
            k2 = v(x + by / 2 * k1, middle)
            k3 = v(x + by / 2 * k2, middle)
            k4 = v(x + by * k3, end)
            x = x + by / 6 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x
