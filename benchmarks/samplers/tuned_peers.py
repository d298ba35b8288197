"""Peers that are tuned to a denoiser, after the ideas of two papers, written for this comparison.

All work on the exploding path X = x / cos with sigma = tan as time, where dX/dsigma is the noise estimate, as in EDM's
code. The fine trajectory that they are tuned to has the nodes of EDM's grid (Karras et al. 2022, Eq. 5), and starts
from the noise that `quarterarc.tune` fits to.

- GITS (Chen et al. 2024): the cost of a step between two nodes is the mean distance of its Euler step, taken from the
  fine trajectory, to the fine trajectory. The nodes with the smallest sum of costs, in which each later step counts a
  factor more, are found by dynamic programming. A solver then visits them.
- AMED (Zhou et al. 2024): a step has two evaluations, at its start and, by an Euler step, at a time between its ends;
  the noise estimate of the second one, times a scale, is the direction of the whole step. Time and scale are learned,
  step by step, by the distance to the fine trajectory at the end of the step. Here they are two numbers per step; the
  paper's depend on features of the network, which exact denoisers do not have. With an odd number of evaluations the
  first one is replaced by the analytic estimate of its analytical first step, the point itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from quarterarc.denoiser import Denoise
from quarterarc.estimate import Estimate
from quarterarc.samplers import Multistep

LARGEST, SMALLEST, RHO = 80.0, 0.002, 7.0
"""EDM's range of sigma, and its exponent."""
NODES = 60
"""Nodes of the fine trajectory above 0."""
FACTORS = (1.0, 1.05, 1.1, 1.15)
"""GITS's factor of later steps; the paper's are 1.1 and 1.15."""
BETWEEN = tuple(k / 24 for k in range(1, 24))
"""Candidates of AMED's time between the ends of a step: the exponent r in sigma_start^r sigma_end^(1 - r)."""


def rho_sigmas(steps: int) -> np.ndarray:
    """EDM's grid of this many steps, with 0 at its end, shape (steps + 1,)."""
    roots = np.linspace(LARGEST ** (1 / RHO), SMALLEST ** (1 / RHO), steps)
    return np.concatenate([[LARGEST], roots[1:] ** RHO, [0.0]])


def log_snr_sigmas(steps: int) -> np.ndarray:
    """Sigma falls as a geometric series, with 0 at its end, shape (steps + 1,)."""
    return np.append(np.geomspace(LARGEST, SMALLEST, steps), 0.0)


@dataclass(frozen=True)
class Exploding:
    """A denoiser on the exploding path."""

    denoise: Denoise

    def __call__(self, x: Tensor, sigma: float) -> Estimate:
        """The estimate at X, shape (B, C, H, W)."""
        angle = math.atan(sigma)
        with torch.no_grad():
            return self.denoise(x * math.cos(angle), angle)


def first_point(noise: Tensor, sigma: float = LARGEST) -> Tensor:
    """The point X whose x is the noise."""
    return noise * math.sqrt(1.0 + sigma**2)


@dataclass(frozen=True)
class Fine:
    """A fine trajectory.

    Attributes:
        denoise: the denoiser.
        sigmas: descending to 0, shape (N + 1,).
        points: X at each of them, N + 1 tensors of shape (B, C, H, W).
        noise: the noise estimates at all of them but the last.
    """

    denoise: Denoise
    sigmas: np.ndarray
    points: Sequence[Tensor]
    noise: Sequence[Tensor]

    @classmethod
    def of(cls, denoise: Denoise, noise: Tensor, sigmas: np.ndarray | None = None) -> Fine:
        """Solve from the noise."""
        sigmas = rho_sigmas(NODES) if sigmas is None else sigmas
        angles = [math.atan(sigma) for sigma in sigmas]
        with torch.no_grad():
            states = list(Multistep()(denoise, noise, angles, torch.zeros_like))  # no noise is drawn
        points = [state.x / math.cos(angle) for state, angle in zip(states, angles, strict=True)]
        return cls(denoise, sigmas, points, [state.estimate.noise for state in states if state.estimate is not None])

    def at(self, sigmas: np.ndarray) -> list[Tensor]:
        """X at other descending sigmas that start at the first one and end at 0, by a solution that visits them.

        Fine nodes that are within a thousandth of one of them are left out: steps of no length are not solved.
        """
        others = np.array([s for s in self.sigmas if np.abs(s - sigmas).min() > 1e-3 * s > 0.0])
        visited = np.sort(np.concatenate([others, sigmas]))[::-1]
        solved = Fine.of(self.denoise, self.points[0] / math.sqrt(1.0 + self.sigmas[0] ** 2), visited)
        return [solved.points[list(visited).index(sigma)] for sigma in sigmas]


# GITS


def deviations(fine: Fine) -> np.ndarray:
    """Mean distance of the Euler step from each node to each later one, shape (N + 1, N + 1), infinite elsewhere."""
    count = len(fine.sigmas)
    costs = np.full((count, count), math.inf)
    for i, (start, slope) in enumerate(zip(fine.points, fine.noise, strict=False)):
        for j in range(i + 1, count):
            missed = start + (fine.sigmas[j] - fine.sigmas[i]) * slope - fine.points[j]
            costs[i, j] = float(missed.flatten(1).norm(dim=1).mean())
    return costs


def cheapest(costs: np.ndarray, steps: int, factor: float = 1.0) -> list[int]:
    """The nodes of the cheapest path of this many steps from the first to the last node.

    The cost of a path is that of its first step plus `factor` times the cost of the rest.
    """
    last = len(costs) - 1
    rest, choices = np.append(np.full(last, math.inf), 0.0), []
    for _ in range(steps):
        through = costs + factor * rest
        choices.append(through.argmin(1))
        rest = through.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path


ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth's coefficients for equal steps, latest first, which iPNDM takes on any grid (Zhang & Chen 2023)."""


def ipndm(denoise: Denoise, noise: Tensor, sigmas: Sequence[float], order: int) -> Tensor:
    """Sample by iPNDM of orders 1 (Euler) to 4, rising over the first steps; one evaluation per step."""
    evaluate, x = Exploding(denoise), first_point(noise, sigmas[0])
    slopes: list[Tensor] = []
    for start, end in pairwise(sigmas):
        slopes = [evaluate(x, start).noise, *slopes][:order]
        slope = sum(weight * before for weight, before in zip(ADAMS[len(slopes) - 1], slopes, strict=True))
        x = x + (end - start) * slope
    return x


def dpm_solver(denoise: Denoise, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022), first order in the first and last step; one evaluation per step."""
    evaluate, x = Exploding(denoise), first_point(noise, sigmas[0])
    before, length = None, 0.0
    for start, end in pairwise(sigmas):
        image = evaluate(x, start).image
        step = math.log(start / end) if end > 0.0 else math.inf
        slanted = image if before is None or end == 0.0 else image + step / (2.0 * length) * (image - before)
        x = end / start * x + (1.0 - end / start) * slanted
        before, length = image, step
    return x


# AMED


@dataclass(frozen=True)
class Learned:
    """A step of AMED.

    Attributes:
        start, end: its sigmas.
        between: the sigma of the second evaluation.
        scale: of its noise estimate.
        free: whether the first evaluation is replaced by the point itself.
    """

    start: float
    end: float
    between: float
    scale: float
    free: bool = False

    def apply(self, evaluate: Exploding, x: Tensor) -> Tensor:
        """The step from X."""
        return x + self.scale * (self.end - self.start) * self.direction(evaluate, x)

    def direction(self, evaluate: Exploding, x: Tensor) -> Tensor:
        """The noise estimate between the ends of the step."""
        first = x / math.sqrt(1.0 + self.start**2) if self.free else evaluate(x, self.start).noise
        return evaluate(x + (self.between - self.start) * first, self.between).noise


def learn(fine: Fine, sigmas: np.ndarray, free: bool) -> list[Learned]:
    """Steps between these sigmas, each learned by the distance of its end, from the steps before, to the trajectory.

    The scale of each candidate time is that of least squares; the time has the smallest mean distance.

    Args:
        fine: the trajectory.
        sigmas: from its first sigma to 0.
        free: whether the first step has a free first evaluation.
    """
    evaluate, ends, x = Exploding(fine.denoise), fine.at(sigmas), fine.points[0]
    steps: list[Learned] = []
    for target, (start, end) in zip(ends[1:], pairwise(map(float, sigmas)), strict=True):
        candidates = []
        first = x / math.sqrt(1.0 + start**2) if free and not steps else evaluate(x, start).noise
        for share in BETWEEN:
            between = start**share * max(end, SMALLEST) ** (1.0 - share)
            move = (end - start) * evaluate(x + (between - start) * first, between).noise
            scale = float(((target - x) * move).sum() / move.square().sum())
            missed = float((x + scale * move - target).flatten(1).norm(dim=1).mean())
            candidates.append((missed, Learned(start, end, between, scale, free and not steps), x + scale * move))
        _, step, x = min(candidates, key=lambda candidate: candidate[0])
        steps.append(step)
    return steps


def amed(denoise: Denoise, noise: Tensor, steps: Sequence[Learned]) -> Tensor:
    """Sample with learned steps: two evaluations per step, one in a step with a free one."""
    evaluate, x = Exploding(denoise), first_point(noise, steps[0].start)
    for step in steps:
        x = step.apply(evaluate, x)
    return x


# the rows of the comparison


@dataclass(frozen=True)
class TunedPeers:
    """Both peers, tuned to one denoiser.

    Attributes:
        fine: the trajectory that they are tuned to.
        costs: its `deviations`.
    """

    fine: Fine
    costs: np.ndarray

    @classmethod
    def of(cls, denoise: Denoise, noise: Tensor) -> TunedPeers:
        """Solve the fine trajectory from the noise."""
        fine = Fine.of(denoise, noise)
        return cls(fine, deviations(fine))

    def schedule(self, steps: int, factor: float) -> np.ndarray:
        """GITS's sigmas, shape (steps + 1,)."""
        sigmas: np.ndarray = self.fine.sigmas[cheapest(self.costs, steps, factor)]
        return sigmas

    def gits(self, denoise: Denoise, noise: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
        """Images by every solver on every schedule, with the settings."""
        for factor in FACTORS:
            sigmas = [float(sigma) for sigma in self.schedule(nfe, factor)]
            for order in range(1, len(ADAMS) + 1):
                yield f"factor {factor:g} iPNDM {order}", ipndm(denoise, noise, sigmas, order)
            yield f"factor {factor:g} DPM-Solver++ 2M", dpm_solver(denoise, noise, sigmas)

    def amed(self, denoise: Denoise, noise: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
        """Images by the learned steps on every schedule, with the settings."""
        count, free = (nfe + 1) // 2, nfe % 2 == 1
        schedules = {
            "rho": rho_sigmas(count),
            "log-snr": log_snr_sigmas(count),
            **{f"gits {factor:g}": self.schedule(count, factor) for factor in FACTORS[::3]},
        }
        for name, sigmas in schedules.items():
            yield name, amed(denoise, noise, learn(self.fine, sigmas, free))
