"""Opening trained models of any kind by their path.

| path                                    | model                                                              |
|-----------------------------------------|--------------------------------------------------------------------|
| a run folder, or one of its checkpoints | `storage.checkpoints`                                              |
| a diffusers pipeline folder             | model_index.json, `unet/` and `scheduler/`: `pipelines`            |
| a diffusers network alone               | config.json of a UNet2DModel with its weights: `unet`, `unet_ema`  |

What belongs to a model, such as tuned grids, is stored in its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ..common.devices import pick_device
from ..common.errors import InputError
from ..denoiser import DEFAULT_PROJECTION, Denoiser
from ..storage import checkpoints
from ..storage.checksums import sha256
from ..storage.runs import is_run, read_newest
from ..wrappers import project
from .pipeline_folders import is_pipeline, pipeline_files
from .pipelines import load_pipeline

__all__ = ["hash_of", "identity", "is_model", "load", "read_model"]

Value = TypeVar("Value")


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    projection: str | None = DEFAULT_PROJECTION,
) -> Denoiser:
    """The denoiser of a trained model, in evaluation mode: of a run, the moving average in its newest checkpoint.

    Args:
        path: a run folder, a checkpoint folder, a diffusers pipeline folder (of `DDPMPipeline`, `DDIMPipeline` and the
            like, whose weights are in safetensors, also as the variant `fp16`), or the folder of a diffusers
            `UNet2DModel`, such as `unet` or `unet_ema`. For further options of these see
            `quarterarc.interop.load_pipeline`.
        device: device of the network: "cpu", "cuda", "mps", or "auto" for the fastest one available.
        precision: dtype for autocast of the network, such as `torch.bfloat16`.
        projection: the quantity that is kept where the two estimates of a head disagree, see
            `quarterarc.Estimate.projected`; None or "none" leaves both estimates unchanged.

    Raises:
        InputError: if there is no complete model, a file of it is damaged, its weights do not fit its network, a
            name in it is unknown or an import path cannot be imported, for an unknown projection, or a device that this
            machine lacks.
    """
    path = Path(path).expanduser()
    if not is_pipeline(path):
        return checkpoints.load(path, device, precision, projection)
    place = pick_device(device) if isinstance(device, str) else device
    denoise = replace(load_pipeline(path, place, precision), checkpoint=path)
    projected = project(denoise, "none" if projection is None else projection)
    assert isinstance(projected, Denoiser)
    return projected


def is_model(path: Path) -> bool:
    """Whether a folder is a model of one of these kinds."""
    return is_run(path) or is_pipeline(path)


def read_model(path: str | Path, read: Callable[[Path], Value]) -> Value:
    """What `read` returns for the folder of a model's weights: of a run, its newest checkpoint.

    Raises:
        InputError: if there is no complete model, and what `read` raises.
    """
    path = Path(path)
    return read(path) if is_pipeline(path) else read_newest(path, read)


def hash_of(folder: Path) -> str:
    """The SHA-256 of a model's weights: of one file, or of the hashes of several."""
    if not is_pipeline(folder):
        return checkpoints.hash_of(folder)
    hashes = [sha256(file) for file in pipeline_files(folder)[0]]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def identity(folder: Path) -> str:
    """The SHA-256 of a model's weights together with what else decides its estimates: network, schedule and head."""
    if not is_pipeline(folder):
        return checkpoints.identity(folder)
    try:
        settings = json.dumps([file.read_text(encoding="utf-8") for file in pipeline_files(folder)[1]])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration of {folder}: {error}") from None
    return hashlib.sha256(f"{hash_of(folder)} {settings}".encode()).hexdigest()
