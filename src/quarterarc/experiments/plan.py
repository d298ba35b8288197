"""What an experiment will do and cost, before it does it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..denoiser import Denoiser
from ..heads import head as named_head
from ..schedules import schedule as named_schedule
from ..training.trainer import recipe_network
from .arms import Arm
from .cells import Cell
from .lab import Lab
from .measures import MEASURES

__all__ = ["Job", "Speed", "describe_plan", "jobs_of", "probe"]


LARGEST, ENOUGH = 64, 3.0
"""Pixels a side of the images that the probe looks at, and the seconds that it takes for each of two questions."""


@dataclass(frozen=True)
class Job:
    """One arm of one seed, and what is to be measured of it: the unit that is given to a process.

    Attributes:
        arm, seed: the network.
        cells: its cells.
    """

    arm: Arm
    seed: int
    cells: tuple[Cell, ...]


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """Cells by arm and seed, in order of appearance, each once."""
    by_arm: dict[tuple[Arm, int], dict[Cell, None]] = {}
    for cell in cells:
        by_arm.setdefault((cell.arm, cell.seed), {})[cell] = None
    return [Job(arm, seed, tuple(some)) for (arm, seed), some in by_arm.items()]


@dataclass(frozen=True)
class Speed:
    """Seconds an image takes to train on once, and to be seen once in sampling."""

    training: float
    evaluation: float


def probe(lab: Lab) -> Speed:
    """Measure this machine for a few seconds, on the scale's own network with fresh weights and pure noise.

    Large images are cut to 64 pixels a side, and their time scaled by the pixels: attention is a small part of it.
    """
    recipe = lab.scale.recipe
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    table = named_schedule(recipe.schedule.name, recipe.schedule.steps)
    head = named_head("both", table)
    network = recipe_network(recipe, shape[0], head.channels(shape[0]), None).to(lab.device)
    precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
    denoise = Denoiser(network, table, head, shape, None, precision)
    pixels = 2**24 if lab.device.type == "cuda" else 2**13
    batch = min(recipe.training.batch, max(1, pixels // (shape[1] * shape[2])))
    seen = tuple(min(side, LARGEST) for side in shape[1:])
    share = math.prod(seen) / math.prod(shape[1:])
    x = torch.randn(batch, shape[0], *seen, device=lab.device)

    def train() -> None:
        denoise(x, 1.0).image.square().mean().backward()

    def ask() -> None:
        with torch.no_grad():
            denoise(x, 1.0)

    return Speed(_seconds(train, lab.device) / batch / share, _seconds(ask, lab.device) / batch / share)


def _seconds(work: object, device: torch.device) -> float:
    """The shortest of a few runs, the first of which counts only if it alone took long."""
    assert callable(work)
    times: list[float] = []
    while len(times) < 6 and sum(times) < ENOUGH:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


def describe_plan(lab: Lab, jobs: Sequence[Job], processes: int, speed: Speed) -> str:
    """The plan in words: arms, images trained, NFE, and an estimate of time on this machine."""
    scale, lines = lab.scale, []
    trained = asked = 0
    for job in jobs:
        images = lab.images_left(job.arm, job.seed)
        complete = images == 0
        missing = [cell for cell in job.cells if not (complete and lab.kept(cell))]
        evaluations = sum(MEASURES[cell.measure].evaluations(cell) for cell in missing)
        trained, asked = trained + images, asked + evaluations
        state = "trained" if complete else f"{images:,} images to train on"
        lines.append(
            f"  {job.arm.hash(scale, job.seed)}  {job.arm.name}, seed {job.seed}: {state}; "
            f"{len(missing)} of {len(job.cells)} measurements to make, {evaluations:,} evaluations"
        )
    seconds = trained * speed.training + asked * speed.evaluation
    lines.append(
        f"{len(jobs)} arms, {sum(len(job.cells) for job in jobs)} measurements; {trained:,} images to train on "
        f"({speed.training * 1e3:.3g} ms each), {asked:,} network evaluations of one image "
        f"({speed.evaluation * 1e3:.3g} ms each)"
    )
    lines.append(f"about {_duration(seconds / processes)} on this machine ({lab.device}, {processes} at once)")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"
