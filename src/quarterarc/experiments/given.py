"""Networks that are given to experiments instead of being trained: runs, imported checkpoints, diffusers pipelines."""

from __future__ import annotations

import torch

from ..common.errors import InputError
from ..denoiser import Denoiser
from ..interop.opening import identity, load, read_model
from .scales import Pretrained, Scale

__all__ = ["open_given"]


def open_given(network: Pretrained, scale: Scale, device: torch.device) -> Denoiser:
    """The denoiser of a given network, with the raw estimates that the papers' samplers use.

    Raises:
        InputError: if it makes other images than the scale's, needs labels, or has changed since it was given.
    """
    data = scale.recipe.data
    if read_model(network.path, identity) != network.identity:
        raise InputError(f"{network.path} has changed since the experiment began: give another --out")
    precision = torch.bfloat16 if scale.recipe.training.precision == "bf16" and device.type == "cuda" else None
    denoise = load(network.path, device, precision, projection=None)
    shape = (data.channels, data.height, data.width)
    if denoise.shape != shape:
        raise InputError(f"{network.path} makes images of shape {denoise.shape}, and the scale's have {shape}")
    if denoise.classes is not None and not denoise.unlabelled:
        raise InputError(f"{network.path} needs a label for every image, and experiments sample without labels")
    return denoise
