"""Images in memory as a data source: tensors, NumPy arrays, lists of PIL images and datasets of the library `datasets`.

`open_data(spec, images=...)` opens them as `spec` describes; `from_memory(images)` derives the description from the
images. Labels are given as a pair: `(images, labels)`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..common.errors import InputError
from ..common.hashes import digest
from .decode import Encoded, Pixels, shape_of
from .labels import Labels, check_highest, check_labels_from, classes_of, limited
from .pixels import axes_call
from .sources import Source
from .spec import DataSpec

__all__ = [
    "MEMORY", "PictureSource", "TensorSource", "as_labels", "as_pixels", "chosen_of", "memory_source", "memory_spec",
]  # fmt: skip

MEMORY = "memory"
"""`DataSpec.source` of images that were given as objects."""

_EXPECTED = "uint8 of shape (N, C, H, W) with 1 to 4 channels"


def memory_source(images: Any, spec: DataSpec) -> Source:
    """The source for images in memory.

    Args:
        images: a tensor or NumPy array, uint8 (N, C, H, W); a sequence of PIL images; a `datasets.Dataset`; or a pair
            of a tensor, an array or a sequence of PIL images and its labels, integers (N,).
        spec: the description of the data; `source` and `split` are not used.

    Raises:
        InputError: for another type, or for a data type, axes or labels that cannot be used.
    """
    images, labels = _pair(images)
    if _is(images, "Dataset"):
        if labels is not None:
            raise InputError("a dataset contains its labels: give the dataset alone, and choose label_column")
        from .tables import dataset_source

        return dataset_source(spec, images)
    if _is(images, "DatasetDict", "IterableDatasetDict"):
        raise InputError(f"a dictionary of splits was given ({', '.join(images)}): give one of them, data['train']")
    if _is(images, "IterableDataset"):
        raise InputError(
            "an IterableDataset was given, which has no length: give a Dataset, or its hub name as the source with "
            "memory: stream"
        )
    if isinstance(images, Tensor | np.ndarray):
        return TensorSource(images, labels, spec)
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return PictureSource(images, labels, spec)
    raise InputError(
        f"images in memory are a tensor or array, {_EXPECTED}, a list of PIL images or a datasets.Dataset; "
        f"got {_a(type(images).__name__)}"
    )


def memory_spec(images: Any, **fields: Any) -> DataSpec:
    """The description of images in memory, at their own size (that of the first image) and channels.

    Args:
        images: as for `memory_source`.
        fields: fields of `DataSpec` that replace the derived ones.
    """
    given, labels = _pair(images)
    derived: dict[str, Any] = {"source": MEMORY, "labels": labels is not None}
    if isinstance(given, Tensor | np.ndarray):
        channels, height, width = as_pixels(given).shape[1:]
    else:
        columns = {name: fields[name] for name in ("image_column",) if name in fields}
        first = memory_source(given, DataSpec(source=MEMORY, size=1, limit=1, **columns)).read(0)
        shape = shape_of(first)
        if shape is None:
            raise InputError("the first image has no readable header: give size=(height, width) and channels")
        channels, height, width = shape
    return DataSpec(**{**derived, "size": (height, width), "channels": channels, **fields})


def as_pixels(images: Tensor | NDArray[Any], what: str = "the images") -> Tensor:
    """`images` as a tensor that shares their memory, if they are uint8 of shape (N, C, H, W).

    Raises:
        InputError: for another data type, shape or range of values; the line contains the call that converts.
    """
    tensor = isinstance(images, Tensor)
    dtype = str(images.dtype).removeprefix("torch.")
    shape = tuple(images.shape)
    if dtype != "uint8" or len(shape) != 4 or 0 in shape or shape[1] > 4:
        kind = "tensor" if tensor else "array"
        raise InputError(
            f"{what}: got {_a(dtype)} {kind} of shape {shape}, expected {_EXPECTED}: {_conversion(images)}"
        )
    if isinstance(images, Tensor):
        return images.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
        return torch.from_numpy(images if all(step > 0 for step in images.strides) else np.ascontiguousarray(images))


def as_labels(labels: Any, count: int) -> Labels:
    """Class labels of `count` images; the largest one determines the number of classes.

    Args:
        labels: integers (N,) from 0, or text, as a tensor, an array or a sequence.
        count: the number of images.

    Raises:
        InputError: for labels of another type, number or range.
    """
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if numbers.shape == (count, 1):  # as MedMNIST stores them
        numbers = numbers[:, 0]
    if numbers.ndim == 2 and len(numbers) == count:
        raise InputError(
            f"the labels have the shape {numbers.shape}; expected ({count},), one label per image: of one-hot rows "
            "call labels.argmax(1)"
        )
    if numbers.shape != (count,):
        raise InputError(f"the labels have the shape {numbers.shape}; expected ({count},), one label per image")
    if numbers.dtype.kind in "UT" or (numbers.dtype.kind == "O" and all(isinstance(text, str) for text in numbers)):
        return classes_of([str(text) for text in numbers])
    if numbers.dtype.kind == "f" and (numbers == numbers.round()).all():
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iub":
        raise InputError(f"the labels are of type {numbers.dtype}; expected whole numbers from 0, or text")
    numbers = numbers.astype(np.int64)
    if numbers.min() < 0:
        raise InputError(f"the labels lie in {numbers.min()}..{numbers.max()}; classes are numbered from 0")
    check_highest(int(numbers.max()), count, "the images")
    return Labels(numbers, int(numbers.max()) + 1)


class TensorSource:
    """Images of a uint8 tensor or NumPy array (N, C, H, W), without a copy.

    Args:
        images: the images; 1 channel is gray, 2 gray and alpha, 3 RGB, 4 RGBA.
        labels: class labels, integers (N,), or None.
        spec: `limit` and `labels` are used.
    """

    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})
    files: Sequence[Path] = ()

    def __init__(self, images: Tensor | NDArray[Any], labels: Any, spec: DataSpec) -> None:
        pixels = as_pixels(images)
        self._numbers, classes = chosen_of(labels, len(pixels), spec)
        contiguous = len(self._numbers) == len(pixels) or classes is None
        self.images = pixels[: len(self._numbers)] if contiguous else pixels[torch.from_numpy(self._numbers)]
        self.count = len(self.images)
        self.labels = classes
        self.what = f"a tensor of {self.images.shape[2]}x{self.images.shape[3]} pixels"
        content = hashlib.sha256()
        for part in self.images.split(1024):  # bounds the memory of the copy if the tensor is strided or on a GPU
            content.update(part.cpu().contiguous().numpy().data)
        self.fingerprint = self.identity = _fingerprint(classes, tuple(self.images.shape), content.hexdigest())

    def name(self, number: int) -> str:
        return f"image {self._numbers[number]} of the tensor"

    def read(self, number: int) -> Encoded:
        array: Pixels = self.images[number].cpu().permute(1, 2, 0).contiguous().numpy()
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[2]]
        return Image.frombytes(mode, array.shape[1::-1], array.tobytes())


class PictureSource:
    """A sequence of PIL images, of any sizes and modes.

    Args:
        images: the images.
        labels: class labels, integers (N,), or None.
        spec: `limit` and `labels` are used.
    """

    files: Sequence[Path] = ()
    what = "a list of images"
    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})

    def __init__(self, images: Sequence[Any], labels: Any, spec: DataSpec) -> None:
        if not images:
            raise InputError("the list of images is empty")
        for number, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise InputError(
                    f"element {number} of the list of images is {_a(type(image).__name__)}; expected PIL images"
                    + _of_arrays(images)
                )
        self._numbers, classes = chosen_of(labels, len(images), spec)
        self._images = [images[number] for number in self._numbers]
        self.count = len(self._images)
        self.labels = classes
        content = hashlib.sha256()
        for image in self._images:
            content.update(image.info.get("icc_profile") or b"")
            content.update(repr((image.mode, image.size, image.getpalette() if image.mode == "P" else None)).encode())
            content.update(image.tobytes())
        self.fingerprint = self.identity = _fingerprint(classes, self.count, content.hexdigest())

    def name(self, number: int) -> str:
        return f"image {self._numbers[number]} of the list"

    def read(self, number: int) -> Encoded:
        return self._images[number]


def _of_arrays(images: Sequence[Any]) -> str:
    """What to do about a list of arrays or tensors: the call that makes one of them; empty for other lists."""
    for kind, stack, call in (
        (Tensor, torch.stack, "torch.stack(images)"),
        (np.ndarray, np.stack, "numpy.stack(images)"),
    ):
        if not all(isinstance(image, kind) for image in images):
            continue
        if len({(tuple(image.shape), str(image.dtype)) for image in images}) > 1:
            return ", or arrays of one shape and type: call [PIL.Image.fromarray(image) for image in images]"
        stacked = stack(list(images[:64]))
        usable = str(stacked.dtype).endswith("uint8") and stacked.ndim == 4 and 0 < stacked.shape[1] <= 4
        advice = "call images" if usable else _conversion(stacked)
        return f": {advice.replace('images', call)}"
    return ""


def _is(images: Any, *names: str) -> bool:
    """Whether `images` is an instance of classes of `datasets`, which is not imported: instances exist only after."""
    datasets = sys.modules.get("datasets")
    return isinstance(images, tuple(getattr(datasets, name) for name in names if hasattr(datasets, name)))


def _pair(images: Any) -> tuple[Any, Any]:
    """Images and labels of a pair, which a tuple of two PIL images is not; otherwise the images and None."""
    if isinstance(images, tuple) and len(images) == 2 and not isinstance(images[1], Image.Image):
        return images
    return images, None


def chosen_of(labels: Any, count: int, spec: DataSpec) -> tuple[NDArray[np.int64], Labels | None]:
    """The numbers of the images to use, and their labels."""
    if not spec.labels:
        return limited(None, count, spec.limit), None
    check_labels_from(spec, "an array or list of images")
    if labels is None:
        raise InputError("the images have no labels: give a pair (images, labels), or train without labels")
    given = as_labels(labels, count)
    numbers = limited(given, count, spec.limit)
    return numbers, given._replace(numbers=given.numbers[numbers])


def _fingerprint(labels: Labels | None, *images: object) -> str:
    """Hash of the content; that of a tensor without labels equals that of the same images in an evaluation."""
    return digest(*images) if labels is None else digest(*images, labels.numbers.tobytes())


def _conversion(images: Tensor | NDArray[Any]) -> str:
    """What to do about images of the wrong type or shape: the call that converts them."""
    shape, tensor = tuple(images.shape), isinstance(images, Tensor)
    if 0 in shape or not shape:
        return "no images were given"
    call = axes_call(shape, "permute" if tensor else "transpose")
    if call is None:
        return "give images of 1 to 4 channels, with the channels on the second axis"
    return _values(images, call, tensor)


def _values(images: Tensor | NDArray[Any], call: str, tensor: bool) -> str:
    kind = "f" if isinstance(images, Tensor) and images.dtype.is_floating_point else ""
    kind = kind or (str(images.dtype).removeprefix("torch.")[0] if tensor else images.dtype.kind)  # type: ignore[union-attr]
    cast = ".to(torch.uint8)" if tensor else '.astype("uint8")'
    if kind == "b":
        return f"call {call}{cast} * 255"
    if kind not in "fiu":
        return "convert them to numbers first"
    if str(images.dtype).endswith("uint8"):
        return f"call {call}"
    values = images.double() if isinstance(images, Tensor) else images
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        return "some values are NaN or infinite, which no pixel can be: check where they come from"
    if kind == "f" and low < 0 and low >= -1 and high <= 1:
        return f"call quarterarc.to_uint8({call if tensor else f'torch.from_numpy({call})'})"
    if kind == "f" and low >= 0 and high <= 1:
        return f"call ({call} * 255).round(){cast}"
    if low >= 0 and high <= 255:
        return f"call {call}{'.round()' if kind == 'f' else ''}{cast}"
    if low >= 0 and high <= 65535 and kind != "f":
        white = next(value for value in (1023, 4095, 16383, 65535) if high <= value)
        floats = f"{call}.float()" if tensor else call
        return (
            f"the values lie in {low:g}..{high:g}: if {white} is white, call ({floats} * (255 / {white})).round(){cast}"
        )
    return f"the values lie in {low:g}..{high:g}: scale them to 0..255, round them and call {call}{cast}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"
