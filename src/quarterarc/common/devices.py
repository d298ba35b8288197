"""Devices and processes: where work runs, and which part of it is this process's."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from .errors import InputError

__all__ = ["Processes", "pick_device", "processes"]


@dataclass(frozen=True)
class Processes:
    """A process among those that were launched together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def processes() -> Processes:
    """The processes that `accelerate launch` or `torchrun` started; one, without loading either, where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState()
    return Processes(state.process_index, state.num_processes)


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is CUDA, then MPS, then the CPU. Each local process takes its own CUDA device.

    Raises:
        InputError: if the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name == "cuda":
            name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device '{name}' cannot be used here ({reason}): try --device cpu") from None
    return device
