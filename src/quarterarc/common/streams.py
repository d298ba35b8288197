"""Independent random streams, one per image or training example, each identified by whole numbers.

Streams share no state: results do not depend on batch size, order or number of processes, and a resumed run needs no
saved generator. They are keyed by a seed, a purpose and further whole numbers, in two formats:

1. numpy's `Generator` on Philox 4x64, one object per stream (`stream`), which draws on the CPU;
2. Philox 4x32 as tensor operations (`philox`), which draws the numbers of all streams at once on any device.

Training and sampling use `Streams` of the format that the checkpoint records, so that older runs stay reproducible.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .fused_noise import FusedNoise
from .philox import WORD, bits_53, normal_numbers, philox, philox_cpu

__all__ = ["FORMAT", "Purpose", "Streams", "normal", "stream", "streams"]

FORMAT = 2
"""The format of the streams of new runs."""
_AT_ONCE, _AT_ONCE_ON_DEVICE = 1 << 14, 1 << 20
"""Blocks of four words drawn together: so few on the CPU that all steps find them in its cache."""


@unique
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
    TRAJECTORY = 9
    """The noise and the label of a trajectory of a teacher: seed, then group and place in it."""
    HELD_OUT = 10
    """The random numbers of one example of the held-out loss: seed, then its place."""
    AUGMENTATION = 11
    """The augmentation of one training example: seed, then optimiser step and place in the global batch."""
    LAST_LAYER = 12
    """The examples to which the last layer of a network with a new head is fitted."""


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


class Streams(ABC):
    """A batch of independent streams; draw n of a stream depends on its key and the draws before it alone."""

    @abstractmethod
    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1): float64, shape (streams, count), on the CPU."""

    @abstractmethod
    def integers(self, low: int, high: int) -> Tensor:
        """A whole number in low..high - 1 per stream: int64, shape (streams,), on the CPU."""

    @abstractmethod
    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal noise, one image per stream: shape (streams, *shape).

        Drawn in float64 for float64, otherwise in float32 and cast.
        """


def streams(
    purpose: Purpose,
    seeds: Sequence[int] | int,
    step: int | None = None,
    places: Sequence[int] | None = None,
    *,
    format: int = FORMAT,
    fused: FusedNoise | None = None,
) -> Streams:
    """The streams of images or training examples, one per seed or, of one seed, one per place.

    Args:
        purpose: what the numbers are used for.
        seeds: whole numbers from 0 to 2^64 - 1, one per stream; or one for all.
        step, places: further keys of training examples, below 2^32: the optimiser step, and the place of each example
            in the global batch.
        format: 1 or 2, see the module.
        fused: draws the noise of format 2 on a device by one kernel; None for tensor operations.

    Raises:
        InputError: for a key that is negative, not whole or too large, or an unknown format.
    """
    if format not in (1, 2):
        raise InputError(f"the random streams have the formats 1 and 2, got {format!r}: a later version wrote this")
    each = [seeds] * (1 if places is None else len(places)) if not isinstance(seeds, Sized) else seeds
    count = len(each)
    if format == 1:
        path = [] if step is None else [step]
        ends: Sequence[list[int]] = [[]] * count if places is None else [[place] for place in places]
        return _Generators([stream(seed, purpose, *path, *end) for seed, end in zip(each, ends, strict=True)])
    return _Counters(purpose, each, step or 0, [0] * count if places is None else places, fused)


class _Generators(Streams):
    """Format 1: numpy generators."""

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(np.array([generator.random(count) for generator in self.generators]))

    def integers(self, low: int, high: int) -> Tensor:
        return torch.tensor([int(generator.integers(low, high)) for generator in self.generators])

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        return normal(self.generators, shape, dtype).to(device, non_blocking=True)


class _Counters(Streams):
    """Format 2: the words of block n of a stream are philox((n, step, seed), (purpose, place)).

    A draw begins with a new block of four words. Noise is computed in float64 and rounded, so that devices agree on it
    up to rare differences in the last bit.
    """

    def __init__(
        self,
        purpose: Purpose,
        seeds: Sequence[int],
        step: int,
        places: Sequence[int],
        fused: FusedNoise | None = None,
    ) -> None:
        self.fused = fused
        self.purpose, self.step = int(purpose), _word(step, WORD)
        self.seeds = np.array([_word(seed, WORD**2) for seed in seeds], np.uint64)
        self.places = np.array([_word(place, WORD) for place in places], np.uint64)
        self.drawn = 0  # blocks

    def uniform(self, count: int) -> Tensor:
        blocks = -(-count // 2)
        a, b, c, d = self._words(range(blocks), slice(None), torch.device("cpu"))
        self.drawn += blocks
        return torch.stack([bits_53(a, b) / (1 << 53), bits_53(c, d) / (1 << 53)], -1).flatten(1)[:, :count]

    def integers(self, low: int, high: int) -> Tensor:
        return low + (self.uniform(1)[:, 0] * (high - low)).long()

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        device, count, per_block = torch.device(device), math.prod(shape), 2 if dtype == torch.float64 else 4
        out = torch.empty((len(self.seeds), count), dtype=dtype, device=device)
        blocks, most = -(-count // per_block), _AT_ONCE if device.type == "cpu" else _AT_ONCE_ON_DEVICE
        rows = max(1, most // max(1, blocks))
        for row, first in itertools.product(range(0, len(out), rows), range(0, blocks, most)):
            drawn = range(first, min(first + most, blocks))
            part = slice(row, row + rows)
            target = out[part, drawn.start * per_block : drawn.stop * per_block]
            target.copy_(self._noise(drawn, part, dtype, device)[:, : target.shape[1]])
        self.drawn += blocks
        return out.view(len(out), *shape)

    def _noise(self, blocks: range, part: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Of a part of the streams, the noise of blocks counted from the next one: shape (streams, numbers)."""
        if self.fused is None:
            return normal_numbers(self._words(blocks, part, device), dtype)
        seeds, places = self.seeds[part], self.places[part]
        same = [np.full_like(places, value) for value in (self.drawn + blocks.start, self.step, self.purpose)]
        words = np.stack([seeds % WORD, seeds // WORD, places, *same]).view(np.int64)
        return self.fused(torch.from_numpy(words).to(device, non_blocking=True), len(blocks), dtype)

    def _words(self, blocks: range, part: slice, device: torch.device) -> Tensor:
        """Of a part of the streams, the words of blocks counted from the next one: shape (4, streams, blocks)."""
        numbers = self.drawn + np.arange(blocks.start, blocks.stop, dtype=np.uint64)
        seeds, place = self.seeds[part, None], self.places[part, None]
        if device.type == "cpu":
            return philox_cpu((numbers, self.step, seeds % WORD, seeds // WORD), (self.purpose, place))
        keys = np.concatenate([seeds % WORD, seeds // WORD, place], 1).view(np.int64)
        low, high, place_there = torch.from_numpy(keys).to(device, non_blocking=True)[:, :, None].unbind(1)
        counted = torch.arange(int(numbers[0]), int(numbers[-1]) + 1, device=device)
        return philox((counted, self.step, low, high), (self.purpose, place_there))


def _word(number: int, limit: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < limit:
        most = f" to 2^{limit.bit_length() - 1} - 1" if isinstance(number, int | np.integer) and number >= limit else ""
        raise InputError(f"seeds are whole numbers from 0{most}, got {number!r}")
    return int(number)


def normal(
    generators: Sequence[np.random.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise, one image per generator: shape (len(generators), *shape), on the CPU.

    Drawn in float64 for float64, otherwise in float32 and cast.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    out = np.empty((len(generators), *shape), dtype=kind)
    for generator, row in zip(generators, out, strict=True):
        generator.standard_normal(dtype=kind, out=row)
    return torch.from_numpy(out).to(dtype)
