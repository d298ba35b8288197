"""`distill`: from a teacher to a flow map that makes images in one to four evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from ..denoiser import Denoiser
from ..schedules import schedule
from ..storage.checkpoints import load
from ..storage.files import read_json
from ..storage.runs import CONFIG
from .api import train
from .recipe import OBJECT, TEACHER, Recipe
from .recipe_text import read_recipe
from .teachers import check_teacher

__all__ = ["distill", "distillation_recipe"]

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
        teacher: a run folder, a checkpoint, or a `Denoiser` with a U-Net, whose weights the map starts with.
        out: the run folder of the map, which is that of a training run.
        data: images as for `train`; by default images that the teacher makes.
        fields: fields of the recipe by dotted name, see `distillation_recipe`.
        device, resume, progress: as for `train`.

    Returns:
        The folder of the newest checkpoint.

    Raises:
        InputError: for a denoiser that cannot be a teacher, and as for `train`.
    """
    given = teacher if isinstance(teacher, Denoiser) else None
    recipe = distillation_recipe(teacher, fields)
    return train(recipe, out, data=data, device=device, resume=resume, progress=progress, teacher=given)


def distillation_recipe(teacher: str | Path | Denoiser, fields: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a distillation: network, schedule and head of the teacher, and the settings of its training.

    From the recipe of a run come the batch, the optimiser at half its learning rate, the average and two thirds of
    the steps.

    Args:
        teacher: as for `distill`.
        fields: further fields by dotted name: `{"teacher.guidance": 2.0, "training.steps": 1000}`.

    Raises:
        InputError: for a denoiser that cannot be a teacher, or as for `read_recipe`.
    """
    denoise = teacher if isinstance(teacher, Denoiser) else load(teacher)
    # the checkpoint and not the run, whose newest checkpoint may be another one when the distillation is resumed
    source = OBJECT if isinstance(teacher, Denoiser) else str(denoise.checkpoint)
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
        "schedule": {"name": denoise.schedule.name, "steps": denoise.schedule.steps},
        "network": _network(denoise),
        "head": denoise.head.name,
        "objective": {"name": "flow-map"},
        "teacher": {"source": source},
        **_training(denoise),
    }  # fmt: skip
    try:
        schedule(denoise.schedule.name, denoise.schedule.steps)
    except InputError:  # the teacher's own, which the map has too
        del values["schedule"]
    return read_recipe(values, fields=fields)


def _network(denoise: Denoiser) -> dict[str, Any]:
    """The section `network` of the teacher's U-Net."""
    config = denoise.network.config  # type: ignore[attr-defined]
    assert denoise.shape is not None
    sizes = [-(-denoise.shape[1] // 2**level) for level in range(len(config["multipliers"]))]
    named = ("channels", "blocks", "dropout", "head_channels")
    further = ("groups", "epsilon", "symmetric", "frequency_shift", "cosine_first")
    return {
        **{name: config[name] for name in named},
        "multipliers": [int(multiplier) for multiplier in config["multipliers"]],
        "attention": [sizes[level] for level in config["attention"]],
        "arguments": {name: config[name] for name in further},
    }


def _training(denoise: Denoiser) -> dict[str, Any]:
    """The sections of training, from the recipe in the teacher's checkpoint if it has one."""
    recipe = None
    if denoise.checkpoint is not None:
        recipe = read_json(denoise.checkpoint / CONFIG).get("recipe")
    if recipe is None:
        return {"optimizer": {"learning_rate": 1e-4, "decay": "cosine"}, "training": {"steps": STEPS}}
    known = read_recipe(recipe)
    optimizer = known.optimizer.model_copy(
        update={"learning_rate": known.optimizer.learning_rate / 2, "decay": "cosine"}
    )
    steps = max(1, known.training.steps * 2 // 3)
    return {
        "optimizer": {**optimizer.model_dump(mode="json"), "warmup": "auto"},
        "ema": known.ema.model_dump(mode="json"),
        "training": {**known.training.model_dump(mode="json"), "steps": steps},
    }
