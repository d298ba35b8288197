"""Run folders, which training writes and denoisers are loaded from.

    RUN/recipe.yaml                     the recipe
    RUN/metrics.jsonl                   losses, one line per `training.log_every` steps
    RUN/samples/step-00000500.png       a contact sheet of images from fixed seeds
    RUN/checkpoints/step-00000500/      config.json, model.safetensors (the moving average), the training state, and
                                        tuned.json if grids were tuned for it

A checkpoint folder gets its name once it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..common.errors import InputError

__all__ = [
    "CONFIG",
    "LOCK",
    "WEIGHTS",
    "checkpoint_name",
    "checkpoints",
    "is_run",
    "locked",
    "newest_checkpoint",
    "read_newest",
]

CONFIG, WEIGHTS, LOCK = "config.json", "model.safetensors", ".lock"
Value = TypeVar("Value")
_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    """The folder name of the checkpoint after `step` optimiser steps."""
    return f"step-{step:08d}"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a complete checkpoint."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def is_run(path: Path) -> bool:
    """Whether a folder is a run, or a checkpoint."""
    return (path / "recipe.yaml").is_file() or (path / "checkpoints").is_dir() or is_checkpoint(path)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    steps = [
        (int(match[1]), path) for path in (run / "checkpoints").glob("step-*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(steps) if is_checkpoint(path)]


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
        raise InputError(f"{path} contains no complete checkpoint: train with `quarterarc train RECIPE --out {path}`")
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


@contextmanager
def locked(folder: Path, work: str = "training") -> Iterator[None]:
    """Lock a folder for writing; the operating system releases the lock when the process ends.

    Args:
        folder: a run or sample folder.
        work: what a process that holds the lock does, for the message.

    Raises:
        InputError: if another process has locked it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is {work} in {folder}: wait for it, or choose another folder (--out)"
        ) from None
    try:
        yield
    finally:
        lock.release()
