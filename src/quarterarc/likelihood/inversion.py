"""Inversion: images carried along the probability flow to their noise, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.pixels import to_float
from ..denoiser import Denoise
from ..samplers.adaptive import integrate
from .flow import TOLERANCE, _batches, _check, _Flow
from .variational import Images, batch, check_images, refuse_nonfinite

__all__ = ["decode", "encode"]


def encode(
    denoise: Denoise,
    images: Images,
    *,
    tolerance: float = TOLERANCE,
    labels: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """The noise from which the flow makes these images, shape (N, C, H, W), on the CPU: the inverse of `decode`.

    Arguments and errors as for `log_likelihood`; uint8 images are levels k / 127.5 - 1. The noise is that of the
    denoiser's largest angle, and kept in the dtype of the images.
    """
    return _carry(denoise, images, False, tolerance, labels, batch_size, progress)


def decode(
    denoise: Denoise,
    noise: Tensor,
    *,
    tolerance: float = TOLERANCE,
    labels: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """The images that the flow makes from noise, shape (N, C, H, W), on the CPU; arguments as for `encode`."""
    return _carry(denoise, noise, True, tolerance, labels, batch_size, progress)


def _carry(
    denoise: Denoise,
    points: Images,
    down: bool,
    tolerance: float,
    labels: Tensor | None,
    batch_size: int,
    progress: bool,
) -> Tensor:
    """Points carried along the whole flow, up to the noise or down to the image."""
    check_images(points, labels)
    end = _check(denoise, tolerance, batch_size)
    parts = []
    for first, last in _batches(len(points), batch_size, "decode" if down else "encode", progress):
        some = batch(points, first, last)
        some = some if some.is_floating_point() else to_float(some)
        refuse_nonfinite(some, first)
        flow = _Flow(denoise, some, None if labels is None else labels[first:last])
        b, a = (end, 0.0) if down else (0.0, end)
        with torch.no_grad():
            carried, _, _ = integrate(flow.velocity, flow.start, b, a, tolerance)
        parts.append(carried.to(some.dtype).reshape(some.shape).cpu())
    return torch.cat(parts)
