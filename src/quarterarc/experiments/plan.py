"""The plan of an experiment: jobs, and an estimate of their time on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..common.text import counted, duration
from ..denoiser import Denoiser
from ..heads import head as named_head
from ..schedules import schedule as named_schedule
from ..training.network import recipe_network
from .arms import Arm
from .cells import Cell
from .lab import Lab
from .measures import MEASURES
from .measuring import is_measured

__all__ = ["Job", "Speed", "describe_cost", "describe_plan", "jobs_of", "probe"]


LARGEST_SIDE, PROBE_SECONDS = 64, 3.0
"""The largest side of the probe's images in pixels, and the seconds spent on each of its two timings."""


@dataclass(frozen=True)
class Job:
    """An arm of one seed with its cells: the unit of work that is given to a process.

    Attributes:
        arm, seed: the network.
        cells: the cells to measure.
    """

    arm: Arm
    seed: int
    cells: tuple[Cell, ...]


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """Cells grouped by arm and seed in order of first appearance, without duplicates."""
    by_arm: dict[tuple[Arm, int], dict[Cell, None]] = {}
    for cell in cells:
        by_arm.setdefault((cell.arm, cell.seed), {})[cell] = None
    return [Job(arm, seed, tuple(grouped)) for (arm, seed), grouped in by_arm.items()]


@dataclass(frozen=True)
class Speed:
    """Seconds per image of a training step and of a network evaluation."""

    training: float
    evaluation: float


def probe(lab: Lab) -> Speed:
    """The speed of the scale's network on this machine, timed for a few seconds with fresh weights and pure noise.

    Images larger than 64 pixels are cropped and their time is scaled by the number of pixels, which neglects that the
    cost of attention grows faster.
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
    cropped = tuple(min(side, LARGEST_SIDE) for side in shape[1:])
    share = math.prod(cropped) / math.prod(shape[1:])
    x = torch.randn(batch, shape[0], *cropped, device=lab.device)

    def train() -> None:
        denoise(x, 1.0).image.square().mean().backward()

    def evaluate() -> None:
        with torch.no_grad():
            denoise(x, 1.0)

    return Speed(_seconds(train, lab.device) / batch / share, _seconds(evaluate, lab.device) / batch / share)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """The shortest time of a few runs; the first run, which warms up, counts only if there is no other."""
    times: list[float] = []
    while len(times) < 6 and sum(times) < PROBE_SECONDS:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


@dataclass(frozen=True)
class _Left:
    """What is left to do of a job: images to train on, missing cells, and their network evaluations."""

    images: int
    cells: int
    evaluations: int


def _left(lab: Lab, job: Job) -> _Left:
    images = lab.images_left(job.arm, job.seed)
    missing = [cell for cell in job.cells if images or not is_measured(lab, cell)]
    evaluations = sum(MEASURES[cell.measure].evaluations(cell) for cell in missing)
    return _Left(images, len(missing), evaluations + round(images * job.arm.evaluations(lab.scale, job.seed)))


def _with_teachers(lab: Lab, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, and before a map that is to be trained its teacher, if that is to be trained too and no job itself."""
    listed, complete = {(job.arm, job.seed) for job in jobs}, list[Job]()
    for job in jobs:
        teacher, seed = job.arm.teacher, job.seed
        if (
            teacher is not None
            and (teacher, seed) not in listed
            and lab.images_left(job.arm, seed)
            and lab.images_left(teacher, seed)
        ):
            complete.append(Job(teacher, seed, ()))
            listed.add((teacher, seed))
        complete.append(job)
    return complete


def describe_plan(lab: Lab, jobs: Sequence[Job], processes: int, speed: Speed) -> str:
    """The plan as text: one line per arm, and `describe_cost`."""
    lines = []
    for job in _with_teachers(lab, jobs):
        left = _left(lab, job)
        state = f"{counted(left.images, 'image')} to train on" if left.images else "trained"
        lines.append(
            f"  {job.arm.hash(lab.scale, job.seed)}  {job.arm.name}, seed {job.seed}: {state}; {left.cells} of "
            f"{counted(len(job.cells), 'measurement')} missing, {counted(left.evaluations, 'network evaluation')}"
        )
    return "\n".join([*lines, describe_cost(lab, jobs, processes, speed)])


def describe_cost(lab: Lab, jobs: Sequence[Job], processes: int, speed: Speed) -> str:
    """The totals of a plan as text, and the estimated time on this machine."""
    jobs = _with_teachers(lab, jobs)
    left = [_left(lab, job) for job in jobs]
    images, evaluations = sum(job.images for job in left), sum(job.evaluations for job in left)
    seconds = images * speed.training + evaluations * speed.evaluation
    at_once = counted(processes, "process", "processes")
    return (
        f"{counted(len(jobs), 'arm')}, {counted(sum(len(job.cells) for job in jobs), 'measurement')}; "
        f"{counted(images, 'image')} to train on ({duration(speed.training)} per image), "
        f"{counted(evaluations, 'network evaluation')} ({duration(speed.evaluation)} per image)\n"
        f"about {duration(seconds / processes)} on this machine ({lab.device}, {at_once})"
    )
