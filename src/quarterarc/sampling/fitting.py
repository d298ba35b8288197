"""Gauss-Newton on the angles and weights of a sampler, so that its images end where the probability flow ends.

The parameters of a `Family` are one vector. `fit` minimises the mean of log(error^2 + floor^2) over the images, where
error is the root mean square distance per pixel to the end of the fine trajectory (`Target`) and floor is the median
error: an image counts as 1 / (error^2 + floor^2), so that a few images that end in another picture do not dominate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arc import Angle, octave, octave_to_angle
from ..common.errors import InputError
from ..common.progress import Bar
from ..denoiser import Denoise, Traits, angle_range, call, traits
from ..estimate import Estimate
from ..samplers import Multistep, Sampler
from ..samplers.step_weights import StepWeights
from ..wrappers import Evaluator, Replayed
from .plans import Plan
from .trajectories import sample

__all__ = ["FINE", "Family", "Target", "fit", "median_error", "misses"]

FINE: dict[str, Any] = {"sampler": "adaptive", "pair": "dormand-prince", "tolerance": 1e-5}
"""The sampler of the fine trajectories."""

NODES = 3  # estimates per step whose weights are fitted, the latest ones
ENOUGH = 1e-3  # gain of the objective below which the iteration stops
FAR = 0.5  # largest change of a parameter per round, relative to its reach
MOVE, NUDGE = 1e-2, 1e-3  # steps of the difference quotients: of an angle relative to its reach, and of a weight
NUMBERS = 2**25  # largest size of the Jacobian in memory: images are taken in parts


@dataclass(frozen=True)
class Target:
    """A denoiser, noise, its labels, and the ends of the fine trajectories from that noise.

    Attributes:
        denoise: the denoiser.
        noise: shape (B, C, H, W).
        labels: int64, shape (B,), or None.
        end: the ends, shaped like the noise.
    """

    denoise: Denoise
    noise: Tensor
    labels: Tensor | None
    end: Tensor

    @classmethod
    def of(cls, denoise: Denoise, noise: Tensor, labels: Tensor | None = None, bar: Bar | None = None) -> Target:
        """Compute the fine trajectories from this noise; the bar shows how far the slowest one is."""
        watched = denoise if bar is None else _Watched(denoise, bar)
        return cls(denoise, noise, labels, sample(watched, noise, labels=labels, **FINE).images)

    def parts(self, images: int) -> Iterator[Target]:
        """The target in parts of up to `images` images."""
        for rows in torch.arange(len(self.noise), device=self.noise.device).split(images):
            labels = None if self.labels is None else self.labels[rows]
            yield Target(self.denoise, self.noise[rows], labels, self.end[rows])

    def missed(self, images: Tensor) -> np.ndarray:
        """Difference to the ends, shape (B, D), scaled such that its norm is the root mean square per pixel."""
        missed: np.ndarray = (images - self.end).flatten(1).cpu().double().numpy()
        return missed / math.sqrt(missed.shape[1])


@dataclass(frozen=True, eq=False)
class _Watched:
    """A denoiser that notes on a bar how much of the flow is solved, since that takes up to minutes."""

    inner: Denoise
    bar: Bar

    @property
    def traits(self) -> Traits:
        return traits(self.inner)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        low, high = angle_range(self.inner)
        share = (high - float(torch.as_tensor(angle).max())) / (high - low)
        self.bar.note(fine_trajectories=f"{max(0.0, share):.0%}")
        return call(self.inner, x, angle, labels, to)


class Family:
    """Samplers and grids, parametrised by one vector: the octaves of the inner angles, then the offsets of each step.

    The offsets of a step are those of the image weights at its latest nodes, oldest first, then of the noise weights.

    Args:
        chosen: the plan with the untuned sampler and grid.
        shape: (C, H, W) of the images.
        weights: whether to fit offsets; only those of `multistep` without a Runge-Kutta start are.
    """

    def __init__(self, chosen: Plan, shape: Sequence[int], weights: bool) -> None:
        self.chosen, self.coarsest = chosen, math.sqrt(math.prod(shape))
        self.weights = weights and isinstance(chosen.sampler, Multistep) and chosen.sampler.start == "rising"
        self.first, self.last = chosen.angles[0], chosen.angles[-1]
        self.inner = len(chosen.angles) - 2
        self.nodes = [min(NODES, k + 1) for k in range(self.inner + 1)]

    def begin(self) -> np.ndarray:
        """The vector of the untuned grid, with offsets of 0."""
        added = 2 * sum(self.nodes) if self.weights else 0
        return np.concatenate([octave(self.chosen.angles[1:-1], self.coarsest), np.zeros(added)])

    def angles(self, vector: np.ndarray) -> np.ndarray:
        """The grid."""
        return np.concatenate([[self.first], octave_to_angle(vector[: self.inner], self.coarsest), [self.last]])

    def offsets(self, vector: np.ndarray) -> tuple[StepWeights, ...]:
        """The offsets of each step; empty if none are fitted."""
        if not self.weights:
            return ()
        added, offsets = [float(value) for value in vector[self.inner :]], []
        for count in self.nodes:
            image, noise, added = added[:count], added[count : 2 * count], added[2 * count :]
            offsets.append(StepWeights(0.0, tuple(image), tuple(noise)))
        return tuple(offsets)

    def sampler(self, vector: np.ndarray) -> Sampler:
        """The sampler with the offsets."""
        rule = self.chosen.sampler
        return replace(rule, offsets=self.offsets(vector)) if self.weights and isinstance(rule, Multistep) else rule

    def reach(self, vector: np.ndarray) -> np.ndarray:
        """The scale of each parameter: the shorter step beside an angle, in octaves; 1 for an offset."""
        ends = octave(np.array([self.first, self.last]), self.coarsest)
        steps = -np.diff(np.concatenate([ends[:1], vector[: self.inner], ends[1:]]))
        return np.concatenate([np.minimum(steps[:-1], steps[1:]), np.ones(len(vector) - self.inner)])


def fit(target: Target, family: Family, vector: np.ndarray, rounds: int, bar: Bar) -> np.ndarray:
    """Gauss-Newton with Levenberg's damping, from `vector`, for at most `rounds` rounds; `bar` counts them."""
    damping, left = 1e-2, rounds
    missed = misses(target, family, vector)
    while missed is not None and left > 0:
        left -= 1
        bar.update()
        floor = float(np.median(np.linalg.norm(missed, axis=1)))
        normal, gradient = equations(target, family, vector, floor)
        scale = np.diag(normal) + 1e-6 * np.diag(normal).mean() + 1e-30
        reach, gain = family.reach(vector), 0.0
        for _ in range(6):
            step = np.clip(np.linalg.solve(normal + damping * np.diag(scale), -gradient), -FAR * reach, FAR * reach)
            moved = misses(target, family, vector + step)
            if moved is not None and (gain := _objective(missed, floor) - _objective(moved, floor)) > 0.0:
                vector, missed, damping = vector + step, moved, max(damping / 5, 1e-7)
                break
            damping *= 5
        if not gain > ENOUGH:
            break
    bar.update(left)
    return vector


def _objective(missed: np.ndarray, floor: float) -> float:
    return float(np.log((missed**2).sum(1) + floor**2).mean())


def median_error(target: Target, family: Family, vector: np.ndarray) -> float:
    """The median distance of the images to their ends, root mean square per pixel; infinite for an invalid grid."""
    missed = misses(target, family, vector)
    return math.inf if missed is None else float(np.median(np.linalg.norm(missed, axis=1)))


def misses(target: Target, family: Family, vector: np.ndarray) -> np.ndarray | None:
    """`Target.missed` of the family's images, shape (B, D); None for angles that are not a valid grid.

    Raises:
        InputError: if the sampler draws noise.
    """

    def draw(like: Tensor) -> Tensor:
        raise InputError(
            f"the sampler '{family.chosen.name}' draws noise: give a deterministic sampler, such as multistep"
        )

    angles = family.angles(vector)
    smallest, _ = angle_range(target.denoise)
    if not np.all(np.diff(angles) < 0.0) or angles[-2] < smallest:
        return None
    with torch.no_grad():
        evaluator = Evaluator(target.denoise, target.labels)
        *_, last = family.sampler(vector)(evaluator, target.noise, [float(angle) for angle in angles], draw)
    return target.missed(last.x)


def equations(target: Target, family: Family, vector: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The normal matrix and the gradient of Gauss-Newton, shapes (V, V) and (V,) for V parameters.

    The Jacobian is made of difference quotients: one more run per parameter, from the first evaluation that differs.
    """
    count = len(vector)
    normal, gradient = np.zeros((count, count)), np.zeros(count)
    nudges = family.reach(vector) * np.where(np.arange(count) < family.inner, MOVE, NUDGE)
    for part in target.parts(max(1, NUMBERS // (count * target.noise[0].numel()))):
        replayed = Replayed(part.denoise)
        part = replace(part, denoise=replayed)
        missed = misses(part, family, vector)
        assert missed is not None
        weight = 1.0 / np.sqrt((missed**2).sum(1, keepdims=True) + floor**2)
        columns = np.zeros((count, missed.size))
        for i in range(count):
            replayed.rewind()
            nudged = vector.copy()
            nudged[i] += nudges[i]
            moved = misses(part, family, nudged)
            if moved is not None:
                columns[i] = ((moved - missed) / nudges[i] * weight).ravel()
        normal += columns @ columns.T
        gradient += columns @ (missed * weight).ravel()
    return normal, gradient
