"""The papers' tables and figures, each as one command: what is compared, what it costs, what was found, what holds.

experiment.py   what an experiment is         arms.py       the networks that it compares
scales.py       data, network, counts         cells.py      the measurements that it makes
plan.py, run.py the work                      measures.py   what can be measured
lab.py          where arms and cells are kept  claims.py     when a claim holds
zhang2023/, ho2020/   the experiments themselves
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..common.errors import unknown_name

if TYPE_CHECKING:
    from .base import Experiment

__all__ = ["EXPERIMENTS", "experiment"]

EXPERIMENTS: dict[str, str] = {
    "schedules": "zhang2023.schedules:SCHEDULES",
    "ablation": "zhang2023.ablation:ABLATION",
    "steps": "zhang2023.steps:STEPS",
    "seeds": "zhang2023.steps:SEEDS",
    "reconstruction": "zhang2023.reconstruction:RECONSTRUCTION",
    "samples": "zhang2023.pictures:SAMPLES",
    "progress": "zhang2023.pictures:PROGRESS",
    "robustness": "zhang2023.robustness:ROBUSTNESS",
    "solvers": "zhang2023.solvers:SOLVERS",
    "training-speed": "zhang2023.training_speed:TRAINING_SPEED",
    "ddpm-ablation": "ho2020.ddpm_ablation:DDPM_ABLATION",
    "likelihood": "ho2020.likelihood:LIKELIHOOD",
    "rate-distortion": "ho2020.likelihood:RATE_DISTORTION",
    "progressive": "ho2020.progressive:PROGRESSIVE",
    "interpolation": "ho2020.interpolation:INTERPOLATION",
}
"""Where each experiment is, by name."""


def experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    module, _, attribute = EXPERIMENTS[name].partition(":")
    found: Experiment = getattr(import_module(f".{module}", __name__), attribute)
    return found
