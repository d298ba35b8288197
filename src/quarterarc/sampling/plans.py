"""How images are sampled: what is asked for (`Sampling`), and what that means for one denoiser (`Plan`).

A plan is resolved once, then passed down: names are looked up, defaults filled in, and the grid is checked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .. import grids
from ..arc import NOISE_END, ROUNDING
from ..common.errors import InputError
from ..common.streams import Purpose, normal, stream
from ..denoiser import Denoise, Evaluator, Guided, project, traits
from ..samplers import Draw, Sampler, State
from ..samplers import sampler as named_sampler
from .tuned_grids import tuned_grid

__all__ = ["DEFAULT_SAMPLER", "DEFAULT_STEPS", "GridLike", "Plan", "Sampling", "check_labels", "plan", "resolve_grid"]

logger = logging.getLogger("quarterarc")

DEFAULT_SAMPLER = "multistep"
DEFAULT_STEPS = 10

GridLike: TypeAlias = str | Sequence[float] | np.ndarray
"""A grid by name, or its angles."""


@dataclass(frozen=True)
class Sampling:
    """A request to sample: the arguments that `sample`, `generate`, `evaluate` and the command line have in common.

    Attributes:
        sampler: a registered name of `quarterarc.samplers.SAMPLERS`, an import path, or a sampler; multistep if None.
        steps: number of steps; 10 if None, or the sampler's own default. The cost is `Result.nfe`.
        grid: one of `quarterarc.grids.GRIDS`, from the denoiser's largest angle to 0; `tuned` for the grid that
            `quarterarc tune` fitted to this network; or the angles themselves. The sampler's default grid if None.
        options: the sampler's, such as `eta` for `ddim` or `variance` for `ddpm`.
        guidance: scale of classifier-free guidance; None for none.
        projection: what is kept where image and noise estimates disagree: `velocity`, `image`, `noise`, or `none` to
            leave both as they are; None for the denoiser's own.
    """

    sampler: str | Sampler | None = None
    steps: int | None = None
    grid: GridLike | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    projection: str | None = None

    def denoiser(self, denoise: Denoise) -> Denoise:
        """The denoiser with the projection and the guidance that are asked for."""
        if self.projection is not None:
            denoise = project(denoise, self.projection)
        return denoise if self.guidance is None else Guided(denoise, self.guidance)

    def plan(self, denoise: Denoise, shape: Sequence[int] | None = None) -> Plan:
        """The plan for a denoiser; errors as for `plan`."""
        return plan(self.denoiser(denoise), self.sampler, self.steps, self.grid, shape=shape, **self.options)


@dataclass(frozen=True, eq=False)
class Plan:
    """Sampling of one denoiser, resolved: a sampler and the angles of its steps.

    Attributes:
        denoise: the denoiser.
        sampler: the sampler.
        name: the sampler's name, or its class's.
        options: the sampler's options.
        grid: the grid's name, `tuned`, or `explicit`.
        angles: float64, from the first angle to 0.
    """

    denoise: Denoise
    sampler: Sampler
    name: str
    options: dict[str, Any]
    grid: str
    angles: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.angles) - 1

    def describe(self) -> dict[str, Any]:
        """The settings as JSON types, enough to repeat them."""
        return {
            "sampler": self.name,
            "options": self.options,
            "grid": self.grid,
            "steps": self.steps,
            "angles": [float(angle) for angle in self.angles],
        }

    def states(
        self, noise: Tensor, labels: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> tuple[Evaluator, Iterator[State]]:
        """The trajectory from noise, shape (B, C, H, W), and the evaluator that counts its evaluations.

        Raises:
            InputError: before the first state, for noise that is not floating, or labels or seeds that are not one per
                image.
        """
        for name, values in (("labels", labels), ("seeds", seeds)):
            if values is not None and len(values) != len(noise):
                raise InputError(f"there are {len(noise)} images but {len(values)} {name}: give one per image")
        if not noise.is_floating_point():
            raise InputError(f"noise is a floating point tensor, got {noise.dtype}")
        evaluator = Evaluator(self.denoise, labels)
        return evaluator, _without_gradients(self.sampler, evaluator, noise, self.angles.tolist(), _draw(seeds))


@torch.no_grad()
def _without_gradients(
    sampler: Sampler, denoise: Denoise, noise: Tensor, angles: Sequence[float], draw: Draw
) -> Iterator[State]:
    yield from sampler(denoise, noise, angles, draw)


def _draw(seeds: Sequence[int] | None) -> Draw:
    if seeds is None:
        return torch.randn_like
    streams = [stream(seed, Purpose.STEPS) for seed in seeds]
    return lambda like: normal(streams, like.shape[1:], like.dtype).to(like.device)


def plan(
    denoise: Denoise,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    *,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> Plan:
    """Resolve the arguments of `sample` for a denoiser; arguments and errors as for `Sampling` and `sample`.

    Args:
        shape: (C, H, W) of the images, for the grid `octave`; the denoiser's own, where it declares one.
    """
    sampler = DEFAULT_SAMPLER if sampler is None else sampler
    if isinstance(sampler, str):
        name, sampler = sampler, named_sampler(sampler, **options)
    elif options:
        raise InputError(f"options ({', '.join(options)}) go with a sampler's name; give them to the sampler itself")
    else:
        name = type(sampler).__name__
    if grid is None:
        grid = sampler.default_grid
        steps = sampler.default_steps if steps is None else steps
    if isinstance(grid, str) and grid == "tuned":
        tuned = tuned_grid(denoise, name, options, DEFAULT_STEPS if steps is None else steps)
        sampler, angles = tuned.apply(sampler), np.array(tuned.angles)
    else:
        angles = resolve_grid(denoise, grid, steps, shape)
    sampler.check(angles)
    return Plan(denoise, sampler, name, dict(options), grid if isinstance(grid, str) else "explicit", angles)


def resolve_grid(
    denoise: Denoise, grid: GridLike, steps: int | None = None, shape: Sequence[int] | None = None
) -> np.ndarray:
    """The angles of a grid for this denoiser, checked against the angles at which it is defined.

    Raises:
        InputError: for an unknown grid, steps that contradict explicit angles, or angles outside the denoiser's range.
    """
    declared = traits(denoise)
    smallest, largest = declared.smallest_angle, declared.largest_angle
    if isinstance(grid, str):
        if largest < NOISE_END:
            logger.info("the denoiser is defined up to angle %.6g: the grid starts there instead of at pi/2", largest)
        shape = declared.shape if shape is None else shape
        dimensions = grids.DIMENSIONS if shape is None else math.prod(shape)
        steps = DEFAULT_STEPS if steps is None else steps
        angles = grids.grid(grid, steps, largest, declared.schedule, smallest, dimensions)
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
            f"the grid evaluates at angle {angles[-2]:.6g} but the denoiser is defined from {smallest:.6g}: "
            "take fewer steps, or the grid 'time'"
        )
    return angles


def check_labels(denoise: Denoise, labels: Sequence[int] | None) -> None:
    """Raise an InputError for labels that a denoiser does not know, or that are missing where it needs them."""
    declared = traits(denoise)
    if labels is None:
        if declared.classes is not None and not declared.unlabelled:
            raise InputError(
                f"the model was trained with one of the labels 0..{declared.classes - 1} for every image: give labels"
            )
        return
    wrong = [label for label in labels if declared.classes is None or not 0 <= label < declared.classes]
    if wrong:
        known = "without labels" if declared.classes is None else f"with the labels 0..{declared.classes - 1}"
        raise InputError(f"the model was trained {known}, got the label {wrong[0]}")
