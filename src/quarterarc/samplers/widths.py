"""How widely data are spread around an image, read from the noise estimates on the way to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arc import NOISE_END

__all__ = ["width_at_the_end", "widths"]

WIDEST = 100.0
"""The largest width that is believed, over the sigmas that it was read from: beyond it all noise is the data's."""

ROUNDINGS = 16.0
"""A loss of so many roundings of 1 counts as none: the width goes with its root, which would not be small."""


def widths(before: Tensor, after: Tensor, b: float, a: float) -> Tensor:
    """The squared width w^2 of the data around each image, in pixels of [-1, 1], shape (B,); in float32 or wider.

    Along the flow the noise estimate of Gaussian data of width w is proportional to s_w (`multistep`). What share of it
    is kept from b to a, in the direction of the first estimate, tells w:

        kept = s_w(a) / s_w(b)      =>      w^2 = tan^2 a (1 - kept^2) / (kept^2 - tan^2 a / tan^2 b)

    A noise that grows has width 0.

    Args:
        before, after: noise estimates at the angles b and a, shape (B, *).
        b, a: descending; from b = pi/2, where the estimate is of everything that is not noise, the width is 0.
    """
    dtype = torch.promote_types(before.dtype, torch.float32)
    before, after = before.flatten(1).to(dtype), after.flatten(1).to(dtype)
    if b >= NOISE_END:
        return before.new_zeros(len(before))
    # of no noise at all nothing is kept, and of noise that turned round neither
    kept = torch.nan_to_num((before * after).sum(1) / before.square().sum(1), nan=0.0).clamp(0.0, 1.0).square()
    loss = (1.0 - kept).where(1.0 - kept > ROUNDINGS * torch.finfo(dtype).eps, 0.0)
    lost, left = math.tan(a) ** 2 * loss, kept - (math.tan(a) / math.tan(b)) ** 2
    most = WIDEST**2 * math.tan(a) * math.tan(b)
    return torch.where(left * most > lost, lost / left, most)


def width_at_the_end(squared: Tensor, earlier: Tensor) -> Tensor:
    """The squared width that counts in the last step, from the last reading and the one before.

    Data around one shape have one width. Real images have detail at every scale, and the width read from a step shrinks
    with its sigmas; it is then taken to go on shrinking as it did, by w^2 / earlier w^2.
    """
    return squared * torch.where(earlier > squared, squared / earlier, 1.0)
