"""Jumps: the steps of a flow map, one to four of which make an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ..common.errors import InputError
from ..denoiser import Denoise, call, traits
from .base import Draw, Sampler, State
from .rotation import Rotation

__all__ = ["Jump"]


@dataclass(frozen=True)
class Jump(Sampler):
    """One evaluation of a flow map per step, from angle to angle; or each time to the image, with fresh noise added.

    Attributes:
        fresh: jump to the image each time, and add fresh noise up to the next angle (Song et al. 2023, algorithm 1).

    Raises:
        InputError: when it is called, for a denoiser that is not a flow map.
    """

    fresh: bool = False

    default_steps: ClassVar[int | None] = 4

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid."""
        if not traits(denoise).maps:
            raise InputError(
                "the sampler 'jump' needs a flow map, and this denoiser estimates at one angle: distil it first "
                "(`quarterarc distill`), or take the sampler 'multistep'"
            )
        rotation = Rotation()
        for b, a in pairwise(angles):
            end = 0.0 if self.fresh else a
            estimate = call(denoise, x, b, to=end)
            yield State(x, b, estimate)
            x = rotation.step(x, estimate, b, end, draw)
            if end < a:
                x = math.cos(a) * x + math.sin(a) * draw(x)
        yield State(x, angles[-1], None)
