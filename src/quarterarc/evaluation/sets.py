"""Sets of images to evaluate: files, an npz, a tensor, batches from anywhere, or what a denoiser makes from seeds.

All give 8-bit images, exactly as they are stored: nothing is resized, and a set in which sizes differ is refused.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..common.errors import InputError
from ..data import to_uint8
from ..data.decode import FORMATS, BadImage, Encoded, read_pixels
from ..data.image_set import ImageSet, Shape, Wanted
from ..data.images import ImageData, MappedImages
from ..data.loading import open_data, open_source
from ..data.sources import Labels, Source, digest
from ..data.spec import DataSpec
from ..denoiser import Denoise, required_shape
from ..sampling.folders import SHEETS
from ..sampling.generation import batches
from ..sampling.plans import Sampling, check_labels
from ..storage.files import read_json

__all__ = [
    "BatchSet",
    "FileSet",
    "ImageSet",
    "NpzSet",
    "SampledSet",
    "TensorSet",
    "as_set",
    "open_set",
    "training_images",
]


_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
_ORIENTATION = 0x0112
_AHEAD = 2


def _ranges(count: int, size: int, wanted: Wanted) -> list[tuple[int, range]]:
    return [
        (number, range(number * size, min((number + 1) * size, count)))
        for number in range(math.ceil(count / size))
        if wanted(number)
    ]


class TensorSet:
    """Images that are in memory, uint8 (N, C, H, W)."""

    sampling: dict[str, Any] | None = None

    def __init__(self, images: Tensor, what: str = "the images") -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
            raise InputError(
                f"{what} must be uint8 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}: "
                "quarterarc.to_uint8 rounds what lies in [-1, 1]"
            )
        self.what, self.images, self.count = what, images, len(images)
        self.shape: Shape = (images.shape[1], images.shape[2], images.shape[3])
        data = images.cpu().contiguous().numpy()
        self.fingerprint = self.identity = digest(data.shape, hashlib.sha256(data.data).hexdigest())

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        for number, rows in _ranges(self.count, size, wanted):
            yield number, self.images[rows.start : rows.stop]


class BatchSet:
    """Batches from any iterable, each uint8 (B, C, H, W); they can be read once, and are cut anew to equal sizes."""

    count: int | None = None
    shape: Shape | None = None
    fingerprint: str | None = None
    identity: str | None = None
    sampling: dict[str, Any] | None = None

    def __init__(self, given: Iterable[Tensor | NDArray[np.uint8]], what: str = "the images") -> None:
        self.what, self._given = what, given

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        number, rest = 0, torch.empty(0)
        for batch in self._given:
            images = TensorSet(torch.as_tensor(batch), self.what).images
            if len(rest) and rest.shape[1:] != images.shape[1:]:
                shapes = f"{tuple(rest.shape[1:])} and {tuple(images.shape[1:])}"
                raise InputError(f"{self.what} hold images of different shapes, {shapes}: evaluate them apart")
            rest = torch.cat([rest, images]) if len(rest) else images
            while len(rest) >= size:
                if wanted(number):
                    yield number, rest[:size]
                number, rest = number + 1, rest[size:]
        if len(rest) and wanted(number):
            yield number, rest


class SampledSet:
    """What a denoiser makes from seeds, rounded to 8 bits; nothing of it is kept.

    Args:
        denoise: a denoiser that declares the shape of its images.
        seeds: one per image.
        sampling: sampler, steps, grid and so on.
        labels: classes, used in turn: the image of seed s has label labels[s % len(labels)].
        what: the model, for messages.
        about: what else decides the images, such as the checkpoint's hash.
        batch_size: images at once.
    """

    def __init__(
        self,
        denoise: Denoise,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        *,
        labels: Sequence[int] | None = None,
        what: str = "the model",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        shape = required_shape(denoise)
        if not seeds:
            raise InputError("there are no seeds: give one for each image")
        check_labels(denoise, labels)
        self._seeds, self._labels = seeds, labels
        self._plan = (sampling or Sampling()).plan(denoise)
        self.what, self.count = what, len(seeds)
        self.shape: Shape = (shape[0], shape[1], shape[2])
        self.sampling: dict[str, Any] | None = {
            **(about or {}),
            **self._plan.describe(),
            "labels": None if labels is None else list(labels),
            "seeds": _in_short(seeds),
        }
        # a network is identified by the hash of its checkpoint or of the recipe that it was trained by
        known = bool(about and (about.get("checkpoint_sha256") or about.get("recipe_hash")))
        self.fingerprint = self.identity = digest(self.sampling, list(seeds)) if known else None

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        for number, rows in _ranges(self.count, size, wanted):
            seeds = self._seeds[rows.start : rows.stop]
            labels = None if self._labels is None else [self._labels[seed % len(self._labels)] for seed in seeds]
            ((_, made),) = batches(self._plan, seeds, batch_size=size, labels=labels)
            wrong = ~torch.isfinite(made.images).flatten(1).all(1)
            if wrong.any():
                first = seeds[int(wrong.nonzero()[0, 0])]
                raise InputError(
                    f"{self.what} made {int(wrong.sum())} of {len(seeds)} images with NaN or infinity, first that of "
                    f"seed {first}: take another checkpoint, or another sampler"
                )
            assert self.sampling is not None
            self.sampling["nfe"] = made.nfe
            yield number, to_uint8(made.images)


def _in_short(numbers: Sequence[int]) -> str:
    """Whole numbers in short: "0-63", or the first and last of those without a pattern."""
    low, high = min(numbers), max(numbers)
    if len(numbers) == high - low + 1 and len(set(numbers)) == len(numbers):
        return f"{low}-{high}"
    return ",".join(map(str, numbers)) if len(numbers) <= 100 else f"{len(numbers)} from {low} to {high}"


class NpzSet:
    """The images of an npz as ADM writes them: `arr_0`, uint8 (N, H, W, C); read piece by piece, never whole."""

    sampling: dict[str, Any] | None = None

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.what, self._path = f"{path}", path
        with _npz(path) as archive:
            name = "arr_0.npy"
            if name not in archive.namelist():
                raise InputError(f"{path} holds no images: an npz of images has them as arr_0, uint8 (N, H, W, C)")
            entry = archive.getinfo(name)
            with archive.open(name) as file:
                self._shape = _header(file, path)
        count = self._shape[0]
        if count == 0:
            raise InputError(f"{path} holds no images: arr_0 is of shape {self._shape}")
        self.count = count if limit is None else min(limit, count)
        self.shape: Shape = (self._shape[3], self._shape[1], self._shape[2])
        self.fingerprint = digest(entry.CRC, entry.file_size, self.count)
        self.identity = digest(self.fingerprint, str(path.resolve()), path.stat().st_mtime_ns)

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        each = math.prod(self._shape[1:])
        last = max((number for number, _ in _ranges(self.count, size, wanted)), default=-1)
        with _npz(self._path) as archive, archive.open("arr_0.npy") as file:
            _header(file, self._path)
            for number, rows in _ranges(self.count, size, lambda number: number <= last):
                try:
                    data = file.read(each * len(rows))
                except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
                    raise InputError(f"{self._path} is damaged ({error}): copy it again") from None
                if len(data) < each * len(rows):
                    raise InputError(f"{self._path} is cut short: it ends before image {rows.stop - 1}; copy it again")
                if wanted(number):
                    pixels = np.frombuffer(data, np.uint8).reshape(len(rows), *self._shape[1:])
                    yield number, torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous()


def _npz(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no npz ({error}); a pickle is never loaded") from None


def _header(file: IO[bytes], path: Path) -> tuple[int, ...]:
    """The shape of the array that a .npy file holds, which must be uint8 (N, H, W, C) in C order."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: its arr_0 is no array ({error})") from None
    if dtype.hasobject:
        raise InputError(f"{path} holds a pickle as arr_0, which is never loaded: save images as uint8 (N, H, W, C)")
    if dtype != np.uint8 or len(shape) != 4 or fortran:
        order = " in Fortran order" if fortran else ""
        raise InputError(f"{path}: images are uint8 (N, H, W, C) as arr_0, got {dtype} {shape}{order}")
    return shape


class FileSet:
    """The images of a folder, a table or a dataset, decoded when they are wanted, ahead of time and on all threads.

    Args:
        data: the images, with a `count`.
        spec: how they are read.
        what: what they are, for messages.
        identity: what `Source.identity` says.
        sampling: how they were sampled, where known.
    """

    def __init__(
        self, data: ImageData, spec: DataSpec, what: str, identity: str, sampling: dict[str, Any] | None = None
    ) -> None:
        if data.count is None:
            raise InputError(f"{what} is a stream without an end: give a local copy, or download it (memory: auto)")
        self.what, self.count, self.sampling = what, data.count, sampling
        self.shape: Shape = (data.channels, data.height, data.width)
        read = (self.count, self.shape, spec.crop, spec.resize)
        self.fingerprint: str = digest(data.fingerprint, *read)
        self.identity: str = digest(identity, *read)
        self._data = data

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        todo = deque(_ranges(self.count, size, wanted))
        while todo:
            for _, rows in list(todo)[: _AHEAD + 1]:
                self._data.prefetch(rows)
            number, rows = todo.popleft()
            try:
                yield number, self._data.batch(rows).images
            except BadImage as error:  # a set with images left out would be another set: nothing is skipped here
                raise InputError(str(error).removesuffix(", or skip such images (skip_bad)")) from None


class _OneSize:
    """The chosen images of a source, refused where they differ in size, or are colour among gray."""

    labels: Labels | None = None

    def __init__(self, source: Source, numbers: Sequence[int], shape: Shape, first: str) -> None:
        self._source, self._numbers, self._shape, self._first = source, numbers, shape, first
        self.what, self.count = source.what, len(numbers)
        self.fingerprint, self.identity = source.fingerprint, source.identity

    def name(self, number: int) -> str:
        return self._source.name(self._numbers[number])

    def read(self, number: int) -> Encoded:
        encoded = self._source.read(self._numbers[number])
        shape = _shape_of(encoded)
        if shape is not None and (shape[1:] != self._shape[1:] or shape[0] > self._shape[0]):
            raise InputError(
                f"{self.name(number)} is {_in_words(shape)}, but {self._first} {_in_words(self._shape)}: a set has "
                "images of one size, and nothing is resized unseen; resize them first"
            )
        return encoded


def _in_words(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]} {'gray' if shape[0] == 1 else 'colour'}"


def _shape_of(encoded: Encoded) -> Shape | None:
    """The shape from an image's header, upright; None where that cannot be read, which decoding will say better."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS) if isinstance(encoded, bytes) else encoded
        width, height = image.size
        if width != height and image.format in ("JPEG", "MPO", "TIFF"):
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            width, height = (height, width) if turned else (width, height)
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return None
    return (1 if image.mode in _GRAY else 3, height, width)


def open_set(source: str | Path, limit: int | None = None, split: str = "train") -> ImageSet:
    """The images of a folder, an npz, or any source that `quarterarc.data.open_data` takes, at their own size.

    The contact sheet of a folder that `quarterarc sample` wrote is left out; its samples.json is read too.

    Args:
        source: a path or a name.
        limit: only so many of the first images.
        split: of a dataset that has several.

    Raises:
        InputError: if there is nothing, or its images cannot be read or differ in size.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        return NpzSet(path, limit)
    spec = DataSpec(source=str(source), size=1, channels=1, split=split)
    opened = open_source(spec)
    sampling: dict[str, Any] | None = None
    numbers: Sequence[int] = range(opened.count)[:limit]
    if (path / "samples.json").is_file():
        sampling = _sampling(path)
        sheets = {str(path / name) for name in SHEETS}
        numbers = [number for number in range(opened.count) if opened.name(number) not in sheets][:limit]
        if not numbers:
            raise InputError(f"no images under {path}: give a folder of images")
    first = opened.read(numbers[0])
    shape = _shape_of(first)
    if shape is None:
        try:
            read_pixels(first, spec, opened.name(numbers[0]))
        except BadImage as error:
            raise InputError(str(error).removesuffix(", or skip such images (skip_bad)")) from None
        raise InputError(f"cannot tell the size of {opened.name(numbers[0])}: save it as PNG")
    exact = spec.model_copy(update={"size": shape[1:], "channels": shape[0]})
    alike = _OneSize(opened, numbers, shape, f"{opened.name(numbers[0])} is")
    return FileSet(MappedImages(alike, exact, torch.device("cpu"), ()), exact, opened.what, opened.identity, sampling)


def training_images(run: Path, limit: int | None = None) -> ImageSet:
    """The images that a run was trained on, as its network saw them, none of them mirrored.

    Raises:
        InputError: if the run does not say which, or they cannot be read.
    """
    try:
        fields = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["data"]
        spec = DataSpec.model_validate({**fields, "labels": False, "limit": limit or fields.get("limit")})
    except (OSError, yaml.YAMLError, InputError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{run / 'recipe.yaml'} does not say what the run was trained on: {reason}") from None
    return FileSet(open_data(spec), spec, f"the training images of {run}", open_source(spec).identity)


def _sampling(folder: Path) -> dict[str, Any]:
    about = read_json(folder / "samples.json")
    if not isinstance(about, dict) or not about.get("complete", False):
        raise InputError(f"the samples in {folder} are not complete: run the same `quarterarc sample` again to finish")
    return {key: value for key, value in about.items() if key not in ("complete", "count", "images_per_second")}


def as_set(images: object, what: str = "the images") -> ImageSet:
    """What a caller gave as a set: one already, an array uint8 (N, C, H, W), a path or name, or batches."""
    if isinstance(images, str | Path):
        return open_set(images)
    if isinstance(images, Tensor | np.ndarray):
        return TensorSet(torch.as_tensor(images), what)
    if hasattr(images, "batches"):
        return cast(ImageSet, images)
    if isinstance(images, Iterable):
        return BatchSet(images, what)
    raise InputError(f"{what} are an array, a path or batches of uint8 images, got a {type(images).__name__}")
