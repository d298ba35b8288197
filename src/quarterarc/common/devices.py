"""Devices, and the processes of a distributed run."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from .errors import InputError, unknown_name

__all__ = ["Processes", "first_to_report", "has_float64", "is_lost_connection", "pick_device", "processes", "send"]

WITHOUT_FLOAT64 = ["mps"]
"""The types of devices that do not compute in float64."""

Value = TypeVar("Value")


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

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        """A block without communication, called by all processes: an InputError in one is raised in each at its end.

        Otherwise the others would wait for a process that has gone on to something else.
        """
        error: InputError | None = None
        try:
            yield
        except InputError as raised:
            if self.count == 1:
                raise
            error = raised
        first = next((other for other in self.gathered(error) if other is not None), None)
        if first is not None:
            raise first

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, in all of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[Value] = gather_object([value])
        return values

    def from_first(self, value: Value) -> Value:
        """The value of the first process, in all processes: a later one may see files that the first has written."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]


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
    if state.num_processes != count:  # without a GPU, accelerate connects processes only if the CPU is requested
        PartialState._reset_state()
        state = PartialState(cpu=True)
    _disconnect_at_exit()
    return Processes(state.process_index, state.num_processes)


@cache
def _disconnect_at_exit() -> None:
    """Close the connections before the interpreter ends: threads of theirs that are still at work then may abort it."""

    def disconnect() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(disconnect)


def first_to_report() -> bool:
    """Whether this process of a distributed run is the first one to report its end; one line is enough for all.

    Before the processes are connected it is the first one of each machine.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return os.environ.get("LOCAL_RANK", "0") == "0"
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        store.set_timeout(timedelta(seconds=5))
        return bool(store.add("quarterarc/reports", 1) == 1)
    except RuntimeError:  # the launcher has ended, or the first process, which may not have reported anything
        launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return not launched or torch.distributed.get_rank() == 0


def is_lost_connection(error: BaseException) -> bool:
    """Whether communication failed because another process of the run has ended, or does not answer in time."""
    if not torch.distributed.is_available():
        return False
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def send(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, and in another dtype if one is given, without waiting for the device.

    `Tensor.to` waits for all work of a GPU before it copies from the CPU. A copy to the CPU is waited for, since its
    values may be read at once.
    """
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type not in ("cpu", "mps"))


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; where it does not, angles and noise are float32 there."""
    return device.type not in WITHOUT_FLOAT64


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" prefers CUDA, then MPS, then the CPU. "cuda" is one CUDA device per local process.

    Raises:
        InputError: if the device cannot be used on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}" if name == "cuda" else name)
        usable = device.type != "meta" and (device.type != "cpu" or not device.index)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        if "Expected one of" in str(error):  # torch lists every device type that it has a name for
            raise unknown_name("device", name, ("auto", "cpu", "cuda", "mps")) from None
        usable = False
    if not usable:
        raise InputError(
            f"the device '{name}' cannot be used on this machine: give one of {', '.join(_devices())} (--device)"
        )
    return device


def _devices() -> list[str]:
    """The names of the devices that PyTorch finds."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["auto", "cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
