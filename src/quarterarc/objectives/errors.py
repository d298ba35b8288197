"""Objectives that weigh the errors of an estimate.

    noise            |noise_hat - noise|^2                                        Ho et al. Eq. 14, Zhang et al. Eq. 5
    image            |image_hat - image|^2                                        Zhang et al. Eq. 7
    velocity         |v_hat - v|^2                                                Salimans & Ho 2022
    both             |image_hat - image|^2 + |noise_hat - noise|^2                Zhang et al. section 3.2
    both+gradient    the same + gamma |v_hat - v|^2, per unit angle               Zhang et al. Eq. 12

Exactly: |image error|^2 + |noise error|^2 = |v error|^2 + |residual|^2, so that with the norm `mse` Eq. 12 is
(1 + gamma) |v error|^2 + |residual|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from ..estimate import Estimate
from ..schedules import Schedule
from .base import Losses, check_norm, errors, mse

__all__ = ["WeightedErrors", "both", "both_and_gradient", "image", "noise", "velocity"]


@dataclass(frozen=True)
class WeightedErrors:
    """A weighted sum of the errors of the estimates of image, noise and velocity.

    Attributes:
        image, noise, velocity: weight of each error, at least 0; one of them above 0.
        norm: one of `NORMS`.

    Raises:
        InputError: for an unknown norm, a negative weight, or no weight above 0.
    """

    image: float = 0.0
    noise: float = 0.0
    velocity: float = 0.0
    norm: str = "mse"

    def __post_init__(self) -> None:
        check_norm(self.norm)
        weights = (self.image, self.noise, self.velocity)
        if not (all(weight >= 0.0 for weight in weights) and any(weights)):
            raise InputError(f"the weights of the errors are at least 0, and one is above 0, got {weights}")

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch; arguments as for `Objective`."""
        angle = schedule.angle(times)
        measured = errors(estimate, image, noise, angle, self.norm)
        # an error of weight 0 is left out of the sum: an estimate that the objective does not use may be infinite
        weights = (self.image, self.noise, self.velocity)
        weighted = [weight * error for weight, error in zip(weights, measured, strict=True) if weight]
        total = sum(weighted[1:], start=weighted[0])
        with torch.no_grad():
            squared = measured if self.norm == "mse" else errors(estimate, image, noise, angle)
            residual = mse(estimate.residual(x, angle))
        image_error, noise_error, velocity_error = (error.detach() for error in squared)
        return Losses(total, image_error, noise_error, velocity_error, residual)


def noise(norm: str = "mse") -> WeightedErrors:
    """The error of the noise estimate (Ho et al. 2020, Eq. 14).

    Args:
        norm: one of `NORMS`.
    """
    return WeightedErrors(noise=1.0, norm=norm)


def image(norm: str = "mse") -> WeightedErrors:
    """The error of the image estimate (Zhang et al. 2023, Eq. 7).

    Args:
        norm: one of `NORMS`.
    """
    return WeightedErrors(image=1.0, norm=norm)


def velocity(norm: str = "mse") -> WeightedErrors:
    """The error of the velocity estimate (Salimans & Ho 2022).

    Args:
        norm: one of `NORMS`.
    """
    return WeightedErrors(velocity=1.0, norm=norm)


def both(norm: str = "mse") -> WeightedErrors:
    """The errors of image and noise estimates (Zhang et al. 2023, section 3.2).

    Args:
        norm: one of `NORMS`.
    """
    return WeightedErrors(image=1.0, noise=1.0, norm=norm)


def both_and_gradient(gamma: float = 1.0, norm: str = "mse") -> WeightedErrors:
    """The errors of image and noise estimates, and gamma times that of the velocity (Zhang et al. 2023, Eq. 12).

    Args:
        gamma: weight of the error of the velocity, at least 0.
        norm: one of `NORMS`.
    """
    if not gamma >= 0.0:
        raise InputError(f"gamma is at least 0, got {gamma!r}")
    return WeightedErrors(1.0, 1.0, gamma, norm)
