"""The check that loss and gradient of each step are finite, without waiting for a GPU."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.devices import send

__all__ = ["LATER", "Checked", "Watch"]

LATER = 8
"""Steps after which the values of a step are read on a GPU, whose work is queued further ahead than that."""


class Checked(NamedTuple):
    """What is read of a step.

    Attributes:
        step: the number of optimiser steps before it.
        loss: the mean loss of this process.
        norm: the norm of the gradient before clipping.
        request: the highest request of all processes (`stopping.Requests`), or 0.
    """

    step: int
    loss: float
    norm: float
    request: int

    @property
    def finite(self) -> bool:
        """Whether the gradient is finite."""
        return math.isfinite(self.norm)


class Watch:
    """Loss, gradient norm and requests of the last steps, on their way to the CPU.

    Reading a value from a GPU waits for all its queued work. Here the copy is queued behind the step, and read when
    `LATER` further steps are queued: by then it has long arrived. All processes read a step at the same time.

    Args:
        device: the device of the values; values on the CPU are read at once.
        later: steps after which values are read; for tests.
    """

    def __init__(self, device: torch.device, later: int | None = None) -> None:
        self._later = (0 if device.type == "cpu" else LATER) if later is None else later
        self._waiting: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, loss: Tensor, norm: Tensor, request: Tensor | int = 0) -> None:
        """Queue the values of a step: 0-dimensional tensors."""
        device = norm.device
        received = send(torch.as_tensor(request), device, norm.dtype)
        values = torch.stack([loss.detach().to(norm.dtype), norm.detach(), received])
        event = None
        if device.type == "cuda":
            values = values.to("cpu", non_blocking=True)  # into pinned memory, which torch allocates for this
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
        self._waiting.append((step, values, event))

    def due(self, all: bool = False) -> Iterator[Checked]:
        """The steps to look at now, oldest first: those more than `later` steps back, or all."""
        while len(self._waiting) > (0 if all else self._later):
            step, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, request = values.tolist()
            yield Checked(step, loss, norm, int(request))
