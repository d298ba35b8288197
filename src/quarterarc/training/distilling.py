"""`distill`: from a teacher to a flow map that makes images in one to four evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from ..denoiser import Denoiser
from ..interop.pipeline_folders import is_pipeline
from ..interop.pipelines import with_own_network
from ..storage.files import read_json
from ..storage.runs import CONFIG, checkpoints, is_checkpoint, newest_checkpoint
from .api import train
from .recipe import OBJECT, TEACHER, Recipe
from .recipe_text import read_recipe
from .teachers import check_sections, check_teacher, read_teacher, sections_of

__all__ = ["distill", "distillation_recipe", "recipe_of_map", "resumed_recipe"]

STEPS = 600
"""Optimiser steps of a distillation from a teacher without a recipe."""


def distill(
    teacher: str | Path | Denoiser,
    out: str | Path,
    *,
    data: Any = None,
    fields: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Distil a denoiser into a flow map, which makes images in one to four evaluations.

        run = qa.distill("runs/digits", "runs/map")
        images = qa.generate(qa.load(run), range(64), steps=1)

    Args:
        teacher: a run folder, a checkpoint, an unconditional or class-conditional diffusers pipeline folder, or a
            `Denoiser` with a U-Net, whose weights the map starts with.
        out: the run folder of the map, which is that of a training run.
        data: images as for `train`; by default images that the teacher makes.
        fields: fields of the recipe by dotted name, see `distillation_recipe`.
        device, progress: as for `train`.
        resume: as for `train`; the recipe is that of the run, and the teacher may be at another place.

    Returns:
        The folder of the newest checkpoint.

    Raises:
        InputError: for a denoiser that cannot be a teacher, and as for `train`.
    """
    if not isinstance(teacher, str | PathLike | Denoiser):
        raise InputError(
            f"a teacher is a Denoiser or the path of a trained one, got a {type(teacher).__name__}: give the Denoiser "
            "that it wraps; guidance is the field 'teacher.guidance'"
        )
    given = teacher if isinstance(teacher, Denoiser) else None
    teacher = teacher if isinstance(teacher, Denoiser) else Path(teacher).expanduser()
    begun = resumed_recipe(teacher, Path(out)) if resume else None
    recipe = distillation_recipe(teacher, fields) if begun is None else read_recipe(begun, fields=fields)
    return train(recipe, out, data=data, device=device, resume=resume, progress=progress, teacher=given)


def resumed_recipe(teacher: str | Path | Denoiser, run: Path) -> Recipe | None:
    """The recipe of a distillation that has begun, with its teacher at the place where it is now.

    Args:
        teacher: as for `distill`; of a run folder the checkpoint that the distillation began with, if it is there.
        run: the run folder of the map.

    Returns:
        The recipe; None if the run has no checkpoint yet.

    Raises:
        InputError: for a run without a teacher, and a place without one.
    """
    if not checkpoints(run):
        return None
    recipe = read_recipe(str(run / "recipe.yaml"))
    if recipe.teacher is None:
        raise InputError(
            f"{run} contains a run that has no teacher: resume it by `quarterarc train --out {run} --resume`, or "
            "choose another folder (--out)"
        )
    if isinstance(teacher, Denoiser):
        place = OBJECT
    else:
        same = Path(teacher) / "checkpoints" / Path(recipe.teacher.source).name
        place = str(same if is_checkpoint(same) else _place(teacher))
    return read_recipe(recipe, fields={"teacher.source": place})


def _place(teacher: str | Path) -> str | Path:
    """The checkpoint and not the run, whose newest one may be another when the distillation is resumed."""
    return teacher if is_pipeline(teacher) else newest_checkpoint(teacher)


def distillation_recipe(
    teacher: str | Path | Denoiser, fields: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe of a distillation: network, schedule and head of the teacher, and the settings of its training.

    From the recipe of a run come the batch, the optimiser at half its learning rate, the average and the number
    of steps.

    Args:
        teacher: as for `distill`.
        fields: further fields by dotted name: `{"teacher.guidance": 2.0, "training.steps": 1000}`.
        overrides: further fields as text, as for `read_recipe`.

    Raises:
        InputError: for a denoiser that cannot be a teacher, fields in which the map would differ from it, or as for
            `read_recipe`.
    """
    denoise = with_own_network(teacher) if isinstance(teacher, Denoiser) else read_teacher(teacher)
    source = OBJECT if isinstance(teacher, Denoiser) else str(denoise.checkpoint or teacher)
    check_teacher(denoise, source)
    if denoise.shape is None:
        raise InputError(
            f"the teacher {source} does not declare the shape of its images: Denoiser(..., shape=(C, H, W))"
        )
    channels, height, width = denoise.shape
    values: dict[str, Any] = {
        "name": "distillation",
        "data": {
            "source": TEACHER, "size": height if height == width else [height, width], "channels": channels,
            "labels": denoise.classes is not None,
        },
        **sections_of(denoise),
        "objective": {"name": "flow-map"},
        "teacher": {"source": source},
        **_training(denoise),
    }  # fmt: skip
    recipe = read_recipe(values, overrides, fields)
    check_sections(recipe, denoise, source)
    return recipe


def _training(denoise: Denoiser) -> dict[str, Any]:
    """The sections of training, from the recipe in the teacher's checkpoint if it has one."""
    recipe = None
    if denoise.checkpoint is not None and is_checkpoint(denoise.checkpoint):  # and not the folder of a pipeline
        recipe = read_json(denoise.checkpoint / CONFIG).get("recipe")
    if recipe is None:
        dropped = {} if denoise.unlabelled else {"drop_labels": 0.0}
        return {"optimizer": {"learning_rate": 1e-4, "decay": "cosine"}, "training": {"steps": STEPS, **dropped}}
    return _settings(read_recipe(recipe))


def _settings(known: Recipe) -> dict[str, Any]:
    """The sections of training, from the recipe of the teacher."""
    optimizer = known.optimizer.model_copy(
        update={"learning_rate": known.optimizer.learning_rate / 2, "decay": "cosine"}
    )
    return {
        "optimizer": {**optimizer.model_dump(mode="json"), "warmup": "auto"},
        "ema": known.ema.model_dump(mode="json"),
        "training": known.training.model_dump(mode="json"),
    }


def recipe_of_map(teacher: Recipe, source: str) -> Recipe:
    """The recipe of a distillation from that of its teacher, as `distillation_recipe` makes it from the trained run.

    Args:
        teacher: the recipe of the teacher.
        source: the teacher's place, `teacher.source`.
    """
    data = teacher.data.model_dump(mode="json", include={"size", "channels", "labels"})
    return read_recipe(
        {
            "name": "distillation",
            "data": {**data, "source": TEACHER},
            **teacher.model_dump(mode="json", include={"schedule", "network", "head"}),
            "objective": {"name": "flow-map"},
            "teacher": {"source": source},
            **_settings(teacher),
        }
    )
