"""The width of the data around an image, estimated from the noise estimates along its trajectory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arc import NOISE_END

__all__ = ["width_at_the_end", "widths"]

WIDEST = 100.0
"""The largest width, relative to the sigmas of the step it is estimated from."""

ROUNDINGS = 16.0
"""Losses up to this many roundings of 1 count as 0, because the width is proportional to their square root."""


def widths(before: Tensor, after: Tensor, b: float, a: float) -> Tensor:
    """The squared width w^2 of the data around each image, in pixels of [-1, 1], shape (B,); in float32 or wider.

    Along the flow the noise estimate of Gaussian data of width w is proportional to s_w (`multistep`). The fraction of
    it that is kept from b to a, in the direction of the first estimate, determines w:

        kept = s_w(a) / s_w(b)      =>      w^2 = tan^2 a (1 - kept^2) / (kept^2 - tan^2 a / tan^2 b)

    The width is 0 where the noise estimate grows, and from b = pi/2, where x is pure noise.

    Args:
        before, after: noise estimates at the angles b and a, shape (B, *).
        b, a: descending.
    """
    dtype = torch.promote_types(before.dtype, torch.float32)
    before, after = before.flatten(1).to(dtype), after.flatten(1).to(dtype)
    if b >= NOISE_END:
        return before.new_zeros(len(before))
    # zero noise (0 / 0) and noise that changed sign count as kept = 0
    kept = torch.nan_to_num((before * after).sum(1) / before.square().sum(1), nan=0.0).clamp(0.0, 1.0).square()
    loss = (1.0 - kept).masked_fill(1.0 - kept <= ROUNDINGS * torch.finfo(dtype).eps, 0.0)
    lost, left = math.tan(a) ** 2 * loss, kept - (math.tan(a) / math.tan(b)) ** 2
    most = WIDEST**2 * math.tan(a) * math.tan(b)
    return (lost / left).masked_fill(left * most <= lost, most)


def width_at_the_end(squared: Tensor, earlier: Tensor) -> Tensor:
    """The squared width for the last step, extrapolated from the last two steps.

    Data around one shape have one width. Real images have detail at every scale, and the width estimated from a step
    shrinks with its sigmas; it is extrapolated to shrink by the same factor, w^2 / earlier w^2, once more.
    """
    return squared * (squared / earlier).masked_fill(earlier <= squared, 1.0)
