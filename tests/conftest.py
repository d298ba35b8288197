"""Shared by all tests: one thread per process, since the tests themselves run in parallel."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

TINY = (
    "network.channels=8",
    "network.multipliers=[1,2]",
    "network.blocks=1",
    "training.batch=8",
    "training.steps=6",
    "training.log_every=2",
    "training.checkpoint_every=2",
    "training.sample_every=100",
    "training.sample_count=4",
    "training.keep=9",
    "optimizer.warmup=2",
)
"""Fields with which the recipe `digits` trains within a second."""


@pytest.fixture
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe, trained once for all tests that only read it."""
    from quarterarc.training.api import train
    from quarterarc.training.recipe_text import read_recipe

    run = tmp_path_factory.mktemp("run") / "tiny"
    train(read_recipe("digits", TINY), run, progress=False)
    return run


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Arrow tables of parquet files that the tests of the data package write."""
    if request.module.__name__.startswith("test_data"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command line in this process, in an empty folder: importing torch in another one takes seconds."""
    from quarterarc.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words, out, errors = [str(argument) for argument in arguments], io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                status = main(words)
            except SystemExit as stopped:  # argparse; the code of a process is 0 for None
                status = stopped.code if isinstance(stopped.code, int) else 0
        return subprocess.CompletedProcess(words, status, out.getvalue(), errors.getvalue())

    return call


@pytest.fixture
def cli_process(tmp_path: Path) -> Cli:
    """Run the command line in a new process, in an empty folder."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quarterarc", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return call


Distributed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def distributed(tmp_path: Path) -> Distributed:
    """Run the command line in several processes on the CPU that communicate, and check that they do and succeed.

    `accelerate launch --cpu --num_processes=2` starts a single process, so `torch.distributed.run` starts them.
    """

    def call(
        *arguments: object, count: int = 2, use_cpu: bool = True, fails: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        records = tmp_path / f"processes-{len([*tmp_path.glob('processes-*')])}"
        records.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [*launch, str(Path(__file__).with_name("launched.py")), str(records), *map(str, arguments)]
        environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
        environment |= {"ACCELERATE_USE_CPU": "true"} if use_cpu else {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
        record = [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]
        if fails:  # one process reports the error with status 2, and the launcher ends the others
            assert done.returncode == 1, done.stderr
            assert 2 in [entry["status"] for entry in record]
        else:
            assert done.returncode == 0, done.stderr
            assert record == [{"status": 0, "processes": count}] * count
        return done

    return call
