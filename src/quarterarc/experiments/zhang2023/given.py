"""The comparison of Figure 5 on given networks alone: quality against steps, for the samplers of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...common.errors import InputError
from ..arms import Arm
from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..findings import Findings, Section
from ..scales import Pretrained, Scale
from ..tables import CellAt, grid_table, order_table, quality_chart, title
from .ablation import OURS

__all__ = ["GIVEN"]

METHODS = {
    "DDPM": ("ddpm", "time"),
    "DDIM": ("ddim", "uniform"),
    "gradient sampler": (OURS.sampler, "time"),
    "multistep": ("multistep", "octave"),
}
"""Sampler and grid by name: DDIM on the grid of its published code, `multistep` on its own."""


def _cell(network: Pretrained, sampler: str, grid: str, scale: Scale, steps: int, seed: int) -> Cell:
    return quality(scale, Arm(network.arm, ()), seed, sampler, steps, grid=grid)


def _rows(scale: Scale) -> dict[str, CellAt]:
    if not scale.pretrained:
        raise InputError(
            "the experiment 'pretrained' is one of given networks: give them, --pretrained DDIM=PATH "
            "--pretrained ours=PATH"
        )
    return {
        f"{network.label}, {name}": partial(_cell, network, sampler, grid, scale)
        for network in scale.pretrained
        for name, (sampler, grid) in METHODS.items()
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
