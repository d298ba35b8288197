"""`train`: from a recipe and images to a run folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from ..common.devices import pick_device, processes
from ..common.errors import InputError
from ..common.memory import memory_checked
from ..data import DataSpec, is_open, memory_spec
from ..data.memory import MEMORY
from ..denoiser import Denoiser
from ..storage.files import make_folder, replace_file
from ..storage.locks import locked
from ..storage.runs import checkpoints, steps_of
from ..storage.training_state import drop_old, set_aside, sweep_run
from .initial import read_start, recipe_from
from .log import check_not_lost
from .recipe import Recipe, differences
from .recipe_text import read_recipe, recipe_fields
from .trainer import CORRECTIONS, MAY_CHANGE, Trainer

__all__ = ["train"]

logger = logging.getLogger("quarterarc")

CHANGES = "changes.jsonl"
"""The record of a run's fields that changed when it was resumed."""


def train(
    recipe: Recipe | str | Path | Mapping[str, Any] | None,
    out: str | Path,
    *,
    data: Any = None,
    fields: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
    teacher: Denoiser | None = None,
) -> Path:
    """Train a network by a recipe.

        run = qa.train(qa.Recipe(data="photos/", size=64), "runs/mine")
        run = qa.train("digits", "runs/short", fields={"training.steps": 100})
        denoise = qa.load(run)

    Args:
        recipe: a `Recipe`, the name of a recipe of the package ("digits", "cifar10", ...), the path of a YAML file, or
            a mapping of a recipe's fields; with `resume` also None, for the recipe of the run.
        out: the run folder.
        data: images in place of the recipe's: a path or name (`DataSpec.source`), a `DataSpec`, a mapping of its
            fields, or images in memory: a tensor or array, uint8 (N, C, H, W), a pair of it and labels (N,), a list of
            PIL images, or a `datasets.Dataset`; or opened data (`quarterarc.data.open_data`). Tensors, arrays and
            opened data determine `data.size` and `data.channels`, unless the recipe has `data.source: memory`.
        fields: further fields of the recipe by dotted name: `{"training.steps": 100, "network.channels": 64}`.
        device: device to train on; by default the one that `accelerate` selects, a GPU if there is one. Several
            processes are started with `accelerate launch`, and each takes its own GPU.
        resume: continue from the newest complete checkpoint, or start if there is none yet. From the recipe of the run
            may differ: the number of steps and how often files are written; and, recorded in changes.jsonl, the
            learning rate, the clip and the precision (after a divergence), `training.accumulate` and `training.compile`
            (which change the weights by rounding alone), and the places of the same images and the same teacher.
        progress: show progress: a bar, or lines in a log file.
        teacher: for a recipe with a teacher, the denoiser, in place of the folder that the recipe names.

    Returns:
        The folder of the newest checkpoint, which `qa.load` accepts.

    Raises:
        InputError: for a recipe, data, network or device that cannot be used; a folder that is in use, already contains
            a run, or cannot be written to; a batch that cannot be divided among the processes.
        Diverged: if the gradient is not finite; no checkpoint is written after that.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """
    given = None if recipe is None else _with_changes(recipe, data, fields, device)
    images = None if data is None or isinstance(data, str | PurePath | DataSpec | Mapping) else data
    with _accelerator(device) as accelerator:  # raises before the folder is made
        existed = Path(out).exists()
        run = make_folder(Path(out))
        main = accelerator.is_main_process
        with locked(run) if main else nullcontext(), ExitStack() as opened:
            # another process may have made the folder and trained in it before the lock was acquired
            new = not (existed or (run / "checkpoints").exists() or (run / "recipe.yaml").exists())
            try:
                chosen = _recipe_of_run(given, run, resume)
                if given is None and (data is not None or fields):
                    chosen = _recipe_of_run(_with_changes(chosen, data, fields), run, resume)
                _check_steps(chosen, run)
                start = None if checkpoints(run) else read_start(chosen)
                if start is not None:
                    chosen = recipe_from(chosen, start)
                changes = _corrections(chosen, run)
                check_not_lost(run)
                accelerator.wait_for_everyone()  # every process has read the run before the first one writes to it
                # before anything slow, such as reading the images
                written = _recipe_written(chosen, run) if main and not checkpoints(run) else nullcontext()
                with written, memory_checked(lambda: _building(chosen)):
                    trainer = opened.enter_context(
                        closing(Trainer(chosen, run, accelerator, progress, images, teacher, start))
                    )
                if changes.keys() - {"teacher.source"} and trainer.step >= chosen.training.steps:
                    raise InputError(
                        f"{run} is complete at step {trainer.step}, and {', '.join(changes)} would have no effect: "
                        "raise training.steps too, or choose another folder (--out)"
                    )
            except BaseException:
                if main and new:
                    shutil.rmtree(run, ignore_errors=True)  # training has not begun
                raise
            accelerator.wait_for_everyone()  # every process has restored its checkpoint
            if main:
                set_aside(trainer.damaged)
                sweep_run(run)
                drop_old(run, chosen.training.keep)  # a process may have been killed between writing and deleting
                _record(changes, run, trainer.step)
                _write_recipe(chosen, run)
            accelerator.wait_for_everyone()
            return trainer.run_to_end()


@contextmanager
def _recipe_written(recipe: Recipe, run: Path) -> Iterator[None]:
    """Write the recipe; on an error in the block, put back what was there before."""
    path = run / "recipe.yaml"
    before = path.read_bytes() if path.is_file() else None
    _write_recipe(recipe, run)
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
        raise


def _write_recipe(recipe: Recipe, run: Path) -> None:
    with replace_file(run / "recipe.yaml") as beside:
        beside.write_text(recipe.to_yaml(), encoding="utf-8")


def _with_changes(
    recipe: Recipe | str | Path | Mapping[str, Any],
    data: Any,
    fields: Mapping[str, Any] | None,
    device: torch.device | str | None = None,
) -> Recipe:
    """The recipe, for a device, with the data and fields that replace its own."""
    values = recipe_fields(recipe, device)
    section = values.get("data") or {}
    section = dict(section.model_dump(exclude_unset=True) if isinstance(section, DataSpec) else section)
    if isinstance(data, DataSpec):
        section = data.model_dump()
    elif isinstance(data, Mapping):
        section |= data
    elif isinstance(data, str | PurePath):
        section["source"] = str(data)
    elif data is not None:
        section = _describe_images(section, data)
    return read_recipe({**values, "data": section} if section else values, fields=fields)


def _describe_images(section: Mapping[str, Any], images: Any) -> dict[str, Any]:
    """The section `data` of a recipe for images in memory, from that of the recipe and the images."""
    if is_open(images):
        height, width, channels, labels = images.height, images.width, images.channels, images.classes is not None
    else:
        spec = memory_spec(images)
        height, width, channels, labels = spec.height, spec.width, spec.channels, bool(spec.labels)
    own = {"size": height if height == width else (height, width), "channels": channels, "labels": labels}
    pixels = images[0] if isinstance(images, tuple) else images
    exact = is_open(images) or isinstance(pixels, Tensor | np.ndarray)
    if exact and section.get("source", MEMORY) != MEMORY:  # size and crop are those of other images
        return {**section, **own, "crop": "none", "source": MEMORY}
    own["labels"] = labels or (section.get("labels", False) and not is_open(images))
    return {**own, **section, "labels": own["labels"], "source": MEMORY}


def _recipe_of_run(given: Recipe | None, run: Path, resume: bool) -> Recipe:
    """The recipe to train by: the given one or, when resuming, that of the run, which must not differ.

    Raises:
        InputError: if there is no recipe, the folder already contains a run, or the recipes differ.
    """
    saved = read_recipe(run / "recipe.yaml") if (run / "recipe.yaml").is_file() else None
    if not resume:
        if given is None:
            raise InputError("training needs a recipe; it can be left out only to resume a run")
        if saved is not None and checkpoints(run):
            raise InputError(
                f"{run} already contains a run, up to {checkpoints(run)[-1].name}: resume it (--resume), or choose "
                "another folder (--out)"
            )
        return given
    if given is None:
        if saved is None:
            raise InputError(f"{run} contains no run to resume: give a recipe")
        return saved
    if saved is not None and checkpoints(run):
        if given.training.init is not None and given.training.init == saved.training.init:
            given = _with_network_of(saved, given)
        resolved = {name for name, _, _ in differences(saved.resolved(), given.resolved())}
        changed = sorted(
            name
            for name, _, _ in differences(saved, given)
            if name in resolved and name not in MAY_CHANGE + CORRECTIONS
        )
        if changed:
            raise InputError(
                f"{run} was trained by another recipe (it differs in {', '.join(changed)}): resume with the same "
                "recipe, or choose another folder (--out)"
            )
    return given


def _check_steps(recipe: Recipe, run: Path) -> None:
    """Raise an InputError for a run that has more steps than the recipe."""
    complete, steps = checkpoints(run), recipe.training.steps
    if complete and steps < (done := steps_of(complete[-1])):
        raise InputError(
            f"training.steps={steps}, but {run} is at step {done}: give at least {done}, or choose another folder "
            "(--out)"
        )


def _with_network_of(saved: Recipe, given: Recipe) -> Recipe:
    """The recipe to resume by, with the network of the model that the run started from, which is not read again."""
    network = saved.network
    if network.name == given.network.name == "unet":
        network = network.model_copy(update={"dropout": given.network.dropout})
    return given.model_copy(update={"network": network})


def _corrections(recipe: Recipe, run: Path) -> dict[str, tuple[Any, Any]]:
    """Old and new value of the fields of `CORRECTIONS` that differ from the recipe of a run with checkpoints."""
    if not ((run / "recipe.yaml").is_file() and checkpoints(run)):
        return {}
    changed = differences(read_recipe(run / "recipe.yaml"), recipe)
    return {name: (before, after) for name, before, after in changed if name in CORRECTIONS}


def _record(changes: Mapping[str, tuple[Any, Any]], run: Path, step: int) -> None:
    """Append the changed fields to changes.jsonl, with the step from which they apply."""
    for name, (before, after) in changes.items():
        logger.info("from step %d: %s=%s (it was %s)", step, name, after, before)
        with (run / CHANGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "field": name, "before": before, "after": after}) + "\n")


def _building(recipe: Recipe) -> str:
    network, data = recipe.network, recipe.data
    return (
        f"the network '{network.name}' (network.channels={network.channels}) for images of {data.height}x{data.width} "
        "pixels cannot be built: choose smaller network.channels or data.size"
    )


@contextmanager
def _accelerator(device: torch.device | str | None) -> Iterator[Accelerator]:
    """The processes of this run; on the given device, or the one that accelerate selects."""
    # the denoiser applies autocast itself, in training as in sampling
    if device is None:
        processes()  # connects them where accelerate alone would not
        yield Accelerator(mixed_precision="no")
        return
    chosen = pick_device(str(device))
    # accelerate keeps its state per process, and reads the device from the environment when the state is created
    variable = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(variable)
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    os.environ[variable] = str(chosen)
    try:
        processes(cpu=chosen.type == "cpu")
        accelerator = Accelerator(mixed_precision="no", cpu=chosen.type == "cpu")
        if accelerator.device.type != chosen.type:
            raise InputError(
                f"the processes of this run are on {accelerator.device.type}, not on {chosen}: leave out the device, "
                "or start them with it"
            )
        yield accelerator
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
        if PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # the next run selects its device anew
