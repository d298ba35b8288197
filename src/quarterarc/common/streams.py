"""Random streams by name: what an image or an example draws depends on its own numbers alone.

A stream is a numpy `Generator` on Philox, a counter-based generator made for many independent streams, keyed by a
seed, a purpose and further whole numbers. Nothing is shared, so nothing depends on batch size, order or process count,
and nothing has to be saved to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

__all__ = ["Purpose", "normal", "stream"]


class Purpose(IntEnum):
    """What a stream is for; streams of different purpose are independent. The numbers are part of every result."""

    NOISE = 0
    """Where the trajectory of the image with this seed begins."""
    STEPS = 1
    """What a stochastic sampler adds to the image with this seed."""
    EXAMPLE = 2
    """What one training example draws: seed, then optimiser step and place in the global batch."""
    DROPOUT = 3
    """Dropout masks: seed, then optimiser step and process."""
    WEIGHTS = 4
    """The first weights of a network."""
    BOUND_NOISE = 5
    """What the bound mixes into an image: seed, then image number and time."""
    BOUND_TIMES = 6
    """The times at which the bound of an image is asked: seed, then image number."""
    DEQUANTISE = 7
    """Where in its 8-bit level a pixel lies: seed, then image number."""
    PROBE = 8
    """The signs by which a divergence is probed: seed, then image number and probe."""


def stream(seed: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """The stream of this seed, purpose and path; a different path is an independent stream.

    Raises:
        InputError: if the seed or a number of the path is negative or not whole.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *path)))


def torch_seed(seed: int, purpose: Purpose, *path: int) -> int:
    """A seed for torch's own generators, where torch itself has to draw (first weights, dropout)."""
    return int(_sequence(seed, purpose, *path).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, *path: int) -> np.random.SeedSequence:
    for number in (seed, *path):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise InputError(f"seeds are whole numbers from 0, got {number!r}")
    return np.random.SeedSequence(int(seed), spawn_key=tuple(int(number) for number in path))


def normal(streams: Sequence[np.random.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise, one image from each stream: shape (len(streams), *shape), on the CPU.

    Drawn in float64 for float64, else in float32 and cast.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    out = np.empty((len(streams), *shape), dtype=kind)
    for each, row in zip(streams, out, strict=True):
        each.standard_normal(dtype=kind, out=row)
    return torch.from_numpy(out).to(dtype)
