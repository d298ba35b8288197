"""The training images of a run, by number: of a source on this machine, decoded one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.images import MappedImages
from ..data.loading import is_on_the_hub, open_source
from ..evaluation.image_files import data_of, teacher_images
from ..storage.runs import run_of

__all__ = ["TrainingImages"]


class TrainingImages:
    """The images that the recipe of a run names, as the network sees them.

    Args:
        model: a run folder, or one of its checkpoints.

    Attributes:
        count: their number.

    Raises:
        InputError: if there is no recipe, or its images are not at hand: removed, given in memory, or on the hub.
    """

    def __init__(self, model: str | Path) -> None:
        run = run_of(model)
        if run is None:
            raise InputError(f"{model} has no recipe, so that its training images are unknown: give a run folder")
        spec, images = teacher_images(run, data_of(run).model_copy(update={"skip_bad": False}))
        if is_on_the_hub(spec.source):
            raise InputError(f"the images of {run} are on the hub")
        self._images = MappedImages(open_source(spec, progress=False, images=images), spec, torch.device("cpu"), {})
        self.count = self._images.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._images.channels, self._images.height, self._images.width

    def picture(self, number: int) -> Tensor:
        """An image, uint8 (C, H, W).

        Args:
            number: from 0 to `count` - 1.

        Raises:
            InputError: if the file is damaged or gone. The message does not contain its name, which is no visitor's.
        """
        try:
            return self._images.batch([number]).images[0]
        except (InputError, OSError):
            raise InputError(f"training image {number} cannot be read") from None
