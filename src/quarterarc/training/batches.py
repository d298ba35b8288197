"""The batches of a training run: which images a step uses, and all its random numbers.

Everything is a function of (seed, step, place in the global batch), so that it does not depend on the number of
processes, nor on whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from ..common.devices import send
from ..common.errors import InputError
from ..common.fused_noise import FusedNoise
from ..common.streams import FORMAT, Purpose, streams
from ..data import ImageData, apply_flips, to_float
from ..data.order import balanced_indices, indices
from .augmentation import augment, draw_parameters
from .recipe import Recipe

__all__ = ["Batch", "Batches", "part_size", "with_dropped"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Part of a step's global batch, on the device: images and noise (B, C, H, W), times and labels (B,).

    Attributes:
        uniform: further numbers in [0, 1), float64, shape (B, 3), on the CPU, from which jumps of a flow map are drawn.
        augmentation: the parameters by which the images were augmented, shape (B, 8); None without augmentation.
    """

    image: Tensor
    noise: Tensor
    times: Tensor
    labels: Tensor | None
    uniform: Tensor
    augmentation: Tensor | None = None


def part_size(recipe: Recipe, processes: int) -> int:
    """Images per forward pass of a process.

    Raises:
        InputError: if the global batch cannot be divided equally.
    """
    settings = recipe.training
    parts = processes * settings.accumulate
    if settings.batch % parts:
        raise InputError(
            f"training.batch={settings.batch} is the global batch: it must be divisible by "
            f"{processes} processes times training.accumulate={settings.accumulate}"
        )
    return settings.batch // parts


def with_dropped(labels: Tensor | None, dropped: Tensor, classes: int | None, device: torch.device) -> Tensor | None:
    """Labels on a device, with the number of classes, which means "no label", where `dropped`; None without labels."""
    if labels is None:
        return None
    assert classes is not None
    return torch.where(send(dropped, device), classes, send(labels, device))


def _by_class(data: ImageData) -> list[NDArray[np.int64]]:
    """The indices of the images of each class that has any.

    Raises:
        InputError: for images without labels, and a stream.
    """
    if data.labels is None:
        raise InputError(
            "data.balanced=true needs images with labels (data.labels=true) that are not streamed: leave it out"
        )
    return [np.flatnonzero(data.labels == label) for label in np.unique(data.labels)]


class Batches:
    """The batches of a process.

    Args:
        data: the images.
        recipe: its sections `data` and `training`.
        accelerator: this process among all.
        last_time: the largest time that is drawn.
        format: the format of the random streams of this run.
        augment: the probability of each movement of an augmentation; 0 for no augmentation.
        compiled: whether the network is compiled, and on a GPU therefore the drawing of noise too.
    """

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe,
        accelerator: Accelerator,
        last_time: int,
        format: int = FORMAT,
        augment: float = 0.0,
        compiled: bool = False,
    ) -> None:
        self.augment = augment
        self.fused = FusedNoise() if compiled and accelerator.device.type == "cuda" else None
        self.data, self.recipe, self.last_time, self.format = data, recipe, last_time, format
        self.device, self.rank, self.count = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.by_class = _by_class(data) if recipe.data.balanced else None
        self.part = part_size(recipe, accelerator.num_processes)
        self.share = self.part * recipe.training.accumulate

    def of_step(self, step: int) -> list[Batch]:
        """The process's parts of a step's global batch; reading the images of the next step begins, if from disk."""
        parts = range(self.recipe.training.accumulate)
        if step + 1 < self.recipe.training.steps:
            for part in parts:
                self.data.prefetch(self._places(self._numbers(step + 1, part)))
        return [self._batch(step, self._numbers(step, part)) for part in parts]

    def places(self, step: int) -> list[int]:
        """The indices of the images that the process uses in a step."""
        numbers = [self._numbers(step, part) for part in range(self.recipe.training.accumulate)]
        return [place for part in numbers for place in self._places(part)]

    def _numbers(self, step: int, part: int) -> range:
        """The numbers, counted over the whole run, of this process's examples in a part of a step.

        The processes take turns, so that those of one always lie in the same parts of a stream (`SplitStream`).
        """
        batch = self.recipe.training.batch
        own = range(step * batch + self.rank, (step + 1) * batch, self.count)
        return own[part * self.part : (part + 1) * self.part]

    def _places(self, numbers: Sequence[int]) -> list[int]:
        """The image index of each example: a new order per epoch; a stream has its own order."""
        if self.data.count is None:
            return list(numbers)
        if self.by_class is not None:
            return balanced_indices(numbers, self.recipe.training.seed, self.by_class).tolist()
        return indices(numbers, self.recipe.training.seed, self.data.count).tolist()

    def _batch(self, step: int, numbers: range) -> Batch:
        settings = self.recipe.training
        raw = self.data.batch(self._places(numbers))
        first = step * settings.batch
        places = [number - first for number in numbers]
        drawn = streams(Purpose.EXAMPLE, settings.seed, step, places, format=self.format, fused=self.fused)
        # the order of an example's draws is fixed, so that its time and noise do not depend on whether flips are used
        flips, dropped = drawn.uniform(2).unbind(1)
        times = drawn.integers(1, self.last_time + 1).double()
        noise = drawn.normal((self.data.channels, self.data.height, self.data.width), device=self.device)
        image = to_float(send(raw.images, self.device))
        if self.recipe.data.flip:
            image = apply_flips(image, flips < 0.5)
        parameters = None
        if self.augment:
            moves = streams(Purpose.AUGMENTATION, settings.seed, step, places, format=self.format)
            parameters = draw_parameters(moves, self.augment)
            image = augment(image, parameters)
            parameters = send(parameters, self.device, torch.float32)
        labels = with_dropped(raw.labels, dropped < settings.drop_labels, self.data.classes, self.device)
        return Batch(image, noise, times, labels, drawn.uniform(3), parameters)
