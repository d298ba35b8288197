"""The papers' tables and figures: one command each, from training to a report with verdicts on the papers' claims.

base.py         the class Experiment          arms.py        the networks that it compares
scales.py       data, network, counts         cells.py       its measurements
plan.py, run.py cost estimate, execution      measures.py    what a measurement computes
lab.py          trains and caches arms        measuring.py   measures and caches cells
tables.py       tables and charts of cells    claims.py      the rule for verdicts on claims
findings.py     the content of a report       writing.py     files of a report
zhang2023/, ho2020/, flow_maps/   the experiments
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..common.errors import unknown_name

if TYPE_CHECKING:
    from .base import Experiment

__all__ = ["EXPERIMENTS", "WITH_WEIGHTS", "experiment"]

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
    "stochastic": "zhang2023.stochastic:STOCHASTIC",
    "training-speed": "zhang2023.training_speed:TRAINING_SPEED",
    "ddpm-ablation": "ho2020.ddpm_ablation:DDPM_ABLATION",
    "likelihood": "ho2020.likelihood:LIKELIHOOD",
    "rate-distortion": "ho2020.likelihood:RATE_DISTORTION",
    "progressive": "ho2020.progressive:PROGRESSIVE",
    "interpolation": "ho2020.interpolation:INTERPOLATION",
    "few-evaluations": "flow_maps.few_evaluations:FEW_EVALUATIONS",
}
"""Module and attribute of each experiment, by name."""

WITH_WEIGHTS: dict[str, str] = {"pretrained": "zhang2023.given:GIVEN"}
"""Experiments on given networks alone, which `all` leaves out."""


def experiment(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        InputError: for an unknown name.
    """
    known = {**EXPERIMENTS, **WITH_WEIGHTS}
    if name not in known:
        raise unknown_name("experiment", name, known)
    module, _, attribute = known[name].partition(":")
    entry: Experiment = getattr(import_module(f".{module}", __name__), attribute)
    return entry
