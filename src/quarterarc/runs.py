"""Run folders: where training writes, and where a denoiser is loaded from.

    RUN/recipe.yaml                     the resolved recipe
    RUN/metrics.jsonl                   one line every so many steps
    RUN/samples/step-00000500.png       images from fixed seeds
    RUN/checkpoints/step-00000500/      config.json, model.safetensors (the moving average), and what resuming needs;
                                        tuned.json, where grids were tuned for it

A checkpoint folder is complete as soon as it has its name. Weights are read from safetensors only, never from a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .denoiser import Denoiser
from .errors import InputError, unknown_name
from .estimate import PROJECTIONS
from .files import read_json, write_json
from .heads import head
from .networks import UNet
from .schedules import Schedule, schedule
from .tuned import TunedGrid

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "build_denoiser",
    "checkpoint_name",
    "checkpoints",
    "describe_denoiser",
    "hash_of",
    "identity",
    "load",
    "load_weights",
    "locked",
    "newest_checkpoint",
    "read_tuned",
    "read_weights",
    "write_tuned",
]

FORMAT, TUNED_FORMAT = 1, 3
WEIGHTS = "model.safetensors"
TUNED = "tuned.json"
PROJECTION = "velocity"
"""What is kept where a head's two estimates disagree, unless `load` is told otherwise (docs/residual.md)."""
_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    """The folder name of the checkpoint after this many optimiser steps."""
    return f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path) for path in (run / "checkpoints").glob("step-*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found) if (path / "config.json").is_file() and (path / WEIGHTS).is_file()]


def newest_checkpoint(path: str | Path) -> Path:
    """The newest complete checkpoint of a run folder; a checkpoint folder is its own.

    Raises:
        InputError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(
            f"{path} is a file: give the run folder or a checkpoint folder (config.json and {WEIGHTS}); "
            "pickled weights (.pt, .pth, .ckpt, .bin) are never read"
        )
    if not path.is_dir():
        raise InputError(f"no run at {path}: train one with `quarterarc train RECIPE --out {path}`")
    if (path / "config.json").is_file() and (path / WEIGHTS).is_file():
        return path
    found = checkpoints(path)
    if not found and (path / "model_index.json").is_file():
        raise InputError(
            f"{path} is a diffusers pipeline, not a run: read it in Python, by quarterarc.interop.load_pipeline"
        )
    if not found:
        raise InputError(f"{path} holds no complete checkpoint: train with `quarterarc train RECIPE --out {path}`")
    return found[-1]


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    projection: str | None = PROJECTION,
) -> Denoiser:
    """The denoiser of a run's newest checkpoint, with the moving average of its weights, ready to sample.

    Args:
        path: a run folder, or one of its checkpoint folders.
        device: where to put the network.
        precision: dtype to autocast the network to, such as `torch.bfloat16`.
        projection: what a head that estimates both keeps where they disagree, `quarterarc.Estimate.projected`; None
            leaves the two as the network says them.

    Raises:
        InputError: if there is no complete checkpoint, its weights do not fit its network, or for an unknown
            projection.
    """
    if projection is not None and projection not in PROJECTIONS:
        raise unknown_name("projection", projection, PROJECTIONS)
    folder = newest_checkpoint(path)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT or "denoiser" not in config:
        raise InputError(f"{folder / 'config.json'} is not the configuration of a checkpoint of format {FORMAT}")
    denoise = build_denoiser(config["denoiser"], precision)
    assert isinstance(denoise.network, nn.Module)
    load_weights(denoise.network, folder / WEIGHTS)
    denoise.network.eval().requires_grad_(False)
    known = denoise.head.agrees or projection == PROJECTION
    tuned = partial(read_tuned, folder) if known else partial(_not_tuned, projection)
    return replace(denoise.to(device), tuned=tuned, projection=projection)


def _not_tuned(projection: str | None) -> list[TunedGrid]:
    """Refuses: what the estimates keep where they disagree is part of the flow that a grid is tuned to."""
    raise InputError(
        f"the tuned grids are of the flow with the projection {PROJECTION}, not {projection or 'none'}: "
        "name another grid"
    )


def describe_denoiser(denoise: Denoiser, network: UNet) -> dict[str, Any]:
    """What `build_denoiser` needs to build it again, as JSON types."""
    table = denoise.schedule
    named: dict[str, Any] = {"name": table.name, "steps": table.steps}
    if table.name == "custom":
        named = {"name": "custom", "angles": table.angles.tolist()}
    return {
        "network": network.config,
        "schedule": named,
        "head": denoise.head.name,
        "shape": list(denoise.shape or ()),
        "classes": denoise.classes,
        "unlabelled": denoise.unlabelled,
    }


def build_denoiser(description: Mapping[str, Any], precision: torch.dtype | None = None) -> Denoiser:
    """A denoiser with fresh weights from its description in a checkpoint's config.json."""
    try:
        spec = description["schedule"]
        table = (
            Schedule("custom", np.array(spec["angles"]))
            if spec["name"] == "custom"
            else schedule(spec["name"], spec["steps"])
        )
        shape = tuple(description["shape"])
        return Denoiser(
            UNet(**description["network"]),
            table,
            head(description["head"], table),
            shape=shape if len(shape) == 3 else None,
            classes=description["classes"],
            precision=precision,
            unlabelled=description.get("unlabelled", True),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"config.json does not describe a denoiser: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        InputError: if the file is missing or is not safetensors (a pickle, say, or cut short).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is not readable as safetensors ({error}): weights are read from that format only, no pickle"
        ) from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Read weights from a safetensors file into a network, all or nothing.

    Raises:
        InputError: if the file is not safetensors or holds the weights of another network.
    """
    weights, own = read_weights(path), network.state_dict()
    wrong = [name for name in own.keys() | weights.keys() if name not in own or name not in weights]
    wrong = sorted(wrong) or sorted(name for name in own if own[name].shape != weights[name].shape)
    if wrong:
        name = wrong[0]
        here = tuple(own[name].shape) if name in own else "missing"
        there = tuple(weights[name].shape) if name in weights else "missing"
        raise InputError(
            f"{path} holds the weights of another network: {len(wrong)} tensors differ, first '{name}' "
            f"(network {here}, file {there})"
        )
    network.load_state_dict(weights)


def hash_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's exported weights: which network made a sample."""
    with (checkpoint / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's weights and of what they are read as: network, schedule and head."""
    about = json.dumps(read_json(checkpoint / "config.json")["denoiser"], sort_keys=True)
    return hashlib.sha256(f"{hash_of(checkpoint)} {about}".encode()).hexdigest()


def read_tuned(checkpoint: Path) -> list[TunedGrid]:
    """The grids that were tuned for a checkpoint.

    Raises:
        InputError: if there are none, or they were made for another network or head.
    """
    path = checkpoint / TUNED
    if not path.is_file():
        raise InputError(f"no grid was tuned for this network: run `quarterarc tune` on {checkpoint}")
    value = read_json(path)
    try:
        if value["format"] != TUNED_FORMAT:
            raise ValueError(f"format {value['format']}")
        made_for, grids = value["network"], [TunedGrid.of(one) for one in value["grids"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold tuned grids of format {TUNED_FORMAT} ({error}): tune again") from None
    if made_for != identity(checkpoint):
        raise InputError(f"{path} was made for another network or head: run `quarterarc tune` on {checkpoint}")
    return grids


def write_tuned(checkpoint: Path, grids: Iterable[TunedGrid]) -> Path:
    """Keep grids with the checkpoint they were tuned for, in place of those for the same sampler and steps."""
    try:
        before = read_tuned(checkpoint)
    except InputError:  # none yet, or another network's, which are of no use here
        before = []
    merged = {one.key: one for one in [*before, *grids]}
    value = {
        "format": TUNED_FORMAT,
        "network": identity(checkpoint),
        "grids": [one.describe() for one in merged.values()],
    }
    write_json(checkpoint / TUNED, value)
    return checkpoint / TUNED


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder for training; the lock goes with the process, however it ends.

    Raises:
        InputError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is training in {run}: wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()
