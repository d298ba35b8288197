"""Checkpoint folders as denoisers: config.json and model.safetensors, read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..common.errors import InputError
from ..denoiser import DEFAULT_PROJECTION, Denoiser
from ..heads import head
from ..networks import build_network, describe_network
from ..schedules import Schedule, schedule
from ..wrappers import project
from .files import read_json, replace_folder, write_json
from .runs import CONFIG, WEIGHTS, newest_checkpoint
from .weights import load_weights, save_tensors, sha256

__all__ = ["FORMAT", "build_denoiser", "describe_denoiser", "hash_of", "identity", "load", "save"]

FORMAT = 1


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    projection: str | None = DEFAULT_PROJECTION,
) -> Denoiser:
    """The denoiser of a run's newest checkpoint, with the moving average of its weights, ready to sample.

    Args:
        path: a run folder, or one of its checkpoint folders.
        device: where to put the network.
        precision: dtype to autocast the network to, such as `torch.bfloat16`.
        projection: what a head of two estimates keeps where they disagree, see `quarterarc.Estimate.projected`; None
            or "none" leaves both estimates as the network gives them.

    Raises:
        InputError: if there is no complete checkpoint, its weights do not fit its network, code that it names by an
            import path cannot be imported, or for an unknown projection.
    """
    folder = newest_checkpoint(path)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "denoiser" not in config:
        raise InputError(f"{folder / CONFIG} is not the configuration of a checkpoint of format {FORMAT}")
    denoise = build_denoiser(config["denoiser"], precision)
    assert isinstance(denoise.network, nn.Module)
    load_weights(denoise.network, folder / WEIGHTS)
    denoise.network.eval().requires_grad_(False)
    denoise = replace(denoise.to(device), checkpoint=folder)
    projected = project(denoise, "none" if projection is None else projection)
    assert isinstance(projected, Denoiser)
    return projected


def save(denoise: Denoiser, path: str | Path) -> Path:
    """Write a denoiser as a checkpoint folder, which `load` reads.

    Args:
        denoise: a denoiser whose network was built by name: from a recipe, a checkpoint, or a class that is importable
            and keeps its arguments (`quarterarc.networks`).
        path: the folder, which must not exist.

    Returns:
        The path.

    Raises:
        InputError: if the path exists, or the network cannot be described.
    """
    folder = Path(path)
    if not isinstance(denoise, Denoiser):
        raise InputError(f"only a Denoiser can be saved, got a {type(denoise).__name__}: save the one inside")
    if folder.exists():
        raise InputError(f"{folder} already exists: give a folder that does not")
    description = describe_denoiser(denoise)
    assert isinstance(denoise.network, nn.Module)
    with replace_folder(folder) as beside:
        save_tensors(denoise.network.state_dict(), beside / WEIGHTS)
        write_json(beside / CONFIG, {"format": FORMAT, "quarterarc": __version__, "denoiser": description})
    return folder


def describe_denoiser(denoise: Denoiser) -> dict[str, Any]:
    """What `build_denoiser` needs to build a denoiser again, as JSON types.

    Raises:
        InputError: for a network that cannot be described.
    """
    table = denoise.schedule
    named: dict[str, Any] = {"name": table.name, "steps": table.steps}
    if table.name == "custom":
        named = {"name": "custom", "angles": table.angles.tolist()}
    return {
        "network": describe_network(denoise.network),
        "schedule": named,
        "head": denoise.head.name,
        "shape": list(denoise.shape or ()),
        "classes": denoise.classes,
        "unlabelled": denoise.unlabelled,
    }


def build_denoiser(description: Mapping[str, Any], precision: torch.dtype | None = None) -> Denoiser:
    """A denoiser with fresh weights from its description in a checkpoint's config.json.

    Raises:
        InputError: if the description is incomplete, or names code that cannot be imported.
    """
    try:
        spec = description["schedule"]
        table = (
            Schedule("custom", np.array(spec["angles"]))
            if spec["name"] == "custom"
            else schedule(spec["name"], spec["steps"])
        )
        shape = tuple(description["shape"])
        return Denoiser(
            build_network(description["network"]),
            table,
            head(description["head"], table),
            shape=shape if len(shape) == 3 else None,
            classes=description["classes"],
            precision=precision,
            unlabelled=description.get("unlabelled", True),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{CONFIG} does not describe a denoiser: {error}") from None


def hash_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's exported weights: identifies the network that made a sample."""
    return sha256(checkpoint / WEIGHTS)


def identity(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's weights together with network, schedule and head."""
    about = json.dumps(read_json(checkpoint / CONFIG)["denoiser"], sort_keys=True)
    return hashlib.sha256(f"{hash_of(checkpoint)} {about}".encode()).hexdigest()
