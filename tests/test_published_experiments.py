"""Rows of experiments that bear a paper's name are that paper's method, and what failed to train is not judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from quarterarc.cli import main
from quarterarc.experiments import experiment
from quarterarc.experiments import run as experiments_run
from quarterarc.experiments.base import Measurements
from quarterarc.experiments.ho2020 import ddpm_ablation
from quarterarc.experiments.lab import Lab
from quarterarc.experiments.plan import Speed, jobs_of
from quarterarc.experiments.scales import scale
from quarterarc.experiments.zhang2023.ablation import OURS
from quarterarc.heads import head
from quarterarc.samplers import sampler
from quarterarc.schedules import schedule
from quarterarc.training.network import parameters, recipe_network
from quarterarc.training.recipe_text import read_recipe

NAMED_AFTER_DDPM = ("steps", "samples", "progress", "progressive", "interpolation")


@pytest.mark.parametrize("name", NAMED_AFTER_DDPM)
def test_ddpm_is_sampled_as_published(name: str) -> None:
    """Large variance and clipped image estimates; the small variance without clipping is another row of `steps`."""
    cells = experiment(name).cells(scale("digits"), (0,))
    rules = {
        tuple(sorted(dict(cell["options"]).items()))
        for cell in cells
        if cell.get("sampler") == "ddpm" or cell.measure in ("shared", "interpolation")
    }
    published = (("clip", True), ("variance", "large"))
    assert rules == ({published, ()} if name in ("steps", "samples", "progress") else {published})
    assert sampler("ddpm", **dict(published)) == sampler("ddpm", variance="large", clip=True)


@pytest.mark.parametrize("name", ["likelihood", "rate-distortion", "ddpm-ablation"])
def test_the_bound_clips_estimates_from_the_noise_as_published(name: str) -> None:
    """In Ho et al.'s code also the bound clips the image estimate that follows from the noise, and not that of μ̃."""
    at = scale("digits")
    for cell in experiment(name).cells(at, (0,)):
        if cell.measure == "bits":
            head = cell.arm.recipe(at, 0).head
            clipped = head.startswith("noise") and cell["bits"] == "bits-per-dim"
            assert (cell.get("through") == "clipped") == clipped, cell


def test_table_2_of_ddpm_learns_log_variances_and_keeps_the_later_method_apart() -> None:
    heads = {row.label: row.arm.recipe(scale("digits"), 0).head for row in (*ddpm_ablation.ROWS, *ddpm_ablation.LATER)}
    learned = {label: name for label, name in heads.items() if "variance" in name}
    assert len(learned) == 4
    for label, name in learned.items():
        assert name.endswith("+variance" if "Nichol" in label else "+log-variance")


def test_rows_that_failed_to_train_are_not_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = ddpm_ablation.ROWS[0]

    def values(measured: Measurements, row: Any, name: str) -> list[float]:
        return [30.0, 31.0, 32.0] if name.startswith("bits") and row == failing else [4.0, 4.1, 4.2]

    monkeypatch.setattr(ddpm_ablation, "_values", values)
    claims = ddpm_ablation._claims(Measurements(Lab(scale("digits"), tmp_path), (0, 1, 2)))
    compared = [comparison.label for claim in claims for comparison in claim.comparisons]
    assert not any(failing.label in label for label in compared)
    assert sum(failing.label in claim.note for claim in claims) == 3
    alone = next(claim for claim in claims if "μ̃ prediction, a learned variance" in claim.text)
    assert (alone.comparisons, alone.verdict) == ([], "undecided")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cifar10", {"steps": 800_000, "warmup": 5000, "rate": 2e-4, "batch": 128}),  # Ho et al.'s run_cifar.py
        ("celeba64", {"steps": 5_000_000, "warmup": 0, "rate": 2e-4, "batch": 128}),  # DDIM's celeba.yml
        ("church256", {"steps": 1_135_000, "warmup": 5000, "rate": 2e-5, "batch": 64}),  # Ho et al.'s run_lsun.py
    ],
)
def test_recipes_have_the_published_settings(name: str, settings: dict[str, float]) -> None:
    recipe = read_recipe(name)
    training, optimizer = recipe.training, recipe.optimizer
    assert settings == {
        "steps": training.steps,
        "warmup": optimizer.warmup,
        "rate": optimizer.learning_rate,
        "batch": training.batch,
    }
    assert (recipe.ema.decay, recipe.ema.warmup, optimizer.clip, optimizer.weight_decay) == (0.9999, False, 1.0, 0.0)
    if name == "celeba64":
        assert (recipe.data.split, recipe.data.limit) == ("train", 162_770)


def test_the_second_head_costs_a_hundredth_of_a_percent() -> None:
    recipe = OURS.arm.recipe(scale("cifar10"), 0)
    assert [parameters(recipe, name) for name in ("noise", "both")] == [35_741_315, 35_744_774]
    small = OURS.arm.recipe(scale("digits"), 0)
    network = recipe_network(small, 1, head("both", schedule()).channels(1), None)
    assert parameters(small, "both") == sum(weights.numel() for weights in network.parameters())


def test_the_plan_of_the_whole_list_counts_shared_arms_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"reconstruction": "zhang2023.reconstruction:RECONSTRUCTION", "seeds": "zhang2023.steps:SEEDS"}
    monkeypatch.setattr("quarterarc.experiments.EXPERIMENTS", chosen)
    monkeypatch.setattr(experiments_run, "probe", lambda lab: Speed(1e-3, 1e-4))
    assert main(["experiment", "all", "--dry-run", "--cache", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    digits = scale("digits")
    cells = [cell for name in chosen for cell in experiment(name).cells(digits, (0, 1, 2))]  # three seeds by default
    assert [int(count) for count in re.findall(r"^(\d+) arms", shown, re.MULTILINE)] == [24, 6, 24]
    assert len(jobs_of(cells)) == 24
    assert "all 2 experiments, with shared arms and measurements once" in shown
    assert len(re.findall("on this machine", shown)) == 3
