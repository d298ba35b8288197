"""The log of a run: losses in metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.files import replace_file

__all__ = ["LOGGED", "Log", "Pending", "read_log"]

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

    def add(self, losses: Tensor) -> None:
        """Include the losses of another step."""
        self.steps += 1
        self.means = self.means + (losses - self.means) / self.steps


class Log:
    """Writes metrics.jsonl and, if it is installed, TensorBoard's event files.

    Lines after the step that a run resumes from are removed, since they will be written again.

    Args:
        run: the run folder.
        step: the step that the run starts from.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            with replace_file(path) as beside:
                beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the extra quarterarc[tensorboard] is not installed
            self.board = None
        else:
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, batch: int, means: dict[str, float], norm: float, rate: float, speed: float) -> None:
        """Write a line.

        Args:
            step: optimiser steps completed.
            batch: images per step.
            means: mean losses since the last line.
            norm: norm of the gradient of the weights, before clipping.
            rate: learning rate of the last step.
            speed: images per second.
        """
        line = {"step": step, "images": step * batch, **means, "gradient_norm": norm, "learning_rate": rate}
        self.file.write(json.dumps({**line, "images_per_second": round(speed, 1)}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in line.items():
                if name not in ("step", "images"):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.board:
            self.board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; the column `gradient` of older runs is named `velocity`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{"velocity" if name == "gradient" else name: value for name, value in line.items()} for line in lines]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill, which will be written again
