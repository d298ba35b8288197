"""Trackers: losses and contact sheets of a run in TensorBoard, Weights & Biases and others, through `accelerate`.

They receive what is written to RUN/metrics.jsonl and RUN/samples, on a thread of their own: a slow or broken service
does not stop training.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..common.errors import InputError
from ..common.registry import import_attribute
from ..common.text import one_line
from ..storage.files import read_json, write_json
from ..storage.pictures import to_picture
from .recipe import TRACKERS, Recipe, flatten

__all__ = ["Trackers", "check_trackers"]

logger = logging.getLogger("quarterarc")

PROJECT = "quarterarc"
"""The project of the runs, where a tracker has projects."""
IDENTITY = "trackers.json"
"""The file of a run folder with the name under which a resumed run continues at a tracker."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise an InputError for a tracker whose package is missing, or which cannot be imported."""
    for name in names:
        if name in TRACKERS and find_spec(name) is None:
            raise InputError(f"training.track={name} needs {name}, which is not installed: pip install {name}")
        _class_of(name)


def _class_of(name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    if name in TRACKERS:
        return LOGGER_TYPE_TO_CLASS[name]
    tracker = import_attribute(name, "tracker")
    if not (isinstance(tracker, type) and issubclass(tracker, GeneralTracker)):
        raise InputError(f"the tracker '{name}' is not a class derived from accelerate.tracking.GeneralTracker")
    return tracker


class Trackers:
    """The trackers of a run, in its first process.

    Args:
        recipe: the recipe; `training.track` names the trackers, and all fields are recorded by them.
        run: the run folder.
        step: the step that the run starts from.

    Raises:
        InputError: if a tracker cannot be started, for example for lack of an account.
    """

    def __init__(self, recipe: Recipe, run: Path, step: int) -> None:
        self._run = run
        self._active: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="track")
        chosen = recipe.training.track
        for name in ("tensorboard",) if chosen == "auto" else chosen:
            try:
                tracker = _started(name, run, step)
                if name != "tensorboard":  # which would make a folder with a curve of its own for them
                    tracker.store_init_configuration({field: _plain(value) for field, value in flatten(recipe)})
            except ImportError as error:
                if chosen == "auto":  # the extra quarterarc[tensorboard] is not installed
                    continue
                raise _cannot_start(name, error) from None
            except Exception as error:  # code and services from outside this package
                self.close()
                raise _cannot_start(name, error) from None
            self._active[name] = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a line of the log."""
        numbers = {name: float(value) for name, value in values.items()}
        self._submit(lambda tracker: tracker.log(numbers, step=step))

    def show(self, sheets: Mapping[str, Tensor], step: int) -> None:
        """Send contact sheets, uint8 (C, H, W), by name."""
        for name, pixels in sheets.items():
            array = np.asarray(to_picture(pixels).convert("RGB"))
            self._submit(lambda tracker, name=name, array=array: _show(tracker, name, array, step))

    def close(self) -> None:
        """Send what is left, and end the trackers."""
        self._submit(lambda tracker: tracker.finish())
        self._thread.shutdown()

    def _submit(self, send: Callable[..., object]) -> None:
        for name in [*self._active]:
            self._thread.submit(self._send, name, send)

    def _send(self, name: str, send: Callable[..., object]) -> None:
        """Call a tracker; after an error, which is a warning, it receives nothing more."""
        if name not in self._active:
            return
        try:
            send(self._active[name])
        except Exception as error:  # code and services from outside this package
            del self._active[name]
            if self._run.is_dir():  # training reports a run folder that is gone
                logger.warning("the tracker %s receives nothing more (%s); training goes on", name, one_line(error))


def _started(name: str, run: Path, step: int) -> Any:
    """A tracker after its start."""
    kind = _class_of(name)
    options: dict[str, Any] = {}
    if name == "tensorboard":  # RUN/tensorboard; what was written after the checkpoint is written again
        options = {"purge_step": step + 1 if step else None}
    elif name == "wandb":
        options = {"name": run.resolve().name, "dir": str(run), "id": _identity(run, step), "resume": "allow"}
    elif name == "trackio":
        options = {"name": f"{run.resolve().name}-{_identity(run, step)}", "resume": "allow"}
    project = name if name == "tensorboard" else PROJECT
    arguments = (project, str(run)) if kind.requires_logging_directory else (project,)
    tracker = kind(*arguments, **options)
    tracker.start()
    return tracker


def _identity(run: Path, step: int) -> str:
    """The name of a run at its trackers: that of the run folder if the run is resumed, otherwise a new one."""
    path = run / IDENTITY
    if step:
        with suppress(InputError, KeyError, TypeError):
            return str(read_json(path)["id"])
    identity = secrets.token_hex(4)
    write_json(path, {"id": identity})
    return identity


def _show(tracker: Any, name: str, array: np.ndarray, step: int) -> None:
    """Send a picture to a tracker that takes pictures."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: array[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: [array]}, step=step)
    elif tracker.name == "trackio":  # accelerate's class for it has no method for pictures
        import trackio

        tracker.log({name: trackio.Image(array)}, step=step)


def _plain(value: Any) -> Any:
    """A value of a recipe as trackers take it: numbers, text and booleans."""
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _cannot_start(name: str, error: Exception) -> InputError:
    return InputError(
        f"training.track={name} cannot be started ({one_line(error)[:200]}): set it up, or leave it out of "
        "training.track"
    )
