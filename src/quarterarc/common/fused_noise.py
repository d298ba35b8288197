"""The noise of random streams by one compiled kernel, in place of some 200 small ones on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .memory import is_out_of_memory
from .philox import normal_numbers, philox
from .text import one_line

__all__ = ["FusedNoise"]

logger = logging.getLogger("quarterarc")

_Rule: TypeAlias = Callable[[Tensor], Tensor]


class FusedNoise:
    """Draws the noise of many streams, each number of blocks by its own compiled function.

    The first numbers of each function are compared with those of the tensor operations that it was compiled from; the
    two agree up to rare differences in the last bit. Where they do not, or nothing can be compiled, the operations
    draw, and a line in the log gives the reason.
    """

    def __init__(self) -> None:
        self._rules: dict[object, _Rule] = {}

    def __call__(self, words: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers, shape (streams, numbers).

        Args:
            words: of each stream the lower and the upper word of its seed, its place, the number of its first block,
                its step and its purpose: int64, shape (6, streams).
            blocks: number of blocks, each of four numbers, or of two for float64.
            dtype: dtype of the result.
        """
        key = (words.shape, words.device, blocks, dtype)
        if key not in self._rules:
            self._rules[key] = _compiled(partial(_numbers, blocks=blocks, dtype=dtype), words)
        return self._rules[key](words)


def _numbers(words: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
    """The numbers by tensor operations; arguments as for `FusedNoise`."""
    low, high, place, first, step, purpose = words[:, :, None].unbind()
    counted = first + torch.arange(blocks, device=words.device)
    return normal_numbers(philox((counted, step, low, high), (purpose, place)), dtype)


def _compiled(rule: _Rule, words: Tensor) -> _Rule:
    """A rule compiled for words of this shape, or the rule itself."""
    fused: _Rule = torch.compile(rule, dynamic=False)
    try:
        difference = float((fused(words) - rule(words)).abs().max())
        reason = f"its numbers differ by {difference:.3g}"
    except Exception as error:  # the compiler may raise anything
        if is_out_of_memory(error):
            raise
        difference, reason = float("inf"), one_line(error)[:200]
    if difference < 1e-5:
        return fused
    logger.warning("the noise of training is drawn without compilation: %s", reason)
    return rule
