"""What a step of training sees: which images, and everything random about them.

All of it is derived from (seed, step, place in the global batch), so it is the same whichever process asks, and whether
or not the run was ever interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..common.errors import InputError
from ..common.streams import Purpose, normal, stream
from ..data import ImageData, apply_flips, to_float
from ..data.order import indices
from .recipe import Recipe

__all__ = ["Batch", "Batches", "part_size"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A part of a step's global batch, on the device: images and noise (B, C, H, W), times and labels (B,)."""

    image: Tensor
    noise: Tensor
    times: Tensor
    labels: Tensor | None


def part_size(recipe: Recipe, processes: int) -> int:
    """How many images a process sees at once.

    Raises:
        InputError: if the global batch does not divide.
    """
    settings = recipe.training
    parts = processes * settings.accumulate
    if settings.batch % parts:
        raise InputError(
            f"training.batch={settings.batch} is the global batch: it must divide by "
            f"{processes} processes times training.accumulate={settings.accumulate}"
        )
    return settings.batch // parts


class Batches:
    """The batches of a process.

    Args:
        data: the images.
        recipe: which and how many of them a step sees.
        accelerator: this process among all.
        last_time: the largest time that is drawn.
    """

    def __init__(self, data: ImageData, recipe: Recipe, accelerator: Accelerator, last_time: int) -> None:
        self.data, self.recipe, self.last_time = data, recipe, last_time
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.part = part_size(recipe, accelerator.num_processes)
        self.share = self.part * recipe.training.accumulate

    def of_step(self, step: int) -> list[Batch]:
        """The process's parts of a step's global batch; images on disk begin to be read for the step after it."""
        parts = range(self.recipe.training.accumulate)
        if step + 1 < self.recipe.training.steps:
            for part in parts:
                self.data.prefetch(self._places(self._numbers(step + 1, part)))
        return [self._batch(step, self._numbers(step, part)) for part in parts]

    def places(self, step: int) -> list[int]:
        """Which images the process sees in a step."""
        numbers = [self._numbers(step, part) for part in range(self.recipe.training.accumulate)]
        return [place for part in numbers for place in self._places(part)]

    def _numbers(self, step: int, part: int) -> range:
        """The numbers, counted over the whole run, of this process's examples in one part of a step."""
        first = step * self.recipe.training.batch + self.rank * self.share + part * self.part
        return range(first, first + self.part)

    def _places(self, numbers: Sequence[int]) -> list[int]:
        """Which images these examples are: a new order every epoch; a stream has its own order."""
        if self.data.count is None:
            return list(numbers)
        return indices(numbers, self.recipe.training.seed, self.data.count).tolist()

    def _batch(self, step: int, numbers: range) -> Batch:
        settings = self.recipe.training
        raw = self.data.batch(self._places(numbers))
        first = step * settings.batch
        streams = [stream(settings.seed, Purpose.EXAMPLE, step, number - first) for number in numbers]
        # the order of an example's draws is fixed, so that switching flips on leaves its time and noise alone
        flips, dropped = torch.from_numpy(np.stack([each.random(2) for each in streams])).unbind(1)
        times = torch.tensor([each.integers(1, self.last_time + 1) for each in streams], dtype=torch.float64)
        noise = normal(streams, (self.data.channels, self.data.height, self.data.width))
        image = to_float(raw.images.to(self.device, non_blocking=True))
        if self.recipe.data.flip:
            image = apply_flips(image, flips < 0.5)
        labels = raw.labels
        if labels is not None:
            assert self.data.classes is not None
            labels = torch.where(dropped.to(self.device) < settings.drop_labels, self.data.classes, labels)
        return Batch(image, noise.to(self.device, non_blocking=True), times, labels)
