"""Images in NumPy files: npy is mapped into memory, of npz the arrays of images and labels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.errors import InputError
from ..common.hashes import digest
from ..storage.files import check_regular
from ..storage.npz import Npz
from .decode import BadImage, Encoded
from .memory import TensorSource, chosen_of
from .pixels import axes_call
from .sources import Source
from .spec import DataSpec
from .splits import by_word, check_no_split, words_of

__all__ = ["NUMPY", "array_source"]

NUMPY = (".npy", ".npz")
"""The endings of NumPy files."""
_IMAGES = ("arr_0", "images", "x", "data", "image")
_LABELS = ("arr_1", "labels", "y", "label", "targets")
"""Names of arrays, the usual ones first; the split may precede or follow them: `x_train`, `train_images`."""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def array_source(spec: DataSpec, path: Path) -> Source:
    """The images of an npy or npz file: (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels.

    8-bit images are used as they are; others need `data.range`. Of an npz, `image_column` and `label_column` name the
    arrays; otherwise they are chosen by name, split and shape. Pickles are never loaded.

    Raises:
        InputError: for a file that is damaged, or has no such array.
    """
    if path.suffix.lower() == ".npy":
        check_no_split(spec, str(path))
        images, labels = _mapped(path), None
    else:
        images, labels = _of_npz(spec, path)
    images = _channels_second(images, path)
    if images.dtype == np.uint8:
        source = TensorSource(images, labels, spec)
        source.what = f"{path}"
        return source
    return ScaledSource(spec, path, images, labels)


class ScaledSource:
    """Images of more than 8 bits, or of floating point, scaled to 8 bits by `DataSpec.range`.

    Args:
        spec: its `range`, `limit` and `labels`.
        path: the file.
        images: the images, real numbers of shape (N, C, H, W).
        labels: class labels, or None.
    """

    notes: Sequence[str] = ()
    passed_over: Mapping[str, str] = MappingProxyType({})

    def __init__(self, spec: DataSpec, path: Path, images: NDArray[Any], labels: Any) -> None:
        if images.dtype.kind not in "iuf":
            raise InputError(f"{path} holds {images.dtype}, which are no pixels")
        if spec.range is None:
            raise InputError(
                f"{path} holds {images.dtype}, not pixels of 8 bits: give the values of black and white, such as "
                f"data.range={_likely_range(images)}"
            )
        self.what, self.files, self._range = f"{path}", (path,), spec.range
        self._numbers, self.labels = chosen_of(labels, len(images), spec)
        self._images, self.count = images, len(self._numbers)
        stat = path.stat()
        self.fingerprint = digest(path.name, stat.st_size, images.shape, str(images.dtype), self.count)
        self.identity = digest(self.fingerprint, str(path.resolve()), stat.st_mtime_ns)

    def name(self, number: int) -> str:
        """The file and the place of the image."""
        return f"{self.what} image {self._numbers[number]}"

    def read(self, number: int) -> Encoded:
        """An image, scaled to 8 bits."""
        low, high = self._range
        values = self._images[self._numbers[number]].astype(np.float64)
        if not np.isfinite(values).all():
            raise BadImage(self.name(number), "it has pixels that are NaN or infinite")
        levels = ((values - low) * (255 / (high - low))).clip(0, 255) + 0.5
        pixels = np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
        return Image.frombytes(_MODES[pixels.shape[2]], pixels.shape[1::-1], pixels.tobytes())


def _likely_range(images: NDArray[Any]) -> str:
    """The range that the values of the first images suggest."""
    values = images[:64]
    if images.dtype.kind == "f":
        return "-1,1" if values.min() < 0 else "0,1" if values.max() <= 1 else "0,255"
    top = max(int(values.max()), 1)
    return f"{min(int(values.min()), 0)},{next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)}"


def _mapped(path: Path) -> NDArray[Any]:
    try:
        check_regular(path)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; is it complete?") from None
    if not isinstance(images, np.ndarray):
        raise InputError(f"{path} is not an array; save the images by numpy.save")
    return images


def _of_npz(spec: DataSpec, path: Path) -> tuple[NDArray[Any], Any]:
    stored = Npz(path)
    shapes = {}
    for name in stored.names:
        with stored.opened(name) as (header, _):
            shapes[name] = header.shape
    images = spec.image_column or _named([name for name in shapes if len(shapes[name]) in (3, 4)], _IMAGES, spec.split)
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if images not in shapes:
        wrong = (
            f"has no array '{images}'" if images else f"has no array of images of the split '{spec.split}' by its name"
        )
        raise InputError(f"{path} {wrong}; set data.image_column (arrays: {listed})")
    labels = None
    if spec.labels:
        count = shapes[images][:1]  # () of an array of one number, which is an error below
        fitting = [name for name in shapes if shapes[name] in (count, (*count, 1)) and name != images]
        chosen = spec.label_column or _named(fitting, _LABELS, spec.split)
        if chosen not in shapes:
            raise InputError(f"{path} has no array of labels by its name; set data.label_column (arrays: {listed})")
        labels = stored.read(chosen)
    return stored.read(images, free=_MOST), labels


_MOST = 2**36  # bytes: `Npz` compares what an entry claims with what it can hold


def _named(names: Sequence[str], usual: Sequence[str], split: str) -> str | None:
    """The array of a split: the only one, that with the split in its name, or with a usual name."""
    of_split, others = by_word(names, split)
    candidates = of_split or (others if split == "train" else [])
    if len(candidates) == 1:
        return candidates[0]
    return next((name for word in usual for name in candidates if name == word or word in words_of(name)), None)


def _channels_second(images: NDArray[Any], path: Path) -> NDArray[Any]:
    """The images as (N, C, H, W), without a copy."""
    shape = images.shape
    if len(shape) == 3 and 0 not in shape:
        return images[:, None]
    call = axes_call(shape, "transpose") if len(shape) == 4 and 0 not in shape else None
    if call is None:
        raise InputError(
            f"{path} holds an array of shape {shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 "
            "channels: choose them in Python, quarterarc.train(RECIPE, OUT, data=images)"
        )
    return images if call == "images" else images.transpose(0, 3, 1, 2)
