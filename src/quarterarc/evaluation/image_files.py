"""Image sets of files: folders, tables and data sets at their own size, npz files, and the training images of a run."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.plain_yaml import LARGEST, load_yaml
from ..data.archives import ARCHIVES
from ..data.arrays import NUMPY
from ..data.containers import how_to_use
from ..data.decode import DECODING, SKIP_BAD, BadImage, Encoded, read_pixels, shape_of
from ..data.holdout import Part, divide
from ..data.image_set import ImageSet, Shape, Wanted
from ..data.images import ImageData, MappedImages, log_bad
from ..data.labels import Labels
from ..data.loading import open_data, open_source
from ..data.memory import MEMORY
from ..data.sources import Source
from ..data.spec import DataSpec
from ..data.survey import survey
from ..sampling.archives import read_record
from ..sampling.folders import is_sample
from ..sampling.records import LABELS, NAMES
from ..storage.files import read_json, read_text
from ..storage.npz import Npz
from ..storage.runs import TEACHER_IMAGES
from ..storage.weights import read_weights
from ..training.recipe import TEACHER
from .sets import batch_rows

__all__ = ["FileSet", "NpzSet", "held_out_images", "open_pictures", "open_set", "teacher_images", "training_images"]

logger = logging.getLogger("quarterarc")

_AHEAD = 2  # batches that are decoded in advance
_MOST_PIXELS = 2**26  # of an image in an npz, the default of data.max_pixels


class NpzSet:
    """The images of an npz in ADM's layout: `arr_0`, uint8 (N, H, W, C); read batch by batch.

    The record of an npz that `quarterarc sample` wrote gives `ImageSet.sampling`.

    Args:
        path: the file.
        limit: number of images to use, the first ones; all if None.

    Raises:
        InputError: if the file holds no such images.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.what, self._npz = f"{path}", Npz(path)
        if "arr_0" not in self._npz.names:
            raise InputError(f"{path} holds no images: save them as arr_0, uint8 (N, H, W, C)")
        with self._npz.opened("arr_0") as (header, _):
            self._shape = header.shape
        if header.dtype != np.uint8 or len(header.shape) != 4 or header.fortran:
            order = " in Fortran order" if header.fortran else ""
            raise InputError(
                f"{path}: images must be uint8 (N, H, W, C) as arr_0, got {header.dtype} {header.shape}{order}"
            )
        count, height, width, channels = self._shape
        if count == 0:
            raise InputError(f"{path} holds no images: arr_0 has shape {self._shape}")
        if height * width > _MOST_PIXELS:
            raise InputError(f"{path}: its images of {height}x{width} have more than {_MOST_PIXELS:,} pixels")
        self.count = count if limit is None else min(limit, count)
        self.shape: Shape = (channels, height, width)
        entry = self._npz.entry("arr_0")
        self.fingerprint = digest(entry.CRC, entry.file_size, self.count)
        self.identity = digest(self.fingerprint, str(path.resolve()), path.stat().st_mtime_ns)
        record = read_record(self._npz)
        self.sampling = None if record is None else _sampling_of(record)

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        bytes_per_image = math.prod(self._shape[1:])
        last = max((number for number, _ in batch_rows(self.count, size, wanted)), default=-1)
        with self._npz.opened("arr_0") as (_, file):
            for number, rows in batch_rows(self.count, size, lambda number: number <= last):
                data = file.read(bytes_per_image * len(rows))
                if len(data) < bytes_per_image * len(rows):
                    raise InputError(f"{self.what} is truncated: it ends before image {rows.stop - 1}; copy it again")
                if wanted(number):
                    pixels = np.frombuffer(data, np.uint8).reshape(len(rows), *self._shape[1:])
                    yield number, torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous()


class FileSet:
    """The images of a folder, a table or a data set, decoded on demand, in advance and on all threads.

    Args:
        data: the images, with a `count`.
        spec: how they are decoded.
        what: name of the images, for messages and results.
        identity: `Source.identity`.
        sampling: how they were sampled, if known.

    Raises:
        InputError: for a stream without an end.
    """

    def __init__(
        self, data: ImageData, spec: DataSpec, what: str, identity: str, sampling: dict[str, Any] | None = None
    ) -> None:
        if data.count is None:
            raise InputError(f"{what} is an endless stream: give a local copy, or download it (memory: auto)")
        self.what, self.count, self.sampling = what, data.count, sampling
        self.shape: Shape = (data.channels, data.height, data.width)
        settings = (self.count, self.shape, spec.crop, spec.resize)
        self.fingerprint: str = digest(data.fingerprint, *settings)
        self.identity: str = digest(identity, *settings, DECODING, spec.range, spec.pages)
        self._data = data

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        remaining = deque(batch_rows(self.count, size, wanted))
        while remaining:
            for _, rows in list(remaining)[: _AHEAD + 1]:
                self._data.prefetch(rows)
            number, rows = remaining.popleft()
            try:
                yield number, self._data.batch(rows).images
            except BadImage as error:
                raise _without_skip_bad(error) from None


def _without_skip_bad(error: BadImage) -> InputError:
    """The error without its advice to skip images, because a set without some images is another set."""
    return InputError(str(error).removesuffix(f", {SKIP_BAD}"))


class _OneSize:
    """Chosen images of a source, all of one size.

    Reading an image of another size, or a colour image among gray images, raises an InputError.
    """

    labels: Labels | None = None
    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})

    def __init__(self, source: Source, numbers: Sequence[int], shape: Shape, first: str) -> None:
        self._source, self._numbers, self._shape, self._first = source, numbers, shape, first
        self.what, self.count = source.what, len(numbers)
        self.fingerprint, self.identity = source.fingerprint, source.identity

    @property
    def files(self) -> Sequence[Path]:
        return self._source.files

    def name(self, number: int) -> str:
        return self._source.name(self._numbers[number])

    def read(self, number: int) -> Encoded:
        encoded = self._source.read(self._numbers[number])
        shape = shape_of(encoded)
        if shape is not None and (shape[1:] != self._shape[1:] or shape[0] > self._shape[0]):
            raise InputError(
                f"{self.name(number)} is {_shape_text(shape)}, but {self._first} is {_shape_text(self._shape)}: a set "
                "must have images of one size; resize them first"
            )
        return encoded


def _shape_text(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]} {'gray' if shape[0] == 1 else 'colour'}"


def open_set(source: str | Path, limit: int | None = None, split: str = "train", *, progress: bool = True) -> ImageSet:
    """The images of a folder, an npz, or another source of `quarterarc.data.open_data`, at their own size.

    Of a sample folder only the samples are used, not the contact sheet or other images, and `samples.json` gives
    `ImageSet.sampling`.

    Args:
        source: a path or a name.
        limit: number of images to use, the first ones; all if None.
        split: split of a data set that has several.
        progress: whether to show the progress of reading a table.

    Raises:
        InputError: if there are no images, they cannot be read, or they differ in size.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        return NpzSet(path, limit)
    read = path.suffix.lower() in (*ARCHIVES, *NUMPY)
    advice = how_to_use(path, "quarterarc.evaluate({}, REFERENCE)") if path.is_file() and not read else None
    if advice:
        raise InputError(f"{path} is not read: {advice}")
    spec = DataSpec(source=str(source), size=1, channels=1, split=split)
    opened = open_source(spec, progress=progress)
    if not (path / "samples.json").is_file():
        return _at_own_size(opened, spec, range(opened.count)[:limit])
    names = [PurePath(opened.name(number)) for number in range(opened.count)]
    numbers = [number for number, name in enumerate(names) if name.parent == path and is_sample(name.name)][:limit]
    return _at_own_size(opened, spec, numbers, _read_sampling(path))


def open_pictures(images: Any, limit: int | None = None) -> ImageSet:
    """The images of a list of PIL images or a `datasets.Dataset`, at their own size; errors as for `open_set`."""
    spec = DataSpec(source=MEMORY, size=1, channels=1)
    opened = open_source(spec, images=images)
    return _at_own_size(opened, spec, range(opened.count)[:limit])


def _at_own_size(
    source: Source, spec: DataSpec, numbers: Sequence[int], sampling: dict[str, Any] | None = None
) -> FileSet:
    """The images of a source with these numbers; the first one determines size and channels."""
    if not len(numbers):
        raise InputError(f"no images in {source.what}: give at least 1")
    first, name = source.read(numbers[0]), source.name(numbers[0])
    shape = shape_of(first)
    if shape is None:
        try:
            read_pixels(first, spec, name)
        except BadImage as error:
            raise _without_skip_bad(error) from None
        raise InputError(f"cannot determine the size of {name}: save it as PNG")
    exact = spec.model_copy(update={"size": shape[1:], "channels": shape[0]})
    alike = _OneSize(source, numbers, shape, name)
    notes = survey(alike, exact)
    for note in notes if sampling else (*source.notes, *notes):  # beside samples lies only what belongs to them
        logger.info("%s", note)
    return FileSet(MappedImages(alike, exact, torch.device("cpu"), {}), exact, source.what, source.identity, sampling)


def _read_sampling(folder: Path) -> dict[str, Any]:
    about = read_json(folder / "samples.json")
    if not isinstance(about, dict) or not about.get("complete", False):
        raise InputError(f"the samples in {folder} are not complete: run the same `quarterarc sample` again to finish")
    return _sampling_of(about)


def _sampling_of(record: dict[str, Any]) -> dict[str, Any]:
    """How images were sampled, for results, from the record of the images."""
    results = ("complete", "count", "images_per_second", LABELS, NAMES)
    return {key: value for key, value in record.items() if key not in results}


def training_images(run: Path, limit: int | None = None, *, progress: bool = True) -> ImageSet:
    """The training images of a run, cropped and resized as in training, without flips and without held-out images.

    Args:
        run: the run folder.
        limit: number of images to use, the first ones; all if None.
        progress: whether to show the progress of reading them.

    Raises:
        InputError: if recipe.yaml does not describe the data, or the images cannot be read.
    """
    return _images_of(run, limit, False, progress)


def held_out_images(run: Path, *, progress: bool = True) -> ImageSet | None:
    """The images that were held out of the training of a run (`data.holdout`), or None; errors as `training_images`."""
    return _images_of(run, None, True, progress) if data_of(run).holdout else None


def data_of(run: Path) -> DataSpec:
    """The section `data` of a run's recipe, without labels unless they decide which images a limit selects.

    Raises:
        InputError: if recipe.yaml does not describe the data.
    """
    try:
        fields = load_yaml(read_text(run / "recipe.yaml", LARGEST))["data"]
        return DataSpec.model_validate({**fields, "labels": bool(fields.get("limit")) and fields.get("labels", False)})
    except (OSError, yaml.YAMLError, ValidationError, InputError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{run / 'recipe.yaml'} does not describe the training data: {reason}") from None


def teacher_images(run: Path, spec: DataSpec) -> tuple[DataSpec, Any]:
    """The images that a teacher made for the training of a flow map, in the form that `open_data` takes.

    Args:
        run: the run folder.
        spec: its `data_of`.

    Returns:
        The description of the images, and the images in memory; for a run on other images `spec` and None.

    Raises:
        InputError: if the images of the teacher are not in the run folder.
    """
    if spec.source != TEACHER:
        return spec, None
    path = run / TEACHER_IMAGES
    if not path.is_file():
        raise InputError(
            f"{run} was distilled without data, and the images of its teacher ({TEACHER_IMAGES}) are not in the "
            "folder: give images as the reference (a folder, a data set or an npz)"
        )
    tensors = read_weights(path)
    labelled = spec.labels and "labels" in tensors
    images = (tensors["images"], tensors["labels"]) if labelled else tensors["images"]
    return spec.model_copy(update={"source": MEMORY, "labels": labelled}), images


def _images_of(run: Path, limit: int | None, held_out: bool, progress: bool) -> ImageSet:
    spec, images = teacher_images(run, data_of(run))
    if not spec.holdout:  # the choice of held-out images depends on the number of all
        limits = [number for number in (limit, spec.limit) if number is not None]
        spec = spec.model_copy(update={"limit": min(limits, default=None)})
    try:
        data = open_data(spec, progress=progress, images=images)
        if not held_out:  # otherwise the training images, of the same source, were described before
            for note in data.notes:
                logger.info("%s", note)
            log_bad(data)
        identity = open_source(spec, progress=progress, images=images).identity
        if not spec.holdout:
            return FileSet(data, spec, f"the training images of {run}", identity)
        part = divide(data, spec.holdout)[held_out]
        part = Part(data, part.numbers[:limit])
        what = "the images held out of training" if held_out else "the training images"
        return FileSet(part, spec, f"{what} of {run}", digest(identity, part.identity))
    except InputError as error:
        relative = images is None and not Path(spec.source).is_absolute()
        hint = "; a relative path is relative to the folder where the run was trained" if relative else ""
        raise InputError(f"the training images of {run} cannot be read{hint}: {error}") from None
