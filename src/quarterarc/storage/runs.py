"""Run folders, which training writes and denoisers are loaded from.

    RUN/recipe.yaml                     the recipe
    RUN/index.html                      a page with curves and contact sheets, rewritten while the run trains
    RUN/metrics.jsonl                   losses, one line per `training.log_every` steps
    RUN/samples/step-00000500.png       a contact sheet of images from fixed seeds
    RUN/checkpoints/step-00000500/      config.json, model.safetensors (the moving average), mean.safetensors (its mean
                                        image), the training state, and tuned.json if grids were tuned for it

A checkpoint folder gets its name once it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..common.errors import InputError
from ..common.text import counted

__all__ = [
    "CONFIG",
    "MEAN",
    "NEAREST",
    "TEACHER_IMAGES",
    "WEIGHTS",
    "checkpoint_name",
    "checkpoints",
    "half_deleted_checkpoints",
    "is_run",
    "newest_checkpoint",
    "read_newest",
    "run_of",
    "sheet_name",
    "sheets",
    "steps_of",
]

NEAREST = "nearest.png"
"""Samples beside their nearest training images, in a run folder that was evaluated so."""
TEACHER_IMAGES = "teacher-images.safetensors"
"""The images that a teacher made for the run of a flow map, so that a resumed run has the same ones."""
CONFIG, WEIGHTS, MEAN = "config.json", "model.safetensors", "mean.safetensors"
Value = TypeVar("Value")
_NAME = re.compile(r"step-(\d{8,})")
_SHEET = re.compile(r"step-(\d{8,})(?:-(\d+))?\.png")


def checkpoint_name(step: int) -> str:
    """The folder name of the checkpoint after `step` optimiser steps."""
    return f"step-{step:08d}"


def steps_of(checkpoint: Path) -> int:
    """The optimiser steps after which a checkpoint of a run was written, from the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def sheet_name(step: int, evaluations: int | None = None) -> str:
    """The name of the contact sheet after `step` optimiser steps; with the evaluations per image, for a flow map."""
    return f"{checkpoint_name(step)}{'' if evaluations is None else f'-{evaluations}'}.png"


def sheets(run: Path) -> dict[int, dict[str, Path]]:
    """The contact sheets of a run, by step and by a caption: the evaluations per image of a flow map, otherwise ""."""
    by_step: dict[int, dict[str, Path]] = {}
    for path in sorted((run / "samples").glob("step-*.png")):
        if match := _SHEET.fullmatch(path.name):
            caption = counted(int(match[2]), "evaluation") if match[2] else ""
            by_step.setdefault(int(match[1]), {})[caption] = path
    return by_step


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a complete checkpoint."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def is_run(path: Path) -> bool:
    """Whether a folder is a run, or a checkpoint."""
    return (path / "recipe.yaml").is_file() or (path / "checkpoints").is_dir() or is_checkpoint(path)


def run_of(path: str | Path) -> Path | None:
    """The run that a path belongs to: the path itself, or the folder of a run around a checkpoint.

    Returns:
        A folder with a recipe.yaml; None for another path, such as an exported model, whose training is unknown.
    """
    path = Path(path).expanduser()
    if is_checkpoint(path):
        folder = path.resolve().parent  # a relative path may have no parents in its text
        path = folder.parent if folder.name == "checkpoints" else path
    return path if (path / "recipe.yaml").is_file() else None


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in _by_step(run) if is_checkpoint(path)]


def half_deleted_checkpoints(run: Path) -> list[Path]:
    """The incomplete checkpoints of a run before its newest complete one; one after that is damaged."""
    folders = _by_step(run)
    complete = [place for place, path in enumerate(folders) if is_checkpoint(path)]
    return [path for path in folders[: complete[-1]] if not is_checkpoint(path)] if complete else []


def _by_step(run: Path) -> list[Path]:
    """The folders with the name of a checkpoint, oldest first."""
    steps = [
        (int(match[1]), path) for path in (run / "checkpoints").glob("step-*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(steps)]


def newest_checkpoint(path: str | Path) -> Path:
    """The newest complete checkpoint of a run folder; the path itself if it is a checkpoint folder.

    Raises:
        InputError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(
            f"{path} is a file: give the run folder or a checkpoint folder ({CONFIG} and {WEIGHTS}); "
            "pickled weights (.pt, .pth, .ckpt, .bin) are not read"
        )
    if not path.is_dir():
        raise InputError(f"no run at {path}: train one with `quarterarc train RECIPE --out {path}`")
    if is_checkpoint(path):
        return path
    complete = checkpoints(path) or checkpoints(path)  # training may have replaced the only one while it was listed
    if not complete and (path / "model_index.json").is_file():
        raise InputError(
            f"{path} is a diffusers pipeline, not a run: load it in Python with quarterarc.interop.load_pipeline"
        )
    if not complete:
        begun = "its training writes the first one after `training.checkpoint_every` steps, ten minutes or Ctrl-C"
        advice = begun if (path / "recipe.yaml").is_file() else f"train with `quarterarc train RECIPE --out {path}`"
        raise InputError(f"{path} contains no complete checkpoint: {advice}")
    return complete[-1]


def read_newest(path: str | Path, read: Callable[[Path], Value]) -> Value:
    """What `read` returns for the newest checkpoint of a run; again for a newer one if training deletes it meanwhile.

    Args:
        path: a run folder, or a checkpoint folder.
        read: reads a checkpoint folder.

    Raises:
        InputError: if there is no complete checkpoint, and what `read` raises for one that is still the newest.
    """
    while True:
        folder = newest_checkpoint(path)
        try:
            return read(folder)
        except (InputError, OSError):
            if newest_checkpoint(path) == folder:
                raise
