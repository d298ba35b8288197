"""Edits as plans: how a plan for sampling starts, and by which sampler, to edit images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..arc import NOISE_END, float64, mix
from ..common.errors import InputError, unknown_name
from ..common.text import counted
from ..denoiser import Denoise, traits
from ..samplers import LinearSampler
from ..sampling.plans import Plan, Sampling
from .keeping import Kept, Resampled

__all__ = [
    "JUMP",
    "METHODS",
    "RESAMPLINGS",
    "around",
    "between",
    "inpainting",
    "request_for",
    "slerp",
    "start_of",
    "towards",
]

METHODS = ("project", "resample")
"""The methods of inpainting; the first is the default."""
RESAMPLINGS, JUMP = 10, 1
"""The defaults of the method `resample`."""


def request_for(method: str, request: Sampling, denoise: Denoise) -> Sampling:
    """The request of a method of inpainting, with its default sampler.

    It is `ddpm`, whose fresh noise lets the new pixels adapt to the known ones (docs/editing.md); for a flow map and
    `project` it is that of `Sampling`.

    Raises:
        InputError: for an unknown method.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    own = request.sampler is not None or (method == "project" and traits(denoise).maps)
    return request if own else replace(request, sampler="ddpm")


def inpainting(plan: Plan, image: Tensor, unknown: Tensor, method: str, resamplings: int, jump: int) -> Plan:
    """The plan that makes the unknown pixels of images; arguments as for `edit.inpaint` and `Kept`.

    Raises:
        InputError: for a sampler that the method cannot use, resamplings or a jump below 1, a jump that no part of the
            grid is long enough for, or a grid that ends before the image.
    """
    if plan.angles[-1] != 0.0:
        raise InputError(f"inpainting ends at the image, but the grid ends at angle {plan.angles[-1]:.6g}: end at 0")
    first = float(plan.angles[0])

    def start(noise: Tensor, seeds: Sequence[int]) -> Tensor:
        noise = noise.to(image)
        return torch.where(unknown, noise, mix(image, noise, first))

    if method == "project":
        return replace(plan, sampler=Kept(plan.sampler, image, unknown), start=start)
    if not isinstance(plan.sampler, LinearSampler):
        raise InputError(f"the method 'resample' takes the samplers ddpm, ddim and rotation, got '{plan.name}'")
    for name, value in (("resamplings", resamplings), ("jump", jump)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is a whole number of at least 1, got {value!r}")
    steps = len(plan.angles) - 1
    if resamplings > 1 and jump >= steps - 1:
        raise InputError(
            f"jump={jump} with {counted(steps, 'step')} resamples nothing, since parts of {counted(jump, 'step')} "
            f"between the first step and the last are sampled again: give at least {jump + 2} steps"
        )
    return replace(plan, sampler=Resampled(plan.sampler, image, unknown, resamplings, jump), start=start)


def start_of(denoise: Denoise, strength: float) -> float:
    """The first angle of a strength.

    Raises:
        InputError: for a strength outside (0, 1].
    """
    if not 0.0 < strength <= 1.0:
        raise InputError(f"a strength lies in (0, 1], from the image itself to one made from noise, got {strength!r}")
    return strength * traits(denoise).largest_angle


def towards(plan: Plan, image: Tensor) -> Plan:
    """The plan that starts from images with noise added up to its first angle (SDEdit, Meng et al. 2022)."""
    first = float(plan.angles[0])
    return replace(plan, start=lambda noise, seeds: mix(image, noise.to(image), first))


def around(plan: Plan, noise: Tensor, amount: float) -> Plan:
    """The plan that starts from noise rotated towards that of the seeds: cos noise + sin fresh, standard normal.

    Args:
        plan: a plan from the denoiser's largest angle.
        noise: that of the images (`quarterarc.encode`), shape (B, C, H, W) or (1, C, H, W).
        amount: share of a quarter turn, from 0 (the noise itself) to 1 (that of the seeds).

    Raises:
        InputError: for an amount outside [0, 1].
    """
    if not 0.0 <= amount <= 1.0:
        raise InputError(f"an amount lies in [0, 1], from the image itself to a new one, got {amount!r}")
    return replace(
        plan, start=lambda fresh, seeds: mix(noise.to(fresh.device), fresh.to(noise.dtype), amount * NOISE_END)
    )


def between(plan: Plan, first: Tensor, second: Tensor, count: int) -> Plan:
    """The plan whose results 0..count - 1, given as seeds, start on the way between two noises, (1, C, H, W) each."""

    def start(noise: Tensor, seeds: Sequence[int]) -> Tensor:
        return torch.cat([slerp(first, second, place / (count - 1)) for place in seeds]).to(noise.device)

    return replace(plan, start=start)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point on the great circle between two noises; their lengths are interpolated in proportion.

    Args:
        first, second: shape (1, C, H, W).
        share: from 0, the first, to 1, the second.
    """
    a, b = float64(first).flatten(), float64(second).flatten()
    length_a, length_b = a.norm(), b.norm()
    turn = float(torch.arccos((a @ b / (length_a * length_b)).clamp(-1.0, 1.0)))
    sine = math.sin(turn)
    if not sine > 1e-6:  # the same direction, or no length: the way is straight
        return (1.0 - share) * first + share * second
    direction = (math.sin((1.0 - share) * turn) * a / length_a + math.sin(share * turn) * b / length_b) / sine
    length = (1.0 - share) * length_a + share * length_b
    return (length * direction).to(first).reshape(first.shape)
