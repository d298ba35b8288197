"""Tuning: fit the angles of a sampler, and the weights of its steps, to the fine trajectories of one network.

The targets are the ends of the probability flow from given noise, solved finely. Angles and weights are fitted together
by the finished images (`fitting`), because later steps change the error of an earlier one. `multistep` is fitted for
eight rounds with one width per image and with width 0, each without and with a free first step, and then the best of
these to the end: after three rounds the order of the four is often another one. The result is compared on other noise
with the untuned grid, which is kept if it is better there.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ..common.devices import pick_device
from ..common.errors import InputError
from ..common.progress import progress_bar
from ..common.text import one_line
from ..denoiser import Denoise, required_shape, traits
from ..interop.opening import load, read_model
from ..mean_image import MeanImage
from ..samplers import Adaptive, Multistep, Sampler, current_options
from ..samplers import sampler as named_sampler
from ..wrappers import Guided
from .fitting import Family, Target, fit, median_error, misses
from .generation import first_noise
from .mean_images import mean_image
from .plans import DEFAULT_SAMPLER, Plan, Sampling
from .trajectories import sample
from .tuned_grids import TunedGrid, write_tuned

__all__ = ["tune", "tune_run", "usual_images"]

logger = logging.getLogger("quarterarc")

FIRST_SEED = 1_000_000_000
"""Seed of the first noise that is fitted to, followed by the noise for the comparison: far from common seeds."""

TRIED, ROUNDS = 8, 14  # largest number of rounds: per candidate family, and then for the best one
FEWEST_IMAGES, MOST_IMAGES = 8, 100_000
USUAL_IMAGES, USUAL_SIZE, LEAST_USUAL = 128, 256, 16  # of `usual_images`


@overload
def tune(
    source: Denoise | str | Path,
    steps: int | None = None,
    sampler: str | Sampling = "multistep",
    *,
    nfe: int | None = None,
    images: int | None = None,
    weights: bool = True,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> TunedGrid: ...
@overload
def tune(
    source: Denoise | str | Path,
    steps: None = None,
    sampler: str | Sampling = "multistep",
    *,
    nfe: Sequence[int],
    images: int | None = None,
    weights: bool = True,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> list[TunedGrid]: ...
def tune(
    source: Denoise | str | Path,
    steps: int | None = None,
    sampler: str | Sampling = "multistep",
    *,
    nfe: int | Sequence[int] | None = None,
    images: int | None = None,
    weights: bool = True,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> TunedGrid | list[TunedGrid]:
    """Fit a sampler's angles, and the weights of its steps, to a denoiser.

    The grids tuned for a run are stored beside its weights, as by `quarterarc tune`, and used by `grid="tuned"`.

    Args:
        source: a denoiser, or the path of a run folder or checkpoint.
        steps: number of steps that evaluate the denoiser, not counting a free first step of `multistep`; give either
            `steps` or `nfe`.
        sampler, options: a deterministic sampler by name, or a `Sampling` of sampler, steps and options; weights are
            fitted for `multistep` only. A denoiser with classes is evaluated with each class in turn.
        nfe: network evaluations per image, of which guidance takes two per call of the network; a list, such as
            [5, 8, 10], tunes one grid per entry.
        guidance: scale of classifier-free guidance, whose flow is fitted; the grid is used with the same scale.
        images: number of images to fit to, at least 8; the comparison uses as many others. By default 128 of up to 256
            pixels and channels, and fewer of larger images (`usual_images`).
        weights: whether to fit the weights too, or the angles only.
        shape: (C, H, W), for a denoiser that does not declare it, or for images of another size; a run takes its own.
        device: device of the network, for a run: "auto", "cpu", "cuda".
        progress: whether to show progress: a bar, or lines in a log file.

    Returns:
        The tuned grid, or the untuned one if its median error on the other images is smaller; a list for a list of nfe.

    Raises:
        InputError: for a sampler that draws noise or chooses its own steps, fewer than 2 steps, an unknown shape, a run
            that cannot be written to, or another shape than that of a run.
    """
    sampler, steps, options, guidance = _request(sampler, steps, options, guidance)
    if (steps is None) == (nfe is None):
        raise InputError("give either steps, the number of steps, or nfe, the network evaluations per image")
    nfes = [] if nfe is None else list(nfe) if isinstance(nfe, Iterable) else [nfe]
    counts = [steps] if steps is not None else _step_counts(nfes, sampler, options, guidance)
    fitting: dict[str, Any] = {"images": images, "weights": weights, "shape": shape, "progress": progress}
    if isinstance(source, str | Path):
        grids = list(_stored(source, counts, sampler, options, guidance, device, fitting))
    else:
        grids = [_tuned(_guided(source, guidance), count, sampler, options, **fitting) for count in counts]
    return grids if isinstance(nfe, Iterable) else grids[0]


def tune_run(
    run: str | Path,
    nfe: Sequence[int],
    sampler: str | Sampling = "multistep",
    *,
    images: int | None = None,
    weights: bool = True,
    guidance: float | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Iterator[TunedGrid]:
    """`tune` for a run folder or checkpoint, which yields each grid as soon as it is stored; arguments as for `tune`.

    Invalid arguments raise when this function is called, before the first grid.
    """
    sampler, steps, options, guidance = _request(sampler, None, options, guidance)
    if steps is not None:
        raise InputError("give either steps, the number of steps, or nfe, the network evaluations per image")
    fitting: dict[str, Any] = {"images": images, "weights": weights, "shape": None, "progress": progress}
    counts = _step_counts(nfe, sampler, options, guidance)
    return _stored(run, counts, sampler, options, guidance, device, fitting)


def _request(
    sampler: str | Sampling, steps: int | None, options: Mapping[str, Any], guidance: float | None
) -> tuple[str, int | None, dict[str, Any], float | None]:
    """Name of the sampler, steps, options and guidance, of these arguments or of a request.

    Raises:
        InputError: for a sampler without a name, or a request with a grid or a projection.
    """
    request = Sampling.of(sampler, steps, None, options, guidance)
    if request.grid is not None or request.projection is not None:
        raise InputError("tuning fits the grid of the network's own flow: leave out grid and projection")
    name = DEFAULT_SAMPLER if request.sampler is None else request.sampler
    if isinstance(name, Sampler):
        raise InputError(f"a tuned grid needs a sampler's name: give 'multistep' instead of {type(name).__name__}")
    return name, request.steps, current_options(name, request.options), request.guidance


def _guided(denoise: Denoise, guidance: float | None) -> Denoise:
    """A denoiser under guidance; the denoiser itself if `guidance` is None."""
    if guidance is None:
        return denoise
    if traits(denoise).classes is None:
        raise InputError("guidance needs a network that was trained with labels (data.labels=true): leave it out")
    return Guided(denoise, guidance)


def _step_counts(nfes: Sequence[int], sampler: str, options: Mapping[str, Any], guidance: float | None) -> list[int]:
    """The number of steps for each NFE; under guidance an evaluation of the denoiser is two of its network.

    Raises:
        InputError: for an NFE that leaves fewer than 2 steps, or no NFE at all.
    """
    rule = named_sampler(sampler, **options)
    if isinstance(rule, Adaptive):
        raise _chooses(sampler)
    wrong = next((nfe for nfe in nfes if not isinstance(nfe, int | np.integer)), None)
    if wrong is not None:
        raise InputError(f"nfe is a whole number or a list of them, such as [5, 8, 10], got {wrong!r}")
    per_step = rule.evaluations * (1 if guidance is None else 2)
    least = 2 * per_step
    if not nfes or min(nfes) < least:
        given = min(nfes) if nfes else "none"
        raise InputError(
            f"{sampler} takes {per_step} evaluations per step, and one step has no angles to tune: "
            f"give an NFE of at least {least}, got {given}"
        )
    return [int(nfe) // per_step for nfe in nfes]


def _stored(
    run: str | Path,
    counts: Sequence[int],
    sampler: str,
    options: dict[str, Any],
    guidance: float | None,
    device: str,
    fitting: Mapping[str, Any],
) -> Iterator[TunedGrid]:
    """Tune a run for each number of steps and store the grids beside its weights."""
    if fitting["images"] is not None:
        _check_images(fitting["images"])
    checkpoint = read_model(run, lambda folder: folder)
    if not os.access(checkpoint, os.W_OK):
        raise InputError(f"{checkpoint} is read-only, and tuned grids are stored there: copy the run")
    denoise = _guided(load(checkpoint, pick_device(device)), guidance)
    own, shape = traits(denoise).shape, fitting["shape"]
    if own is not None and shape is not None and tuple(shape) != own:
        raise InputError(
            f"the grids stored beside a network are those of its own image shape {own}, got shape={tuple(shape)}: tune "
            f"the denoiser itself, qa.tune(qa.load({str(run)!r}), ..., shape={tuple(shape)})"
        )

    def tuned_grids() -> Iterator[TunedGrid]:
        for count in counts:
            tuned = _tuned(denoise, count, sampler, options, **fitting)
            write_tuned(checkpoint, [tuned])
            yield tuned

    return tuned_grids()


def usual_images(shape: Sequence[int], classes: int | None = None) -> int:
    """The number of images that a grid is fitted to by default.

    A larger image has more numbers to fit, and takes more computation: 128 images of up to 256 numbers, with the root
    of the size fewer of larger ones, 37 of 3x32x32, at least 16, and up to 128 for as many classes.
    """
    by_size = round(USUAL_IMAGES * math.sqrt(min(1.0, USUAL_SIZE / math.prod(shape))))
    return max(by_size, LEAST_USUAL, min(classes or 0, USUAL_IMAGES))


def _check_images(images: int) -> None:
    if not isinstance(images, int | np.integer) or not FEWEST_IMAGES <= images <= MOST_IMAGES:
        raise InputError(f"tuning takes at least {FEWEST_IMAGES} images and at most {MOST_IMAGES:,}, got {images!r}")


def _chooses(sampler: str) -> InputError:
    return InputError(f"the sampler '{sampler}' chooses its own steps: it has no grid to tune")


def _tuned(
    denoise: Denoise,
    steps: int,
    sampler: str,
    options: dict[str, Any],
    images: int | None,
    weights: bool,
    shape: Sequence[int] | None,
    progress: bool,
) -> TunedGrid:
    """The grid for one number of steps; arguments and errors as for `tune`."""
    shape = required_shape(denoise, shape)
    untuned = Sampling(sampler, steps, options=options).plan(denoise, shape)
    if isinstance(untuned.sampler, Adaptive):
        raise _chooses(sampler)
    if steps < 2:
        raise InputError(f"one step has no angles to tune: take at least 2, got {steps}")
    device, classes = traits(denoise).device or "cpu", traits(denoise).classes
    images = usual_images(shape, classes) if images is None else images
    _check_images(images)
    labels = torch.arange(images, device=device) % classes if classes else None
    _check_deterministic(Family(untuned, shape, weights=False), first_noise(denoise, [FIRST_SEED], shape), labels)
    families = _families(untuned, shape, weights)
    total = 2 + len(families) * TRIED + ROUNDS
    with progress_bar(total, "round", f"tune {steps} steps", progress) as bar:
        targets = []
        for first in (FIRST_SEED, FIRST_SEED + images):
            targets.append(Target.of(denoise, first_noise(denoise, range(first, first + images), shape), labels, bar))
            bar.update()
        bar.note()
        target, other = targets
        tried = [(family, fit(target, family, family.begin(), TRIED, bar)) for family in families]
        family, vector = min(tried, key=lambda candidate: median_error(target, *candidate))
        vector = fit(target, family, vector, ROUNDS, bar)
        kind = "weights" if family.weights else "angles"
        rules = {"untuned": untuned.sampler, kind: family.sampler(vector)}
        angles = {"untuned": untuned.angles, kind: family.angles(vector)}
        results = {name: sample(denoise, other.noise, rules[name], grid=angles[name], labels=labels) for name in rules}
        errors = {
            name: _finite(np.median(np.linalg.norm(other.missed(made.images), axis=1)))
            for name, made in results.items()
        }
    kept = min(errors, key=lambda name: errors[name])
    offsets, rule = (family.offsets(vector), rules[kept]) if kept == kind else ((), untuned.sampler)
    mean, width = None, None
    if isinstance(rule, Multistep) and isinstance(untuned.sampler, Multistep):
        mean, width = rule.first, None if rule.width == untuned.sampler.width else rule.width
    nfe, flow = int(results[kept].nfe), traits(denoise).altered
    return TunedGrid(sampler, options, tuple(map(float, angles[kept])), offsets, errors, kept, nfe, width, flow, mean)


def _families(untuned: Plan, shape: Sequence[int], weights: bool) -> list[Family]:
    """The families to try.

    For `multistep` these are the first step evaluated and free, unless an option chooses one of the two, each with the
    width of the options and, if weights are fitted, with width 0.
    """
    rule, name, steps = untuned.sampler, untuned.name, untuned.steps
    if not isinstance(rule, Multistep) or rule.start != "rising":
        return [Family(untuned, shape, weights)]

    changes: list[dict[str, Any]] = [] if rule.free_start or (rule.order or 0) > steps else [{}]
    if rule.free_start is not False and (mean := rule.first or _measured(untuned.denoise, shape)) is not None:
        changes.append({"first": mean})
    if weights and rule.form in (None, "both") and rule.width is None:
        # Weights shared by all images contain their common width; a width per image in addition is better for some
        # networks and numbers of steps, and worse for others.
        changes += [{**change, "width": 0.0} for change in changes]
    options = {**untuned.options, "free_start": False}
    families = []
    for change in changes:
        plan = Sampling(name, steps + ("first" in change), options=options).plan(untuned.denoise, shape)
        assert isinstance(plan.sampler, Multistep)
        families.append(Family(replace(plan, sampler=replace(plan.sampler, **change)), shape, weights))
    return families


def _measured(denoise: Denoise, shape: Sequence[int]) -> MeanImage | None:
    """The mean image of a denoiser; None if it cannot be measured."""
    try:
        return mean_image(denoise, shape)
    except Exception as error:  # of the network's own, such as one without the label "no label" that it declares
        kind, reason = type(error).__name__, one_line(error)
        logger.info("no free start is tried, because the mean image could not be measured (%s: %s)", kind, reason)
        return None


def _check_deterministic(family: Family, first: torch.Tensor, labels: torch.Tensor | None) -> None:
    """Raise an InputError if the sampler draws noise, before the fine trajectories are solved."""
    target = Target(family.chosen.denoise, first, None if labels is None else labels[:1], first)
    misses(target, family, family.begin())


def _finite(error: float) -> float:
    """An error, infinite if it is not a number."""
    return float(error) if math.isfinite(error) else math.inf
