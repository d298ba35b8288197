"""Running an experiment: train what is missing, measure what is missing, write what was found."""

from __future__ import annotations

import logging
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..common.devices import processes
from ..common.errors import InputError
from ..storage.files import make_folder, read_json, write_json
from ..training.trainer import Interrupted
from .arms import decisive, digest
from .base import Experiment, Measured
from .lab import Lab
from .plan import Job, describe_plan, jobs_of, probe
from .scales import Scale
from .writing import write_results

__all__ = ["plan_experiment", "run_experiment"]

logger = logging.getLogger("quarterarc")

ABOUT = "experiment.json"


def plan_experiment(experiment: Experiment, lab: Lab, seeds: Sequence[int], jobs: int = 1) -> str:
    """What `run_experiment` would do, and about how long it would take here."""
    wanted = jobs_of(experiment.cells(lab.scale, seeds))
    return f"{experiment.name}: {experiment.title}\n{describe_plan(lab, wanted, jobs, probe(lab))}"


def run_experiment(
    experiment: Experiment, lab: Lab, seeds: Sequence[int], out: Path, *, jobs: int = 1, command: str = ""
) -> Path | None:
    """Train the arms that are missing, measure the cells that are missing, and write the results.

    Args:
        experiment: which.
        lab: where arms and cells are kept.
        seeds: of training and of noise; the spread of results is over them.
        out: the folder of the results; it goes on if it holds the same experiment.
        jobs: how many processes arms are spread over.
        command: what makes these results again.

    Returns:
        The report; None in every process but the first.

    Raises:
        InputError: for an output folder that holds something else, and what training and measuring refuse.
        Interrupted: if a signal asked to stop; the same call goes on.
    """
    first = not processes().rank
    if first:
        _claim_folder(out, experiment, lab.scale)
    wanted = jobs_of(experiment.cells(lab.scale, seeds))
    if any(cell.measure == "quality" for job in wanted for cell in job.cells):
        _ = lab.extractor, lab.reference  # what is missing should be missed before hours of training
    _run_all(lab, wanted, jobs)
    findings = experiment.report(Measured(lab, seeds))
    if not first:
        return None
    cells = [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "measure": cell.measure,
            "settings": dict(cell.settings),
            "values": lab.measured(cell),
        }
        for job in wanted
        for cell in job.cells
    ]
    write_results(out, _about(experiment, lab, seeds, wanted, command), cells, findings)
    write_json(out / ABOUT, {**_identity(experiment, lab.scale), "complete": True})
    return out / "report.html"


def _claim_folder(out: Path, experiment: Experiment, scale: Scale) -> None:
    """Make the folder this experiment's, or see that it is already."""
    identity = _identity(experiment, scale)
    if (out / ABOUT).is_file():
        there = read_json(out / ABOUT)
        if not isinstance(there, dict) or any(there.get(name) != value for name, value in identity.items()):
            there = there if isinstance(there, dict) else {}
            other = next(name for name, value in identity.items() if there.get(name) != value)
            raise InputError(
                f"{out} holds another experiment, of {other} '{there.get(other)}' where this has '{identity[other]}': "
                "give another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds other files and no {ABOUT}: give an empty folder as --out")
    make_folder(out)
    write_json(out / ABOUT, {**identity, "complete": False})


def _identity(experiment: Experiment, scale: Scale) -> dict[str, Any]:
    return {"experiment": experiment.name, "scale": scale.name, "recipe": digest(decisive(scale.recipe))}


# --- the work -------------------------------------------------------------------------------------------------------


def _run_all(lab: Lab, wanted: Sequence[Job], jobs: int) -> None:
    """Train and measure; with several jobs, arms are spread over as many processes."""
    missing = [job for job in wanted if not _done(lab, job)]
    total = sum(len(job.cells) for job in missing)
    done: Iterable[int]
    with tqdm(total=total, unit="cell", desc="measure", disable=None if lab.progress else True) as bar:
        done = _in_processes(lab, missing, jobs) if jobs > 1 and len(missing) > 1 else _in_turn(lab, missing)
        for count in done:
            bar.update(count)


def _done(lab: Lab, job: Job) -> bool:
    return lab.images_left(job.arm, job.seed) == 0 and all(lab.kept(cell) for cell in job.cells)


def _in_turn(lab: Lab, missing: Sequence[Job]) -> Iterator[int]:
    for job in missing:
        lab.trained(job.arm, job.seed)
        for cell in job.cells:
            lab.measured(cell)
            yield 1


def _in_processes(lab: Lab, missing: Sequence[Job], jobs: int) -> Iterator[int]:
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_quiet, initargs=(max(1, torch.get_num_threads() // jobs),)
    )
    with pool:
        running = [pool.submit(_one_job, lab.scale, lab.cache, str(lab.device), job) for job in missing]
        try:
            for future in running:
                stopped, error = future.result()
                if stopped:
                    raise Interrupted(stopped, lab.cache)
                if error:
                    raise InputError(error)
                yield 1
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _quiet(threads: int) -> None:
    """A worker's share of the processor."""
    torch.set_num_threads(threads)


def _one_job(scale: Scale, cache: Path, device: str, job: Job) -> tuple[int, str]:
    """In a process of its own: the signal that stopped it, and what was wrong; neither, if all went well."""
    lab = Lab(scale, cache, device, progress=False)
    try:
        for _ in _in_turn(lab, [job]):
            pass
    except Interrupted as stopped:
        return stopped.signal, ""
    except InputError as error:
        return 0, str(error)
    return 0, ""


# --- what is said of it ---------------------------------------------------------------------------------------------


def _about(
    experiment: Experiment, lab: Lab, seeds: Sequence[int], wanted: Sequence[Job], command: str
) -> dict[str, Any]:
    scale = lab.scale
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale.name,
        "seeds": list(seeds),
        "setting": _setting(scale),
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
                "images": job.arm.recipe(scale, job.seed).training.steps * scale.recipe.training.batch,
            }
            for job in wanted
        ],
        "cells": sum(len(job.cells) for job in wanted),
    }


def _setting(scale: Scale) -> str:
    """What all arms share, in words."""
    recipe = scale.recipe
    data, network, training = recipe.data, recipe.network, recipe.training
    return (
        f"All arms share the network (a U-Net of {network.channels} channels, multipliers "
        f"{', '.join(map(str, network.multipliers))}, {_many(network.blocks, 'block')} a level), the optimiser, the "
        f"data ({Path(data.source).name}, {data.height}x{data.width} pixels, {_many(data.channels, 'channel')}"
        f"{f', the first {data.limit:,} images' if data.limit else ''}), the number of images seen "
        f"({training.steps * training.batch:,} in {training.steps:,} steps of {training.batch}, unless an arm's name "
        f"says otherwise), T = {scale.all_steps} and the evaluation: {scale.images:,} images a measurement "
        f"({scale.few:,} for every method alike where a trajectory takes more than half of the schedule's steps), from "
        f"the same noise, on '{scale.features}' features against the training images. Unless a row "
        "says otherwise the grid is uniform in the schedule's time from pure noise, and estimates are used as the "
        "network gives them: neither clipped nor made to agree."
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _commit() -> str:
    """The commit of the working tree that this package runs from; "unknown" for an installed one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
