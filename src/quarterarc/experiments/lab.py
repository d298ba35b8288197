"""The lab: trains the arms of a scale, and holds what all measurements share. Everything is cached on disk.

CACHE/arms/HASH/           run folders, as `quarterarc train` writes them
CACHE/cells/HASH/          measured cells: cell.json, and pictures (`experiments.measuring`)
CACHE/references/HASH      statistics and features of a scale's training images
CACHE/classifiers/HASH     weights of `evaluation.extractors.classifier`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from ..common.devices import processes
from ..common.hashes import short_hash
from ..common.text import duration
from ..data import ImageData
from ..denoiser import Denoiser
from ..evaluation.extractors import Extractor
from ..evaluation.extractors import extractor as named_extractor
from ..evaluation.extractors.classifier import trained_classifier
from ..evaluation.features import collect
from ..evaluation.references import Reference, read_statistics, save_statistics
from ..evaluation.sets import BatchSet
from ..sampling.mean_images import with_mean_image
from ..storage.checkpoints import load
from ..storage.files import make_folder, read_json, write_json
from ..storage.locks import waiting_lock
from ..storage.temporary import sweep
from ..storage.training_state import drop_old, sweep_run
from ..training.api import train
from ..training.recipe_text import read_recipe
from ..training.teachers import check_teacher, read_teacher, sections_of
from ..training.trainer import Diverged
from .arms import Arm
from .given import open_given
from .scales import CLASSIFIER, Scale

__all__ = ["Lab", "exclusive", "only_warnings"]

logger = logging.getLogger("quarterarc")

_UNSTABLE = "unstable.json"


class Lab:
    """Trains the arms of one scale, each once, and provides the images and features that all cells share.

    Args:
        scale: the scale.
        cache: the folder of trained arms and measured cells, shared by experiments.
        device: the device of measurements; training uses the device that accelerate picks.
        progress: whether to show progress: bars, or lines in a log file.
    """

    def __init__(self, scale: Scale, cache: Path, device: torch.device | str = "cpu", progress: bool = True) -> None:
        self.scale, self.cache, self.device, self.progress = scale, cache, torch.device(device), progress
        self._loaded: tuple[str, Denoiser] | None = None

    # --- shared by all cells -----------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> ImageData:
        """The training images."""
        return self.scale.training_data()

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor of all metrics.

        Raises:
            InputError: if its weights are missing.
        """
        if self.scale.features == CLASSIFIER:
            return trained_classifier(self.scale.recipe.data, self.cache / "classifiers", self.device, self.progress)
        return named_extractor(self.scale.features, self.device)

    @cached_property
    def reference(self) -> Reference:
        """Statistics and features of the training images, computed once and cached."""
        key = short_hash([self.data.fingerprint, self.extractor.describe()])
        path = make_folder(self.cache / "references") / f"{key}.safetensors"
        with exclusive(path):
            if processes().from_first(not path.is_file()):
                self._write_reference(path)
        processes().wait()
        return read_statistics(path)

    def _write_reference(self, path: Path) -> None:
        kinds = [kind for kind in self.extractor.kinds if kind != "logits"]
        count = self.data.count or 0
        batches = (self.data.batch(range(first, min(first + 250, count))).images for first in range(0, count, 250))
        collected = collect(
            BatchSet(batches, "the training images"),
            self.extractor,
            kinds,
            ["pool"],
            batch_size=250,
            progress=self.progress,
        )
        if collected.count:
            save_statistics(
                path,
                collected,
                self.extractor.describe(),
                what=self.data.description,
                fingerprint=self.data.fingerprint,
            )

    def sweep(self) -> None:
        """Delete what killed processes have left in the cache; arms are swept when they are trained."""
        sweep(*(self.cache / name for name in ("arms", "cells", "references", "classifiers")))
        sweep(*(self.cache / "features").glob("*/*"))

    # --- arms --------------------------------------------------------------------------------------------------------

    def denoiser(self, arm: Arm, seed: int) -> Denoiser | str:
        """The denoiser of a trained arm, after training where it is missing; the reason as text if training diverged.

        Raises:
            InputError: if the arm cannot be trained.
            Interrupted: if a signal stopped training; the next call resumes it.
        """
        run = arm.folder(self.scale, seed, self.cache)
        key = run.name
        if self._loaded and self._loaded[0] == key:
            return self._loaded[1]
        if (network := self.scale.given(arm.name)) is not None:
            self._loaded = key, with_mean_image(open_given(network, self.scale, self.device))
            return self._loaded[1]
        unstable = self._train(arm, seed, run)
        if unstable:
            return unstable
        precision = torch.bfloat16 if self.scale.recipe.training.precision == "bf16" else None
        # the papers' samplers use raw estimates; checkpoints of earlier versions have no mean image
        denoise = with_mean_image(load(run, self.device, precision, projection=None))
        self._loaded = key, denoise
        return denoise

    def images_left(self, arm: Arm, seed: int) -> int:
        """The number of images that the arm has still to be trained on; 0 if its training diverged."""
        if self.scale.given(arm.name) or (arm.folder(self.scale, seed, self.cache) / _UNSTABLE).is_file():
            return 0
        training = arm.recipe(self.scale, seed).training
        return max(0, training.steps - arm.steps_done(self.scale, seed, self.cache)) * training.batch

    def _train(self, arm: Arm, seed: int, run: Path) -> str:
        """Train the arm to the end if it is not; the reason if training diverged, else ""."""
        recipe, teacher = arm.recipe(self.scale, seed), arm.teacher
        with exclusive(run):
            if processes().from_first(self.images_left(arm, seed) == 0):
                if run.is_dir() and not processes().rank:  # a process may have been killed after the last checkpoint
                    sweep_run(run)
                    drop_old(run, recipe.training.keep)
                return str(read_json(run / _UNSTABLE)["why"]) if (run / _UNSTABLE).is_file() else ""
            loaded = None
            if teacher is not None:
                folder = teacher.folder(self.scale, seed, self.cache)
                network = self.scale.given(teacher.name)
                if network is None and (why := self._train(teacher, seed, folder)):
                    return self._mark_unstable(run, f"its teacher's {why}")
                loaded = read_teacher(folder if network is None else network.path, self.device)
                if network is not None:  # whose sections are not those of the scale
                    check_teacher(loaded, network.path)
                    fields = {**recipe.model_dump(mode="json"), "schedule": {}, **sections_of(loaded)}
                    recipe = read_recipe(fields)
            started = time.perf_counter()
            try:
                with only_warnings():
                    train(recipe, run, resume=True, progress=self.progress, teacher=loaded)
            except Diverged as diverged:
                return self._mark_unstable(run, f"training diverged: {diverged}".partition(", on the images")[0])
            if not processes().rank:
                logger.info("trained '%s', seed %d, in %s", arm.name, seed, duration(time.perf_counter() - started))
        return ""

    def _mark_unstable(self, run: Path, why: str) -> str:
        """Record why an arm has no network; returns the reason."""
        if not processes().rank:
            write_json(make_folder(run) / _UNSTABLE, {"why": why})
        processes().wait()
        return why


# --- processes ------------------------------------------------------------------------------------------------------


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on a file or folder that another experiment may be writing; waits for the lock."""
    if processes().rank:  # in a distributed run the first process holds the lock for all
        yield
        return
    make_folder(path.parent)
    with waiting_lock(path):
        yield


@contextmanager
def only_warnings() -> Iterator[None]:
    """Reduce the log to warnings: an experiment trains and samples hundreds of times."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
