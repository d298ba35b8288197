"""Devices, and the processes of a distributed run."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from .errors import InputError

__all__ = ["Processes", "pick_device", "processes"]


@dataclass(frozen=True)
class Processes:
    """The place of this process in a distributed run.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def processes(cpu: bool = False) -> Processes:
    """The processes started by `accelerate launch` or `torchrun`; otherwise one, and accelerate is not imported.

    Args:
        cpu: communicate on the CPU; otherwise on the GPUs, where there are any.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "LOCAL_RANK" not in os.environ:
        return Processes()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes != count:  # without a GPU, accelerate connects processes only where the CPU is asked for
        PartialState._reset_state()
        state = PartialState(cpu=True)
    return Processes(state.process_index, state.num_processes)


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" prefers CUDA, then MPS, then the CPU. "cuda" is one CUDA device per local process.

    Raises:
        InputError: if the device cannot be used on this machine.
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
        raise InputError(f"the device '{name}' cannot be used on this machine ({reason}): try --device cpu") from None
    return device
