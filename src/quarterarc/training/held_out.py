"""The loss of images that are held out of training, at fixed times and with fixed noise.

The draws are the same at every step, so that the curve shows the network and not the draws. A loss that rises while
that of training falls shows overfitting.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..common.devices import send
from ..common.streams import FORMAT, Purpose, streams
from ..data import ImageData, to_float
from ..data.order import indices
from .batches import Batch, with_dropped
from .learner import Learner
from .recipe import Recipe

__all__ = ["HeldOut", "examples_of"]

MOST, FEWEST, SHARE = 256, 16, 0.02
"""Examples of the held-out loss: at most, at least, and so many that they take about this share of the time."""
COST = 3
"""A training example takes about as long as three evaluations of the network."""


def examples_of(recipe: Recipe) -> int:
    """The number of examples of the held-out loss."""
    settings = recipe.training
    return min(MOST, max(FEWEST, int(SHARE * COST * settings.log_every * settings.batch)))


class HeldOut:
    """The examples of the held-out loss: images in turn, each with one of equally spaced times.

    Args:
        data: the images that are held out.
        recipe: the recipe of the run.
        device: the device of the network.
        last_time: the largest time.
        part: examples per batch.
        format: the format of the random streams of this run.
    """

    def __init__(
        self, data: ImageData, recipe: Recipe, device: torch.device, last_time: int, part: int, format: int = FORMAT
    ) -> None:
        assert data.count is not None
        self._data, self._recipe, self._device, self._last_time = data, recipe, device, last_time
        self._part, self._format, self.count = part, format, examples_of(recipe)
        self._images = indices(range(self.count), recipe.training.seed, data.count)

    def loss(self, learner: Learner, step: int) -> float:
        """The mean loss of the network that is trained; waits for the device.

        Args:
            learner: the network and its objective.
            step: the number of completed optimiser steps.
        """
        total = torch.zeros((), device=self._device)
        for batch in self._batches():
            total += learner.held_out_loss(batch, step) * len(batch.image)
        return float(total) / self.count

    def _batches(self) -> Iterator[Batch]:
        for first in range(0, self.count, self._part):
            yield self._batch(range(first, min(first + self._part, self.count)))

    def _batch(self, places: range) -> Batch:
        data, settings = self._data, self._recipe.training
        raw = data.batch(self._images[places.start : places.stop])
        drawn = streams(Purpose.HELD_OUT, settings.seed, 0, places, format=self._format)
        dropped = drawn.uniform(1)[:, 0] < settings.drop_labels
        noise = drawn.normal((data.channels, data.height, data.width), device=self._device)
        times = 1.0 + ((torch.arange(places.start, places.stop) + 0.5) / self.count * self._last_time).floor().double()
        labels = with_dropped(raw.labels, dropped, data.classes, self._device)
        return Batch(to_float(send(raw.images, self._device)), noise, times, labels, drawn.uniform(3))
