"""The functions of `quarterarc.edit`: images in, a `Result` of edited images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.limits import check_batch_size
from ..common.text import counted
from ..denoiser import Denoise
from ..likelihood.inversion import encode
from ..likelihood.probability_flow import TOLERANCE
from ..samplers import Sampler
from ..sampling.arrivals import check_finite
from ..sampling.generation import batches, mean_evaluations
from ..sampling.plans import GridLike, Plan, Sampling, labels_of_images, numbered_labels
from ..sampling.trajectories import Result
from .inputs import as_images, as_unknown
from .plans import JUMP, METHODS, RESAMPLINGS, around, between, inpainting, request_for, start_of, towards

__all__ = ["encoded", "image_to_image", "inpaint", "interpolate", "variations"]

Labels: TypeAlias = Tensor | Sequence[int | str] | int | str | None


def inpaint(
    denoise: Denoise,
    image: Tensor,
    mask: Tensor,
    *,
    seeds: Sequence[int],
    method: str = METHODS[0],
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    labels: Labels = None,
    guidance: float | None = None,
    projection: str | None = None,
    resamplings: int = RESAMPLINGS,
    jump: int = JUMP,
    batch_size: int = 64,
    **options: Any,
) -> Result:
    """New content in a part of an image; the other pixels of the results are exactly those of the image.

    Args:
        denoise: a denoiser.
        image: uint8, or floating point in [-1, 1]; shape (C, H, W), or (B, C, H, W) with one image per seed.
        mask: true or 1 where new content is made, shape (H, W), or (B, 1, H, W) with one mask per seed. Floating point
            is true from 0.5.
        seeds: whole numbers from 0, one per result.
        method: `project`: the estimate of a known pixel is replaced by its value (`quarterarc.wrappers.Known`), for any
            sampler at its usual cost. `resample`: RePaint (Lugmayr et al. 2022), whose repetitions make the new pixels
            adapt to the known ones, for `ddpm`, `ddim` and `rotation`. docs/editing.md compares them.
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`; `ddpm` is the default, and
            for a flow map with `project` the usual one, `jump`.
        labels: classes by number or name, one per seed, or one for all, for a denoiser with classes.
        resamplings: of `resample`: how often each part of the grid is sampled.
        jump: of `resample`: steps of such a part.
        batch_size: results per batch.

    Raises:
        InputError: for images or masks of another shape or type, a mask that marks no pixel, an unknown method, a
            sampler that the method cannot use, and as for `quarterarc.generate`.
    """
    request = request_for(method, Sampling.of(sampler, steps, grid, options, guidance, projection), denoise)
    images = as_images(denoise, image, _count(seeds))
    unknown = as_unknown(mask, images, len(seeds))
    plan = request.plan(denoise, images.shape[1:])

    def part(rows: slice) -> Plan:
        return inpainting(plan, _rows(images, rows), _rows(unknown, rows), method, resamplings, jump)

    return _result(part, seeds, _numbers(plan, labels, len(seeds)), images.shape[1:], batch_size)


def image_to_image(
    denoise: Denoise,
    image: Tensor,
    strength: float,
    *,
    seeds: Sequence[int],
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    labels: Labels = None,
    guidance: float | None = None,
    projection: str | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Result:
    """Other images of the same coarse content: noise is added to the image, and removed again (Meng et al. 2022).

    Args:
        denoise: a denoiser.
        image: as for `inpaint`.
        strength: in (0, 1]; sampling starts at the angle strength * (the denoiser's largest angle), and all steps lie
            below it. 1 makes images from noise.
        seeds: whole numbers from 0, one per result.
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`; explicit angles begin at the
            first one.
        labels, batch_size: as for `inpaint`.

    Raises:
        InputError: for a strength outside (0, 1], a grid that starts elsewhere, and as for `inpaint`.
    """
    request = Sampling.of(sampler, steps, grid, options, guidance, projection)
    images = as_images(denoise, image, _count(seeds))
    plan = request.plan(denoise, images.shape[1:], start_of(denoise, strength))
    numbers = _numbers(plan, labels, len(seeds))
    return _result(lambda rows: towards(plan, _rows(images, rows)), seeds, numbers, images.shape[1:], batch_size)


def interpolate(
    denoise: Denoise,
    first: Tensor,
    second: Tensor,
    count: int,
    *,
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    labels: Labels = None,
    guidance: float | None = None,
    projection: str | None = None,
    encode_tolerance: float = TOLERANCE,
    batch_size: int = 64,
    **options: Any,
) -> Result:
    """Images between two: their noises under the probability flow, the great circle between these, and back to images.

    The first and the last result are the two images, up to the error of the sampler.

    Args:
        denoise: a denoiser.
        first, second: the two images, uint8 or floating point in [-1, 1], shape (C, H, W).
        count: number of results, both ends included; at least 2.
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`; they turn noise into images.
        labels: classes by number or name, one per result, or one for all; the ends are encoded with the first and the
            last.
        encode_tolerance: error tolerance of the solver that turns the two images into noise (`quarterarc.encode`).
        batch_size: results per batch.

    Returns:
        The results; their NFE is that of the sampler.

    Raises:
        InputError: for a count below 2, and as for `inpaint`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(f"an interpolation has a whole number of at least 2 results, its ends included, got {count!r}")
    request = Sampling.of(sampler, steps, grid, options, guidance, projection)
    names = ("the first image", "the second image")
    pair = [as_images(denoise, image, 1, name) for image, name in zip((first, second), names, strict=True)]
    plan = request.plan(denoise, pair[0].shape[1:])
    numbers = _numbers(plan, labels, count)
    ends = None if numbers is None else [numbers[0], numbers[-1]]
    noises = encoded(plan, torch.cat(pair), ends, encode_tolerance)
    way = between(plan, noises[:1], noises[1:], count)
    return _result(lambda rows: way, range(count), numbers, noises.shape[1:], batch_size)


def variations(
    denoise: Denoise,
    image: Tensor,
    *,
    seeds: Sequence[int],
    amount: float,
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    labels: Labels = None,
    guidance: float | None = None,
    projection: str | None = None,
    encode_tolerance: float = TOLERANCE,
    batch_size: int = 64,
    **options: Any,
) -> Result:
    """Images near an image: its noise under the probability flow, rotated towards that of each seed, and back.

    The rotated noise, cos noise + sin fresh, is standard normal again.

    Args:
        denoise: a denoiser.
        image: as for `inpaint`.
        seeds: whole numbers from 0, one per result.
        amount: share of a quarter turn, from 0 (the image itself, up to the error of the sampler) to 1 (the image that
            `quarterarc.generate` makes of the seed).
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`.
        labels, encode_tolerance, batch_size: as for `interpolate`.

    Returns:
        The results; their NFE is that of the sampler.

    Raises:
        InputError: for an amount outside [0, 1], and as for `inpaint`.
    """
    request = Sampling.of(sampler, steps, grid, options, guidance, projection)
    images = as_images(denoise, image, _count(seeds))
    plan = request.plan(denoise, images.shape[1:])
    around(plan, images, amount)  # checks the amount before the flow is solved
    numbers = _numbers(plan, labels, len(seeds))
    if numbers is not None and len(set(numbers)) > 1:
        images = images.expand(len(seeds), *images.shape[1:])
    noises = encoded(plan, images, None if numbers is None else numbers[: len(images)], encode_tolerance)
    return _result(lambda rows: around(plan, _rows(noises, rows), amount), seeds, numbers, noises.shape[1:], batch_size)


def encoded(plan: Plan, images: Tensor, labels: Sequence[int] | None, tolerance: float) -> Tensor:
    """The noise of images, shape (B, C, H, W), under the flow of a plan; labels are one per image."""
    classes = None if labels is None else torch.tensor(labels)
    return encode(plan.denoise, images, tolerance=tolerance, labels=classes, progress=False)


def _count(seeds: Sequence[int]) -> int:
    """The number of seeds; an InputError if there is none, or for a single number."""
    if not isinstance(seeds, Sized):
        raise InputError(f"seeds are a list or a range of whole numbers, one per result, got {seeds!r}: give range(4)")
    if not len(seeds):
        raise InputError("no seeds were given: give one per result")
    return len(seeds)


def _rows(values: Tensor, rows: slice) -> Tensor:
    """A part of a batch; a single row is that of every result."""
    return values if len(values) == 1 else values[rows]


def _numbers(plan: Plan, labels: Labels, count: int) -> list[int] | None:
    """The labels as numbers, one per result; None without labels."""
    numbers = numbered_labels(plan.denoise, labels_of_images(labels, count))
    if numbers is not None and len(numbers) != count:
        raise InputError(f"got {counted(count, 'result')} but {counted(len(numbers), 'label')}: give one per result")
    return numbers


def _result(
    plan_of: Callable[[slice], Plan],
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    shape: Sequence[int],
    batch_size: int,
) -> Result:
    """The results of seeds, in batches, by the plan of each batch."""
    check_batch_size(batch_size)
    images: list[Tensor] = []
    evaluated: list[tuple[float, int]] = []
    angles = np.empty(0)
    for first in range(0, len(seeds), batch_size):
        rows = slice(first, first + batch_size)
        plan, part = plan_of(rows), seeds[rows]
        classes = None if labels is None else labels[rows]
        for _, result in batches(plan, part, batch_size=len(part), labels=classes, shape=shape):
            check_finite(part, result.images.flatten(1).isfinite().all(1))
            images.append(result.images)
            evaluated.append((result.nfe, len(part)))
        angles = plan.angles
    return Result(torch.cat(images), mean_evaluations(evaluated), angles)
