"""The source of an evaluation: a run or a denoiser, which is sampled, or images in any form."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..common.devices import pick_device
from ..common.errors import InputError
from ..data.image_set import ImageSet
from ..data.images import ImageData, is_open
from ..data.loading import open_data
from ..data.memory import as_pixels
from ..data.pixels import to_uint8
from ..data.spec import DataSpec
from ..denoiser import DEFAULT_PROJECTION, Denoise, Denoiser
from ..interop import opening
from ..interop.opening import hash_of, load, read_model
from ..sampling.trajectories import Result
from ..storage.weights import hash_of_weights
from .image_files import FileSet, open_pictures, open_set
from .sets import BatchSet, TensorSet

__all__ = ["Model", "as_set", "is_model", "open_model", "source_name"]


@dataclass(frozen=True)
class Model:
    """A denoiser with what identifies it in results.

    Attributes:
        denoise: the denoiser.
        what: its name in messages and results.
        about: JSON types: the run and its checkpoint, or the denoiser and the hash of its weights; the precision.
    """

    denoise: Denoise
    what: str
    about: dict[str, Any]


def is_model(source: object) -> bool:
    """Whether a source is the path of a model, or a denoiser, rather than images."""
    if isinstance(source, str | Path):
        return opening.is_model(Path(source).expanduser())
    return callable(source) and not hasattr(source, "batches")


def source_name(source: object) -> str:
    """The name of a source in messages: a path, or the type of an object."""
    return str(source) if isinstance(source, str | Path) else f"the {type(source).__name__} given as source"


def open_model(
    source: object,
    device: torch.device | str = "auto",
    precision: torch.dtype | None = None,
    projection: str | None = None,
    guidance: float | None = None,
) -> Model:
    """The model that a source stands for.

    Args:
        source: the path of a model (`quarterarc.load`), of a run its newest checkpoint; or a denoiser, which is used as
            it is.
        device, precision: for a run, see `quarterarc.load`; a denoiser has its own.
        projection: for a run, as for `quarterarc.load`; `velocity` by default.
        guidance: scale of classifier-free guidance, for `about`.

    Raises:
        InputError: if there is no complete checkpoint, and for a precision together with a denoiser.
    """
    if isinstance(source, str | Path):
        run = Path(source).expanduser()
        projection = DEFAULT_PROJECTION if projection is None else projection
        place = pick_device(str(device))
        checkpoint, key, denoise = read_model(
            run, lambda folder: (folder, hash_of(folder), load(folder, place, precision, projection))
        )
        about: dict[str, Any] = {
            "model": str(source),
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": key,
            "guidance": guidance,
            "precision": "fp32" if precision is None else {torch.bfloat16: "bf16"}.get(precision, str(precision)),
            "projection": projection,
        }
        return Model(denoise, f"the model {source}", about)
    if precision is not None:
        raise InputError("precision applies to a run; a denoiser has its own: Denoiser(..., precision=torch.bfloat16)")
    about = {"model": repr(source)[:200], "guidance": guidance, "projection": projection}
    if isinstance(source, Denoiser) and isinstance(source.network, nn.Module):
        about["weights_sha256"] = hash_of_weights(source.network)
    return Model(cast(Denoise, source), "the denoiser", about)


def as_set(images: object, what: str = "the images", limit: int | None = None) -> ImageSet:
    """An image set from what a caller gave.

    Args:
        images: an image set; a path or name for `open_set`; a tensor or array, uint8 (N, C, H, W); a list of PIL
            images; a `datasets.Dataset`; a `DataSpec`; opened data (`quarterarc.data.open_data`); the `Result` of
            `quarterarc.sample`; or an iterable of batches, uint8 (B, C, H, W).
        what: name of the images, for messages and results.
        limit: number of images to use, the first ones; all if None.

    Raises:
        InputError: for another type, and images that cannot be used.
    """
    if isinstance(images, str | Path):
        return open_set(images, limit)
    if isinstance(images, Tensor | np.ndarray):
        return TensorSet(as_pixels(images, what)[:limit], what)
    if hasattr(images, "batches") and hasattr(images, "fingerprint"):
        given = cast(ImageSet, images)
        if limit is not None and given.count != limit:
            raise InputError(f"count = {limit}, but an image set is evaluated as a whole: give a set of that size")
        return given
    if isinstance(images, DataSpec):
        spec = images if limit is None else images.model_copy(update={"limit": min(limit, images.limit or limit)})
        opened = open_data(spec, progress=False)
        return FileSet(opened, spec, f"the images of {spec.source}", opened.identity)
    if is_open(images):
        return BatchSet(_batches_of(images, what), what, limit)
    if isinstance(images, Result):
        return TensorSet(to_uint8(images.images)[:limit], what)
    if _holds_pictures(images):
        return open_pictures(images, limit)
    if isinstance(images, Sequence) and len(images) and not isinstance(images, str | bytes):
        _check_no_list(images, what)
    if isinstance(images, Iterable):
        return BatchSet(images, what, limit)
    raise InputError(
        f"{what} must be a path or name, a uint8 tensor or array (N, C, H, W), a list of PIL images, a "
        f"datasets.Dataset or an iterable of batches, got {type(images).__name__}"
    )


def _batches_of(data: ImageData, what: str, size: int = 64) -> Iterator[Tensor]:
    if data.count is None:
        raise InputError(f"{what} are an endless stream: give a local copy, or a number of batches")
    return (data.batch(range(first, min(first + size, data.count))).images for first in range(0, data.count, size))


def _check_no_list(images: Sequence[Any], what: str) -> None:
    """Raise an InputError for a list of single images as tensors or arrays, with the call that makes it a batch."""
    first = images[0]
    if isinstance(first, Tensor | np.ndarray) and first.ndim in (2, 3):
        stacked = "torch.stack(images)" if isinstance(first, Tensor) else "torch.from_numpy(np.stack(images))"
        floating = torch.is_floating_point(torch.as_tensor(first))
        call = f"quarterarc.to_uint8({stacked})" if floating else stacked
        raise InputError(
            f"{what} are a list of single images, the first of shape {tuple(first.shape)}: call {call}, which has to "
            "be uint8 of shape (N, C, H, W)"
        )


def _holds_pictures(images: object) -> bool:
    """Whether this is a sequence of PIL images, or a data set of the library `datasets`."""
    datasets = sys.modules.get("datasets")  # an instance of its classes exists only after its import
    if datasets is not None and isinstance(images, datasets.Dataset | datasets.DatasetDict):
        return True
    return isinstance(images, Sequence) and any(isinstance(image, Image.Image) for image in islice(images, 1))
