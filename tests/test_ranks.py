"""A distributed run in which one process fails or is killed: all end soon, with one line, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Cli, Distributed
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.log import read_log
from quarterarc.training.recipe_text import read_recipe


def lines_of(errors: str) -> list[str]:
    """The lines of the command line among those of the launcher."""
    assert 'quarterarc/cli/__init__.py", line' not in errors  # a traceback
    return re.findall(r"^quarterarc: (?:error|stopped).*$", errors, flags=re.MULTILINE)


def test_an_error_of_all_processes_is_reported_once(tiny_run: Path, tmp_path: Path, distributed: Distributed) -> None:
    done = distributed("sample", tiny_run, "--out", tmp_path / "made", "--sampler", "eular", fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "did you mean 'euler'" in done.stderr


@pytest.mark.parametrize("words", [("sample", "no-run", "--out", "made"), ("sample",)])
def test_an_error_before_the_processes_are_connected_is_reported_by_the_first_one(
    words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        done = cli(*words)
        assert done.returncode == 2
        assert done.stderr.count("error: ") == 1 - rank


def test_an_image_that_one_process_cannot_read_ends_all(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """The other one waits for the gradient of this one."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    data = ("data.source=images", "data.size=8", "data.channels=1", "data.memory=stream")
    done = distributed("train", "digits", "--out", "run", *tiny, *data, fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "3.png" in lines_of(done.stderr)[0]


def test_a_checkpoint_that_the_first_process_cannot_write_ends_all(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """As on a full disk."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("not a folder")
    done = distributed("train", "digits", "--out", "run", *tiny, fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "checkpoints" in lines_of(done.stderr)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_of_two_ends_both_and_the_run_continues(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """The other process does not wait for it, and the resumed run has the losses of an uninterrupted one."""
    run = tmp_path / "run"
    fields = [*tiny, "training.steps=20", "training.log_every=10"]
    words = ["train", "digits", "--out", str(run), *fields]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "quarterarc"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen([*launch, *words], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoints(run):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(lines_of(errors)) == 1
    distributed(*words, "--resume")
    train(read_recipe("digits", fields), tmp_path / "alone", progress=False)
    for resumed, alone in zip(read_log(run), read_log(tmp_path / "alone"), strict=True):
        assert resumed["loss"] == pytest.approx(alone["loss"], rel=1e-4)  # sums in another order, over 20 steps


def test_a_resumed_run_of_three_processes_is_bit_identical(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """Sums of three gradients depend on their order, which must not depend on the step that a run starts from."""

    def words(out: str, steps: int) -> list[str]:
        fields = (*tiny, "training.batch=6", "training.checkpoint_every=1", f"training.steps={steps}")
        return ["train", "digits", "--out", out, "--resume", "--device", "cpu", *fields]

    distributed(*words("whole", 4), "THEN", *words("parts", 2), "THEN", *words("parts", 4), count=3)
    whole, parts = (tmp_path / out / "checkpoints" / "step-00000004" for out in ("whole", "parts"))
    for name in ("model.safetensors", "raw.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
