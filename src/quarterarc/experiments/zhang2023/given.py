"""The comparison of Figure 5 on given networks alone: quality against steps, for the samplers of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ...common.errors import InputError
from ..arms import Arm
from ..base import Experiment, Measurements
from ..cells import Cell
from ..findings import Findings, Section
from ..scales import Pretrained, Scale
from ..tables import CellAt, grid_table, order_table, quality_chart, title
from .ablation import DDIM, DDPM, OURS, Row
from .steps import GRID

__all__ = ["GIVEN"]

METHODS = (
    DDPM,
    DDIM,
    replace(OURS, label="gradient sampler"),
    Row("multistep", OURS.arm, "multistep", grid="octave"),
)
"""The samplers of Figure 5, on the grid of DDIM's published code as in the experiment `steps`, and `multistep` on its
own grid. The networks of these rows are replaced by the given ones."""


def _cell(network: Pretrained, method: Row, scale: Scale, steps: int, seed: int) -> Cell:
    return replace(method, arm=Arm(network.arm, ())).at(scale, steps, seed, GRID)


def _rows(scale: Scale) -> dict[str, CellAt]:
    if not scale.pretrained:
        raise InputError(
            "the experiment 'pretrained' is one of given networks: give them, --pretrained DDIM=PATH --pretrained "
            "ours=PATH"
        )
    return {
        f"{network.label}, {method.label}": partial(_cell, network, method, scale)
        for network in scale.pretrained
        for method in METHODS
    }


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    # by network, which is then loaded once per seed
    return [row(steps, seed) for row in _rows(scale).values() for seed in seeds for steps in scale.table_steps]


def _report(measured: Measurements) -> Findings:
    rows, steps = _rows(measured.scale), measured.scale.table_steps
    sections = [
        Section(
            title(metric),
            "The spread over seeds is that of the noise: every seed has the same networks." if metric == "fid" else "",
            [
                grid_table(measured, f"{title(metric)} by network, sampler and steps", rows, steps, metric),
                quality_chart(measured, "pretrained", rows, steps, metric),
            ],
        )
        for metric in measured.scale.metrics
    ]
    return Findings([*sections, Section("Ranking", "", [order_table(measured, rows, steps)])], [])


GIVEN = Experiment(
    "pretrained",
    "How good are the images of given networks, by sampler and steps?",
    "Zhang, Ehinger & Drummond 2023, Figure 5",
    _cells,
    _report,
)
