"""Files of `torch.save`, read by PyTorch's restricted reader: tensors in plain containers, never code."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.memory import require_memory
from ..common.text import one_line
from ..storage.weights import read_weights

__all__ = ["read_state"]

_AVERAGES = ("ema", "model_ema", "ema_state_dict")
_NESTED = ("state_dict", "model", "model_state_dict", "net", "params")


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights of a file: of several state dicts the moving average, in float32 on the CPU.

    Args:
        path: a file of safetensors, or of `torch.save`: a state dict, a list that begins with the one of the model and
            may end with that of its average (DDIM), or a dictionary that has one of them as an entry.

    Raises:
        InputError: for a file that is missing, too large for the memory, holds anything but plain tensors in plain
            containers, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"there is no file of weights at {path}")
    _check_size(path)
    value = read_weights(path) if path.suffix == ".safetensors" else _restricted(path)
    state = _state_of(value)
    if not state:
        raise InputError(f"{path} holds no weights: a state dict is expected, names with tensors")
    return {_plain(name): _checked(path, name, tensor) for name, tensor in state.items()}


def _check_size(path: Path) -> None:
    """Raise an InputError for a file whose content exceeds the memory; a compressed one is larger than it looks."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        size = path.stat().st_size
    require_memory(size, torch.device("cpu"), lambda: f"{path} cannot be read")


def _restricted(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of old and new protocols, beside an error of one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = one_line(error).partition(". ")[0][:200]
        raise InputError(
            f"{path} cannot be read without running code in it, or is damaged ({reason}): save its state dict as "
            "safetensors with the program that wrote it (docs/other-models.md)"
        ) from None


def _state_of(value: Any) -> dict[str, Tensor]:
    """The state dict in a value; empty if there is none."""
    if isinstance(value, list | tuple):  # DDIM: model, optimiser, epoch, step, and the average
        states = [state for entry in value if (state := _plain_state(entry))]
        return states[-1] if states else {}
    if not isinstance(value, Mapping):
        return {}
    for name in (*_AVERAGES, *_NESTED):
        if isinstance(value.get(name), Mapping):
            return _state_of(value[name])
    return _plain_state(value)


def _plain_state(value: Any) -> dict[str, Tensor]:
    """A mapping of names to tensors as it is; empty for anything else, such as the state of an optimiser."""
    if not isinstance(value, Mapping) or not value:
        return {}
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
        return {}
    return dict(value)


def _plain(name: str) -> str:
    """A name without the prefix of `DataParallel`."""
    return name.removeprefix("module.")


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor in float32; an InputError for one that is larger than what is stored of it, or not a plain one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        raise InputError(f"{path} is not a file of weights: '{name}' is not a plain tensor of real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{path} is damaged: '{name}' has shape {tuple(tensor.shape)}, more than what is stored of it")
    return tensor.detach().float()
