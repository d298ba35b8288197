"""What a run says of itself as it goes: the losses in metrics.jsonl and TensorBoard."""

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
"""The losses of a line, in order."""


@dataclass
class Pending:
    """The mean losses since the last line of the log; checkpointed, so that the next line is the same after a kill."""

    means: Tensor | float = 0.0
    steps: int = 0

    def add(self, losses: Tensor) -> None:
        """Take one more step into the mean."""
        self.steps += 1
        self.means = self.means + (losses - self.means) / self.steps


class Log:
    """metrics.jsonl and, if it is installed, TensorBoard; lines after the step that a run resumes from are dropped."""

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
        line = {"step": step, "images": step * batch, **means, "gradient_norm": norm, "learning_rate": rate}
        self.file.write(json.dumps({**line, "images_per_second": round(speed, 1)}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in line.items():
                if name not in ("step", "images"):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. The column `gradient` of version 0.1 is returned under its new name, `velocity`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{"velocity" if key == "gradient" else key: value for key, value in line.items()} for line in lines]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short by a kill: to be written again
