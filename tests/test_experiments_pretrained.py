"""Given networks in experiments: they are not trained, and their cells are those of their content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import quarterarc as qa
from conftest import TINY, Cli
from data_samples import write_parquet
from quarterarc.common.errors import InputError
from quarterarc.experiments.arms import Arm, distilled
from quarterarc.experiments.lab import Lab
from quarterarc.experiments.pretrained import with_pretrained
from quarterarc.experiments.scales import scale
from quarterarc.experiments.zhang2023.ablation import DDIM, OURS
from quarterarc.schedules import Schedule
from quarterarc.storage.checkpoints import load
from quarterarc.training.recipe_text import read_recipe


@pytest.fixture(scope="module")
def theirs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline of digits."""
    pytest.importorskip("diffusers")
    from quarterarc.heads import Noise
    from quarterarc.interop import save_pipeline
    from quarterarc.networks import UNet

    table: Schedule = qa.schedule("linear", 1000)
    network = UNet(1, 1, 8, (1, 2), 1, (1,), groups=1)
    denoise = qa.Denoiser(network.eval(), table, Noise(), (1, 8, 8), time_shift=-1.0, time_scale=1.0)
    return save_pipeline(denoise, tmp_path_factory.mktemp("theirs") / "pipe")


def test_given_networks_are_compared_by_one_command(cli: Cli, tiny_run: Path, theirs: Path, tmp_path: Path) -> None:
    words = ("experiment", "pretrained", "--images", "16", "--features", "pixels", "--seeds", "0", "--cache", "cache")
    networks = ("--pretrained", f"DDIM={theirs}", "--pretrained", f"ours={tiny_run}")
    done = cli(*words, *networks, "--out", "report")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "report" / "results.json").read_text())
    text = json.dumps(about)
    assert str(theirs) in text
    assert "gradient sampler" in (tmp_path / "report" / "results.md").read_text()
    assert not (tmp_path / "cache" / "arms").exists()  # nothing was trained
    assert "0 images to train on" in cli(*words, *networks, "--dry-run").stdout


def test_the_commands_of_the_page_run(tiny_run: Path, theirs: Path, tmp_path: Path, cli: Cli) -> None:
    """On digits, with a pipeline in place of the imported checkpoint, whose command another test runs."""
    page = (Path(__file__).parent.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("quarterarc experiment pretrained"))
    shutil.copytree(theirs, tmp_path / "theirs" / "ddim-cifar10")
    shutil.copytree(tiny_run, tmp_path / "runs" / "ours-cifar10")
    words = ["digits" if word == "cifar10" else word for word in line.split()[1:]]
    done = cli(*words, "--images", "16", "--features", "pixels", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "DDIM" in line
    assert "ours" in line


def test_the_rows_of_the_paper_take_given_networks(tiny_run: Path, theirs: Path, tmp_path: Path) -> None:
    plain = scale("digits")
    chosen = with_pretrained(plain, [f"DDIM={theirs}", f"ours={tiny_run}"])
    for arm in (DDIM.arm, OURS.arm):
        assert chosen.given(arm.name) is not None
        assert arm.hash(chosen, 0) == arm.hash(chosen, 1) != arm.hash(plain, 0)
    other = Arm("both, linear", ("head=both", "schedule.name=linear"))
    assert other.hash(chosen, 0) == other.hash(plain, 0)
    copied = tmp_path / "copy"
    shutil.copytree(tiny_run, copied)
    again = with_pretrained(plain, [f"ours={copied}"])
    assert OURS.arm.hash(again, 0) == OURS.arm.hash(chosen, 0)  # the content decides, and not the place


def test_a_map_is_distilled_from_a_given_network_of_another_size(tiny_run: Path, tmp_path: Path) -> None:
    """Network, schedule and head of its recipe are those of the given one, and not of the scale."""
    recipe = read_recipe("digits", [*TINY, "network.channels=16", "training.steps=1", "schedule.steps=500"])
    small = replace(scale("digits"), recipe=recipe, pretrained=())
    lab = Lab(with_pretrained(small, [f"ours={tiny_run}"]), tmp_path / "cache", torch.device("cpu"), progress=False)
    made = lab.denoiser(distilled(OURS.arm, "teacher.images=8"), 0)
    assert isinstance(made, qa.Denoiser)
    assert made.checkpoint is not None
    assert made.schedule.steps == load(tiny_run).schedule.steps == 1000
    config = json.loads((made.checkpoint / "config.json").read_text())
    assert config["recipe"]["network"]["channels"] == 8
    assert config["recipe"]["schedule"]["steps"] == 1000


def test_what_cannot_be_given_is_one_line(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    digits = scale("digits")
    for text, words in (
        ("DDIM", "ROW=PATH"),
        (f"DDIM={tmp_path}", "no model at"),
        (f"={tiny_run}", "ROW=PATH"),
    ):
        with pytest.raises(InputError, match=words):
            with_pretrained(digits, [text])
    with pytest.raises(InputError, match="given twice"):
        with_pretrained(digits, [f"ours={tiny_run}", f"ours={tiny_run}"])
    with pytest.raises(InputError, match="makes images of shape"):
        with_pretrained(scale("cifar10-short"), [f"ours={tiny_run}"])
    plan = ("experiment", "robustness", "--dry-run", "--seeds", "0", "--features")
    wrong = cli(*plan, "pixels", "--pretrained", f"BOGUS={tiny_run}")
    assert wrong.returncode == 2
    assert f"--pretrained BOGUS={tiny_run}: no network of robustness has this name: give one of 'DDIM'" in wrong.stderr
    for row in ("ours", "DDIM", "both, jsd"):
        assert f"'{row}'" in wrong.stderr
    norm = cli(*plan, "pixels", "--pretrained", f"ours={tiny_run}", "--norm", "l2")
    assert "no network of robustness has this name" in norm.stderr  # its arm is the one of the other norm
    assert "did you mean 'pixels'" in cli(*plan, "pixel").stderr
    teacher = cli("experiment", "few-evaluations", *plan[2:], "pixels", "--pretrained", f"ours={tiny_run}")
    assert teacher.returncode == 0, teacher.stderr
    done = cli("experiment", "pretrained", "--features", "pixels")
    assert done.returncode == 2
    assert "given networks" in done.stderr


def test_test_images_lie_beside_the_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", 10)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", 4, first=20)
    for data in (tmp_path / "train-00000-of-00001.parquet", tmp_path):
        test, numbers = scale("cifar10", data=str(data), features="pixels").test_images() or pytest.fail("none")
        assert len(numbers) == 4
        training = scale("cifar10", data=str(data), features="pixels").training_data()
        assert training.count == 10
        assert not np.array_equal(test.batch([0]).images.numpy(), training.batch([0]).images.numpy())
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    alone = scale("cifar10", data=str(tmp_path / "train-00000-of-00001.parquet"), features="pixels")
    assert alone.test_images() is None
