"""`--pretrained ROW=PATH`: networks that are given to experiments, by the names of the rows that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.errors import InputError
from ..interop.opening import identity, is_model, read_model
from .arms import Arm
from .base import Experiment
from .given import open_given
from .scales import Pretrained, Scale
from .zhang2023.ablation import PAPER_ROWS

__all__ = ["check_rows", "with_pretrained"]


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


def check_rows(scale: Scale, experiments: Sequence[Experiment], seeds: Sequence[int]) -> None:
    """Raise an InputError, which lists the rows, for a given network that stands for no arm of the experiments."""
    cells = [cell for experiment in experiments for cell in experiment.cells(scale, seeds[:1])]
    arms = {arm.name for cell in cells for arm in _with_teachers(cell.arm)}
    rows = {row.label for row in PAPER_ROWS if row.arm.name in arms} | arms - {row.arm.name for row in PAPER_ROWS}
    for network in scale.pretrained:
        if network.arm not in arms:
            known = ", ".join(f"'{row}'" for row in sorted(rows))  # names of arms have commas
            raise InputError(
                f"--pretrained {network.label}={network.path}: no network of "
                f"{' and '.join(experiment.name for experiment in experiments)} has this name: give one of {known}"
            )


def _with_teachers(arm: Arm) -> Iterator[Arm]:
    yield arm
    if arm.teacher is not None:
        yield from _with_teachers(arm.teacher)
