"""The ODE of the probability flow on the quarter arc, dx/dangle = v(x, angle), and its divergence.

The flow is that of a sampler that turns standard normal noise at the denoiser's largest angle into images. Where the
denoiser is not defined at pi/2, the flow begins at its largest angle; below its smallest angle, the velocity is
evaluated at the smallest angle. So it is a generative model with a density of its own, for any head and schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arc import NOISE_END, float64
from ..common.errors import InputError
from ..denoiser import Denoise, angle_range, call, traits

__all__ = ["TOLERANCE", "ProbabilityFlow", "flow_end"]

TOLERANCE = 1e-5
"""Error tolerance of a solver step, absolute and relative, for each pixel and for the log density per dimension."""


def flow_end(denoise: Denoise) -> float:
    """The angle at which the flow ends in standard normal noise: the denoiser's largest angle, at most pi/2."""
    return min(angle_range(denoise)[1], NOISE_END)


class ProbabilityFlow:
    """The probability flow of a batch of images: flat points in float64 outside, the images' dtype in the denoiser.

    Args:
        denoise: a denoiser.
        images: shape (B, C, H, W), floating point.
        labels: classes, shape (B,), for a denoiser with classes.

    Attributes:
        start: the images, flat, float64, shape (B, D) with D = C H W, on the denoiser's device.
        shape: (C, H, W).
        dimensions: D.
        dtype, device: those of the denoiser's input.
    """

    def __init__(self, denoise: Denoise, images: Tensor, labels: Tensor | None = None) -> None:
        self.denoise = denoise
        self.device = traits(denoise).device or images.device
        self.dtype, self.shape = images.dtype, images.shape[1:]
        self.dimensions = images[0].numel()
        self.start = float64(images.to(self.device)).flatten(1)
        self.labels = None if labels is None else labels.to(self.device)
        self.smallest, self.largest = angle_range(denoise)

    def velocity(self, points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        """dx/dangle, shape (R, D).

        Args:
            points: shape (R, D).
            angle: shape (R,).
            rows: row numbers in the batch, shape (R,): they choose the labels.

        Raises:
            InputError: if it is not finite.
        """
        x = points.to(self.dtype).reshape(-1, *self.shape)
        return float64(self._velocity(x, angle, rows)).flatten(1)

    def velocity_and_divergence(
        self, points: Tensor, angle: Tensor, rows: Tensor, signs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The velocity, shape (R, D), and its divergence, shape (R, probes).

        Args:
            points, angle, rows: as for `velocity`.
            signs: random signs of Hutchinson's estimate, shape (R, probes, C, H, W); None for the exact divergence,
                shape (R, 1).

        Raises:
            InputError: if the velocity is not finite, or autograd finds no dependence on x.
        """
        x = points.detach().to(self.dtype).reshape(-1, *self.shape).requires_grad_()
        with torch.enable_grad():
            v = self._velocity(x, angle, rows)
            if not v.requires_grad:
                raise InputError(
                    "autograd finds no dependence of the velocity on x: use no detach() and no torch.no_grad() in the "
                    "denoiser"
                )
            divergence = _trace(v, x) if signs is None else _hutchinson(v, x, signs)
        return float64(v.detach()).flatten(1), divergence

    def _velocity(self, x: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        angle = angle.clamp(self.smallest, self.largest)
        labels = None if self.labels is None else self.labels[rows]
        v = call(self.denoise, x, angle, labels).velocity(angle)
        bad = (~v.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):  # the solver would shrink its step forever
            raise InputError(
                f"the denoiser's velocity at angle {float(angle[int(bad[0])]):.6g} is not finite: check its weights"
            )
        return v


def _trace(v: Tensor, x: Tensor) -> Tensor:
    """The exact divergence of v per image, shape (R, 1): one backward pass for each of the D dimensions."""
    flat = v.flatten(1).sum(0)  # images do not interact, so that one pass serves the whole batch
    total = x.new_zeros(len(x), dtype=torch.float64)
    for i, component in enumerate(flat):
        (gradient,) = torch.autograd.grad(component, x, retain_graph=i + 1 < len(flat))
        total += gradient.flatten(1)[:, i]
    return total[:, None]


def _hutchinson(v: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """Hutchinson's estimates z^T (dv/dx) z, shape (R, probes) (Hutchinson 1989; Grathwohl et al. 2019)."""
    estimates = []
    for i in range(signs.shape[1]):
        z = signs[:, i]
        (gradient,) = torch.autograd.grad(v, x, z, retain_graph=i + 1 < signs.shape[1])
        estimates.append(float64(gradient * z).flatten(1).sum(1))
    return torch.stack(estimates, 1)
