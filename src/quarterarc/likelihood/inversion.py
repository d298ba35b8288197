"""Inversion: images along the probability flow to their noise, and noise back to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..arc import rotate
from ..common.errors import InputError
from ..common.limits import check_batch_size
from ..data.pixels import to_float
from ..denoiser import Denoise, angle_range, call, traits
from ..samplers.adaptive import check_tolerance, integrate
from ..sampling.plans import label_tensor
from .inputs import Images, batch_ranges, check_finite, check_images, read_batch
from .probability_flow import TOLERANCE, ProbabilityFlow, flow_end

__all__ = ["decode", "encode"]


def encode(
    denoise: Denoise,
    images: Images,
    *,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    labels: Tensor | Sequence[int | str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """The noise that the flow turns into these images, shape (N, C, H, W), on the CPU: the inverse of `decode`.

    Args:
        denoise: a denoiser.
        images: uint8 (levels k / 127.5 - 1) or floating point, any finite values, shape (N, C, H, W).
        steps: of a flow map that goes both ways (`teacher.reversed`): jumps of equal length, one evaluation each, which
            approximate the flow; None to solve it.
        tolerance: error tolerance of the solver, in (0, 1).
        labels: classes by number or name, shape (N,), for a denoiser with classes.
        batch_size: images per batch.
        progress: whether to show progress: a bar, or lines in a log file.

    Returns:
        The noise at the denoiser's largest angle, in the dtype of the images (float32 for uint8).

    Raises:
        InputError: if images have a wrong shape or are not finite, labels are outside the classes, the velocity is not
            finite on the path, or `steps` are given for a denoiser that has no such jumps.
    """
    classes = label_tensor(denoise, labels)
    check_images(images, classes)
    if steps is not None and not traits(denoise).reverses:
        raise InputError(
            "an image is encoded in steps by a flow map that goes both ways (`quarterarc distill` with "
            "teacher.reversed=0.5), and this denoiser is none: leave out steps, which solves the flow"
        )
    return _moved(denoise, images, 0.0, flow_end(denoise), steps, tolerance, classes, batch_size, "encode", progress)


def decode(
    denoise: Denoise,
    noise: Tensor,
    *,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    labels: Tensor | Sequence[int | str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """The images that the flow makes from noise, shape (N, C, H, W), on the CPU; arguments as for `encode`.

    `steps` are jumps of any flow map.
    """
    classes = label_tensor(denoise, labels)
    check_images(noise, classes)
    if steps is not None and not traits(denoise).maps:
        raise InputError(
            "noise is decoded in steps by a flow map, and this denoiser is none: leave out steps, which solves the "
            "flow, or use `quarterarc.sample`"
        )
    return _moved(denoise, noise, flow_end(denoise), 0.0, steps, tolerance, classes, batch_size, "decode", progress)


def _moved(
    denoise: Denoise,
    points: Images,
    start: float,
    end: float,
    steps: int | None,
    tolerance: float,
    labels: Tensor | None,
    batch_size: int,
    description: str,
    progress: bool,
) -> Tensor:
    """Points along the flow from one angle to another, by jumps or by the solver."""
    check_tolerance(tolerance)
    check_batch_size(batch_size)
    move = _solver(denoise, start, end, tolerance) if steps is None else _jumps(denoise, start, end, steps)
    parts = []
    for first, last in batch_ranges(len(points), batch_size, description, progress):
        rows = read_batch(points, first, last)
        rows = rows if rows.is_floating_point() else to_float(rows)
        check_finite(rows, first)
        with torch.no_grad():
            moved = move(rows, None if labels is None else labels[first:last])
        parts.append(moved.to(rows.dtype).reshape(rows.shape).cpu())
    return torch.cat(parts)


Move = Callable[[Tensor, Tensor | None], Tensor]
"""From points and their labels to where the flow takes them."""


def _solver(denoise: Denoise, start: float, end: float, tolerance: float) -> Move:
    def move(rows: Tensor, labels: Tensor | None) -> Tensor:
        flow = ProbabilityFlow(denoise, rows, labels)
        return integrate(flow.velocity, flow.start, start, end, tolerance)[0]

    return move


def _jumps(denoise: Denoise, start: float, end: float, steps: int) -> Move:
    """Jumps of equal length, which is the grid of the sampler `jump`."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps are a whole number from 1, got {steps!r}")
    start = max(start, angle_range(denoise)[0])
    angles = [start + (end - start) * step / steps for step in range(steps + 1)]

    def move(rows: Tensor, labels: Tensor | None) -> Tensor:
        device = traits(denoise).device or rows.device
        x, labels = rows.to(device), None if labels is None else labels.to(device)
        for b, a in pairwise(angles):
            x, _ = rotate(x, call(denoise, x, b, labels, to=a).velocity(b), a - b)
        return x

    return move
