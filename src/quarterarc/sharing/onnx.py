"""The network of a denoiser as an ONNX file, for any number of images per batch.

| input  | shape            | type    | meaning                                                                     |
|--------|------------------|---------|-----------------------------------------------------------------------------|
| x      | (batch, C, H, W) | float32 | points of the arc, x = cos(angle) image + sin(angle) noise                  |
| time   | (batch,)         | float32 | the network's time; quarterarc.json has the schedule of angles              |
| labels | (batch,)         | int64   | classes, of a network with classes                                          |
| span   | (batch,)         | float32 | of a flow map: the span of the jump, 0..1000 for 0..pi/2                    |

`output` has the channels of the head, see `quarterarc.heads`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from ..common.optional import need
from ..common.text import one_line
from ..denoiser import Denoiser

__all__ = ["NETWORK", "write_onnx"]

NETWORK = "model.onnx"
_OPSET = 17
_LARGEST = 2**31 - 2**20
"""Bytes of weights in one file: a protocol buffer has at most 2 GiB."""


class _Called(nn.Module):
    """A network whose inputs are positional and all given."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(**dict(zip(self.names, inputs, strict=True)))


def write_onnx(denoise: Denoiser, folder: Path) -> None:
    """Write the network of a denoiser into a folder, as `model.onnx`.

    Args:
        denoise: a denoiser that declares the shape of its images, on the CPU.
        folder: the folder, which exists.

    Raises:
        InputError: if onnx is not installed, or the network cannot be exported.
    """
    onnx = need("onnx", "onnx", "an ONNX file")
    network = denoise.network
    if denoise.shape is None or not isinstance(network, nn.Module):
        raise InputError("only a network that declares the shape of its images can be exported as onnx")
    if sum(weight.numel() * 4 for weight in network.parameters()) > _LARGEST:
        raise InputError("the weights exceed 2 GiB, the most that an ONNX file holds: export it as safetensors")
    inputs: dict[str, Tensor] = {"x": torch.zeros(2, *denoise.shape), "time": torch.tensor([300.0, 700.0])}
    if denoise.classes is not None:
        inputs["labels"] = torch.tensor([0, denoise.classes - 1])
    if denoise.maps:
        inputs["span"] = torch.tensor([100.0, 200.0])
    path = folder / NETWORK
    called = _Called(network.float().eval().requires_grad_(False), list(inputs))
    try:
        # The exporter that traces: branches on the size of a batch, of which the other one makes constants, are the
        # same for every batch of two or more images, and of one.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                called, tuple(inputs.values()), str(path), dynamo=False, opset_version=_OPSET,
                input_names=list(inputs), output_names=["output"],
                dynamic_axes={name: {0: "batch"} for name in (*inputs, "output")},
            )  # fmt: skip
        onnx.checker.check_model(str(path))
    except Exception as error:  # of a network from outside this package, or of an exporter that lacks an operation
        raise InputError(
            f"the network {type(network).__name__} cannot be exported as onnx ({type(error).__name__}: "
            f"{one_line(error)[:200]}): export it as safetensors"
        ) from error
