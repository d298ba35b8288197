"""References of metrics: a set of images, or statistics that were saved from one.

A file of statistics is safetensors or npz with `mu` (D,) and `sigma` (D, D) of pool features, and `mu_s`, `sigma_s` of
spatial features. pytorch-fid's npz holds the first two, ADM's all four and sometimes the images as `arr_0`. Files of
`save_statistics` also describe the extractor, and may hold the feature vectors (`features`, float32 (N, D)), which
precision, recall and KID need. A pickle is never loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.text import shortened
from ..data.image_set import ImageSet, Shape
from ..interop.pipeline_folders import is_pipeline
from ..storage.files import parse_json, replace_file
from ..storage.npz import Npz
from ..storage.runs import is_checkpoint, run_of
from ..storage.weights import save_tensors
from .features import ImageFeatures
from .image_files import NpzSet, open_set, training_images
from .sources import as_set
from .statistics import MeanCovariance

__all__ = ["Reference", "open_reference", "read_statistics", "save_statistics"]

_NAMES = {"pool": ("mu", "sigma", "features"), "spatial": ("mu_s", "sigma_s", "features_s")}
"""Names of mean, covariance and feature vectors of each kind in a file."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npy")


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference: images, saved features, or both.

    Attributes:
        what: name of the reference, for messages and results.
        images: the images; None if there are only saved features.
        saved: saved features; empty if there are only images.
        extractor: name, weights_sha256 and resize of the extractor of the saved features; None if unknown.
        fingerprint: identifies the images; for saved features of unknown images, the features.
    """

    what: str
    images: ImageSet | None = None
    saved: ImageFeatures = field(default_factory=ImageFeatures)
    extractor: Mapping[str, str] | None = None
    fingerprint: str | None = None

    @property
    def count(self) -> int | None:
        """Number of images; None if unknown."""
        return self.saved.count if self.images is None else self.images.count

    @property
    def shape(self) -> Shape | None:
        """(C, H, W) of the images; None if unknown."""
        return self.saved.shape if self.images is None else self.images.shape

    def describe(self) -> dict[str, Any]:
        """JSON types, for results."""
        return {
            "what": self.what,
            "count": self.count,
            "shape": None if self.shape is None else list(self.shape),
            "fingerprint": self.fingerprint,
            "statistics": sorted(self.saved.statistics),
        }


def open_reference(
    given: object, limit: int | None = None, split: str = "train", *, progress: bool = True
) -> Reference:
    """A reference from a path, a name, images in any form that `as_set` accepts, or a `Reference`.

    A path is a folder of images, a run folder (for its training images, cropped and resized as in training), a file of
    statistics, or an npz of images; a name is any source of `quarterarc.data.open_data`.

    Args:
        given: the reference.
        limit: number of images to use, the first ones; all if None.
        split: split of a data set that has several.
        progress: whether to show the progress of reading them.

    Raises:
        InputError: if it is missing, empty, or cannot be used.
    """
    if isinstance(given, Reference):
        return given
    if not isinstance(given, str | Path):
        return _of(as_set(given, "the reference", limit))
    path = Path(given).expanduser()
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InputError(
            f"{path} may be a pickle, which is never loaded: give images, or statistics as .safetensors or .npz (mu, "
            "sigma)"
        )
    if suffix in (".npz", ".safetensors"):
        return read_statistics(path)
    run = run_of(path)
    if run is not None:
        return _of(training_images(run, limit, progress=progress))
    if is_checkpoint(path) or is_pipeline(path):
        raise InputError(
            f"{path} is a model without a recipe, so that its training images are unknown: give the images as the "
            "reference (a folder, a data set or an npz)"
        )
    return _of(open_set(given, limit, split, progress=progress))


def _of(images: ImageSet) -> Reference:
    return Reference(images.what, images, fingerprint=images.fingerprint)


def read_statistics(path: Path) -> Reference:
    """Statistics from a .safetensors or .npz file; an npz may also hold images, or only images.

    Raises:
        InputError: if the file is missing, damaged or a pickle, or holds neither statistics nor images.
    """
    if not path.is_file():
        raise InputError(f"no reference at {path}: write one with `quarterarc evaluate IMAGES --save-reference {path}`")
    arrays, about = (_read_safetensors if path.suffix.lower() == ".safetensors" else _read_npz)(path)
    statistics, vectors = {}, {}
    for kind, (mean, covariance, rows) in _NAMES.items():
        if (mean in arrays) != (covariance in arrays):
            present, missing = (mean, covariance) if mean in arrays else (covariance, mean)
            raise InputError(f"{path} holds {present} but no {missing}: statistics need both")
        if mean in arrays:
            statistics[kind] = _statistics(path, arrays[mean], arrays[covariance], about.get("count"))
        if rows in arrays:
            vectors[kind] = arrays[rows].float()
    images = NpzSet(path) if "arr_0" in arrays else None
    if not statistics and not vectors and images is None:
        names = shortened(", ".join(sorted(arrays)) or "nothing", 200)
        raise InputError(f"{path} holds neither statistics (mu, sigma) nor images (arr_0), only {names}")
    shape = about.get("shape")
    saved = ImageFeatures(about.get("count"), (shape[0], shape[1], shape[2]) if shape else None, statistics, vectors)
    fingerprint = about.get("fingerprint") or (images.fingerprint if images else _hash(statistics))
    return Reference(f"{path}", images, saved, about.get("extractor"), fingerprint)


def _statistics(path: Path, mean: Tensor, covariance: Tensor, count: int | None) -> MeanCovariance:
    try:
        if mean.ndim != 1:
            raise InputError(f"a mean must have shape (D,), got {tuple(mean.shape)}")
        return MeanCovariance(mean, covariance, count)
    except InputError as error:
        raise InputError(f"the statistics in {path} cannot be used: {error}") from None


def _hash(statistics: Mapping[str, MeanCovariance]) -> str:
    digest = hashlib.sha256()
    for kind in sorted(statistics):
        for tensor in (statistics[kind].mean, statistics[kind].covariance):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            return arrays, _about(path, (file.metadata() or {}).get("about", "{}"))
    except (OSError, ValueError, MemoryError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not readable as safetensors ({error}); a pickle is never loaded") from None


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of an npz; images and arrays of other names are empty tensors, since they may be large."""
    stored = Npz(path)
    arrays = dict.fromkeys(stored.names, torch.empty(0))
    about: dict[str, Any] = {}
    if arrays.pop("about", None) is not None:
        text = stored.read("about", 2**22)
        about = _about(path, str(text) if text.dtype.kind == "U" else "")
    for name in stored.names:
        if any(name in names for names in _NAMES.values()):
            array = np.array(stored.read(name))
            if array.dtype.kind not in "fiu":
                raise InputError(f"{path}: its {name} must be real numbers, got {array.dtype}: save arrays of numbers")
            # in the byte order of this machine; torch has no numbers of 80 or 128 bits
            single = array.dtype.newbyteorder("=") == np.float32
            arrays[name] = torch.from_numpy(array.astype(np.float32 if single else np.float64))
    return arrays, about


def _about(path: Path, text: str) -> dict[str, Any]:
    """The description of saved statistics, with values of the right types."""
    try:
        about = parse_json(text)
        count, shape = about.get("count"), about.get("shape")
        fine = [count is None or (type(count) is int and count > 0), isinstance(about.get("extractor") or {}, dict)]
        fine += [shape is None or (len(shape) == 3 and all(type(size) is int for size in shape))]
        fine += [isinstance(about.get("fingerprint") or "", str)]
    except (ValueError, TypeError, AttributeError):
        fine = [False]
    if not all(fine):
        raise InputError(f"{path}: its entry 'about' does not describe statistics: write the reference again")
    return dict(about)


def save_statistics(
    path: Path,
    computed: ImageFeatures,
    extractor: Mapping[str, str],
    *,
    what: str,
    fingerprint: str | None = None,
    vectors: bool = True,
) -> None:
    """Write statistics that `open_reference` reads: as .safetensors, or as .npz, which other programs read too.

    Args:
        path: the file; its ending selects the format.
        computed: statistics of pool and spatial features, and feature vectors.
        extractor: `Extractor.describe()`.
        what: name of the images.
        fingerprint: identifies the images.
        vectors: whether feature vectors are written too.

    Raises:
        InputError: for another ending, fewer than 2 images, or a folder that is not writable.
    """
    check_ending(path)
    arrays: dict[str, Tensor] = {}
    for kind, (mean, covariance, rows) in _NAMES.items():
        if kind in computed.statistics:
            arrays[mean] = computed.statistics[kind].mean.cpu()
            arrays[covariance] = computed.statistics[kind].covariance.cpu()
        if vectors and kind in computed.vectors:
            arrays[rows] = computed.vectors[kind].cpu().contiguous()
    about = {
        "what": what,
        "count": computed.count,
        "shape": computed.shape,
        "extractor": dict(extractor),
        "fingerprint": fingerprint,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as beside:
            if path.suffix.lower() == ".npz":
                with beside.open("wb") as file:
                    entries: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
                    np.savez(file, about=np.array(json.dumps(about)), **entries)
            else:
                save_tensors(arrays, beside, {"about": json.dumps(about)})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def check_ending(path: Path) -> None:
    """Raise an InputError unless the name ends in .safetensors or .npz."""
    if path.suffix.lower() not in (".npz", ".safetensors"):
        raise InputError(f"a reference is written as .safetensors or .npz, got {path}: use one of these endings")
