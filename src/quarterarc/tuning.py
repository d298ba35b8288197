"""Tuning: fit a sampler's angles, and its weights where that pays, to one network's own fine trajectories.

The target is where the probability flow itself takes each noise, solved finely. Angles are fitted by Gauss-Newton with
Levenberg's damping (the derivatives are differences: one more run of the sampler for each angle); weights in closed
form, step by step, by least squares towards the fine trajectory. Both weigh an image by 1 / (its error^2 + a share of
the median's), so that a few that fall to another picture do not rule. What was fitted is judged by other noise, and
the untuned grid is kept where it is better there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .arc import octave, octave_to_angle
from .denoiser import Labelled
from .errors import InputError
from .estimate import Denoise, Estimate
from .generation import noise
from .samplers import Multistep
from .samplers.multistep import StepWeights
from .sampling import Plan, plan, resolve_grid, sample, trajectory
from .tuned import TunedGrid

__all__ = ["tune"]

FINE = {"sampler": "adaptive", "pair": "dormand-prince", "tolerance": 1e-4}
"""How the fine trajectories are solved."""

FIRST_SEED = 1_000_000_000
"""The noise that is tuned on, and after it the noise that judges: far from the seeds people sample."""

NODES = 3  # estimates that a fitted step may use, at most
ROUNDS = 12  # of Gauss-Newton, at most
ENOUGH = 1e-3  # gain in the mean logarithm of the squared error, below which it stops
DIFFERENCE = 1e-2  # of a logarithm of a step's length, for derivatives
RIDGE = 1e-5


@dataclass(frozen=True)
class _Trial:
    """Noise with where it should end."""

    noise: Tensor
    end: Tensor

    def errors(self, images: Tensor) -> Tensor:
        """Of each image, root mean square a pixel, shape (B,)."""
        return (images - self.end).flatten(1).double().square().mean(1).sqrt()


def tune(
    denoise: Denoise,
    steps: int,
    sampler: str = "multistep",
    *,
    images: int = 64,
    weights: bool = True,
    shape: Sequence[int] | None = None,
    progress: bool = True,
    **options: Any,
) -> TunedGrid:
    """Fit a grid, and weights if they help, to a denoiser.

    Args:
        denoise: a denoiser.
        steps: how many steps the sampler will take.
        sampler, options: which sampler, a deterministic one; weights are fitted for `multistep` only. A denoiser that
            knows classes is asked for all of them in turn.
        images: how many to fit to; as many others judge.
        weights: whether to try fitted weights.
        shape: (C, H, W), for a denoiser that does not know it.
        progress: whether to show a bar, on a terminal.

    Returns:
        The best of the untuned grid, tuned angles, and tuned angles with weights, by the median error of the others.

    Raises:
        InputError: for a sampler that draws noise, fewer than 2 steps, or an unknown shape.
    """
    shape = shape or getattr(denoise, "shape", None)
    if shape is None:
        raise InputError("this denoiser does not say the shape of its images: give shape=(C, H, W)")
    if steps < 2:
        raise InputError(f"one step has no angles to tune: take at least 2, got {steps}")
    if images < 8:
        raise InputError(f"tuning takes at least 8 images, got {images}")
    before = plan(denoise, sampler, steps, shape=shape, **options)
    device, classes = getattr(denoise, "device", "cpu"), getattr(denoise, "classes", None)
    if classes:
        denoise = Labelled(denoise, torch.arange(images, device=device) % classes)
    total = 2 + 2 * ROUNDS
    with tqdm(total=total, desc=f"tune {steps} steps", unit="round", disable=None if progress else True) as bar:
        trials = []
        for first in (FIRST_SEED, FIRST_SEED + images):
            start = noise(range(first, first + images), shape, device)
            trials.append(_Trial(start, sample(denoise, start, **FINE).images))  # type: ignore[arg-type]
            bar.update()
        fit, judge = trials

        begins = [before.angles, resolve_grid(denoise, "angle", steps, shape)]  # two valleys to go down into
        _, fitted = min(
            (_fit_angles(denoise, fit, before, begin, shape, bar) for begin in begins), key=lambda one: one[0]
        )
        candidates: dict[str, tuple[np.ndarray, tuple[StepWeights, ...]]] = {
            "untuned": (before.angles, ()),
            "angles": (fitted, ()),
        }
        if weights and isinstance(before.sampler, Multistep):
            candidates["weights"] = (fitted, _fit_weights(denoise, fit, before.sampler, fitted))
        errors, nfe = {}, 0
        for name, (angles, offsets) in candidates.items():
            grid = TunedGrid(sampler, options, tuple(map(float, angles)), offsets, {}, name, 0)
            made = sample(denoise, judge.noise, grid.apply(before.sampler), grid=angles)
            error = float(judge.errors(made.images).median())
            errors[name], nfe = error if math.isfinite(error) else math.inf, int(made.nfe)
    kept = min(errors, key=lambda name: errors[name])
    angles, offsets = candidates[kept]
    return TunedGrid(sampler, options, tuple(map(float, angles)), offsets, errors, kept, nfe)


def _deterministic(denoise: Denoise, start: Tensor, chosen: Plan, angles: np.ndarray) -> Tensor:
    """The images of a sampler that may draw nothing."""

    def refuse(like: Tensor) -> Tensor:
        raise InputError(f"the sampler '{chosen.name}' draws noise: only deterministic samplers follow trajectories")

    with torch.no_grad():
        *_, last = chosen.sampler(denoise, start, [float(angle) for angle in angles], refuse)
    return last.x


def _fit_angles(
    denoise: Denoise, trial: _Trial, chosen: Plan, begin: np.ndarray, shape: Sequence[int], bar: Any
) -> tuple[float, np.ndarray]:
    """The median error and the angles, near `begin`, that bring the images closest to their ends."""
    coarsest, smallest = math.sqrt(math.prod(shape)), getattr(denoise, "smallest_angle", 0.0)
    first, last = begin[0], begin[-1]
    lengths = np.log(-np.diff(octave(begin, coarsest)))

    def angles_of(lengths: np.ndarray) -> np.ndarray:
        shares = np.cumsum(np.exp(lengths))
        top, bottom = octave(first, coarsest), octave(last, coarsest)
        inner = octave_to_angle(top + (bottom - top) * shares[:-1] / shares[-1], coarsest)
        return np.concatenate([[first], inner, [last]])

    def missed(lengths: np.ndarray) -> np.ndarray | None:
        """Errors of every pixel, shape (B, D); None for angles that cannot be used."""
        angles = angles_of(lengths)
        if not np.all(np.diff(angles) < 0.0) or angles[-2] < smallest:
            return None
        images = _deterministic(denoise, trial.noise, chosen, angles)
        return (images - trial.end).flatten(1).double().cpu().numpy() / math.sqrt(math.prod(shape))

    here = missed(lengths)
    if here is None:
        return math.inf, begin
    damping = 1e-2
    for _ in range(ROUNDS):
        bar.update()
        size = np.linalg.norm(here, axis=1)
        floor = 0.3 * np.median(size)
        weight = 1.0 / np.sqrt(size**2 + floor**2)

        def objective(errors: np.ndarray, floor: float = floor) -> float:
            return float(np.log((errors**2).sum(1) + floor**2).mean())

        columns = []
        for i in range(len(lengths)):
            moved = lengths.copy()
            moved[i] += DIFFERENCE
            there = missed(moved)
            slope = np.zeros_like(here) if there is None else (there - here) / DIFFERENCE
            columns.append((slope * weight[:, None]).ravel())
        jacobian, right = np.stack(columns, 1), (here * weight[:, None]).ravel()
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ right
        scale = np.diag(normal) + 1e-3 * np.diag(normal).mean() + 1e-30
        for _ in range(5):
            step = np.linalg.solve(normal + damping * np.diag(scale), -gradient)
            there = missed(lengths + np.clip(step, -1.0, 1.0))
            if there is not None and (gain := objective(here) - objective(there)) > 0.0:
                lengths, here, damping = lengths + np.clip(step, -1.0, 1.0), there, max(damping / 5, 1e-6)
                break
            damping *= 5
        else:
            break
        if gain < ENOUGH:
            break
    return float(np.median(np.linalg.norm(here, axis=1))), angles_of(lengths)


def _fit_weights(denoise: Denoise, trial: _Trial, sampler: Multistep, angles: np.ndarray) -> tuple[StepWeights, ...]:
    """What to add to the weights of each step so that it ends on the fine trajectory, step by step."""
    fine = [state.x for state in trajectory(denoise, trial.noise, grid=angles, **FINE)]  # type: ignore[arg-type]
    steps = len(angles) - 1
    offsets: list[StepWeights] = []
    for k in range(steps):
        # with the offsets found so far, and none from step k on
        rule = replace(sampler, offsets=(*offsets, *[StepWeights(0.0, (), ())] * (steps - k)))
        nodes: list[Estimate] = []
        with torch.no_grad():
            for state in rule(denoise, trial.noise, [float(angle) for angle in angles], torch.zeros_like):
                end = state.x
                if state.angle == angles[k + 1]:
                    break
                assert state.estimate is not None
                nodes = [*nodes, state.estimate][-NODES:]
        columns = [*(node.image for node in nodes), *(node.noise for node in nodes)]
        solution = _least_squares(columns, fine[k + 1] - end)
        offsets.append(StepWeights(0.0, tuple(solution[: len(nodes)]), tuple(solution[len(nodes) :])))
    return tuple(offsets)


def _least_squares(columns: Sequence[Tensor], target: Tensor) -> list[float]:
    """The combination of columns nearest to the target, ridged, with outlying images weighed down."""
    matrix = torch.stack([column.flatten(1).double().cpu() for column in columns], -1)  # (B, D, columns)
    right = target.flatten(1).double().cpu()
    solution = torch.zeros(len(columns), dtype=torch.float64)
    for _ in range(3):
        size = (right - matrix @ solution).square().mean(1).sqrt()
        weight = 1.0 / (size**2 + (0.3 * size.median()) ** 2 + 1e-30)
        normal = torch.einsum("bdi,b,bdj->ij", matrix, weight, matrix)
        ridge = RIDGE * torch.diagonal(normal).mean() * torch.eye(len(columns), dtype=torch.float64)
        solution = torch.linalg.solve(normal + ridge, torch.einsum("bdi,b,bd->i", matrix, weight, right))
    return [float(value) for value in solution]
