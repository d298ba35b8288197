"""Philox 4x32-10 as tensor operations: a counter-based generator, so that a device draws many streams at once.

Philox maps a counter of four 32-bit words and a key of two words to four random words; ten rounds of multiplication
and exclusive or (Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011). Number n of a
stream is a function of the stream's words and of n alone: there is no state, and no order of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["WORD", "Words", "box_muller", "philox", "philox_cpu", "unit"]

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

WORD = 1 << 32
"""The number of values of a word."""
_LOW = WORD - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> Words:
    """Four random words for each counter and key.

    Args:
        counter: four words, each a number or an int64 tensor with values in [0, 2^32); shapes are broadcast. At least
            one of the first and the third is a tensor.
        key: two words, in the same form.

    Returns:
        Four int64 tensors with values in [0, 2^32), of the broadcast shape.
    """
    a, b, c, d = counter
    for turn in range(_ROUNDS):
        first, second = ((word + turn * step) & _LOW for word, step in zip(key, _KEY_STEPS, strict=True))
        # int64 products wrap modulo 2^64, which keeps both halves; upper bits of b and d are garbage, which the mask
        # of the next round clears
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = ((right >> 32) ^ b ^ first) & _LOW, right, ((left >> 32) ^ d ^ second) & _LOW, left
    words = torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b & _LOW, c, d & _LOW)))
    return words[0], words[1], words[2], words[3]


def philox_cpu(counter: Sequence[NDArray[np.uint32] | int], key: Sequence[NDArray[np.uint32] | int]) -> Words:
    """`philox` on the CPU, from uint32 arrays to uint32 tensors: twice as fast there as with 64-bit arithmetic.

    Machines are little-endian, as all are that torch supports.
    """
    a, b, c, d = np.broadcast_arrays(*(np.asarray(word, np.uint32) for word in counter))
    for turn in range(_ROUNDS):
        first, second = (
            np.asarray(word, np.uint32) + np.uint32(turn * step & _LOW)
            for word, step in zip(key, _KEY_STEPS, strict=True)
        )
        left = np.multiply(a, np.uint64(_MULTIPLIERS[0]), dtype=np.uint64).view(np.uint32)
        right = np.multiply(c, np.uint64(_MULTIPLIERS[1]), dtype=np.uint64).view(np.uint32)
        a, c = right[..., 1::2] ^ b ^ first, left[..., 1::2] ^ d ^ second  # upper halves of the products
        b, d = right[..., ::2], left[..., ::2]
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c), torch.from_numpy(d)


def unit(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in (0, 1) from words: (word + 1/2) / 2^32, rounded to `dtype`."""
    return words.to(dtype).add_(0.5).mul_(1.0 / WORD)


def box_muller(radius: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two independent uniform ones in (0, 1] (Box & Muller, 1958)."""
    length = radius.log().mul_(-2.0).sqrt_()
    angle = turn * (2.0 * math.pi)
    return angle.cos().mul_(length), angle.sin_().mul_(length)
