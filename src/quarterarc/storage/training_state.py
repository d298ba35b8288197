"""Training checkpoints: the state from which a resumed run continues with the same bits.

    config.json              description of the exported denoiser, the step, the recipe
    model.safetensors        its weights: the moving average
    mean.safetensors         its mean image, measured (`quarterarc.mean_image`)
    raw.safetensors          the weights being trained
    optimizer.safetensors    Adam's moments and step counts, by parameter name

Random numbers and the order of the data are functions of the step (`common.streams`) and need no state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..common.errors import InputError
from ..mean_image import MeanImage
from .checkpoints import FORMAT, write_mean
from .checksums import DamagedFile, checksums_of, read_sealed, verify, write_sealed
from .files import replace_folder
from .runs import CONFIG, WEIGHTS, checkpoint_name, checkpoints, half_deleted_checkpoints
from .temporary import remove_folder, sweep
from .weights import load_weights, read_weights, save_tensors

__all__ = ["BETWEEN", "State", "drop_old", "restore", "save", "set_aside", "sweep_run"]

RAW, OPTIMIZER = "raw.safetensors", "optimizer.safetensors"
BETWEEN = "between"
"""The field of config.json that marks a checkpoint which is kept only until the next one is complete."""


@dataclass(frozen=True, eq=False)
class State:
    """The tensors of a checkpoint, copied to the memory of the CPU: training may go on while they are written.

    Attributes:
        average: the moving average of the weights.
        weights: the weights being trained.
        moments: Adam's moments and step counts, by parameter name.
        mean: the mean image of the average; None where the first step is evaluated.
        arrived: an event of a GPU, after which the copies are complete.
    """

    average: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    mean: MeanImage | None = None
    arrived: torch.cuda.Event | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        mean: MeanImage | None = None,
    ) -> State:
        """The state of a run; on a GPU the copies are queued behind its work, which is not waited for."""
        averages, weights = _copied(average.state_dict()), _copied(network.state_dict())
        moments = _copied(_moments(network, optimizer))
        arrived = None
        device = next((weight.device for weight in network.parameters()), None)
        if device is not None and device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(device))
        return cls(averages, weights, moments, mean, arrived)

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self.arrived is not None:
            self.arrived.synchronize()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU; those from a GPU, in pinned memory, are complete only after what is queued."""
    return {
        name: tensor.detach().clone()
        if tensor.device.type == "cpu"
        else tensor.detach().to("cpu", non_blocking=tensor.device.type == "cuda")
        for name, tensor in tensors.items()
    }


def save(run: Path, config: dict[str, Any], state: State, keep: int) -> Path:
    """Write the checkpoint of step `config["step"]` atomically, then delete those that it replaces (`drop_old`).

    Args:
        run: the run folder.
        config: JSON values for config.json.
        state: weights, average and moments.
        keep: number of checkpoints to keep.

    Returns:
        The checkpoint folder.

    Raises:
        OSError: if it cannot be written, as in a run folder that is gone; existing checkpoints stay unchanged.
    """
    folder = run / "checkpoints" / checkpoint_name(config["step"])
    folder.parent.mkdir(exist_ok=True)  # without its parents: a run folder that is gone is not made again
    if folder not in checkpoints(run):
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder of that name
        with replace_folder(folder) as temporary:
            state.wait()
            save_tensors(state.average, temporary / WEIGHTS)
            save_tensors(state.weights, temporary / RAW)
            save_tensors(state.moments, temporary / OPTIMIZER)
            write_mean(state.mean, temporary)
            about = {"format": FORMAT, "quarterarc": __version__, **config}
            write_sealed(temporary / CONFIG, {**about, **checksums_of(temporary)})
    drop_old(run, keep)
    return folder


def drop_old(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run, and before that all but its newest one that are `BETWEEN`.

    The caller must have locked the run.
    """
    complete = checkpoints(run)
    replaced = [old for old in complete[:-1] if _is_between(old)]
    kept = [folder for folder in complete if folder not in replaced]
    for old in (*replaced, *kept[:-keep]):
        remove_folder(old)


def _is_between(folder: Path) -> bool:
    try:
        config = read_sealed(folder / CONFIG)
    except DamagedFile:
        return False
    return isinstance(config, dict) and config.get(BETWEEN) is True


def set_aside(damaged: Iterable[Path]) -> None:
    """Rename checkpoints that cannot be read to NAME.damaged, so that they are no longer the newest ones of a run."""
    for folder in damaged:
        names = (f"{folder.name}.damaged{f'-{number}' if number else ''}" for number in count())
        os.replace(folder, next(path for path in map(folder.with_name, names) if not path.exists()))


def sweep_run(run: Path) -> None:
    """Delete what killed processes have left in a run; the caller must have locked it."""
    sweep(run, run / "samples", run / "checkpoints", locked=True)
    sweep(*(run / "checkpoints").glob("step-*"))  # tuned grids, which are written without the lock
    for path in half_deleted_checkpoints(run):  # as by version 0.1
        shutil.rmtree(path, ignore_errors=True)


def restore(
    folder: Path, network: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Load a checkpoint of `save` into network, average (if the process has it) and optimiser, in place.

    Returns:
        The value of config.json.

    Raises:
        DamagedFile: if a file is missing or damaged.
        InputError: if it belongs to another network.
    """
    config = read_sealed(folder / CONFIG)
    if not isinstance(config, dict):
        raise DamagedFile(f"{folder / CONFIG} is not the configuration of a checkpoint")
    for name in (WEIGHTS, RAW, OPTIMIZER):
        verify(folder / name, config)
    if average is not None:
        load_weights(average, folder / WEIGHTS)
    load_weights(network, folder / RAW)
    moments = read_weights(folder / OPTIMIZER)
    parameters = {name: parameter for name, parameter in network.named_parameters() if f"step.{name}" in moments}
    if moments.keys() != {f"{kind}.{name}" for name in parameters for kind in _MOMENTS}:
        raise InputError(f"{folder / OPTIMIZER} belongs to another network")
    for name, parameter in parameters.items():
        state: dict[str, Tensor] = {}
        for kind in _MOMENTS:
            saved = moments[f"{kind}.{name}"]
            # a moment has the memory layout of its parameter; the number of steps is a scalar
            state[kind] = torch.empty_like(parameter).copy_(saved) if kind != "step" else saved.clone()
        if optimizer.param_groups[0].get("fused") and parameter.device.type != "cpu":
            state["step"] = state["step"].to(parameter.device)
        optimizer.state[parameter] = state
    return config


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind]
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state  # a parameter without a gradient has no moments
        for kind in _MOMENTS
    }
