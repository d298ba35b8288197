"""The objective of distillation: a flow map that learns the flow of a teacher, in two stages.

1. Regression on the teacher's own trajectories, which need no data: a jump between two states of one trajectory of
   `multistep` has the velocity of the arc through both (CMT 2025, on the arc).
2. The objective `flow-map` with the teacher's velocity in place of that of single images: the step to the middle angle
   is one midpoint step of the teacher. Data give the points at which the map is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arc import rotate, through
from ..common.devices import send
from ..common.errors import InputError
from ..denoiser import Denoise, call, traits
from ..estimate import Estimate
from ..objectives import FlowMap, Losses
from .trajectories import Trajectories

__all__ = ["Distillation"]


@dataclass(frozen=True, kw_only=True)
class Distillation(FlowMap):
    """The objective of this module; further attributes as for `FlowMap`.

    Attributes:
        teacher: the denoiser whose flow is learned; its two estimates agree on x.
        trajectories: its trajectories.
        length: optimiser steps of the run.
        stage: share of the run that is the first stage, in [0, 1].
        from_noise: share of the first stage's jumps that start at the largest angle, as those of one evaluation do;
            the others start anywhere on their trajectory.
        reversed: share of all jumps that go the other way, from their end to their start.
        first_share, last_share: the share s of a jump in the second stage.

    Raises:
        InputError: for a value outside its range.
    """

    teacher: Denoise
    trajectories: Trajectories
    length: int
    stage: float = 0.75
    from_noise: float = 0.4
    reversed: float = 0.0
    first_share: float = 0.1
    last_share: float = 0.1
    start_mean: float = 0.5
    start_width: float = 1.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stage", "from_noise", "reversed"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"teacher.{name} of distillation is a share in 0..1, got {value!r}")

    def regresses(self, progress: float) -> bool:
        """Whether the first stage is under way."""
        return progress < self.stage

    def angles(self, uniform: Tensor, largest: float, progress: float, smallest: float = 0.0) -> tuple[Tensor, Tensor]:
        """Start and end of each jump; in the first stage angles of the trajectory, half of them ending at its end."""
        if self.regresses(progress):
            start, end = self._on_grid(uniform)
        else:
            largest = min(largest, traits(self.teacher).largest_angle)
            start, end = super().angles(uniform, largest, progress, smallest)
        other_way = (1024.0 * uniform[:, 2]) % 1.0 < self.reversed  # the first digits have decided the end already
        return torch.where(other_way, end, start), torch.where(other_way, start, end)

    def _on_grid(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end of each jump of the first stage, towards the image."""
        first, second, third = uniform.unbind(1)
        grid = self.trajectories.angles
        last = len(grid) - 1
        anywhere = (first - self.from_noise) / max(1.0 - self.from_noise, 1e-9)
        start = (anywhere.clamp(min=0.0) * last).floor().long()
        end = start + 1 + (second * (last - start)).floor().long()
        return grid[start], grid[torch.where(third < 0.5, last, end)]

    def losses(
        self,
        denoise: Callable[..., Estimate],
        image: Tensor,
        noise: Tensor,
        start: Tensor,
        end: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> Losses:
        """The losses of a batch; see `MapObjective`. The first stage uses neither the images nor their labels."""
        if not self.regresses(progress):
            self.trajectories.clear()
            return super().losses(denoise, image, noise, start, end, labels, progress)
        # one number of the noise, which is not used otherwise, chooses the trajectory: its normal distribution function
        choice = 0.5 + 0.5 * torch.erf(noise.flatten(1)[:, 0] / math.sqrt(2.0))
        starts, ends = (send(self._place(angle), noise.device) for angle in (start, end))
        x, x_end, labels = self.trajectories.draw(choice, starts, ends, round(progress * self.length))
        image, noise = through(x, start, x_end, end)
        estimate = denoise(x, start, labels, to=end)
        return self.compare(estimate, image, noise, x, start, torch.zeros_like(x), torch.zeros_like(start))

    def _place(self, angle: Tensor) -> Tensor:
        """The numbers of angles on the grid of the trajectories."""
        return (angle[:, None] - self.trajectories.angles).abs().argmin(1)

    def step(
        self,
        estimate: Estimate,
        image: Tensor,
        noise: Tensor,
        x: Tensor,
        start: Tensor,
        part: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's estimate at x, and its midpoint step along the arc to the angle start - part."""
        at = call(self.teacher, x, start, labels)
        half = rotate(x, at.velocity(start), -0.5 * part)[0]
        middle = call(self.teacher, half, start - 0.5 * part, labels)
        return at.image, at.noise, rotate(x, middle.velocity(start), -part)[0]
