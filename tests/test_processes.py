"""The commands of docs/processes.md: they are understood, run, and stop and continue as the page says."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from quarterarc.cli import _parse, command_parser
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.log import read_log
from quarterarc.training.recipe_text import read_recipe

PAGE = (Path(__file__).parent.parent / "docs" / "processes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(SCRIPT,) = (text for language, text in BLOCKS if language == "bash")
COMMANDS = [
    line.removeprefix("srun ").removesuffix(" &")
    for _, text in BLOCKS
    for line in text.replace("\\\n", " ").splitlines()
    if "quarterarc" in line and not line.startswith("#")
]
LAUNCHERS = {"torchrun": get_args_parser, "accelerate": launch_command_parser}


def launched(command: str) -> tuple[str, argparse.Namespace, list[str]]:
    """The launcher of a command, its options, and the words of the program, `-m quarterarc` first."""
    name, *words = [word for word in shlex.split(command) if word != "launch" and not word.startswith("ACCELERATE_")]
    place = words.index("-m")
    options = LAUNCHERS[name]().parse_args([re.sub(r"^\$SLURM.*", "2", word) for word in words[: place + 2]])
    return name, options, words[place:]


def test_all_commands_are_understood() -> None:
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        name, options, words = launched(command)
        assert words[:2] == ["-m", "quarterarc"]
        parsed = _parse(command_parser([words[2]]), words[2:])
        assert parsed.command == words[2]
        if parsed.command == "train":
            assert parsed.resume or read_recipe(parsed.recipe)
        if name == "torchrun":
            assert options.module
            assert options.standalone or ":29500" in options.rdzv_endpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def test_four_processes_of_two_nodes_stop_together_and_one_continues(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """SIGTERM to one launcher: all four processes are of one run, which ends with a checkpoint, and nothing is lost."""
    run, records = tmp_path / "run", tmp_path / "records"
    records.mkdir()
    (command,) = (command for command in COMMANDS if "--nnodes 2" in command and "node1" in command)
    words = shlex.split(command.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    words = words[1 : words.index("-m")]
    words[words.index("node1:29500")] = f"localhost:{free_port()}"
    common = [*tiny, "training.checkpoint_every=4", "optimizer.decay=constant"]
    program = [
        str(Path(__file__).with_name("launched.py")),
        str(records),
        "train",
        "digits",
        "--out",
        str(run),
        *common,
    ]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words, *program, "training.steps=100000"],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(run):
            assert time.monotonic() < deadline
            assert [node.poll() for node in nodes] == [None, None]
            time.sleep(0.05)
        nodes[0].send_signal(signal.SIGTERM)
        errors = [node.communicate(timeout=120)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert sum(text.count("quarterarc: stopped by SIGTERM") for text in errors) == 1, errors
    record = [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]
    assert record == [{"status": 143, "processes": 4}] * 4
    stopped = int(checkpoints(run)[-1].name.removeprefix("step-"))
    fields = [*common, f"training.steps={stopped + 2}"]
    train(read_recipe("digits", fields), run, resume=True, progress=False)
    train(read_recipe("digits", fields), tmp_path / "alone", progress=False)
    for together, alone in zip(read_log(run), read_log(tmp_path / "alone"), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)  # sums in another order


STUBS = {
    "srun": 'exec "$@"',
    "scontrol": 'echo "$@" >> scontrol.txt; [ "$1" != show ] || echo node1',
    "torchrun": """
echo "$@" > torchrun.txt
trap 'sleep 0.2; echo saved > checkpoint; exit 1' TERM
[ -e status ] && exit "$(cat status)"
while :; do sleep 0.05; done
""",
}


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """The script of the page, beside stand-ins for SLURM and torchrun."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "train.sbatch").write_text(SCRIPT)
    subprocess.run(["bash", "-n", "train.sbatch"], cwd=tmp_path, check=True)
    (tmp_path / "started.sh").write_text(
        "export PATH=$PWD:$PATH SLURM_JOB_NODELIST=node[1-2] SLURM_NNODES=2 SLURM_JOB_ID=7\nexec bash train.sbatch\n"
    )
    return ["bash", "started.sh"]


@pytest.mark.parametrize("status", [0, 1])
def test_a_job_that_ends_is_not_started_again(status: int, job: list[str], tmp_path: Path) -> None:
    (tmp_path / "status").write_text(str(status))
    assert subprocess.run(job, cwd=tmp_path, timeout=30).returncode == status
    assert (tmp_path / "scontrol.txt").read_text() == "show hostnames node[1-2]\n"
    _, options, words = launched(f"torchrun {(tmp_path / 'torchrun.txt').read_text()}")
    assert (options.nnodes, options.rdzv_id, options.rdzv_endpoint) == ("2", "7", "node1:29500")
    assert words[2] == "train"
    assert words[-1] == "--resume"


def test_a_job_that_is_stopped_waits_for_its_checkpoint_and_is_started_again(job: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(job, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "torchrun.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)  # until the stand-in handles the signal
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert (tmp_path / "checkpoint").exists()
    assert (tmp_path / "scontrol.txt").read_text().endswith("\nrequeue 7\n")
