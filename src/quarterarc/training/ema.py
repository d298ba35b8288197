"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["decay_at", "update", "update_network"]


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """The decay of optimiser step 0, 1, 2, ...: with a warm-up min(decay, (1 + step)/(10 + step)).

    Without a warm-up the initial weights, which are random, stay in the average for about 1/(1 - decay) steps.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@torch.no_grad()
def update(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """Average <- decay average + (1 - decay) weights, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1.0 - decay)


@torch.no_grad()
def update_network(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Update the average of a network's parameters; buffers, such as batch norm's statistics, are copied."""
    update(average.parameters(), network.parameters(), decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)
