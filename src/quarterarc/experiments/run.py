"""Running an experiment: trains the missing arms, measures the missing cells, and writes the results."""

from __future__ import annotations

import logging
import platform
import subprocess
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..common.devices import processes
from ..common.errors import InputError
from ..common.hashes import short_hash
from ..common.progress import progress_bar
from ..common.text import counted
from ..storage.files import make_folder, read_json, write_json
from ..storage.temporary import is_temporary, sweep
from .arms import decisive
from .base import Experiment, Measurements
from .lab import Lab
from .measuring import is_measured, measure
from .plan import Job, describe_cost, describe_plan, jobs_of, probe
from .scales import Scale
from .workers import in_processes
from .writing import write_results

__all__ = ["describe_setting", "plan_experiments", "run_experiment"]

logger = logging.getLogger("quarterarc")

ABOUT = "experiment.json"


def plan_experiments(experiments: Sequence[Experiment], lab: Lab, seeds: Sequence[int], jobs: int = 1) -> str:
    """The work of `run_experiment` as text, with an estimate of its time on this machine.

    The total of several experiments counts the arms and measurements that they share once.
    """
    speed, cells = probe(lab), [experiment.cells(lab.scale, seeds) for experiment in experiments]
    plans = [
        f"{experiment.name}: {experiment.title}\n{describe_plan(lab, jobs_of(own), jobs, speed)}"
        for experiment, own in zip(experiments, cells, strict=True)
    ]
    if len(experiments) > 1:
        together = describe_cost(lab, jobs_of([cell for own in cells for cell in own]), jobs, speed)
        plans.append(f"all {len(experiments)} experiments, with shared arms and measurements once\n{together}")
    return "\n".join(plans)


def run_experiment(
    experiment: Experiment, lab: Lab, seeds: Sequence[int], out: Path, *, jobs: int = 1, command: str = ""
) -> Path | None:
    """Train the missing arms, measure the missing cells, and write the results.

    Args:
        experiment: the experiment.
        lab: the lab, whose cache holds arms and cells.
        seeds: the seeds of training and noise; results have a spread over them.
        out: the folder of the results: new, empty, or with earlier results of the same experiment and scale.
        jobs: the number of processes among which arms are divided.
        command: the command that reproduces the results, for the report.

    Returns:
        The path of the report; None in all processes of a distributed run but the first.

    Raises:
        InputError: if the output folder holds something else, or if training or measuring raises it.
        Interrupted: if a signal stopped the run; the same call continues it.
    """
    first = not processes().rank
    if jobs > 1 and processes().count > 1:
        raise InputError(
            f"--jobs {jobs} starts processes of its own, but {processes().count} were started by torchrun or "
            "accelerate: use one of the two"
        )
    work = jobs_of(experiment.cells(lab.scale, seeds))
    compares = any(cell.measure == "quality" for job in work for cell in job.cells)
    if compares:
        _ = lab.data  # missing data raise before the folder of the results is made
    if first:
        _reserve_folder(out, experiment, lab.scale)
        lab.sweep()
    if compares:
        _ = lab.extractor, lab.reference  # missing weights raise before hours of training
    _run_all(lab, work, jobs)
    findings = experiment.report(Measurements(lab, seeds))
    cells = [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "measure": cell.measure,
            "settings": dict(cell.settings),
            "values": measure(lab, cell),
        }
        for job in work
        for cell in job.cells
    ]
    if not first:  # after measure, which all processes call together
        return None
    write_results(out, _about(experiment, lab, seeds, work, command), cells, findings)
    write_json(out / ABOUT, {**_identity(experiment, lab.scale), "complete": True})
    return out / "report.html"


def _reserve_folder(out: Path, experiment: Experiment, scale: Scale) -> None:
    """Create the folder and record the experiment in it.

    Raises:
        InputError: if the folder holds another experiment or other files.
    """
    identity = _identity(experiment, scale)
    if (out / ABOUT).is_file():
        recorded = read_json(out / ABOUT)
        recorded = recorded if isinstance(recorded, dict) else {}
        different = next((name for name, value in identity.items() if recorded.get(name) != value), None)
        if different is not None:
            raise InputError(
                f"{out} holds another experiment: its {different} is '{recorded.get(different)}', expected "
                f"'{identity[different]}': give another --out"
            )
    elif out.is_dir() and not all(map(is_temporary, out.iterdir())):
        raise InputError(f"{out} holds other files and no {ABOUT}: give an empty folder as --out")
    sweep(make_folder(out), out / "figures")
    write_json(out / ABOUT, {**identity, "complete": False})


def _identity(experiment: Experiment, scale: Scale) -> dict[str, Any]:
    return {"experiment": experiment.name, "scale": scale.name, "recipe": _scale_hash(scale)}


def _scale_hash(scale: Scale) -> str:
    fields = decisive(scale.recipe)
    given = [[network.label, network.arm, network.identity] for network in scale.pretrained]
    return short_hash([fields, given] if given else fields)


# --- the work -------------------------------------------------------------------------------------------------------


def _run_all(lab: Lab, work: Sequence[Job], jobs: int) -> None:
    """Train and measure what is missing; with several jobs, arms are divided among as many processes."""
    missing = processes().from_first([job for job in work if not _is_done(lab, job)])
    total = sum(len(job.cells) for job in missing)
    if jobs > 1 and len(missing) > 1:
        one_job = partial(_one_job, lab.scale, lab.cache, str(lab.device))
        work_done = in_processes(one_job, missing, min(jobs, len(missing)))
    else:
        work_done = _in_turn(lab, missing)
    with progress_bar(total, "cell", "measure", lab.progress) as bar, closing(work_done):
        for cells in work_done:
            bar.update(cells)


def _is_done(lab: Lab, job: Job) -> bool:
    return lab.images_left(job.arm, job.seed) == 0 and all(is_measured(lab, cell) for cell in job.cells)


def _in_turn(lab: Lab, missing: Sequence[Job]) -> Generator[int, None, None]:
    """The number of cells measured since the last item."""
    for job in missing:
        lab.denoiser(job.arm, job.seed)
        for cell in job.cells:
            measure(lab, cell)
            yield 1


def _one_job(scale: Scale, cache: Path, device: str, job: Job) -> Generator[int, None, None]:
    """`_in_turn` for one job, in a process of its own."""
    return _in_turn(Lab(scale, cache, device, progress=False), [job])


# --- the description of the results ---------------------------------------------------------------------------------


def _about(experiment: Experiment, lab: Lab, seeds: Sequence[int], work: Sequence[Job], command: str) -> dict[str, Any]:
    scale = lab.scale
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale.name,
        "seeds": list(seeds),
        "setting": describe_setting(scale),
        "command": command,
        "commit": _commit(),
        "quarterarc": __version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": str(lab.device),
        "recipe": scale.recipe.model_dump(mode="json"),
        "features": scale.features,
        "arms": [
            {
                "name": job.arm.name,
                "seed": job.seed,
                "hash": job.arm.hash(scale, job.seed),
                "fields": job.arm.fields,
                **_origin(job, scale),
            }
            for job in work
        ],
        "cells": sum(len(job.cells) for job in work),
    }


def _origin(job: Job, scale: Scale) -> dict[str, Any]:
    """The number of images that an arm was trained on; for a given network, its path and the hash of its content."""
    network = scale.given(job.arm.name)
    if network is not None:
        return {"given": network.path, "identity": network.identity}
    return {"images": job.arm.recipe(scale, job.seed).training.steps * scale.recipe.training.batch}


def describe_setting(scale: Scale) -> str:
    """What all arms share, in words."""
    recipe = scale.recipe
    data, network, training = recipe.data, recipe.network, recipe.training
    given = "".join(
        f"The network of the arm '{network.arm}' is given and was trained elsewhere: {Path(network.path).name} "
        f"(content {network.identity[:16]}). "
        for network in scale.pretrained
    )
    limit = f", the first {data.limit:,} images" if data.limit else ""
    kind = (
        f"a U-Net with {network.channels} base channels, channel multipliers "
        f"{', '.join(map(str, network.multipliers))} and {counted(network.blocks, 'residual block')} per level"
        if network.name == "unet"
        else f"'{network.name}' with the arguments {network.arguments}"
    )
    longer = ""
    if scale.noise_steps is not None:
        longer = f" ({scale.noise_steps:,} for networks that estimate the noise alone, as published)"
    return given + (
        f"All arms share the network ({kind}), the optimiser, the training images ({Path(data.source).name}, "
        f"{data.height}x{data.width} pixels, {counted(data.channels, 'channel')}{limit}), the length of training "
        f"({training.steps:,} steps{longer} with {counted(training.batch, 'image')} per batch, unless the arm's name "
        f"states a fraction of it), T = {scale.all_steps}, and the evaluation. Each measurement samples "
        f"{scale.images:,} images from the same initial noise ({scale.few:,} images, for all methods alike, where a "
        f"trajectory has more than half of T steps) and compares them with the training images in '{scale.features}' "
        "features. Losses are mean squared errors (mse) unless an arm is trained in another norm. Unless a row states "
        "otherwise, the sampling grid is uniform in the schedule's time and starts from pure noise, and the network's "
        "estimates are neither clipped nor projected onto image · cos + noise · sin = x. 'ours' is the full method of "
        "Zhang et al.: both estimates, schedule of the arc, gradient loss with γ = 1 and gradient sampler."
    )


def _commit() -> str:
    """The commit of the working tree that contains this package; "unknown" for an installed package."""
    package = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip() or "unknown"
