"""Tuning: fit a sampler's angles, and the weights of its steps, to one network's own fine trajectories.

The target is where the probability flow itself takes each noise, solved finely. Gauss-Newton with Levenberg's damping
brings the sampler's images there, by angles and weights together, each judged by what it does to the finished image:
a step fitted to the trajectory on its own leaves out of account what the later steps make of its error. An image
counts as 1 / (its error^2 + the median's^2), so that a few that fall to another picture do not rule. `multistep` is
fitted for a few rounds with each image's own width and without, and then whichever came closer. What was fitted is
judged by other noise, and the untuned grid is kept where it is better there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..arc import octave, octave_to_angle
from ..common.errors import InputError
from ..denoiser import Denoise, Evaluator, Replayed, angle_range, required_shape, traits
from ..samplers import Adaptive, Multistep, Sampler
from ..samplers.step_weights import StepWeights
from .generation import noise
from .plans import Plan, plan
from .trajectories import sample
from .tuned_grids import TunedGrid

__all__ = ["tune"]

FINE = {"sampler": "adaptive", "pair": "dormand-prince", "tolerance": 1e-5}
"""How the fine trajectories are solved."""

FIRST_SEED = 1_000_000_000
"""The noise that is tuned on, and after it the noise that judges: far from the seeds people sample."""

NODES = 3  # estimates of a step whose weights are fitted, the newest ones
TRIED, ROUNDS = 3, 22  # rounds of Gauss-Newton at most: for each way to begin, and then for the better one
ENOUGH = 1e-3  # gain in the mean logarithm of the squared error, below which it stops
FAR = 0.5  # the most that a round moves a value, as a share of its reach
MOVE, NUDGE = 1e-2, 1e-3  # for derivatives: of an angle, as a share of the shorter step beside it; of a weight
NUMBERS = 2**25  # of the derivatives held at a time: images are taken in parts


@dataclass(frozen=True)
class _Trial:
    """A denoiser, noise, the labels it is asked with, and where its flow takes it."""

    denoise: Denoise
    noise: Tensor
    labels: Tensor | None
    end: Tensor

    @classmethod
    def of(cls, denoise: Denoise, noise: Tensor, labels: Tensor | None = None) -> _Trial:
        """The trial of this noise, solved finely."""
        return cls(denoise, noise, labels, sample(denoise, noise, labels=labels, **FINE).images)  # type: ignore[arg-type]

    def parts(self, images: int) -> Iterator[_Trial]:
        """The same, a few images at a time."""
        for rows in torch.arange(len(self.noise), device=self.noise.device).split(images):
            labels = None if self.labels is None else self.labels[rows]
            yield _Trial(self.denoise, self.noise[rows], labels, self.end[rows])

    def missed(self, images: Tensor) -> np.ndarray:
        """By how much each pixel of images misses its end, shape (B, D); its norm is root mean square a pixel."""
        missed: np.ndarray = (images - self.end).flatten(1).cpu().double().numpy()
        return missed / math.sqrt(missed.shape[1])


class _Family:
    """What is fitted, as one vector: the octaves of the inner angles, then what is added to the weights of each step.

    The added weights go step by step: of the images at the newest nodes, oldest first, and of the noises there.
    """

    def __init__(self, chosen: Plan, shape: Sequence[int], weights: bool) -> None:
        self.chosen, self.coarsest = chosen, math.sqrt(math.prod(shape))
        self.weights = weights and isinstance(chosen.sampler, Multistep) and chosen.sampler.start == "rising"
        self.first, self.last = chosen.angles[0], chosen.angles[-1]
        self.inner = len(chosen.angles) - 2
        self.nodes = [min(NODES, k + 1) for k in range(self.inner + 1)]

    def begin(self) -> np.ndarray:
        """The grid as it is, and nothing added to the weights."""
        added = 2 * sum(self.nodes) if self.weights else 0
        return np.concatenate([octave(self.chosen.angles[1:-1], self.coarsest), np.zeros(added)])

    def angles(self, vector: np.ndarray) -> np.ndarray:
        """The grid."""
        return np.concatenate([[self.first], octave_to_angle(vector[: self.inner], self.coarsest), [self.last]])

    def offsets(self, vector: np.ndarray) -> tuple[StepWeights, ...]:
        """What is added to the weights."""
        if not self.weights:
            return ()
        added, found = [float(value) for value in vector[self.inner :]], []
        for count in self.nodes:
            image, noise, added = added[:count], added[count : 2 * count], added[2 * count :]
            found.append(StepWeights(0.0, tuple(image), tuple(noise)))
        return tuple(found)

    def sampler(self, vector: np.ndarray) -> Sampler:
        """The sampler with the weights."""
        offsets, rule = self.offsets(vector), self.chosen.sampler
        return replace(rule, offsets=offsets) if offsets and isinstance(rule, Multistep) else rule

    def reach(self, vector: np.ndarray) -> np.ndarray:
        """For each value, the length that its changes are measured by: the shorter step beside an angle, 1 else."""
        ends = octave(np.array([self.first, self.last]), self.coarsest)
        steps = -np.diff(np.concatenate([ends[:1], vector[: self.inner], ends[1:]]))
        return np.concatenate([np.minimum(steps[:-1], steps[1:]), np.ones(len(vector) - self.inner)])


def tune(
    denoise: Denoise,
    steps: int,
    sampler: str = "multistep",
    *,
    images: int = 128,
    weights: bool = True,
    shape: Sequence[int] | None = None,
    progress: bool = True,
    **options: Any,
) -> TunedGrid:
    """Fit a sampler's angles, and the weights of its steps, to a denoiser.

    Args:
        denoise: a denoiser.
        steps: how many steps the sampler will take.
        sampler, options: which sampler, a deterministic one; weights are fitted for `multistep` only. A denoiser that
            knows classes is asked for all of them in turn.
        images: how many to fit to; as many others judge.
        weights: whether to fit the weights too, or the angles only.
        shape: (C, H, W), for a denoiser that does not know it.
        progress: whether to show a bar, on a terminal.

    Returns:
        What was fitted, or the untuned grid, whichever has the smaller median error on the others.

    Raises:
        InputError: for a sampler that draws noise or chooses its own steps, fewer than 2 steps, or an unknown shape.
    """
    shape = required_shape(denoise, shape)
    chosen = plan(denoise, sampler, steps, shape=shape, **options)
    if isinstance(chosen.sampler, Adaptive):
        raise InputError(f"the sampler '{sampler}' chooses its own steps: it has no grid to tune")
    if steps < 2:
        raise InputError(f"one step has no angles to tune: take at least 2, got {steps}")
    if images < 8:
        raise InputError(f"tuning takes at least 8 images, got {images}")
    families = [_Family(chosen, shape, weights)]
    if families[0].weights and options.get("form") in (None, "both") and options.get("width") is None:
        # Weights that all images share learn the width that all have in common; widths of each image's own beside
        # them help on some networks and numbers of steps, and stand in the way on others.
        without = plan(denoise, sampler, steps, shape=shape, **{**options, "width": 0.0})
        families.append(_Family(without, shape, weights))
    device, classes = traits(denoise).device or "cpu", traits(denoise).classes
    labels = torch.arange(images, device=device) % classes if classes else None
    one = noise(range(FIRST_SEED, FIRST_SEED + 1), shape, device)
    bare = _Family(chosen, shape, weights=False)
    _run(_Trial(denoise, one, None if labels is None else labels[:1], one), bare, bare.begin())  # it may draw noise
    with tqdm(
        total=2 + len(families) * TRIED + ROUNDS,
        desc=f"tune {steps} steps",
        unit="round",
        disable=None if progress else True,
    ) as bar:
        trials = []
        for first in (FIRST_SEED, FIRST_SEED + images):
            trials.append(_Trial.of(denoise, noise(range(first, first + images), shape, device), labels))
            bar.update()
        fit, judge = trials

        begun = [(family, _fit(fit, family, family.begin(), TRIED, bar)) for family in families]
        family, vector = min(begun, key=lambda one: _median(fit, *one))
        vector = _fit(fit, family, vector, ROUNDS, bar)
        kind = "weights" if family.weights else "angles"
        candidates: dict[str, tuple[Sampler, Sequence[float] | np.ndarray]] = {
            "untuned": (chosen.sampler, chosen.angles),
            kind: (family.sampler(vector), family.angles(vector)),
        }
        errors, nfe = {}, 0
        for name, (rule, angles) in candidates.items():
            made = sample(denoise, judge.noise, rule, grid=angles, labels=labels)
            error = float(np.median(np.linalg.norm(judge.missed(made.images), axis=1)))
            errors[name], nfe = error if math.isfinite(error) else math.inf, int(made.nfe)
    kept = min(errors, key=lambda name: errors[name])
    offsets = family.offsets(vector) if kept == kind else ()
    width = None if family is families[0] or not offsets else 0.0
    return TunedGrid(sampler, options, tuple(map(float, candidates[kept][1])), offsets, errors, kept, nfe, width)


def _fit(trial: _Trial, family: _Family, vector: np.ndarray, rounds: int, bar: Any) -> np.ndarray:
    """The vector that brings the images closest to their ends, after at most so many rounds."""
    damping, left = 1e-2, rounds
    here = _run(trial, family, vector)
    while here is not None and left > 0:
        left -= 1
        bar.update()
        size = np.linalg.norm(here, axis=1)
        floor = float(np.median(size))

        def objective(missed: np.ndarray, floor: float = floor) -> float:
            return float(np.log((missed**2).sum(1) + floor**2).mean())

        normal, gradient = _equations(trial, family, vector, floor)
        scale = np.diag(normal) + 1e-6 * np.diag(normal).mean() + 1e-30
        reach, gain = family.reach(vector), 0.0
        for _ in range(6):
            step = np.clip(np.linalg.solve(normal + damping * np.diag(scale), -gradient), -FAR * reach, FAR * reach)
            moved = vector + step
            there = _run(trial, family, moved)
            if there is not None and (gain := objective(here) - objective(there)) > 0.0:
                vector, here, damping = moved, there, max(damping / 5, 1e-7)
                break
            damping *= 5
        if not gain > ENOUGH:
            break
    bar.update(left)
    return vector


def _median(trial: _Trial, family: _Family, vector: np.ndarray) -> float:
    """The median distance of the images to their ends."""
    missed = _run(trial, family, vector)
    return math.inf if missed is None else float(np.median(np.linalg.norm(missed, axis=1)))


def _run(trial: _Trial, family: _Family, vector: np.ndarray) -> np.ndarray | None:
    """By how much each pixel misses its end, shape (B, D); None for angles that cannot be used."""

    def refuse(like: Tensor) -> Tensor:
        name = family.chosen.name
        raise InputError(f"the sampler '{name}' draws noise: only deterministic samplers follow trajectories")

    angles = family.angles(vector)
    smallest, _ = angle_range(trial.denoise)
    if not np.all(np.diff(angles) < 0.0) or angles[-2] < smallest:
        return None
    with torch.no_grad():
        labelled = Evaluator(trial.denoise, trial.labels)
        *_, last = family.sampler(vector)(labelled, trial.noise, [float(angle) for angle in angles], refuse)
    return trial.missed(last.x)


def _equations(trial: _Trial, family: _Family, vector: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton's normal matrix and gradient, shapes (V, V) and (V,) for V values.

    The derivatives are differences: one more run for each value, from where it first makes a difference.
    """
    count = len(vector)
    normal, gradient = np.zeros((count, count)), np.zeros(count)
    nudges = family.reach(vector) * np.where(np.arange(len(vector)) < family.inner, MOVE, NUDGE)
    for part in trial.parts(max(1, NUMBERS // (count * trial.noise[0].numel()))):
        replayed = Replayed(part.denoise)
        part = replace(part, denoise=replayed)
        here = _run(part, family, vector)
        assert here is not None
        weight = 1.0 / np.sqrt((here**2).sum(1, keepdims=True) + floor**2)
        columns = np.zeros((count, here.size))
        for i in range(count):
            replayed.rewind()
            moved = vector.copy()
            moved[i] += nudges[i]
            there = _run(part, family, moved)
            if there is not None:
                columns[i] = ((there - here) / nudges[i] * weight).ravel()
        normal += columns @ columns.T
        gradient += columns @ (here * weight).ravel()
    return normal, gradient
