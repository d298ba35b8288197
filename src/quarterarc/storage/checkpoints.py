"""Denoisers in checkpoint folders: config.json, model.safetensors and, where it is known, mean.safetensors.

The last one is the mean image of the data (`quarterarc.mean_image`), by which the first step takes no evaluation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..common.devices import pick_device
from ..common.errors import InputError
from ..common.limits import LARGEST_SIDE
from ..common.text import one_line
from ..denoiser import DEFAULT_PROJECTION, Denoiser, are_mean_images, mean_images_of
from ..heads import Extended, Head, head
from ..mean_image import MeanImage
from ..networks import build_network, describe_network
from ..schedules import Schedule, schedule
from ..wrappers import project
from .checksums import OF_FILES, DamagedFile, checksums_of, read_sealed, sha256, verify, write_sealed
from .files import replace_folder
from .runs import CONFIG, MEAN, WEIGHTS, read_newest
from .weights import load_weights, read_weights, save_tensors

__all__ = [
    "FORMAT",
    "build_clock",
    "build_denoiser",
    "describe_denoiser",
    "hash_of",
    "identity",
    "load",
    "save",
    "write_checkpoint",
    "write_mean",
]

logger = logging.getLogger("quarterarc")

FORMAT = 1


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    projection: str | None = DEFAULT_PROJECTION,
) -> Denoiser:
    """The denoiser of a run's newest checkpoint, with the moving average of its weights, in evaluation mode.

    Args:
        path: a run folder, or a checkpoint folder.
        device, precision, projection: as for `quarterarc.load`, which also reads diffusers' folders.

    Raises:
        InputError: if there is no complete checkpoint, a file of it is damaged, its weights do not fit its network, a
            name in it is unknown or an import path cannot be imported, for an unknown projection, or a device that this
            machine lacks.
    """
    place = pick_device(device) if isinstance(device, str) else device
    return read_newest(path, lambda folder: _load(folder, place, precision, projection))


def _load(folder: Path, device: torch.device, precision: torch.dtype | None, projection: str | None) -> Denoiser:
    config = read_sealed(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "denoiser" not in config:
        raise InputError(f"{folder / CONFIG} is not the configuration of a checkpoint of format {FORMAT}")
    try:
        denoise = build_denoiser(config["denoiser"], precision)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    assert isinstance(denoise.network, nn.Module)
    verify(folder / WEIGHTS, config)
    load_weights(denoise.network, folder / WEIGHTS)
    denoise.network.eval().requires_grad_(False)
    denoise = replace(denoise.to(device), checkpoint=folder, mean_image=_read_mean(folder, config, denoise))
    projected = project(denoise, "none" if projection is None else projection)
    assert isinstance(projected, Denoiser)
    return projected


def _read_mean(folder: Path, config: Mapping[str, Any], denoise: Denoiser) -> MeanImage | None:
    """The mean image of a checkpoint; None if it has none, like those of earlier versions."""
    path = folder / MEAN
    if not path.exists():
        if MEAN in config.get(OF_FILES, {}):
            logger.warning("%s is missing: the first step of `multistep` is evaluated; copy it too", path)
        return None
    verify(path, config)
    images = read_weights(path).get("mean_image")
    if (
        images is None
        or not images.numel()
        or not are_mean_images(images.shape, denoise.shape, denoise.classes, denoise.unlabelled)
        or not images.float().isfinite().all()
    ):
        size = ("C", "H", "W") if denoise.shape is None else denoise.shape
        expected = f"({', '.join(map(str, (mean_images_of(denoise.classes, denoise.unlabelled), *size)))})"
        found = "no tensor of this name" if images is None else f"shape {tuple(images.shape)}, or values not finite"
        raise DamagedFile(
            f"{path} is to have finite numbers `mean_image` of shape {expected}, and has {found}: delete the file, and "
            "the first step is evaluated"
        )
    return MeanImage.of(images)


def write_mean(mean: MeanImage | None, folder: Path) -> None:
    """Write the mean image of a checkpoint, if it is known, into its folder."""
    if mean is not None:
        save_tensors({"mean_image": mean.images}, folder / MEAN)


def save(denoise: Denoiser, path: str | Path) -> Path:
    """Write a denoiser as a checkpoint folder, which `load` reads.

    Args:
        denoise: a denoiser whose network is the U-Net, was built from a recipe, a checkpoint or
            `quarterarc.networks.build_network`, or is of an importable class and keeps the arguments of its constructor
            in the attribute `config`.
        path: the folder, which must not exist.

    Returns:
        The path.

    Raises:
        InputError: if the path exists, or the network or head cannot be built again from a description.
    """
    folder = Path(path)
    if not isinstance(denoise, Denoiser):
        raise InputError(f"only a Denoiser can be saved, got a {type(denoise).__name__}: save the one that it wraps")
    if folder.exists():
        raise InputError(f"{folder} already exists: give the path of a new folder")
    describe_denoiser(denoise)  # raises before a folder is made
    with replace_folder(folder) as temporary:
        write_checkpoint(denoise, temporary)
    return folder


def write_checkpoint(denoise: Denoiser, folder: Path) -> None:
    """Write a denoiser as a checkpoint into a folder that exists; errors as for `save`."""
    description = describe_denoiser(denoise)
    assert isinstance(denoise.network, nn.Module)
    save_tensors(denoise.network.state_dict(), folder / WEIGHTS)
    write_mean(denoise.traits.mean_image, folder)
    about = {"format": FORMAT, "quarterarc": __version__, "denoiser": description}
    write_sealed(folder / CONFIG, {**about, **checksums_of(folder)})


def describe_denoiser(denoise: Denoiser) -> dict[str, Any]:
    """The description from which `build_denoiser` builds a denoiser again, as JSON types.

    Raises:
        InputError: if the network cannot be described, or the head has neither a registered name nor an import path.
    """
    table = denoise.schedule
    try:
        again = head(denoise.head.name, table)
    except InputError as error:
        raise InputError(f"this denoiser cannot be saved, since its head would not be found again: {error}") from None
    own, loaded = _classes(denoise.head), _classes(again)
    if own != loaded:
        raise InputError(
            f"this denoiser cannot be saved: its head is a {own[-1].__name__}, but the name '{denoise.head.name}' "
            f"leads to a {loaded[-1].__name__}: give the head its import path as name, "
            f"name = '{own[-1].__module__}:{own[-1].__qualname__}'"
        )
    description: dict[str, Any] = {
        "network": describe_network(denoise.network),
        "schedule": _describe_schedule(table),
        "head": denoise.head.name,
        "shape": list(denoise.shape or ()),
        "classes": denoise.classes,
        "unlabelled": denoise.unlabelled,
        "streams": denoise.streams,
    }
    if denoise.maps:
        description["maps"] = True
    if denoise.reverses:
        description["reverses"] = True
    if denoise.class_names:
        description["class_names"] = list(denoise.class_names)
    if denoise.clock is not None:
        description["clock"] = _describe_schedule(denoise.clock)
    if denoise.time_shift != 0.0 or denoise.time_scale is not None:  # networks of other libraries
        description |= {"time_shift": denoise.time_shift, "time_scale": denoise.time_scale}
    return description


def _classes(head: Head) -> list[type[Head]]:
    """The class of a head, and that of the head within an extended one."""
    return [type(head), *(_classes(head.inner) if isinstance(head, Extended) else [])]


def _describe_schedule(table: Schedule) -> dict[str, Any]:
    """Name and steps of a schedule if they determine its angles, otherwise the angles."""
    try:
        named = np.array_equal(schedule(table.name, table.steps).angles, table.angles)
    except InputError:
        named = False
    if named:
        return {"name": table.name, "steps": table.steps}
    return {"name": "custom", "angles": table.angles.tolist()}


def _build_schedule(described: Mapping[str, Any]) -> Schedule:
    if described["name"] == "custom":
        return Schedule("custom", np.array(described["angles"]))
    return schedule(described["name"], described["steps"])


def build_clock(description: Mapping[str, Any]) -> Schedule | None:
    """`Denoiser.clock` from the description of a denoiser."""
    return _build_schedule(description["clock"]) if "clock" in description else None


def build_denoiser(description: Mapping[str, Any], precision: torch.dtype | None = None) -> Denoiser:
    """A denoiser with new weights from its description in config.json.

    Raises:
        InputError: if the description is incomplete, a name is unknown, or an import path cannot be imported.
    """
    try:
        table = _build_schedule(description["schedule"])
        shape, names = tuple(description["shape"]), description.get("class_names", [])
        if not isinstance(names, list) or len(names) not in (0, description["classes"]):
            raise TypeError("class_names is not a list of one name per class")
        classes = description["classes"]
        if not (classes is None or isinstance(classes, int)) or not all(1 <= n <= LARGEST_SIDE for n in shape):
            raise ValueError(f"its images have the shape {shape} and {classes} classes")
        return Denoiser(
            build_network(description["network"]),
            table,
            head(description["head"], table),
            shape=shape if len(shape) == 3 else None,
            classes=classes,
            precision=precision,
            unlabelled=description.get("unlabelled", True),
            class_names=tuple(map(str, names)),
            time_shift=description.get("time_shift", 0.0),
            time_scale=description.get("time_scale"),
            maps=description.get("maps", False) is True,
            reverses=description.get("reverses", False) is True,
            clock=build_clock(description),
            streams=description.get("streams", 1),  # which version 0.2 did not record
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"it is not the description of a denoiser: {one_line(error)}") from None


def hash_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's exported weights, which identifies the network of a sample."""
    return sha256(checkpoint / WEIGHTS)


def identity(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's weights together with network, schedule and head."""
    about = json.dumps(read_sealed(checkpoint / CONFIG)["denoiser"], sort_keys=True)
    return hashlib.sha256(f"{hash_of(checkpoint)} {about}".encode()).hexdigest()
