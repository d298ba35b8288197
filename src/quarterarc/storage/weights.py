"""Weights in safetensors files, the only format that is written and read: pickles are not."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from ..common.text import counted
from .checksums import DamagedFile

__all__ = ["hash_of_weights", "load_weights", "read_weights", "save_tensors"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout to a safetensors file.

    Args:
        tensors: the tensors by name; several names may share one tensor (tied weights).
        path: the file.
        about: text for the file's metadata.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        on_cpu: dict[str, Tensor] = {}
        stored: set[int] = set()
        for name, tensor in tensors.items():
            copy = tensor.detach().cpu().contiguous()
            memory = copy.untyped_storage().data_ptr()
            on_cpu[name] = copy.clone() if memory in stored else copy  # the format excludes shared memory
            stored.add(memory)
        path.touch()  # with the permissions of other new files; those of safetensors are the owner's alone
        mode = path.stat().st_mode
        save_file(on_cpu, path, metadata=None if about is None else dict(about))
        with suppress(OSError):  # a file system without permissions
            path.chmod(mode)
    except SafetensorError as error:  # safetensors reports a full disk by its own error
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        DamagedFile: if the file is missing or not in the format: a pickle, or incomplete.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedFile(
            f"{path} is not readable as safetensors ({error}): weights are read from this format only, not from pickles"
        ) from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the weights of a safetensors file into a network, all of them or none.

    Raises:
        InputError: if the file cannot be read or contains the weights of another network.
    """
    weights, own = read_weights(path), network.state_dict()
    wrong = [name for name in own.keys() | weights.keys() if name not in own or name not in weights]
    wrong = sorted(wrong) or sorted(name for name in own if own[name].shape != weights[name].shape)
    if wrong:
        name = wrong[0]
        expected = tuple(own[name].shape) if name in own else "missing"
        stored = tuple(weights[name].shape) if name in weights else "missing"
        raise InputError(
            f"{path} contains the weights of another network: {counted(len(wrong), 'tensor')} differ, first '{name}' "
            f"(network {expected}, file {stored})"
        )
    network.load_state_dict(weights)


def hash_of_weights(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers (names, dtypes, shapes and bytes), independent of file formats."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # a counter of training steps, which only some files contain
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
