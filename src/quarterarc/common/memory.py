"""Running out of memory, on the CPU or a GPU, as an error of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .errors import InputError

__all__ = ["is_out_of_memory", "memory_checked"]

_PHRASES = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "unable to allocate",
    "bad_alloc", "alloc_failed", "bad allocation", "allocation failed", "memory allocation failure",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation: PyTorch raises RuntimeErrors of several texts."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(phrase in text for phrase in _PHRASES)


@contextmanager
def memory_checked(describe: Callable[[], str]) -> Iterator[None]:
    """Raise an InputError in place of a failed allocation of the block.

    Args:
        describe: returns what was computed, at which size, and what to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"out of memory: {describe()}"
    else:
        return
    raise InputError(message)  # outside the handler, whose traceback would keep the tensors
