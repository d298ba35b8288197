"""What images are compared with: another set of images, or statistics that were saved from one.

Statistics are `mu` (D,) and `sigma` (D, D) of pool features and `mu_s`, `sigma_s` of spatial ones, as safetensors or
npz; pytorch-fid's npz holds the first two, ADM's all four and perhaps its images as `arr_0`. Ours also say what made
them, and may hold the feature vectors (`features`, float32 (N, D)), which precision, recall and KID need. A pickle is
never loaded.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.image_set import ImageSet, Shape
from ..storage.files import replace_file
from ..storage.weights import save_tensors
from .features import Collected
from .sets import NpzSet, as_set, open_set, training_images
from .statistics import Moments

__all__ = ["Reference", "open_reference", "read_statistics", "save_statistics"]

_NAMES = {"pool": ("mu", "sigma", "features"), "spatial": ("mu_s", "sigma_s", "features_s")}
"""How the moments and feature vectors of each kind are called in a file."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npy")


@dataclass(frozen=True, eq=False)
class Reference:
    """What is known of a reference.

    Attributes:
        what: what it is, for messages and results.
        moments: mean and covariance by kind, where saved.
        features: feature vectors by kind, where saved, float32 (N, D).
        images: the images, where they are there.
        extractor: name, weights_sha256 and resize of what made the statistics; None where nobody wrote it down.
        shape: (C, H, W) of the images, where known.
        count: how many images, where known.
        fingerprint: stands for the images, or for the statistics where nobody wrote down of which images they are.
    """

    what: str
    moments: Mapping[str, Moments] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    images: ImageSet | None = None
    extractor: Mapping[str, str] | None = None
    shape: Shape | None = None
    count: int | None = None
    fingerprint: str | None = None

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "what": self.what,
            "count": self.count,
            "shape": None if self.shape is None else list(self.shape),
            "fingerprint": self.fingerprint,
            "statistics": sorted(self.moments),
        }


def open_reference(given: object, limit: int | None = None, split: str = "train") -> Reference:
    """A reference from a path, a name, an array of images, an image set, or a `Reference`.

    A path is a folder of images, a run folder (which stands for the images that it was trained on, cropped and resized
    as they were then), a file of statistics, or an npz of images; a name is any source of `quarterarc.data.open_data`.

    Args:
        given: it.
        limit: only so many of the first images of a folder, a dataset or a run.
        split: of a dataset that has several.

    Raises:
        InputError: if it is not there, empty, or cannot be used.
    """
    if isinstance(given, Reference):
        return given
    if not isinstance(given, str | Path):
        return _of(as_set(given, "the reference"))
    path = Path(given).expanduser()
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InputError(
            f"{path} may be a pickle, which is never loaded: give statistics as .safetensors or .npz (mu, sigma), or "
            "images"
        )
    if suffix in (".npz", ".safetensors"):
        return read_statistics(path)
    if (path / "recipe.yaml").is_file():
        return _of(training_images(path, limit))
    return _of(open_set(given, limit, split))


def _of(images: ImageSet) -> Reference:
    return Reference(images.what, images=images, shape=images.shape, count=images.count, fingerprint=images.fingerprint)


def read_statistics(path: Path) -> Reference:
    """Statistics from a .safetensors or .npz file; an npz may hold images too, or only images.

    Raises:
        InputError: if the file is missing, is damaged or a pickle, or holds neither statistics nor images.
    """
    if not path.is_file():
        raise InputError(f"no reference at {path}: write one with `quarterarc evaluate IMAGES --save-reference {path}`")
    arrays, about = (_read_safetensors if path.suffix.lower() == ".safetensors" else _read_npz)(path)
    moments, features = {}, {}
    for kind, (mean, covariance, rows) in _NAMES.items():
        if (mean in arrays) != (covariance in arrays):
            there, missing = (mean, covariance) if mean in arrays else (covariance, mean)
            raise InputError(f"{path} holds {there} but no {missing}: statistics need both")
        if mean in arrays:
            moments[kind] = _moments(path, arrays[mean], arrays[covariance], about.get("count"))
        if rows in arrays:
            features[kind] = arrays[rows].float()
    images = None
    if "arr_0" in arrays:
        images = NpzSet(path)
    if not moments and not features and images is None:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"{path} holds neither statistics (mu, sigma) nor images (arr_0), only {there}")
    shape = about.get("shape")
    return Reference(
        f"{path}",
        moments,
        features,
        images,
        about.get("extractor"),
        images.shape if images else (shape[0], shape[1], shape[2]) if shape else None,
        images.count if images else about.get("count"),
        about.get("fingerprint") or (images.fingerprint if images else _hash(moments)),
    )


def _moments(path: Path, mean: Tensor, covariance: Tensor, count: int | None) -> Moments:
    try:
        if mean.ndim != 1:
            raise InputError(f"a mean must be of shape (D,), got {tuple(mean.shape)}")
        return Moments(mean, covariance, count)
    except InputError as error:
        raise InputError(f"the statistics in {path} cannot be used: {error}") from None


def _hash(moments: Mapping[str, Moments]) -> str:
    digest = hashlib.sha256()
    for kind in sorted(moments):
        for tensor in (moments[kind].mean, moments[kind].covariance):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return arrays, _about(path, (file.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not readable as safetensors ({error}); a pickle is never loaded") from None


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of an npz, without its images, which can be many: those are an empty tensor here."""
    arrays: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no npz")
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                if name == "arr_0":
                    arrays[name] = torch.empty(0)
                elif name == "about":
                    about = _about(path, str(stored[name]))
                elif any(name in names for names in _NAMES.values()):
                    arrays[name] = torch.from_numpy(np.ascontiguousarray(stored[name]))
                else:
                    arrays[name] = torch.empty(0)
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        reason = "it holds a pickle" if "pickle" in str(error) else " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as an npz of arrays ({reason}); a pickle is never loaded: save arrays of numbers"
        ) from None
    return arrays, about


def _about(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise InputError(f"{path} does not say in JSON what made it: write the reference again")
    return about


def save_statistics(
    path: Path,
    collected: Collected,
    extractor: Mapping[str, str],
    *,
    what: str,
    fingerprint: str | None = None,
    features: bool = True,
) -> None:
    """Write statistics that `open_reference` reads: .safetensors, or .npz for other programs too.

    Args:
        path: the file; its ending chooses the format.
        collected: moments of pool and spatial features, and the feature vectors that are to be kept.
        extractor: what made them, `Extractor.describe()`.
        what: what the images are.
        fingerprint: stands for the images.
        features: whether feature vectors that were collected are written too.

    Raises:
        InputError: for another ending, fewer than 2 images, or a folder that cannot be written to.
    """
    check_ending(path)
    arrays: dict[str, Tensor] = {}
    for kind, (mean, covariance, rows) in _NAMES.items():
        if kind in collected.statistics:
            arrays[mean] = collected.statistics[kind].mean.cpu()
            arrays[covariance] = collected.statistics[kind].covariance.cpu()
        if features and kind in collected.features:
            arrays[rows] = collected.features[kind].cpu().contiguous()
    about = {
        "what": what,
        "count": collected.count,
        "shape": collected.shape,
        "extractor": dict(extractor),
        "fingerprint": fingerprint,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as beside:
            if path.suffix.lower() == ".npz":
                with beside.open("wb") as file:
                    given: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
                    np.savez(file, about=np.array(json.dumps(about)), **given)
            else:
                save_tensors(arrays, beside, {"about": json.dumps(about)})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def check_ending(path: Path) -> None:
    """Refuse a name that no reference can be written under."""
    if path.suffix.lower() not in (".npz", ".safetensors"):
        raise InputError(f"a reference is written as .safetensors or .npz, got {path}: give it one of these endings")
