"""The objective of distillation: a flow map that learns the flow of a teacher, in two stages.

1. Regression on the teacher's own trajectories, which need no data: a jump between two states of one trajectory of
   `multistep` has the velocity of the arc through both (CMT 2025, on the arc).
2. The objective `flow-map` with the teacher's velocity in place of that of single images: the step to the middle angle
   is one midpoint step of the teacher. Data give the points at which the map is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..arc import rotate, through
from ..common.devices import send
from ..common.errors import InputError
from ..denoiser import Denoise, call, traits
from ..estimate import Estimate
from ..objectives import FlowMap, Losses
from ..sampling.plans import Plan, Sampling

__all__ = ["Distillation"]


@dataclass(frozen=True, kw_only=True)
class Distillation(FlowMap):
    """The objective of this module; further attributes as for `FlowMap`.

    Attributes:
        teacher: the denoiser whose flow is learned; its two estimates agree on x.
        first_share, last_share: the share s of a jump in the second stage.
        stage: share of the run that is the first stage, in [0, 1].
        steps: steps of a trajectory of the teacher, one evaluation each.
        pairs: jumps per trajectory in a batch.

    Raises:
        InputError: for a value outside its range, or a teacher that is not defined at pi/2 or 0 of the arc.
    """

    teacher: Denoise
    first_share: float = 0.1
    last_share: float = 0.1
    stage: float = 0.5
    steps: int = 8
    pairs: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.stage <= 1.0:
            raise InputError(f"the first stage of distillation is a share of the run in 0..1, got {self.stage!r}")
        for name, value in (("steps", self.steps), ("pairs", self.pairs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of distillation is a whole number from 1, got {value!r}")

    @cached_property
    def plan(self) -> Plan:
        """The trajectories of the teacher."""
        return Sampling("multistep", self.steps).plan(self.teacher, traits(self.teacher).shape)

    @cached_property
    def _grid(self) -> Tensor:
        return torch.tensor(self.plan.angles)

    def regresses(self, progress: float) -> bool:
        """Whether the first stage is under way."""
        return progress < self.stage

    def angles(self, uniform: Tensor, largest: float, progress: float) -> tuple[Tensor, Tensor]:
        """Start and end of each jump; in the first stage angles of the trajectory, half of them ending at its end."""
        if not self.regresses(progress):
            return super().angles(uniform, min(largest, traits(self.teacher).largest_angle), progress)
        first, second, third = uniform.unbind(1)
        last = len(self._grid) - 1
        start = (first * last).floor().long()
        end = start + 1 + (second * (last - start)).floor().long()
        return self._grid[start], self._grid[torch.where(third < 0.5, last, end)]

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
        """The losses of a batch; see `MapObjective`. The first stage does not use the images."""
        if not self.regresses(progress):
            return super().losses(denoise, image, noise, start, end, labels, progress)
        count = -(-len(noise) // self.pairs)
        rows = send(torch.arange(len(noise)) % count, noise.device)
        labels = None if labels is None else labels[:count]
        _, states = self.plan.states(noise[:count], labels)
        points = torch.stack([state.x for state in states])
        x, x_end = (points[send(self._place(angle), noise.device), rows] for angle in (start, end))
        image, noise = through(x, start, x_end, end)
        estimate = denoise(x, start, None if labels is None else labels[rows], to=end)
        return self.compare(estimate, image, noise, x, start, torch.zeros_like(x), torch.zeros_like(start))

    def _place(self, angle: Tensor) -> Tensor:
        """The numbers of angles on the grid of the trajectories."""
        return (angle[:, None] - self._grid).abs().argmin(1)

    def step(
        self, image: Tensor, noise: Tensor, x: Tensor, start: Tensor, part: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's estimate at x, and its midpoint step along the arc to the angle start - part."""
        at = call(self.teacher, x, start, labels)
        half = rotate(x, at.velocity(start), -0.5 * part)[0]
        middle = call(self.teacher, half, start - 0.5 * part, labels)
        return at.image, at.noise, rotate(x, middle.velocity(start), -part)[0]
