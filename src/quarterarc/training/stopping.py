"""Being asked to stop: signals are taken note of, and acted on between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

__all__ = ["Interrupted", "Stop"]


class Interrupted(Exception):
    """A signal asked the run to stop; it did, after saving.

    Attributes:
        signal: which one.
        checkpoint: what was saved.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {checkpoint}: go on with --resume")
        self.signal = number
        self.checkpoint = checkpoint


class Stop:
    """Whether SIGINT or SIGTERM has asked the processes of a run to stop."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of SIGINT and SIGTERM, to act on between steps; a second SIGINT stops at once."""

        def note(number: int, frame: object) -> None:
            if self.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever called takes care of signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def asked(self) -> int:
        """The signal that any process got, or 0; all processes learn of it after the same step."""
        if self.accelerator.num_processes == 1:
            return self.signal
        asked = torch.tensor([float(self.signal)], device=self.accelerator.device)
        return int(self.accelerator.gather(asked).max())
