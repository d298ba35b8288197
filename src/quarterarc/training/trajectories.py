"""Trajectories of a teacher: a window of recent ones, among which the jumps of every batch are drawn."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.streams import Purpose, streams
from ..common.text import duration
from ..denoiser import Denoise, traits
from ..sampling.plans import Sampling

__all__ = ["GROUP", "Trajectories"]

GROUP = 64
"""Trajectories that are computed together: always the same ones, so that a resumed run has the same bits."""
MOST_BYTES = 2**30
"""The largest size of the window."""
WAIT = 5.0
"""Seconds for the first window above which the log mentions it."""

logger = logging.getLogger("quarterarc")


class Trajectories:
    """The trajectories of a teacher by `multistep` from numbered noise, of which the newest ones are kept.

    Jumps of one batch that share trajectories teach less than those of different ones (docs/flow-maps.md), so that
    several batches use a trajectory, and no batch uses it often.

    Args:
        teacher: the denoiser, which declares the shape of its images.
        steps: steps of a trajectory, one evaluation each, of equal length in the angle.
        kept: size of the window, rounded up to a multiple of `GROUP`; less where it would take more than 1 GiB.
        uses: jumps that are drawn per trajectory before a new one takes its place.
        batch: jumps that this process draws per optimiser step.
        seed: the seed of noise and labels.
        rank, processes: this process among all, each of which has trajectories of its own.
        unlabelled: share of the trajectories without a label, for a teacher that has classes.
        device: the device of the teacher.

    Attributes:
        angles: those of the states, descending to 0: float64, shape (steps + 1,), on the CPU.

    Raises:
        InputError: for a value outside its range.
    """

    def __init__(
        self,
        teacher: Denoise,
        steps: int = 8,
        kept: int = 1024,
        uses: int = 8,
        *,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        unlabelled: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("steps", steps), ("trajectories", kept), ("uses", uses)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of distillation is a whole number from 1, got {value!r}")
        declared = traits(teacher)
        assert declared.shape is not None
        self.shape, self.classes = declared.shape, declared.classes
        self.plan = Sampling("multistep", steps, "angle", {"free_start": False}).plan(teacher, self.shape)
        self.angles = torch.tensor(self.plan.angles)
        fit = MOST_BYTES // (4 * GROUP * len(self.angles) * math.prod(self.shape))
        self.groups = max(1, min(fit, -(-kept // GROUP)))
        self.lasts = GROUP * uses / batch  # optimiser steps, until a group is replaced
        self.seed, self.rank, self.processes = seed, rank, processes
        self.unlabelled, self.device = unlabelled, torch.device(device)
        self._numbers: list[int | None] = [None] * self.groups  # of the groups in the window, by place
        self._states = self._labels = torch.empty(0)

    def draw(self, choice: Tensor, starts: Tensor, ends: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Two states each of some trajectories.

        Args:
            choice: which trajectories: numbers in [0, 1), shape (B,), on the device.
            starts, ends: which states, from 0 to `steps`: int64, shape (B,), on the device.
            step: the number of optimiser steps before this one.

        Returns:
            The states, shape (B, C, H, W) each, and the labels of the trajectories, shape (B,), or None.
        """
        self._fill(math.floor(step / self.lasts))
        rows = (choice * (self.groups * GROUP)).long().clamp(max=self.groups * GROUP - 1)
        labels = None if self.classes is None else self._labels[rows]
        return self._states[starts, rows], self._states[ends, rows], labels

    def clear(self) -> None:
        """Free the memory of the window."""
        self._numbers = [None] * self.groups
        self._states = self._labels = torch.empty(0)

    def _fill(self, first: int) -> None:
        """Compute the groups from number `first` on that are not in the window: at places by their number."""
        started, empty = time.monotonic(), not len(self._states)
        for number in range(first, first + self.groups):
            place = number % self.groups
            if self._numbers[place] == number:
                continue
            states, labels = self._group(number)
            if empty and number == first:
                self._announce((time.monotonic() - started) * (self.groups - 1))
            if not len(self._states):
                self._states = states.repeat(1, self.groups, *[1] * len(self.shape))
                self._labels = labels.repeat(self.groups)
            rows = slice(place * GROUP, (place + 1) * GROUP)
            self._states[:, rows], self._labels[rows], self._numbers[place] = states, labels, number

    def _announce(self, left: float) -> None:
        """Log that the next step waits for the first window, for so many seconds."""
        if left > WAIT and not self.rank:
            logger.info(
                "the next step waits for %s trajectories of the teacher: about %s",
                f"{self.groups * GROUP:,}", duration(left),
            )  # fmt: skip

    def _group(self, number: int) -> tuple[Tensor, Tensor]:
        """The states, shape (steps + 1, GROUP, C, H, W), and the labels of a group; 0 without classes."""
        drawn = streams(Purpose.TRAJECTORY, self.seed, number * self.processes + self.rank, range(GROUP))
        dropped, label = drawn.uniform(2).unbind(1)
        labels = torch.zeros(GROUP, dtype=torch.int64)
        if self.classes is not None:
            labels = torch.where(dropped < self.unlabelled, self.classes, (label * self.classes).long())
        labels = labels.to(self.device)
        _, states = self.plan.states(
            drawn.normal(self.shape, device=self.device), None if self.classes is None else labels
        )
        return torch.stack([state.x for state in states]), labels
