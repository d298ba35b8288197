"""`--pretrained ROW=PATH`: networks that are given to experiments, by the names of the rows that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.errors import InputError
from ..interop.opening import identity, is_model, read_model
from .given import open_given
from .scales import Pretrained, Scale
from .zhang2023.ablation import PAPER_ROWS

__all__ = ["with_pretrained"]


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
