"""Inversion: images along the probability flow to their noise, and noise back to images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.limits import check_batch_size
from ..data.pixels import to_float
from ..denoiser import Denoise
from ..samplers.adaptive import check_tolerance, integrate
from .inputs import Images, batch_ranges, check_finite, check_images, read_batch
from .probability_flow import TOLERANCE, ProbabilityFlow, flow_end

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
    """The noise that the flow turns into these images, shape (N, C, H, W), on the CPU: the inverse of `decode`.

    Args:
        denoise: a denoiser.
        images: uint8 (levels k / 127.5 - 1) or floating point, any finite values, shape (N, C, H, W).
        tolerance: error tolerance of the solver, in (0, 1).
        labels: classes, shape (N,), for a denoiser with classes.
        batch_size: images per batch.
        progress: whether to show progress: a bar, or lines in a log file.

    Returns:
        The noise at the denoiser's largest angle, in the dtype of the images (float32 for uint8).

    Raises:
        InputError: if images have a wrong shape or are not finite, or the velocity is not finite on the path.
    """
    check_images(images, labels)
    return _integrate(denoise, images, 0.0, flow_end(denoise), tolerance, labels, batch_size, "encode", progress)


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
    check_images(noise, labels)
    return _integrate(denoise, noise, flow_end(denoise), 0.0, tolerance, labels, batch_size, "decode", progress)


def _integrate(
    denoise: Denoise,
    points: Images,
    start: float,
    end: float,
    tolerance: float,
    labels: Tensor | None,
    batch_size: int,
    description: str,
    progress: bool,
) -> Tensor:
    """Points along the flow from one angle to another."""
    check_tolerance(tolerance)
    check_batch_size(batch_size)
    parts = []
    for first, last in batch_ranges(len(points), batch_size, description, progress):
        rows = read_batch(points, first, last)
        rows = rows if rows.is_floating_point() else to_float(rows)
        check_finite(rows, first)
        flow = ProbabilityFlow(denoise, rows, None if labels is None else labels[first:last])
        with torch.no_grad():
            moved, _, _ = integrate(flow.velocity, flow.start, start, end, tolerance)
        parts.append(moved.to(rows.dtype).reshape(rows.shape).cpu())
    return torch.cat(parts)
