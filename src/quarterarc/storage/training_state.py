"""Checkpoints: everything a run needs to go on exactly as if it had never stopped.

    config.json              what the exported denoiser is, the step, the recipe
    model.safetensors        its weights: the moving average
    raw.safetensors          the weights being trained
    optimizer.safetensors    Adam's moments and step counts, by parameter name

Random numbers need no saving (see `quarterarc.streams`), nor does the order of the data.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..common.errors import InputError
from .checkpoints import FORMAT
from .files import read_json, replace_folder, write_json
from .runs import CONFIG, WEIGHTS, checkpoint_name, checkpoints
from .weights import load_weights, read_weights, save_tensors

__all__ = ["restore", "save", "sweep"]

RAW, OPTIMIZER = "raw.safetensors", "optimizer.safetensors"


def save(
    run: Path,
    config: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write the checkpoint of `config["step"]` beside and rename it into place; then drop all but the newest `keep`.

    Raises:
        OSError: if it cannot be written; the checkpoints that were there stay as they were.
    """
    folder = run / "checkpoints" / checkpoint_name(config["step"])
    if folder not in checkpoints(run):
        shutil.rmtree(folder, ignore_errors=True)  # something by that name that is no checkpoint
        with replace_folder(folder) as beside:
            save_tensors(average.state_dict(), beside / WEIGHTS)
            save_tensors(network.state_dict(), beside / RAW)
            save_tensors(_moments(network, optimizer), beside / OPTIMIZER)
            write_json(beside / CONFIG, {"format": FORMAT, "quarterarc": __version__, **config})
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def sweep(run: Path) -> None:
    """Remove what writes that were cut short have left; only for who holds the run's lock."""
    for beside in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(beside)


def restore(folder: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring back what `save` wrote, in place, and return its config.

    Raises:
        InputError: if a file is missing or belongs to another network.
    """
    config = read_json(folder / CONFIG)
    load_weights(average, folder / WEIGHTS)
    load_weights(network, folder / RAW)
    moments = read_weights(folder / OPTIMIZER)
    if moments.keys() != {f"{kind}.{name}" for name, _ in network.named_parameters() for kind in _MOMENTS}:
        raise InputError(f"{folder / OPTIMIZER} belongs to another network")
    for name, parameter in network.named_parameters():
        state: dict[str, Tensor] = {}
        for kind in _MOMENTS:
            saved = moments[f"{kind}.{name}"]
            # a moment lies in memory as its parameter does; the count of steps is one number, on the CPU or beside it
            state[kind] = torch.empty_like(parameter).copy_(saved) if saved.ndim else saved.clone()
        if optimizer.param_groups[0].get("fused") and parameter.device.type != "cpu":
            state["step"] = state["step"].to(parameter.device)
        optimizer.state[parameter] = state
    return config


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind]
        for name, parameter in network.named_parameters()
        for kind in _MOMENTS
    }
