"""The interface of a training objective, its result, and the norms of an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arc import Angle, velocity
from ..common.errors import unknown_name
from ..estimate import Estimate
from ..schedules import Schedule

__all__ = ["NORMS", "Losses", "Objective", "check_norm", "errors", "mse"]


def mse(error: Tensor) -> Tensor:
    """The mean square per image, shape (B,), of an error of shape (B, C, H, W)."""
    return (error**2).flatten(1).mean(1)


def _l2(error: Tensor) -> Tensor:
    """The root mean square per image, shape (B,): the paper's norm over the root of the number of pixels."""
    # the smallest normal number keeps the gradient of the root finite at 0
    return (mse(error) + torch.finfo(error.dtype).tiny).sqrt()


def _l1(error: Tensor) -> Tensor:
    """The mean absolute value per image, shape (B,)."""
    return error.abs().flatten(1).mean(1)


def _huber(error: Tensor) -> Tensor:
    """The mean of Huber's loss with threshold 1 per image, shape (B,)."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none").flatten(1).mean(1)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"mse": mse, "l2": _l2, "l1": _l1, "huber": _huber}
"""The norms by name: an error of shape (B, C, H, W) in, one number per image out, shape (B,). All are means over
pixels: of squares, their root, of absolute values, and of Huber's loss with threshold 1."""


def check_norm(name: str) -> None:
    """Raise an InputError for an unknown norm."""
    if name not in NORMS:
        raise unknown_name("norm", name, NORMS)


def errors(
    estimate: Estimate, image: Tensor, noise: Tensor, angle: Angle, norm: str = "mse"
) -> tuple[Tensor, Tensor, Tensor]:
    """The errors of image, noise and velocity estimates in a norm, each of shape (B,)."""
    measure = NORMS[norm]
    return (
        measure(estimate.image - image),
        measure(estimate.noise - noise),
        measure(estimate.velocity(angle) - velocity(image, noise, angle)),
    )


@dataclass(frozen=True, eq=False)
class Losses:
    """The result of an objective: per image, each of shape (B,).

    Attributes:
        total: the loss to minimise.
        image, noise, velocity: mean squared errors of the estimates of image, noise and velocity in any norm of the
            objective, without gradients, for the log.
        residual: the mean square of x - cos image_hat - sin noise_hat, without gradients, for the log.
    """

    total: Tensor
    image: Tensor
    noise: Tensor
    velocity: Tensor
    residual: Tensor

    @classmethod
    def of(cls, total: Tensor, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, angle: Angle) -> Losses:
        """The result of an objective of this total: the other losses are computed from the estimate."""
        with torch.no_grad():
            return cls(total, *errors(estimate, image, noise, angle), mse(estimate.residual(x, angle)))


class Objective(Protocol):
    """A training objective: a callable that compares an estimate with the true image and noise."""

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch.

        Args:
            estimate: the output of the denoiser at x.
            image, noise: the true image and noise, shape (B, C, H, W).
            x: cos(angle) image + sin(angle) noise, shape (B, C, H, W).
            times: training steps t in 1..T, shape (B,), float64 on the CPU.
            schedule: maps t to the angle, `schedule.angle(times)`.
        """
        ...
