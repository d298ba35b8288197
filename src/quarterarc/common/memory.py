"""Memory: how much there is, and running out of it, on the CPU or a GPU, as an error of one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .errors import InputError

__all__ = ["is_out_of_memory", "memory_checked", "memory_of", "require_memory"]

_PHRASES = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "unable to allocate",
    "bad_alloc", "alloc_failed", "bad allocation", "allocation failed", "memory allocation failure",
    "calculation overflowed", "multiplication overflow", "invalid buffer size", "array is too big",
    "maximum allowed dimension",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation: PyTorch raises RuntimeErrors of several texts."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError | ValueError) and any(phrase in text for phrase in _PHRASES)


@contextmanager
def memory_checked(describe: Callable[[], str]) -> Iterator[None]:
    """Raise an InputError in place of a failed allocation of the block.

    Args:
        describe: returns what was computed, at which size, and what to lower.
    """
    try:
        yield
    except InputError:
        raise
    except (MemoryError, RuntimeError, OSError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"out of memory: {describe()}{_peak()}"
    else:
        return
    raise InputError(message)  # outside the handler, whose traceback would keep the tensors


def _peak() -> str:
    """The most memory that was in use, on a GPU if one is used, for messages; empty where it is not known."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f" (at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB were in use on the GPU)"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f" (at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB were in use)"


def require_memory(size: float, device: torch.device, describe: Callable[[], str]) -> None:
    """Raise an InputError for more memory than a device has in all, before anything is allocated.

    Args:
        size: bytes, a lower bound of what is needed.
        device: the device.
        describe: as for `memory_checked`.
    """
    available = memory_of(device)
    if available is not None and size > available:
        raise InputError(
            f"out of memory: at least {size / 1e9:,.0f} GB are needed, and {device} has {available / 1e9:,.0f} GB: "
            f"{describe()}"
        )


def memory_of(device: torch.device) -> int | None:
    """The memory of a device in bytes, used or not; for the CPU, that of this machine or container. None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    sizes = []
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no container, or the text "max"
            sizes.append(int(Path(file).read_text()))
    return min(sizes, default=None)
