"""Philox 4x32-10 as tensor operations: a counter-based generator, so that a device draws many streams at once.

Philox maps a counter of four 32-bit words and a key of two words to four random words; ten rounds of multiplication
and exclusive or (Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011). Number n of a
stream is a function of the stream's words and of n alone: there is no state, and no order of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .devices import has_float64

__all__ = ["WORD", "bits_53", "box_muller", "normal_numbers", "philox", "philox_cpu", "unit"]

WORD = 1 << 32
"""The number of values of a word."""
_LOW = WORD - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> Tensor:
    """Four random words for each counter and key.

    Args:
        counter: four words, each a number or an int64 tensor with values in [0, 2^32); shapes are broadcast. At least
            one of the first and the third is a tensor.
        key: two words, in the same form.

    Returns:
        int64, values in [0, 2^32), shape (4, *broadcast).
    """
    words = _rounds(counter, key, range(_ROUNDS))
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(word & _LOW) for word in words)))


def philox_cpu(counter: Sequence[NDArray[Any] | int], key: Sequence[NDArray[Any] | int]) -> Tensor:
    """`philox` on the CPU, from unsigned arrays to uint32 tensors, in half of the time: by numpy, in place."""
    counters, keys = ([np.asarray(word, np.uint64) for word in words] for words in (counter, key))
    shape = np.broadcast_shapes(*(word.shape for word in (*counters, *keys)))
    # in the first two rounds most words have smaller shapes; the others reuse memory, which the cache then holds
    a, b, c, d = (np.broadcast_to(word, shape).copy() for word in _rounds(counters, keys, range(2)))
    left, right = np.empty_like(a), np.empty_like(a)
    for turn in range(2, _ROUNDS):
        first, second = _turned(keys, turn)
        np.multiply(a, _MULTIPLIERS[0], out=left)
        np.multiply(c, _MULTIPLIERS[1], out=right)
        for product, low, word, out in ((right, b, first, a), (left, d, second, c)):
            np.right_shift(product, 32, out=out)
            out ^= low
            out ^= word
            out &= _LOW
        b, right, d, left = right, b, left, d
    words = np.empty((4, *shape), np.uint32)
    for out, word in zip(words, (a, b, c, d), strict=True):
        np.copyto(out, word, casting="unsafe")  # the lower half
    return torch.from_numpy(words)


def _rounds(counter: Sequence[Any], key: Sequence[Any], turns: range) -> tuple[Any, Any, Any, Any]:
    """The counter after some rounds; the upper halves of its second and fourth word are arbitrary."""
    a, b, c, d = counter
    for turn in turns:
        first, second = _turned(key, turn)
        # 64-bit products wrap modulo 2^64, which keeps both halves; upper bits of b and d are garbage, which the mask
        # of the next round clears
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = ((right >> 32) ^ b ^ first) & _LOW, right, ((left >> 32) ^ d ^ second) & _LOW, left
    return a, b, c, d


def _turned(key: Sequence[Any], turn: int) -> tuple[Any, Any]:
    """The key of a round."""
    first, second = ((word + turn * step) & _LOW for word, step in zip(key, _KEY_STEPS, strict=True))
    return first, second


def unit(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in (0, 1) from words: (word + 1/2) / 2^32, rounded to `dtype`."""
    return words.to(dtype).add_(0.5).mul_(1.0 / WORD)


def box_muller(radius: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two independent uniform ones in (0, 1] (Box & Muller, 1958)."""
    length = radius.log().mul_(-2.0).sqrt_()
    angle = turn * (2.0 * math.pi)
    return angle.cos().mul_(length), angle.sin_().mul_(length)


def normal_numbers(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers (streams, n) from words (4, streams, blocks): four per block, or two for float64."""
    a, b, c, d = words
    if dtype == torch.float64:
        pairs = [(bits_53(high, low) + 1.0) / (1 << 53) for high, low in ((a, b), (c, d))]  # in (0, 1]
        return torch.stack(box_muller(*pairs), -1).flatten(1)
    real = torch.float64 if has_float64(a.device) else torch.float32
    (radius, turn), (other_radius, other_turn) = unit(words, real).view(2, 2, *a.shape)
    numbers = (*box_muller(radius, turn), *box_muller(other_radius, other_turn))
    if torch.compiler.is_compiling():
        return torch.stack(numbers, -1).to(dtype).flatten(1)  # which compiles to one kernel
    out = torch.empty(*a.shape, len(numbers), dtype=dtype, device=a.device)
    for place, values in enumerate(numbers):
        out[..., place] = values
    return out.flatten(1)


def bits_53(high: Tensor, low: Tensor) -> Tensor:
    """Whole numbers of 53 bits, as many as float64 holds, from two words each: float64."""
    return ((high.long() >> 5) * (1 << 26) + (low.long() >> 6)).double()
