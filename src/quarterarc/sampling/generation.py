"""Many images from seeds: an image depends on its own seed, not on batch size, order or number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.compiling import Compile
from ..common.errors import InputError
from ..common.limits import check_batch_size
from ..common.memory import memory_checked
from ..common.progress import progress_bar
from ..common.streams import FORMAT, Purpose, streams
from ..common.text import counted
from ..denoiser import Denoise, required_shape, traits
from ..samplers import Sampler
from .arrivals import arriving, check_finite
from .compiled import compiled
from .plans import GridLike, Plan, Sampling, check_seeds, labels_of_images
from .trajectories import Result, run

__all__ = ["batches", "count_evaluations", "first_noise", "generate", "mean_evaluations", "noise"]


def noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    format: int = FORMAT,
) -> Tensor:
    """The first noise of the trajectories of these seeds: standard normal, shape (len(seeds), *shape).

    Args:
        seeds: whole numbers from 0 to 2^64 - 1, one per image; the noise of an image depends on its own seed alone.
        shape: (C, H, W).
        device: device on which the noise is drawn; it is the same on every device, up to rounding.
        dtype: dtype of the result; float64 is drawn in float64, other dtypes in float32 and cast.
        format: format of the random streams, `Traits.streams` of the denoiser. Denoisers of version 0.2 have format 1.
    """
    return streams(Purpose.NOISE, seeds, format=format).normal(shape, dtype, device)


def first_noise(denoise: Denoise, seeds: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
    """The first noise of these seeds for a denoiser: its image shape, device and format of random streams."""
    declared = traits(denoise)
    return noise(seeds, required_shape(denoise, shape), declared.device or "cpu", format=declared.streams)


def batches(
    plan: Plan,
    seeds: Sequence[int],
    *,
    batch_size: int = 64,
    labels: Sequence[int | str] | None = None,
    shape: Sequence[int] | None = None,
) -> Iterator[tuple[Sequence[int], Result]]:
    """Sample by a plan in batches; yield the seeds and the result of each batch. Arguments as for `generate`."""
    shape = required_shape(plan.denoise, shape)
    check_batch_size(batch_size)
    if labels is not None and len(labels) != len(seeds):
        raise InputError(f"got {counted(len(seeds), 'seed')} but {counted(len(labels), 'label')}: give one per seed")
    device = traits(plan.denoise).device or "cpu"
    for first in range(0, len(seeds), batch_size):
        part = seeds[first : first + batch_size]
        classes = None if labels is None else labels[first : first + batch_size]
        with memory_checked(
            lambda: (
                f"sampling a batch of {counted(len(part), 'image')} of shape {tuple(shape)} on {device}: "  # noqa: B023
                "lower the batch size (--batch-size, batch_size=)"
            )
        ):
            x = first_noise(plan.denoise, part, shape)
            if plan.start is not None:
                x = plan.start(x, part)
            result = run(plan, x, labels=classes, seeds=part)
        yield part, result


def generate(
    denoise: Denoise,
    seeds: Sequence[int],
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    *,
    batch_size: int = 64,
    labels: Tensor | Sequence[int | str] | int | str | None = None,
    guidance: float | None = None,
    projection: str | None = None,
    shape: Sequence[int] | None = None,
    progress: bool = True,
    compile: Compile = "auto",
    **options: Any,
) -> Tensor:
    """Images from seeds, in their order: shape (len(seeds), C, H, W), float32 on the CPU.

    Every random draw of an image depends on its seed alone. The network's arithmetic can round differently for another
    batch size, by at most one 8-bit level in a few pixels.

    Args:
        denoise: a denoiser.
        seeds: whole numbers from 0, one per image; a range is accepted.
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`.
        batch_size: images per batch.
        labels: classes by number or name, one per seed, or one for all images, for a denoiser with classes.
        shape: (C, H, W) of an image, for a denoiser that does not declare it.
        progress: whether to show progress: a bar, or lines in a log file.
        compile: true, false, or `auto` to compile the network on a GPU for many images, which takes a minute or two.

    Raises:
        InputError: for an unknown shape, a batch size below 1, labels that are not one per seed, an image with NaN or
            infinity (its seed is named), and as for `sample`.
    """
    check_seeds(seeds)
    if not len(seeds):
        raise InputError("no seeds were given: give one per image")
    request = Sampling.of(sampler, steps, grid, options, guidance, projection)
    check_batch_size(batch_size)
    plan = compiled(request.plan(denoise, required_shape(denoise, shape)), compile, len(seeds), batch_size)
    given = labels_of_images(labels, len(seeds))
    results = batches(plan, seeds, batch_size=batch_size, labels=given, shape=shape)
    images, done = torch.empty(0), 0
    with progress_bar(len(seeds), "image", "sample", progress) as bar:
        for batch in arriving(results, lambda images: images):
            check_finite(batch.seeds, batch.finite)
            if not done:
                images = batch.images.new_empty((len(seeds), *batch.images.shape[1:]))
            images[done : done + len(batch.seeds)] = batch.images
            done += len(batch.seeds)
            bar.update(len(batch.seeds))
    return images


def count_evaluations(plan: Plan, seed: int, label: int | None = None) -> float:
    """Network evaluations of the image of one seed, which is sampled for it."""
    ((_, result),) = batches(plan, [seed], labels=None if label is None else [label])
    return result.nfe


def mean_evaluations(batches: Sequence[tuple[float, int]]) -> float:
    """Network evaluations per image, from those of batches and their sizes; an int where the mean is whole."""
    mean = sum(nfe * images for nfe, images in batches) / sum(images for _, images in batches)
    return int(mean) if mean.is_integer() else round(mean, 2)
