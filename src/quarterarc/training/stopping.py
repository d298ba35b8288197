"""Graceful shutdown on SIGINT and SIGTERM: signals are recorded, and handled between two optimiser steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..common.devices import send
from ..common.signals import handled

__all__ = ["Interrupted", "Stop"]


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was saved.

    Attributes:
        signal: the signal's number.
        checkpoint: the folder of the checkpoint.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; saved {checkpoint}: continue with --resume (resume=True)"
        )
        self.signal = number
        self.checkpoint = checkpoint

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, Path]]:
        return type(self), (self.signal, self.checkpoint)  # from one process to another


class Stop:
    """Records SIGINT and SIGTERM in any of the processes of a run.

    Args:
        accelerator: this process among all.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals instead of acting on them; a second SIGINT raises KeyboardInterrupt at once."""

        def record(number: int, frame: object) -> None:
            handled()
            if self.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        try:
            before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # handlers can be set in the main thread only: elsewhere the caller handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def signals(self) -> Tensor | int:
        """As `received`, but on the device, without waiting for it: a 0-dimensional tensor, or a number."""
        if self.accelerator.num_processes == 1:
            return self.signal
        number = send(torch.tensor([float(self.signal)]), self.accelerator.device)
        largest: Tensor = self.accelerator.gather(number).max()
        return largest

    def received(self) -> int:
        """The signal that any process received, or 0; the same in all processes after the same step."""
        return int(self.signals())
