"""Requests to a run, handled between two optimiser steps: to stop, by SIGINT or SIGTERM, and to save, by the time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..common.devices import send
from ..common.signals import handled

__all__ = ["LONGEST", "SAVE", "Interrupted", "Requests"]

LONGEST = 600.0
"""Seconds of training that a kill may cost, about: the time from one checkpoint to the next."""
SAVE = 1
"""The request to save, in place of a signal's number: a signal, SIGINT (2) or SIGTERM (15), outranks it."""


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


class Requests:
    """SIGINT and SIGTERM in any of the processes of a run, and the time since the checkpoint before in the first one.

    Args:
        accelerator: this process among all.
        clock: seconds; for tests.

    Attributes:
        signal: the signal that this process received, or 0.
    """

    def __init__(self, accelerator: Accelerator, clock: Callable[[], float] = time.monotonic) -> None:
        self.accelerator, self._clock = accelerator, clock
        self.signal = 0
        self._saved = clock()

    def saved(self) -> None:
        """Count the time anew: a checkpoint is being saved."""
        self._saved = self._clock()

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

    def pending(self) -> Tensor | int:
        """The highest request of all processes: the number of a signal, `SAVE` or 0.

        It is on the device, and not waited for: a 0-dimensional tensor, or a number for a single process. Saving is
        requested until `saved` is called.
        """
        late = self.accelerator.is_main_process and self._clock() - self._saved > LONGEST
        own = self.signal or (SAVE if late else 0)
        if self.accelerator.num_processes == 1:
            return own
        number = send(torch.tensor([float(own)]), self.accelerator.device)
        largest: Tensor = self.accelerator.gather(number).max()
        return largest

    def received(self) -> int:
        """The signal that any process received, or 0; the same in all processes after the same step."""
        highest = int(self.pending())
        return highest if highest > SAVE else 0
