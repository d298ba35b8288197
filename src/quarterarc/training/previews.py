"""Previews: contact sheets of images from fixed seeds, at fixed steps and, early in a run, after fixed times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ..common.errors import InputError
from ..data.pixels import to_uint8
from ..denoiser import Denoiser
from ..sampling.generation import generate
from ..sampling.sheets import labels_of_sheet, rows_of
from ..storage.pictures import contact_sheet, write_png
from ..storage.runs import sheet_name

__all__ = ["Previews", "write_sheets"]

logger = logging.getLogger("quarterarc")

FIRST, FURTHER = 30.0, 4.0
"""Seconds of training until the first preview, and the ratio of the times of later ones: 30 s, 2, 8, 32 minutes, ..."""
BUDGET = 10.0
"""Seconds that such a preview may take, which limits its number of images."""
COST = 4.0
"""Evaluations of the network that take as long as training on one image (forward, backward, update), at least."""
EVALUATIONS = 10.0
"""Network evaluations per sampled image, about."""
FEWEST = 4
"""Images of the smallest early preview."""


class Previews:
    """The contact sheets of a run, made by its first process.

    Args:
        folder: the folder of the contact sheets.
        count: images per contact sheet.
        every: steps from one preview to the next; the early ones do not count.
        batch: images at once.
        clock: seconds; for tests.
    """

    def __init__(
        self, folder: Path, count: int, every: int, batch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._count, self._every, self._clock = folder, count, every, clock
        self.batch = batch
        self._started: float | None = None
        self._next = FIRST

    def early(self, step: int) -> bool:
        """Whether a preview is due by the time, long before that of the next fixed step; called after every step."""
        now = self._clock()
        if self._started is None:  # the end of the first step, which may compile the network
            self._started = now
        if now - self._started < self._next:
            return False
        self._next *= FURTHER
        return step < self._every

    def affordable(self, rate: float | None) -> int:
        """The number of images of an early preview.

        Args:
            rate: images per second in training; None if unknown.
        """
        if rate is None:
            return min(FEWEST, self._count)
        return max(min(FEWEST, self._count), min(self._count, int(BUDGET * rate * COST / EVALUATIONS)))

    def make(self, denoise: Denoiser, step: int, count: int | None = None) -> Mapping[Path, Tensor]:
        """Sample contact sheets: one, or of a flow map one each for 1, 2 and 4 evaluations; one row per class.

        Args:
            denoise: the denoiser with the moving average.
            step: the number of completed optimiser steps.
            count: number of images; that of the run if None.

        Returns:
            The path and the pixels, uint8 (C, H, W), of each contact sheet; none for a network whose images are not
            finite yet, which does not stop training.
        """
        count = count or self._count
        labels = None if denoise.classes is None else labels_of_sheet(denoise.classes, count)
        rows, names = (None, []) if labels is None else rows_of(labels, len(labels), denoise.class_names)
        seeds = range(count if labels is None else len(labels))
        sheets = {}
        try:
            for steps in (1, 2, 4) if denoise.maps else (None,):
                images = generate(denoise, seeds, steps=steps, labels=labels, batch_size=self.batch, progress=False)
                sheets[self._folder / sheet_name(step, steps)] = contact_sheet(to_uint8(images), rows=rows, names=names)
        except InputError as error:
            logger.warning("no contact sheet at step %d: %s", step, error)
            return {}
        return sheets


def write_sheets(sheets: Mapping[Path, Tensor]) -> None:
    """Write contact sheets, in a folder that is made if it is missing."""
    for path, pixels in sheets.items():
        path.parent.mkdir(exist_ok=True)
        write_png(path, pixels)
