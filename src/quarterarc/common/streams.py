"""Independent random streams, one per image or training example, each identified by whole numbers.

A stream is a numpy `Generator` on Philox, a counter-based generator for many independent streams, keyed by a seed, a
purpose and further whole numbers. Streams share no state: results do not depend on batch size, order or number of
processes, and a resumed run needs no saved generator.
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
    """The use of a stream; streams of different purposes are independent. Changing a number changes all results."""

    NOISE = 0
    """The initial noise of the image with this seed."""
    STEPS = 1
    """The noise that a stochastic sampler adds to the image with this seed."""
    EXAMPLE = 2
    """The random numbers of one training example: seed, then optimiser step and place in the global batch."""
    DROPOUT = 3
    """Dropout masks: seed, then optimiser step and process."""
    WEIGHTS = 4
    """The initial weights of a network."""
    BOUND_NOISE = 5
    """The noise of one term of the bound: seed, then image number and time."""
    BOUND_TIMES = 6
    """The times at which the bound of an image is evaluated: seed, then image number."""
    DEQUANTISE = 7
    """Uniform dequantisation of 8-bit pixels: seed, then image number."""
    PROBE = 8
    """The random signs of a divergence estimate (Hutchinson): seed, then image number and probe."""


def stream(seed: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """The stream of a seed, a purpose and a path of further numbers; different paths are independent streams.

    Raises:
        InputError: for a seed or a number of the path that is negative or not whole.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *path)))


def torch_seed(seed: int, purpose: Purpose, *path: int) -> int:
    """A seed for torch's generators, for random numbers that torch draws (initial weights, dropout)."""
    return int(_sequence(seed, purpose, *path).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, *path: int) -> np.random.SeedSequence:
    for number in (seed, *path):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise InputError(f"seeds are whole numbers from 0, got {number!r}")
    return np.random.SeedSequence(int(seed), spawn_key=tuple(int(number) for number in path))


def normal(streams: Sequence[np.random.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise, one image per stream: shape (len(streams), *shape), on the CPU.

    Drawn in float64 for float64, otherwise in float32 and cast.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    out = np.empty((len(streams), *shape), dtype=kind)
    for generator, row in zip(streams, out, strict=True):
        generator.standard_normal(dtype=kind, out=row)
    return torch.from_numpy(out).to(dtype)
