"""Training objectives: what makes an estimate good.

    noise            |noise_hat - noise|^2                                        Ho et al. Eq. 14, Zhang et al. Eq. 5
    image            |image_hat - image|^2                                        Eq. 7
    velocity         |v_hat - v|^2
    both             |image_hat - image|^2 + |noise_hat - noise|^2                section 3.2
    both+gradient    the same + gamma |v_hat - v|^2, per unit angle               Eq. 12
    mean             |mu_hat - mu_tilde|^2, the mean of one training step         Ho et al. Eq. 8
    vlb              one term of the variational bound, times T, in bits a dimension
    hybrid           noise + 0.001 vlb, whose mean is detached                    Nichol & Dhariwal 2021, Eq. 16

Squares are means over pixels. Exactly: |image error|^2 + |noise error|^2 = |v error|^2 + |residual|^2, so that with
`mse` Eq. 12 is (1 + gamma)|v error|^2 + |residual|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arc import spread, velocity
from ..common.errors import InputError, unknown_name
from ..estimate import Estimate
from ..posterior import mean_weights
from ..schedules import Schedule
from .bound import VARIANCES, step_term

__all__ = ["NORMS", "OBJECTIVES", "Losses", "Objective"]


def _mse(error: Tensor) -> Tensor:
    return (error**2).flatten(1).mean(1)


def _l2(error: Tensor) -> Tensor:
    # the norm that the paper prints, per root pixel; the smallest normal keeps the root's gradient finite at 0
    return (_mse(error) + torch.finfo(error.dtype).tiny).sqrt()


def _l1(error: Tensor) -> Tensor:
    return error.abs().flatten(1).mean(1)


def _huber(error: Tensor) -> Tensor:
    return F.huber_loss(error, torch.zeros_like(error), reduction="none").flatten(1).mean(1)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"mse": _mse, "l2": _l2, "l1": _l1, "huber": _huber}
"""How an error, shape (B, C, H, W), becomes a number an image, shape (B,); all are means over pixels."""

# the weights of image, noise and velocity error; None stands for gamma
_WEIGHTS: dict[str, tuple[float, float, float | None]] = {
    "noise": (0.0, 1.0, 0.0),
    "image": (1.0, 0.0, 0.0),
    "velocity": (0.0, 0.0, 1.0),
    "both": (1.0, 1.0, 0.0),
    "both+gradient": (1.0, 1.0, None),
    "mean": (0.0, 0.0, 0.0),
    "vlb": (0.0, 0.0, 0.0),
    "hybrid": (0.0, 1.0, 0.0),
}
OBJECTIVES: tuple[str, ...] = tuple(_WEIGHTS)
"""The names that `Objective` knows."""

HYBRID_WEIGHT = 0.001


@dataclass(frozen=True, eq=False)
class Losses:
    """What an objective says, one number an image, each of shape (B,).

    Attributes:
        total: what to minimise.
        image, noise, gradient: the errors of the two estimates and of the velocity, in the objective's norm.
        residual: the mean square of x - cos image_hat - sin noise_hat.
    """

    total: Tensor
    image: Tensor
    noise: Tensor
    gradient: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Objective:
    """A training objective by name.

    Attributes:
        name: one of `OBJECTIVES`.
        gamma: the weight of the gradient term in `both+gradient`, at least 0.
        norm: one of `NORMS`, for every error but those of `vlb`.
        variance: what `vlb` and `hybrid` take as the variance of a step: "learned", "small" or "large".

    Raises:
        InputError: for an unknown name, norm or variance, or a negative gamma.
    """

    name: str = "both+gradient"
    gamma: float = 1.0
    norm: str = "mse"
    variance: str = "learned"

    def __post_init__(self) -> None:
        if self.name not in _WEIGHTS:
            raise unknown_name("objective", self.name, OBJECTIVES)
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)
        if self.variance not in VARIANCES:
            raise unknown_name("variance", self.variance, VARIANCES)
        if not self.gamma >= 0.0:
            raise InputError(f"gamma is at least 0, got {self.gamma!r}")

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        """The losses of a batch.

        Args:
            estimate: what the denoiser says at x.
            image, noise, x: what x was mixed from, and x, shape (B, C, H, W).
            times: training steps t in 1..T, shape (B,), float64 on the CPU.
            schedule: gives their angles.
        """
        angle = schedule.angle(times)
        norm = NORMS[self.norm]
        image_error = norm(estimate.image - image)
        noise_error = norm(estimate.noise - noise)
        gradient_error = norm(estimate.velocity(angle) - velocity(image, noise, angle))
        weights = (self.gamma if weight is None else weight for weight in _WEIGHTS[self.name])
        # a weight of 0 leaves the error out: an estimate that the objective does not ask for may well be infinite
        total: Tensor | float = sum(
            weight * error
            for weight, error in zip(weights, (image_error, noise_error, gradient_error), strict=True)
            if weight
        )
        if self.name == "mean":
            image_weight, _ = mean_weights(angle, schedule.angle(times - 1.0))
            total = norm(spread(image_weight, x) * (estimate.image - image))  # the part of x is the same in both means
        elif self.name in ("vlb", "hybrid"):
            total = total + self._bound(estimate, image, x, times, schedule)
        with torch.no_grad():
            residual = _mse(estimate.residual(x, angle))
        assert isinstance(total, Tensor)
        return Losses(total, image_error.detach(), noise_error.detach(), gradient_error.detach(), residual)

    def _bound(self, estimate: Estimate, image: Tensor, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
        weight = schedule.steps / math.log(2.0)  # so that its mean over t is the bound in bits a dimension
        if self.name == "hybrid":
            weight *= HYBRID_WEIGHT
            estimate = replace(estimate, image=estimate.image.detach(), noise=estimate.noise.detach())
        a = schedule.angle(times - 1.0)
        return weight * step_term(estimate, image, x, schedule.angle(times), a, schedule, self.variance)
