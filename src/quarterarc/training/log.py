"""The log of a run: losses in metrics.jsonl, and what its trackers receive."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..storage.files import parse_json, read_regular, replace_file
from ..storage.runs import CONFIG, WEIGHTS, checkpoints
from .recipe_text import read_recipe
from .tracking import Trackers

__all__ = ["LOGGED", "Log", "Pending", "check_not_lost", "read_log", "seconds_of"]

LOGGED = ("loss", "image", "noise", "velocity", "residual")
"""The losses of a line, in order; before version 0.2 the column `velocity` was named `gradient`."""


@dataclass
class Pending:
    """Mean losses since the last line of the log; saved in checkpoints, so that a resumed run writes the same lines.

    Attributes:
        means: mean of each of `LOGGED`, shape (5,); 0 before the first step.
        steps: number of optimiser steps in the mean.
    """

    means: Tensor | float = 0.0
    steps: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any], device: torch.device) -> Pending:
        """The pending losses of a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: for values that do not describe them.
        """
        means, steps = [float(mean) for mean in saved["means"]], saved["steps"]
        if len(means) != len(LOGGED) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"{len(means)} mean losses of {steps!r} steps")
        return cls(torch.tensor(means, device=device), steps)

    def add(self, losses: Tensor) -> None:
        """Include the losses of another step."""
        self.steps += 1
        self.means = self.means + (losses - self.means) / self.steps


class Log:
    """Writes metrics.jsonl, and sends its lines to trackers.

    Lines after the step that a run resumes from are removed, since they will be written again.

    Args:
        run: the run folder.
        step: the step that the run starts from.
        trackers: the trackers, which whoever started them closes.
    """

    def __init__(self, run: Path, step: int, trackers: Trackers) -> None:
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            with replace_file(path) as beside:
                beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.trackers = trackers

    def write(self, step: int, batch: int, means: dict[str, float], norm: float, rate: float, speed: float) -> None:
        """Write a line.

        Args:
            step: optimiser steps completed.
            batch: images per step.
            means: mean losses since the last line, and the held-out loss.
            norm: norm of the gradient of the weights, before clipping.
            rate: learning rate of the last step.
            speed: images per second.
        """
        line = {"step": step, "images": step * batch, **means, "gradient_norm": norm, "learning_rate": rate}
        self.file.write(json.dumps({**line, "images_per_second": round(speed, 1)}) + "\n")
        self.file.flush()
        self.trackers.log({name: value for name, value in line.items() if name not in ("step", "images")}, step)

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; the column `gradient` of older runs is named `velocity`."""
    path = run / "metrics.jsonl"
    lines = []
    for number, text in enumerate(read_regular(path).decode("utf-8", errors="replace").splitlines(), 1):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not all(isinstance(value, int | float) for value in line.values()):
            raise InputError(f"{path} is damaged: line {number} is not a line of the log: restore it from a copy")
        lines.append({"velocity" if name == "gradient" else name: value for name, value in line.items()})
    return lines


def seconds_of(log: Sequence[Mapping[str, Any]]) -> float:
    """The seconds of training without pauses, from the rate of each interval of a log, as `read_log` returns it."""
    intervals = [(line["images"], line["images_per_second"]) for line in log]
    before = [0, *(images for images, _ in intervals)]
    return float(sum((images - start) / rate for (images, rate), start in zip(intervals, before, strict=False)))


def check_not_lost(run: Path) -> None:
    """Raise an InputError for a run that had checkpoints and has none: starting over would empty its log."""
    if checkpoints(run):
        return
    left = sorted(path.name for path in (run / "checkpoints").glob("step-*") if not path.suffix)
    if left:
        reason = f"its newest, {left[-1]}, lacks {' and '.join(_missing(run / 'checkpoints' / left[-1]))}"
    else:
        last, every = _last_step(run), _checkpoint_every(run)
        if last <= every:  # stopped before its first checkpoint
            return
        reason = f"its log ends at step {last}, and its first checkpoint was due at step {every}"
    raise InputError(
        f"{run} has no complete checkpoint to continue from, but had some ({reason}): restore them from a copy, or "
        "start anew in another folder (--out)"
    )


def _missing(checkpoint: Path) -> list[str]:
    return [name for name in (CONFIG, WEIGHTS) if not (checkpoint / name).is_file()]


def _last_step(run: Path) -> int:
    """The last step in a run's log, or 0."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return int(max((step for step in map(_step_of, lines) if math.isfinite(step)), default=0))


def _checkpoint_every(run: Path) -> int:
    return read_recipe(run / "recipe.yaml").training.checkpoint_every if (run / "recipe.yaml").is_file() else 0


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf  # a line cut short by a kill, which will be written again
