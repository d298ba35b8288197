"""Memory that is used again: for intermediate results on the CPU that do not outlive a call.

A fresh tensor of a megabyte costs more there than filling it, since every page of it must be mapped first.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["scratch"]

_local = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor in memory that the next call with the same name and dtype gets again."""
    buffers: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("buffers", {})
    count = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # so that it can be written to in any mode
            buffer = buffers[name, dtype] = torch.empty(count, dtype=dtype)
    return buffer[:count].view(*shape)
