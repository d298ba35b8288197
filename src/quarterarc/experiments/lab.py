"""The laboratory: where arms are trained and cells measured, and where both are kept.

CACHE/arms/HASH/           a run folder, as `quarterarc train` writes it
CACHE/cells/HASH/          cell.json, and pictures
CACHE/references/HASH      statistics and features of a scale's training images
CACHE/classifiers/HASH     weights of `experiments.classifier`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ..common.devices import processes
from ..data import ImageData
from ..denoiser import Denoiser
from ..evaluation.extractors import Extractor
from ..evaluation.extractors import extractor as named_extractor
from ..evaluation.features import collect
from ..evaluation.references import Reference, read_statistics, save_statistics
from ..evaluation.sets import BatchSet
from ..storage.checkpoints import load
from ..storage.files import make_folder, read_json, replace_folder, write_json
from ..training.trainer import Diverged, train
from .arms import Arm, digest
from .cells import Cell
from .classifier import trained_classifier
from .measures import MEASURES, WRAPPERS
from .scales import CLASSIFIER, Scale

__all__ = ["Lab"]

logger = logging.getLogger("quarterarc")

_UNSTABLE = "unstable.json"


class Lab:
    """Trains arms and measures cells of one scale, once each.

    Args:
        scale: the scale.
        cache: where arms and cells are kept, shared by experiments.
        device: where networks are measured; training takes what accelerate picks.
        progress: whether to show progress bars, on a terminal.
    """

    def __init__(self, scale: Scale, cache: Path, device: torch.device | str = "cpu", progress: bool = True) -> None:
        self.scale, self.cache, self.device, self.progress = scale, cache, torch.device(device), progress
        self._loaded: tuple[str, Denoiser] | None = None

    @property
    def bars(self) -> bool | None:
        """What functions take that show a bar on a terminal, or never."""
        return None if self.progress else False

    # --- what all cells share ----------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> ImageData:
        """The training images."""
        return self.scale.training_data()

    @cached_property
    def extractor(self) -> Extractor:
        """What makes the features that images are measured by.

        Raises:
            InputError: if its weights are not there.
        """
        if self.scale.features == CLASSIFIER:
            return trained_classifier(self.scale.recipe.data, self.cache / "classifiers", self.device, self.progress)
        return named_extractor(self.scale.features, self.device)

    @cached_property
    def reference(self) -> Reference:
        """The training images as metrics see them; their features are computed once."""
        key = digest([self.data.fingerprint, self.extractor.describe()])
        path = make_folder(self.cache / "references") / f"{key}.safetensors"
        with self._alone(path):
            if _as_first(not path.is_file()):
                self._write_reference(path)
        processes().wait()
        return read_statistics(path)

    def _write_reference(self, path: Path) -> None:
        kinds = [kind for kind in self.extractor.kinds if kind != "logits"]
        count = self.data.count or 0
        made = (self.data.batch(range(first, min(first + 250, count))).images for first in range(0, count, 250))
        found = collect(
            BatchSet(made, "the training images"), self.extractor, kinds, ["pool"], batch_size=250, progress=self.bars
        )
        if found.count:
            save_statistics(
                path, found, self.extractor.describe(), what=self.data.description, fingerprint=self.data.fingerprint
            )

    # --- arms --------------------------------------------------------------------------------------------------------

    def trained(self, arm: Arm, seed: int) -> Denoiser | str:
        """The arm's denoiser, trained first if it has to be; or why its training came to no end.

        Raises:
            InputError: if it cannot be trained.
            Interrupted: if a signal stopped training; it goes on from there.
        """
        run = arm.folder(self.scale, seed, self.cache)
        key = run.name
        if self._loaded and self._loaded[0] == key:
            return self._loaded[1]
        unstable = self._train(arm, seed, run)
        if unstable:
            return unstable
        recipe = self.scale.recipe
        precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
        denoise = load(run, self.device, precision, projection=None)  # the papers' samplers take what is said as it is
        self._loaded = key, denoise
        return denoise

    def images_left(self, arm: Arm, seed: int) -> int:
        """How many images the arm has still to be trained on; none if its training came to no end."""
        if (arm.folder(self.scale, seed, self.cache) / _UNSTABLE).is_file():
            return 0
        training = arm.recipe(self.scale, seed).training
        return max(0, training.steps - arm.steps_done(self.scale, seed, self.cache)) * training.batch

    def _train(self, arm: Arm, seed: int, run: Path) -> str:
        """Train to the end unless that is done; what went wrong, if the loss left the finite numbers."""
        recipe = arm.recipe(self.scale, seed)
        with self._alone(run):
            if _as_first(self.images_left(arm, seed) == 0):
                return str(read_json(run / _UNSTABLE)["why"]) if (run / _UNSTABLE).is_file() else ""
            started = time.perf_counter()
            try:
                with _quiet():
                    train(recipe, run, resume=True, progress=self.progress)
            except Diverged as diverged:
                why = f"training diverged: {diverged}".partition(", on the images")[0]
                if not processes().rank:
                    write_json(make_folder(run) / _UNSTABLE, {"why": why})
                processes().wait()
                return why
            logger.info("trained '%s', seed %d, in %.0f s", arm.name, seed, time.perf_counter() - started)
        return ""

    # --- cells -------------------------------------------------------------------------------------------------------

    def folder(self, cell: Cell) -> Path:
        """Where the cell is kept."""
        identity = MEASURES[cell.measure].identity(self)
        return self.cache / "cells" / cell.key(self.scale, identity)

    def kept(self, cell: Cell) -> bool:
        """Whether the cell has been measured."""
        return (self.folder(cell) / "cell.json").is_file()

    def measured(self, cell: Cell) -> dict[str, Any]:
        """What the cell found, measured first if it has to be; `unstable` says why there is nothing, where so.

        In a run of several processes all of them take part, and all return it.
        """
        folder = self.folder(cell)
        if _as_first(not self.kept(cell)):
            denoise = self.trained(cell.arm, cell.seed)
            with self._filling(folder) as beside:
                if isinstance(denoise, str):
                    values = {"unstable": denoise}
                else:
                    through = cell.get("through")
                    asked = denoise if through is None else WRAPPERS[through](denoise)
                    with _quiet():
                        values = MEASURES[cell.measure].compute(self, asked, cell, beside)
                if not processes().rank:
                    about = {"arm": cell.arm.name, "seed": cell.seed, "measure": cell.measure}
                    write_json(beside / "cell.json", {**about, "settings": dict(cell.settings), "values": values})
            processes().wait()
        found: dict[str, Any] = read_json(folder / "cell.json")["values"]
        return found

    @contextmanager
    def _filling(self, folder: Path) -> Iterator[Path]:
        """A folder to fill, which becomes the cell's at once; a process that came first is believed."""
        if processes().rank:
            yield folder
            return
        make_folder(folder.parent)
        try:
            with replace_folder(folder) as beside:
                yield beside
        except OSError:
            if not (folder / "cell.json").is_file():
                raise

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold a file or folder that another experiment may be making; wait for it if so."""
        if processes().rank:  # the first process holds it for all
            yield
            return
        make_folder(path.parent)
        with FileLock(path.with_name(f".{path.name}.lock")):
            yield


def _as_first(decision: bool) -> bool:
    """What the first process decided, in all of them: one that comes late must not see what the first has written."""
    if processes().count == 1:
        return decision
    from accelerate.utils import broadcast_object_list

    box = [decision]
    broadcast_object_list(box)
    return box[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what every single training and sampling has to say to warnings; there are hundreds."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
