"""What a run shows at its beginning: the images as the network sees them, and how long it will take."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from ..common.text import counted, duration
from ..data import ImageData, to_uint8
from ..sampling.sheets import rows_of
from ..storage.files import write_json
from ..storage.pictures import contact_sheet, write_png
from .batches import Batches

__all__ = ["PASSED_OVER", "SHEET", "Forecast", "write_passed_over", "write_training_sheet"]

logger = logging.getLogger("quarterarc")

SHEET = "training-images.png"
"""The first images of a run, as the network sees them: cropped, resized, mirrored and augmented."""
PASSED_OVER = "passed-over.json"
"""The files of the source that are not used, with the reason, in the run folder."""
_MOST_STEPS, _OF_CLASSES = 8, 4  # most steps whose batches the sheet shows; with classes, images read per image shown


def write_training_sheet(run: Path, batches: Batches, count: int) -> None:
    """Write a contact sheet of the first `count` training images of this process; with classes, one row per class."""
    images: list[Tensor] = []
    labels: list[int] = []
    classified = batches.data.labels
    wanted = count if classified is None else _OF_CLASSES * count
    for step in range(_MOST_STEPS):
        images += [to_uint8(batch.image).cpu() for batch in batches.of_step(step)]
        if classified is not None:  # those of a batch may be dropped
            labels += classified[batches.places(step)].tolist()
        if sum(map(len, images)) >= wanted:
            break
    pixels = torch.cat(images)
    if classified is None:
        sheet = contact_sheet(pixels[:count])
    else:
        rows, names = rows_of(labels, count, batches.data.class_names)
        sheet = contact_sheet(pixels, rows=rows, names=names)
    write_png(run / SHEET, sheet)
    logger.info("the training images as the network sees them: %s", run / SHEET)


def write_passed_over(run: Path, data: ImageData) -> None:
    """Write the names of the files of the source that are not used, if there are any."""
    if data.passed_over:
        write_json(run / PASSED_OVER, dict(data.passed_over))
        logger.info("files of the source that are not read as images: %s", run / PASSED_OVER)


class Forecast:
    """Logs once, after some steps, how long a run will take on this machine.

    Args:
        steps: the steps of the whole run.
        batch: images per step.
    """

    def __init__(self, steps: int, batch: int) -> None:
        self._steps, self._batch, self._done = steps, batch, False
        self._first: tuple[int, float] | None = None

    def after(self, step: int) -> None:
        """Note that a step is complete; the first ones, which compile and fill caches, do not count."""
        if self._done or step >= self._steps:
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = step, now
            return
        first, started = self._first
        if step - first < _FEWEST_STEPS or now - started < _SECONDS:
            return
        self._done = True
        per_step = (now - started) / (step - first)
        logger.info(
            "about %s for the remaining %s: %s per step, %.3g images per second",
            duration(per_step * (self._steps - step)), counted(self._steps - step, "step"), duration(per_step),
            self._batch / per_step,
        )  # fmt: skip


_FEWEST_STEPS, _SECONDS = 5, 5.0
"""What a forecast is based on: the work of a GPU is queued, so that single steps appear to take no time."""
