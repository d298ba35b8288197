"""The objective `mean`: |mu_hat - mu_tilde|^2, the mean of one training step (Ho et al. 2020, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..arc import spread
from ..estimate import Estimate
from ..posterior import mean_weights
from ..schedules import Schedule
from .base import NORMS, Losses, check_norm

__all__ = ["StepMean"]


@dataclass(frozen=True)
class StepMean:
    """The error of the mean of q(x_{t-1} | x_t, image).

    Attributes:
        norm: one of `NORMS`.

    Raises:
        InputError: for an unknown norm.
    """

    norm: str = "mse"

    def __post_init__(self) -> None:
        check_norm(self.norm)

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch; arguments as for `Objective`."""
        angle = schedule.angle(times)
        image_weight, _ = mean_weights(angle, schedule.angle(times - 1.0))
        # both means contain the same multiple of x, which cancels
        total = NORMS[self.norm](spread(image_weight, x) * (estimate.image - image))
        return Losses.of(total, estimate, image, noise, x, angle)
