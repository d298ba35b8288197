"""Networks that are given to experiments instead of being trained: runs, imported checkpoints, diffusers pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.errors import InputError
from ..denoiser import Denoiser
from ..interop.opening import identity, is_model, load, read_model
from .scales import Pretrained, Scale

__all__ = ["open_given", "with_pretrained"]


def with_pretrained(scale: Scale, texts: Sequence[str]) -> Scale:
    """The scale with given networks.

    Args:
        scale: the scale.
        texts: `ROW=PATH` each: a row of the paper's tables ("DDIM", "ours"), or another name, which is that of an arm
            ("both, linear") or, in the experiment `pretrained`, any; and the path of a model, as for `quarterarc.load`.

    Raises:
        InputError: for a text of another form, a name that occurs twice, or a path that is no model of the scale's
            images.
    """
    from .zhang2023.ablation import PAPER_ROWS

    rows = {row.label: row.arm.name for row in PAPER_ROWS}
    networks: list[Pretrained] = []
    for text in texts:
        label, equals, path = text.partition("=")
        if not equals or not label.strip() or not path.strip():
            raise InputError(f"--pretrained {text}: write ROW=PATH, such as DDIM=theirs/ddim-cifar10")
        arm = rows.get(label, label)
        if arm in [network.arm for network in networks]:
            raise InputError(f"--pretrained {text}: '{label}' is given twice")
        if not is_model(Path(path)):
            raise InputError(
                f"--pretrained {text}: there is no model at {path}: give a run, a checkpoint (`quarterarc import` "
                "writes one), or a folder of diffusers"
            )
        network = Pretrained(label, arm, path, read_model(path, identity))
        open_given(network, scale, torch.device("cpu"))
        networks.append(network)
    return replace(scale, pretrained=tuple(networks))


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
