"""Random streams by name: what an image or an example draws depends on its own numbers alone.

A stream is a numpy `Generator` on Philox, a counter-based generator made for many independent streams, keyed by a
seed and a path of whole numbers. Nothing is shared, so nothing depends on batch size, order or process count, and
nothing has to be saved to resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

__all__ = ["normal", "stream"]


def stream(seed: int, *path: int) -> np.random.Generator:
    """The stream of this seed and path; a different path is an independent stream.

    Raises:
        InputError: if the seed or a number of the path is negative or not whole.
    """
    for number in (seed, *path):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise InputError(f"seeds are whole numbers from 0, got {number!r}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def normal(streams: Sequence[np.random.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise, one image from each stream: shape (len(streams), *shape), on the CPU.

    Drawn in float64 for float64, else in float32 and cast.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    out = np.empty((len(streams), *shape), dtype=kind)
    for each, row in zip(streams, out, strict=True):
        each.standard_normal(dtype=kind, out=row)
    return torch.from_numpy(out).to(dtype)
