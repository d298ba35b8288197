"""Tensors in safetensors files: the only format that weights are written to and read from. No pickle is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..common.errors import InputError

__all__ = ["load_weights", "read_weights", "save_tensors", "sha256"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout as safetensors.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, path, metadata=None if about is None else dict(about))
    except SafetensorError as error:  # a full disk is reported as this, without an error number
        raise OSError(f"cannot write {path}: {error}") from None


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
        expected = tuple(own[name].shape) if name in own else "missing"
        found = tuple(weights[name].shape) if name in weights else "missing"
        raise InputError(
            f"{path} holds the weights of another network: {len(wrong)} tensors differ, first '{name}' "
            f"(network {expected}, file {found})"
        )
    network.load_state_dict(weights)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
