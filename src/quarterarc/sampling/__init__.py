"""Sampling: requests and plans, trajectories, images from seeds, sample folders, and grids tuned to a network."""

from __future__ import annotations

from .folders import write_samples
from .generation import batches, generate, noise
from .plans import Plan, Sampling
from .trajectories import Result, run, sample, trajectory
from .tuned_grids import TunedGrid, read_tuned, tuned_grid, write_tuned
from .tuning import tune, tune_run

__all__ = [
    "Plan",
    "Result",
    "Sampling",
    "TunedGrid",
    "batches",
    "generate",
    "noise",
    "read_tuned",
    "run",
    "sample",
    "trajectory",
    "tune",
    "tune_run",
    "tuned_grid",
    "write_samples",
    "write_tuned",
]
