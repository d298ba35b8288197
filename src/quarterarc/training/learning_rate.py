"""The learning rate over a run: a linear warm-up, then constant or half a cosine."""

from __future__ import annotations

import math

__all__ = ["factor_at"]


def factor_at(step: int, steps: int, warmup: int, decay: str) -> float:
    """The factor of the learning rate at optimiser step 0, 1, ..., steps - 1.

        step < warmup    (step + 1)/warmup: above 0 at step 0, 1 at step warmup - 1
        constant         1
        cosine           (1 + cos(pi (step - warmup)/(steps - warmup)))/2: 1 at step warmup, 0 just after the last step

    Args:
        step: the optimiser step.
        steps: optimiser steps of the run.
        warmup: steps of the warm-up.
        decay: "constant" or "cosine".
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
