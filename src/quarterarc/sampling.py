"""Sampling: a denoiser, noise, a sampler by name and a grid, put together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import grids
from .arc import NOISE_END, ROUNDING
from .denoiser import Counted, Labelled, angle_range
from .errors import InputError
from .estimate import Denoise
from .samplers import SAMPLERS, Draw, Sampler, State
from .samplers import sampler as named_sampler
from .streams import Purpose, normal, stream
from .tuned import TunedGrid, find

__all__ = ["DEFAULT_GRID", "DEFAULT_SAMPLER", "DEFAULT_STEPS", "Plan", "Result", "plan", "sample", "trajectory"]

logger = logging.getLogger("quarterarc")

DEFAULT_SAMPLER = "multistep"
DEFAULT_GRID = "angle"
DEFAULT_STEPS = 10


@dataclass(frozen=True, eq=False)
class Result:
    """What sampling made.

    Attributes:
        images: shape (B, C, H, W), in the dtype and on the device of the noise. Images live in [-1, 1]; a sampler may
            overshoot, and nothing is clamped here (`quarterarc.to_uint8` does).
        nfe: how often the network saw each image; the mean, where a sampler's steps are each image's own.
        angles: the grid, float64, from the first angle to 0.
    """

    images: Tensor
    nfe: float
    angles: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What sampling is about to do: names looked up, defaults filled in, the grid checked.

    Attributes:
        sampler: the sampler.
        name: its name, or its class's.
        options: its options.
        grid: the grid's name, `tuned`, or `explicit`.
        angles: float64, from the first angle to 0.
    """

    sampler: Sampler
    name: str
    options: dict[str, Any]
    grid: str
    angles: np.ndarray

    @property
    def steps(self) -> int:
        """How many steps."""
        return len(self.angles) - 1

    def describe(self) -> dict[str, Any]:
        """As JSON types: enough to do it again."""
        return {
            "sampler": self.name,
            "options": self.options,
            "grid": self.grid,
            "steps": self.steps,
            "angles": [float(angle) for angle in self.angles],
        }


def plan(
    denoise: Denoise,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | np.ndarray | None = None,
    *,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> Plan:
    """Resolve what `sample` takes; arguments and errors as there.

    Args:
        shape: (C, H, W) of the images, for the grid `octave`; the denoiser's own, where it has one.
    """
    sampler = DEFAULT_SAMPLER if sampler is None else sampler
    if isinstance(sampler, str):
        name, sampler = sampler, named_sampler(sampler, **options)
    elif options:
        raise InputError(f"options ({', '.join(options)}) go with a sampler's name; give them to the sampler itself")
    else:
        name = type(sampler).__name__
    if grid is None:
        grid = getattr(sampler, "default_grid", DEFAULT_GRID)
        steps = getattr(sampler, "default_steps", None) if steps is None else steps
    if isinstance(grid, str) and grid == "tuned":
        found = _tuned(denoise, name, options, DEFAULT_STEPS if steps is None else steps)
        sampler, angles = found.apply(sampler), np.array(found.angles)
    else:
        angles = resolve_grid(denoise, grid, steps, shape)
    if hasattr(sampler, "check"):
        sampler.check(angles)
    return Plan(sampler, name, options, grid if isinstance(grid, str) else "explicit", angles)


def _tuned(denoise: Denoise, sampler: str, options: Mapping[str, Any], steps: int) -> TunedGrid:
    """The grid that was tuned for this network."""
    if sampler not in SAMPLERS:
        raise InputError(
            f"a tuned grid goes with a sampler's name and options: give 'multistep' and not {sampler}(...)"
        )
    grids = getattr(denoise, "tuned", None)
    if grids is None:
        raise InputError("a tuned grid belongs to a trained network: load one with `quarterarc.load`, or name a grid")
    return find(grids(), sampler, options, steps)


def sample(
    denoise: Denoise,
    noise: Tensor,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | np.ndarray | None = None,
    *,
    labels: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> Result:
    """Turn noise into images.

    Args:
        denoise: a `Denoiser`, or any callable `(x, angle) -> Estimate`.
        noise: standard normal noise, shape (B, C, H, W); dtype and device are kept.
        sampler: one of `quarterarc.samplers.SAMPLERS`, or a sampler; `DEFAULT_SAMPLER` if not given.
        steps: how many steps, 10 if not given. What they cost is `Result.nfe`.
        grid: one of `quarterarc.grids.GRIDS`, from the denoiser's largest angle to 0; `tuned` for what
            `quarterarc tune` found for this network; or the angles themselves. The sampler's own if not given, else
            uniform in angle.
        labels: classes, shape (B,), for a denoiser that takes any.
        seeds: one an image: the noise that a stochastic sampler adds is then that image's own, whatever the batch.
            Without them it comes from torch's global generator.
        options: the sampler's, such as `churn` for `ddim` or `variance` for `ddpm`.

    Raises:
        InputError: for an unknown name or option, steps below 1 or at odds with the grid, seeds or labels that are
            not one an image, or a grid outside the denoiser's angles.
    """
    chosen = plan(denoise, sampler, steps, grid, shape=noise.shape[1:], **options)
    counted = Counted(denoise)
    x = noise
    for state in trajectory(counted, noise, chosen.sampler, grid=chosen.angles, labels=labels, seeds=seeds):
        x = state.x
    return Result(x, counted.nfe, chosen.angles)


def trajectory(
    denoise: Denoise,
    noise: Tensor,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | np.ndarray | None = None,
    *,
    labels: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[State]:
    """The states on the way from noise to image, one an angle of the grid; arguments as for `sample`.

    Bad input raises here, before the first state.
    """
    for name, values in (("labels", labels), ("seeds", seeds)):
        if values is not None and len(values) != len(noise):
            raise InputError(f"there are {len(noise)} images but {len(values)} {name}: give one an image")
    if not noise.is_floating_point():
        raise InputError(f"noise is a floating point tensor, got {noise.dtype}")
    chosen = plan(denoise, sampler, steps, grid, shape=noise.shape[1:], **options)
    angles = [float(angle) for angle in chosen.angles]
    return _run(Labelled(denoise, labels), noise, chosen.sampler, angles, _draw(seeds))


def resolve_grid(
    denoise: Denoise,
    grid: str | Sequence[float] | np.ndarray,
    steps: int | None = None,
    shape: Sequence[int] | None = None,
) -> np.ndarray:
    """The angles that a grid means for this denoiser, checked against the angles at which it is defined."""
    smallest, largest = angle_range(denoise)
    if isinstance(grid, str):
        if largest < NOISE_END:
            logger.info("the denoiser is defined up to angle %.6g, so the grid starts there and not at pi/2", largest)
        schedule = getattr(denoise, "schedule", None)
        shape = getattr(denoise, "shape", None) if shape is None else shape
        dimensions = grids.DIMENSIONS if shape is None else math.prod(shape)
        angles = grids.grid(grid, DEFAULT_STEPS if steps is None else steps, largest, schedule, smallest, dimensions)
    else:
        angles = grids.explicit(grid)
    if steps is not None and steps != len(angles) - 1:
        raise InputError(f"the grid's {len(angles)} angles make {len(angles) - 1} steps, but steps={steps} was given")
    if angles[0] > largest + ROUNDING:
        raise InputError(
            f"the grid starts at angle {angles[0]:.6g} but the denoiser is defined up to {largest:.6g}: start there"
        )
    if angles[-2] < smallest - ROUNDING:
        raise InputError(
            f"the grid asks at angle {angles[-2]:.6g} but the denoiser is defined from {smallest:.6g}: "
            "take fewer steps, or the grid 'time'"
        )
    return angles


@torch.no_grad()
def _run(denoise: Denoise, noise: Tensor, sampler: Sampler, angles: Sequence[float], draw: Draw) -> Iterator[State]:
    yield from sampler(denoise, noise, angles, draw)


def _draw(seeds: Sequence[int] | None) -> Draw:
    if seeds is None:
        return torch.randn_like
    streams = [stream(seed, Purpose.STEPS) for seed in seeds]
    return lambda like: normal(streams, like.shape[1:], like.dtype).to(like.device)
