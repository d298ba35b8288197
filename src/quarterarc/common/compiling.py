"""Compilation of a network by `torch.compile`: when it pays, whether it is possible, and how often it happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, TypeVar

import torch
from torch import nn

from .errors import InputError
from .memory import is_out_of_memory
from .text import one_line

__all__ = ["ENOUGH_CALLS", "Compile", "compile_network", "compiled_graphs", "decide", "first_call", "not_compiled"]

logger = logging.getLogger("quarterarc")

Result = TypeVar("Result")

Compile = bool | Literal["auto"]
"""`true`, `false`, or `auto`: where it is measured to pay, see `decide`."""

ENOUGH_CALLS = 5000
"""Calls of the network from which `auto` compiles on a GPU. Compilation takes one to two minutes, and a training step
of the CIFAR-10 network 25 ms less afterwards (docs/benchmarks.md)."""


def decide(setting: Compile, device: torch.device, calls: float, name: str) -> bool:
    """Whether to compile a network.

    Args:
        setting: `auto` compiles on a GPU, for at least `ENOUGH_CALLS` calls, unless it is not possible there; on the
            CPU training is no faster compiled (docs/benchmarks.md), and `auto` is `false`.
        device: the device of the network.
        calls: expected number of calls of the network with batches of one size.
        name: the setting's name, for messages.

    Raises:
        InputError: if the setting is true, and `torch.compile` does not work here.
    """
    if setting == "auto" and (device.type != "cuda" or calls < ENOUGH_CALLS):
        return False
    if setting is False:
        return False
    reason = _obstacle(device.type)
    if reason is None:
        return True
    if setting == "auto":
        logger.warning("the network is not compiled (%s), which %s=auto would do here", reason, name)
        return False
    raise InputError(f"{name}=true is not possible here ({reason}): leave it out, or install what is missing")


@cache
def _obstacle(device: str) -> str | None:
    """Why `torch.compile` does not work on a device, for example without a C++ compiler; None if it does."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler, and what it calls, may raise anything
        return one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0][:200]
    return None


def compile_network(network: nn.Module, *, graphs: bool) -> None:
    """Compile a network in place; the first call, which compiles, must have the batch size of all later ones.

    The names of its weights stay, and `network.forward` remains the code that is not compiled. Each further batch size,
    and another mode (`train`, `eval`), compiles it again.

    Args:
        network: the network, on its device. Its memory layout becomes channels-last, in which tensor cores compute;
            the fused norms of compiled code take either layout.
        graphs: capture CUDA graphs, which launch all kernels of a pass at once; without effect on the CPU. They do not
            support gradients that accumulate over several passes.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # By itself, inductor lays out no network channels-last in which a convolution has half as many outputs as
    # inputs, as a U-Net's have: CUDA's convolutions then copied, in a seventh of a training step (docs/benchmarks.md).
    network.compile(dynamic=False, options={"force_layout_optimization": True, "triton.cudagraphs": graphs})


@contextmanager
def not_compiled(network: nn.Module) -> Iterator[None]:
    """A block in which a network computes without compilation, which another mode or batch size would start again."""
    compiled = network._compiled_call_impl
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def first_call(network: nn.Module, call: Callable[[], Result], setting: Compile, remedy: str) -> Result | None:
    """The call that compiles a network, with a line in the log.

    Args:
        network: the network, after `compile_network`.
        call: calls it.
        setting: as for `decide`.
        remedy: what to do where compilation fails, for the message.

    Returns:
        The result of the call; None where compilation fails and the setting is `auto`: the network then computes
        without compilation, and the call can be repeated.

    Raises:
        InputError: where compilation fails and the setting is true.
    """
    started, before = time.perf_counter(), compiled_graphs()
    try:
        result = call()
    except InputError:
        raise
    except Exception as error:  # the compiler may raise anything
        if is_out_of_memory(error):
            raise
        reason = one_line(error)[:200]
        if setting is True:
            raise InputError(f"the network cannot be compiled ({reason}): {remedy}") from None
        logger.warning("the network is not compiled: %s", reason)
        network._compiled_call_impl = None
        return None
    if graphs := compiled_graphs() - before:
        logger.info("compiled the network in %.0f s (graphs: %d)", time.perf_counter() - started, graphs)
    return result


def compiled_graphs() -> int:
    """Graphs compiled in this process so far: the difference over a block tells how often it compiled anything."""
    from torch._dynamo.utils import counters  # torch has no public count

    return int(counters["stats"]["unique_graphs"])
