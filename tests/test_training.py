"""Training: runs are reproducible to the bit, interruptions lose nothing, and files are complete or absent."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from conftest import Cli, Distributed
from quarterarc import generate, noise, sample
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, streams
from quarterarc.data import from_memory
from quarterarc.objectives import Losses, WeightedErrors
from quarterarc.storage.checkpoints import load, save
from quarterarc.storage.checksums import read_sealed, write_sealed
from quarterarc.storage.files import check_writable, replace_file, replace_folder, write_json
from quarterarc.storage.pictures import write_png
from quarterarc.storage.runs import checkpoints, read_newest
from quarterarc.storage.temporary import is_temporary
from quarterarc.storage.training_state import save as save_state
from quarterarc.training import ema, stopping
from quarterarc.training import trainer as trainer_module
from quarterarc.training.api import train
from quarterarc.training.batches import Batches
from quarterarc.training.learner import Learner
from quarterarc.training.learning_rate import factor_at
from quarterarc.training.log import read_log
from quarterarc.training.recipe import Recipe
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.stopping import SAVE, Requests
from quarterarc.training.trainer import Diverged, Trainer

FILES = ("model.safetensors", "raw.safetensors", "optimizer.safetensors")
Tiny = tuple[str, ...]


def start(run: Path, *fields: str) -> subprocess.Popen[str]:
    """Train the digits recipe in another process."""
    command = [sys.executable, "-m", "quarterarc", "train", "digits", "--out", str(run), *fields]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_log(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until the run has written a line of its log."""
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same_weights(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


def log_of(run: Path) -> list[dict[str, float]]:
    """The lines of the log without the time."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in read_log(run)]


def test_a_run_folder_contains_recipe_checkpoints_log_and_samples(tiny_run: Path) -> None:
    assert (tiny_run / "recipe.yaml").is_file()
    assert [path.name for path in checkpoints(tiny_run)] == [f"step-{step:08d}" for step in (2, 4, 6)]
    log = log_of(tiny_run)
    assert [line["step"] for line in log] == [2, 4, 6]
    assert log[-1]["images"] == 48
    for line in log:
        # Eq. 12 with gamma 1 is the sum of three unsquared norms, whose mean is at most the root of the mean square
        roots = sum(math.sqrt(line[name]) for name in ("image", "noise", "velocity"))
        assert 0.8 * roots < line["loss"] < (1 + 1e-5) * roots
        # math.md, section 4
        assert line["image"] + line["noise"] == pytest.approx(line["velocity"] + line["residual"], rel=1e-4)
    assert (tiny_run / "samples" / "step-00000006.png").is_file()
    assert list((tiny_run / "tensorboard").glob("events*"))
    assert [path.name for path in tiny_run.rglob(".*")] == [".lock"]


def test_the_column_gradient_of_older_logs_is_read_as_velocity(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "gradient": 2.0, "gradient_norm": 3.0}\n')
    assert read_log(tmp_path) == [{"step": 1, "velocity": 2.0, "gradient_norm": 3.0}]


def test_training_lowers_the_loss(tmp_path: Path, tiny: Tiny) -> None:
    """150 steps suffice to bring the loss well below 3, the loss of a network whose output is zero."""
    fields = ("training.steps=150", "training.checkpoint_every=150", "training.log_every=10", "training.batch=32")
    train(read_recipe("digits", [*tiny, "network.channels=16", *fields]), tmp_path, progress=False)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("extra", [(), ("network.dropout=0.2", "training.accumulate=2", "data.labels=true")])
def test_a_resumed_run_is_bit_identical(tmp_path: Path, tiny: Tiny, extra: Tiny) -> None:
    recipe = read_recipe("digits", [*tiny, *extra])
    whole = train(recipe, tmp_path / "whole", progress=False)
    # stopped in the middle of a log interval, by a smaller number of steps
    short = read_recipe("digits", [*tiny, *extra, "training.steps=3", "training.log_every=4"])
    train(short, tmp_path / "parts", progress=False)
    resumed = train(recipe, tmp_path / "parts", resume=True, progress=False)
    assert same_weights(whole, resumed)


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path, tiny_run: Path, tiny: Tiny) -> None:
    """After SIGKILL during start, step or write all checkpoints are complete, and resuming ends with the same bits."""
    run = tmp_path / "killed"
    moments = random.Random(0)
    for _ in range(3):
        process = start(run, "--resume", *tiny)
        deadline = time.monotonic() + 60
        before = len(checkpoints(run))
        while len(checkpoints(run)) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for checkpoint in checkpoints(run):
            load(checkpoint)
    process = start(run, "--resume", *tiny)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert same_weights(checkpoints(run)[-1], checkpoints(tiny_run)[-1])
    assert log_of(run) == log_of(tiny_run)


def test_without_dropped_labels_a_denoiser_needs_labels(tmp_path: Path, tiny: Tiny, cli: Cli) -> None:
    for share, unlabelled in ((0.0, False), (0.1, True)):
        fields = ("data.labels=true", f"training.drop_labels={share}", "training.steps=1")
        train(read_recipe("digits", [*tiny, *fields]), tmp_path / str(share), progress=False)
        assert load(tmp_path / str(share)).unlabelled == unlabelled
    done = cli("sample", tmp_path / "0.0", "--out", "made", "--seeds", "0-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "for every image: give labels" in done.stderr
    assert not (tmp_path / "made").exists()


def test_compiling_without_a_compiler_is_an_error_of_one_line(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, cli_process: Cli
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = cli_process("train", "digits", "--out", "run", *tiny, "training.compile=true")
    assert done.returncode == 2
    assert re.fullmatch(r"quarterarc: error: training.compile=true is not possible here [^\n]+\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_an_incomplete_write_is_not_a_checkpoint_and_is_removed(tmp_path: Path, tiny: Tiny, tiny_run: Path) -> None:
    run = tmp_path / "run"
    train(read_recipe("digits", [*tiny, "training.steps=2"]), run, progress=False)
    partial = run / "checkpoints" / ".step-00000004.123"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    (run / ".recipe.yaml.123").write_text("half")
    incomplete = run / "checkpoints" / "step-00000005"
    incomplete.mkdir()
    (incomplete / "config.json").write_text("{}")
    resumed = train(read_recipe("digits", tiny), run, resume=True, progress=False)
    assert same_weights(resumed, checkpoints(tiny_run)[-1])
    assert not any(is_temporary(path) for path in run.rglob("*"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As root, a device would be: `--out /dev/full`."""
    os.mkfifo(tmp_path / "out.json")
    with pytest.raises(
        InputError, match=r"cannot write to .*out\.json: it is not a regular file; give the path of a file"
    ):
        check_writable(tmp_path / "out.json")
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        write_json(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_an_error_leaves_neither_a_temporary_path_nor_a_changed_file(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("before")
    with pytest.raises(RuntimeError), replace_file(file) as temporary:  # noqa: PT012
        temporary.write_text("half")
        assert is_temporary(temporary)
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as temporary:  # noqa: PT012
        (temporary / "a").write_text("half")
        assert is_temporary(temporary)
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="missing/file"), replace_file(tmp_path / "missing" / "file") as temporary:
        temporary.write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "before"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_after_a_checkpoint(tmp_path: Path, tiny: Tiny, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = start(run, *tiny, "training.steps=100000", "training.checkpoint_every=100000")
    wait_for_log(process, run)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in errors
    assert "Traceback" not in errors
    step = json.loads((checkpoints(run)[-1] / "config.json").read_text())["step"]
    assert step >= log_of(run)[-1]["step"]


@pytest.mark.parametrize("use_cpu", [True, False], ids=["ACCELERATE_USE_CPU", "plain torchrun"])
def test_two_processes_have_the_losses_of_one(
    tmp_path: Path, tiny: Tiny, tiny_run: Path, distributed: Distributed, use_cpu: bool
) -> None:
    """Also where the only checkpoint is the last one: every process returns its folder, and the first prints it."""
    run = tmp_path / "two"
    done = distributed("train", "digits", "--out", run, *tiny, "training.checkpoint_every=6", use_cpu=use_cpu)
    assert done.stdout == f"trained: {run / 'checkpoints' / 'step-00000006'}\n"
    for expected, line in zip(log_of(tiny_run), log_of(run), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    assert [path.name for path in checkpoints(run)] == ["step-00000006"]
    page = (run / "index.html").read_text(encoding="utf-8")
    assert "torchrun --standalone --nproc-per-node 2 -m quarterarc train --out" in page
    assert done.stderr.count(f"watch it: {run / 'index.html'}\n") == 1


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: Path, tiny_run: Path) -> None:
    """As with `training.keep=1`: the newest checkpoint is deleted once a newer one is complete."""
    older, newer = checkpoints(tiny_run)[-2:]
    shutil.copytree(older, tmp_path / "checkpoints" / older.name)
    folders = list[str]()

    def read(folder: Path) -> str:
        folders.append(folder.name)
        if len(folders) == 1:
            shutil.copytree(newer, folder.with_name(newer.name))
            shutil.rmtree(folder)
        return (folder / "config.json").read_text()

    assert read_newest(tmp_path, read) == (newer / "config.json").read_text()
    assert folders == [older.name, newer.name]
    (tmp_path / "checkpoints" / newer.name / "config.json").write_text("[")
    with pytest.raises(InputError, match="is not JSON"):
        load(tmp_path)


def test_checkpoints_are_saved_by_the_time_between_regular_ones(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is replaced by the next, a killed run continues from it, and the weights are those of a run without."""
    fields = [*tiny, "training.steps=60", "training.checkpoint_every=50", "training.keep=2"]
    train(read_recipe("digits", fields), tmp_path / "without", progress=False)
    assert [path.name for path in checkpoints(tmp_path / "without")] == ["step-00000050", "step-00000060"]

    monkeypatch.setattr(stopping, "LONGEST", 0.0)
    present, take = list[tuple[str, list[str]]](), Learner.step

    def recorded(*arguments: Any) -> Path:
        folder = save_state(*arguments)
        present.append((folder.name, [path.name for path in checkpoints(tmp_path / "run")]))
        return folder

    def killed(learner: Learner, parts: Any, step: int) -> tuple[Tensor, Tensor]:
        if step == 40 and len(present) < 3:
            raise KeyboardInterrupt
        return take(learner, parts, step)

    monkeypatch.setattr(trainer_module, "save", recorded)
    monkeypatch.setattr(Learner, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(read_recipe("digits", fields), tmp_path / "run", progress=False)
    assert present == [("step-00000017", ["step-00000017"]), ("step-00000034", ["step-00000034"])]
    present.append(("continued", []))
    train(None, tmp_path / "run", resume=True, progress=False)
    assert present[3:] == [
        ("step-00000050", ["step-00000050"]),
        ("step-00000060", ["step-00000050", "step-00000060"]),
    ]
    assert same_weights(tmp_path / "without/checkpoints/step-00000060", tmp_path / "run/checkpoints/step-00000060")
    assert log_of(tmp_path / "without") == log_of(tmp_path / "run")


def test_all_processes_save_where_the_first_one_is_late_and_a_signal_comes_first() -> None:
    now, others = 0.0, 0.0

    def process(number: int) -> Requests:
        def gather(own: Tensor) -> Tensor:
            return torch.cat([own, torch.tensor([others])])

        accelerator = SimpleNamespace(
            is_main_process=number == 0, num_processes=2, device=torch.device("cpu"), gather=gather
        )
        return Requests(cast(Accelerator, accelerator), lambda: now)

    first, second = process(0), process(1)
    now = stopping.LONGEST + 1
    assert (int(first.pending()), int(second.pending())) == (SAVE, 0)  # the clock of the first one decides
    others = float(SAVE)
    assert int(second.pending()) == SAVE
    assert second.received() == 0
    second.signal = signal.SIGTERM
    assert int(second.pending()) == second.received() == signal.SIGTERM
    others = 0.0
    first.saved()
    assert int(first.pending()) == 0


def test_accumulated_parts_are_the_same_step(tmp_path: Path, tiny: Tiny, tiny_run: Path) -> None:
    """A global batch in two parts is the same up to the order of a few additions: float32, on a GPU TF32."""
    close = 1e-3 if torch.cuda.is_available() else 1e-5
    train(read_recipe("digits", [*tiny, "training.accumulate=2"]), tmp_path, progress=False)
    for expected, line in zip(log_of(tiny_run), log_of(tmp_path), strict=True):
        assert line == pytest.approx(expected, rel=close)


def test_the_exported_weights_are_the_moving_average(tiny_run: Path) -> None:
    folders = checkpoints(tiny_run)
    raw = load_file(folders[-1] / "raw.safetensors")
    exported = load_file(folders[-1] / "model.safetensors")
    assert any(not torch.equal(exported[name], raw[name]) for name in exported)
    network = load(tiny_run).network
    assert isinstance(network, torch.nn.Module)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], exported[name]) for name in exported)


def test_moving_average_with_warm_up() -> None:
    assert [ema.decay_at(step, 0.9999, True) for step in (0, 8, 90)] == [1 / 10, 9 / 18, 91 / 100]
    assert ema.decay_at(10**9, 0.9999, True) == 0.9999
    assert ema.decay_at(0, 0.9999, False) == 0.9999
    average, weights = [torch.tensor([1.0])], [torch.tensor([3.0])]
    ema.update(average, weights, 0.75)
    assert average[0].item() == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)


def test_the_moving_average_of_a_network_copies_its_buffers() -> None:
    average, network = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    torch.nn.init.constant_(network.weight, 3.0)
    assert network.running_mean is not None
    network.running_mean.fill_(5.0)
    ema.update_network(average, network, 0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)
    assert average.running_mean is not None
    assert average.running_mean.item() == 5.0


# --- the learning rate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # steps 0, 1, warmup - 1, warmup, the middle of the rest, the last step
        ("constant", [1 / 10, 2 / 10, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1 / 10, 2 / 10, 1.0, 1.0, 0.5, 0.5 * (1 + np.cos(np.pi * 99 / 100))]),
    ],
)
def test_learning_rate_of_single_steps(decay: str, expected: list[float]) -> None:
    steps, warmup = 110, 10
    factors = [factor_at(step, steps, warmup, decay) for step in (0, 1, warmup - 1, warmup, 60, steps - 1)]
    assert factors == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_a_warm_up_begins_at_its_full_value() -> None:
    assert factor_at(0, 5, 0, "constant") == 1.0
    assert factor_at(0, 5, 0, "cosine") == 1.0
    assert factor_at(5, 5, 0, "cosine") == pytest.approx(0.0)


def test_the_log_contains_the_learning_rate_of_each_step(tmp_path: Path, tiny: Tiny) -> None:
    fields = (*tiny, "training.log_every=1", "optimizer.decay=cosine", "optimizer.warmup=3", "training.steps=5")
    train(read_recipe("digits", [*fields, "optimizer.learning_rate=0.5"]), tmp_path, progress=False)
    expected = [0.5 * factor for factor in (1 / 3, 2 / 3, 1.0, 1.0, 0.5)]
    assert [line["learning_rate"] for line in log_of(tmp_path)] == pytest.approx(expected)


# --- batches -----------------------------------------------------------------------------------------------------


def mirrored(steps: int, batch: int) -> Tensor:
    """Whether each image of a run is mirrored, shape (steps, batch); the left half of all images is white."""
    images = torch.tensor([255, 0], dtype=torch.uint8).repeat(32, 1, 1, 1)
    data = {"source": "memory", "size": (1, 2), "channels": 1, "flip": True}
    recipe = Recipe(data, training={"batch": batch, "steps": steps})
    alone = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    batches = Batches(from_memory(images), recipe, cast(Any, alone), 1000)
    return torch.stack([batches.of_step(step)[0].image[:, 0, 0, 0] < 0 for step in range(steps)])


def test_images_are_mirrored_with_probability_one_half_independently() -> None:
    flips = mirrored(steps=64, batch=64).double()
    # six standard errors of a binomial share: exceeded with probability 2e-9 over seeds
    assert abs(flips.mean() - 0.5) < 6 * (0.25 / flips.numel()) ** 0.5
    # images of a batch, and the same place of consecutive steps, agree in half of the cases: the same bound
    for first, second in ((flips[:, ::2], flips[:, 1::2]), (flips[::2], flips[1::2])):
        agree = (first == second).double()
        assert abs(agree.mean() - 0.5) < 6 * (0.25 / agree.numel()) ** 0.5


def test_labels_are_dropped_at_the_given_rate_and_kept_otherwise() -> None:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 1, 2).contiguous()
    data = {"source": "memory", "size": (1, 2), "channels": 1, "labels": True}
    recipe = Recipe(data, training={"batch": 64, "steps": 64, "drop_labels": 0.1})
    alone = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    batches = Batches(from_memory((images, torch.arange(10))), recipe, cast(Any, alone), 1000)
    steps = [batches.of_step(step)[0] for step in range(64)]
    labels = torch.cat([batch.labels for batch in steps if batch.labels is not None])
    own = torch.cat([((batch.image[:, 0, 0, 0] + 1.0) * 127.5).round().long() for batch in steps])
    dropped = labels == 10
    assert torch.equal(labels[~dropped], own[~dropped])
    # six standard errors of a binomial share: exceeded with probability 2e-9 over seeds
    assert abs(dropped.double().mean() - 0.1) < 6 * (0.1 * 0.9 / len(labels)) ** 0.5


def weights(trainer: Trainer) -> Tensor:
    """All weights of a network in one vector."""
    return torch.cat([weight.detach().double().flatten() for weight in trainer.learner.network.parameters()])


def test_a_step_with_a_long_gradient_is_the_step_with_the_gradient_scaled_to_the_clip(
    tmp_path: Path, tiny: Tiny
) -> None:
    """By plain gradient descent, since the first step of Adam hardly depends on the gradient's length."""
    norms, changes = [], []
    for clip in (0.1, 1e6):
        fields = (f"optimizer.clip={clip}", "optimizer.learning_rate=1", "optimizer.warmup=0")
        trainer = Trainer(read_recipe("digits", [*tiny, *fields]), tmp_path, Accelerator(cpu=True), progress=False)
        trainer.learner.optimizer = cast(Any, torch.optim.SGD(trainer.learner.network.parameters(), 1.0))
        before = weights(trainer)
        norms.append(float(trainer.learner.step(trainer.batches.of_step(0), 0)[1]))
        changes.append(weights(trainer) - before)
    assert norms[0] == norms[1] > 0.1
    # the weights are float32: the change of 0.1 in all of them is rounded at the size of the weights
    torch.testing.assert_close(changes[0] / 0.1, changes[1] / norms[1], rtol=1e-3, atol=1e-5)


# --- errors ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    call = WeightedErrors.__call__
    calls = []

    def broken(self: WeightedErrors, *arguments: Any) -> Losses:
        losses = call(self, *arguments)
        calls.append(1)
        if len(calls) == 4:
            losses.total[0] *= float("nan")
        return losses

    monkeypatch.setattr(WeightedErrors, "__call__", broken)
    with pytest.raises(Diverged, match=r"at step 3 .*indices \[.*step-00000002") as stopped:
        train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert "\n" not in str(stopped.value)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    load(tmp_path)


def test_a_folder_in_use_or_of_another_run_is_an_error(tmp_path: Path, tiny: Tiny, tiny_run: Path) -> None:
    with pytest.raises(InputError, match="already contains a run"):
        train(read_recipe("digits", tiny), tiny_run, progress=False)
    with pytest.raises(InputError, match=r"another recipe \(it differs in head\)"):
        train(read_recipe("digits", [*tiny, "head=noise"]), tiny_run, resume=True, progress=False)
    run = tmp_path / "busy"
    process = start(run, *tiny, "training.steps=100000")
    try:
        wait_for_log(process, run)
        with pytest.raises(InputError, match="another process is training"):
            train(read_recipe("digits", tiny), run, resume=True, progress=False)
    finally:
        process.kill()
        process.communicate()


WILD = ("optimizer.learning_rate=1e4", "optimizer.clip=1e9", "optimizer.warmup=0", "training.checkpoint_every=1")
"""Fields with which training diverges within a few steps."""


def test_after_a_divergence_the_learning_rate_may_change(tmp_path: Path, tiny: Tiny, cli: Cli) -> None:
    """The last checkpoint is one that training continues from and that makes finite images."""
    run = tmp_path / "run"
    fields = [*tiny, "network.channels=16", *WILD, "training.steps=40"]
    with pytest.raises(Diverged, match=r"last good checkpoint is .*; resume with a lower optimizer.learning_rate"):
        train(read_recipe("digits", fields), run, progress=False)
    good = checkpoints(run)[-1]
    assert torch.isfinite(generate(load(good), range(2), steps=3, progress=False)).all()
    done = cli("train", "--out", run, "--resume", "optimizer.learning_rate=1e-4", "training.steps=8")
    assert done.returncode == 0, done.stderr
    change = json.loads((run / "changes.jsonl").read_text())
    assert change == {
        "step": int(good.name[5:]), "field": "optimizer.learning_rate", "before": 1e4, "after": 1e-4,
    }  # fmt: skip
    assert read_recipe(run / "recipe.yaml").optimizer.learning_rate == 1e-4
    late = cli("train", "--out", run, "--resume", "optimizer.clip=0.5")
    assert late.returncode == 2
    assert "is complete at step 8, and optimizer.clip would have no effect" in late.stderr
    assert read_recipe(run / "recipe.yaml").optimizer.clip == 1e9


@pytest.mark.parametrize("place", ["weight", "average"])
def test_a_checkpoint_with_weights_that_are_not_finite_is_not_kept(
    place: str, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = ema.update_network

    def broken(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
        update(average, network, decay)
        if decay == ema.decay_at(3, 0.9999, True):
            module = network if place == "weight" else average
            next(module.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(ema, "update_network", broken)
    with pytest.raises(Diverged, match=r"not finite after step 4: the .*weights.*step-00000002"):
        train(read_recipe("digits", [*tiny, "ema.decay=0.9999"]), tmp_path, progress=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]


def test_moved_images_are_the_same_data(tmp_path: Path, tiny: Tiny) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        write_png(photos / f"{number}.png", torch.full((1, 8, 8), 20 * number, dtype=torch.uint8))
    recipe = read_recipe("digits", [*tiny, f"data.source={photos}"])
    whole = train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "run", fields={"training.steps": 2}, progress=False)
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no such data: .*if the images have moved, resume with data.source"):
        train(None, tmp_path / "run", resume=True, fields={"training.steps": 6}, progress=False)
    moved = {"training.steps": 6, "data.source": str(tmp_path / "elsewhere")}
    resumed = train(None, tmp_path / "run", resume=True, fields=moved, progress=False)
    assert same_weights(whole, resumed)
    assert json.loads((tmp_path / "run" / "changes.jsonl").read_text())["field"] == "data.source"
    write_png(tmp_path / "elsewhere" / "9.png", torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="trained on other data"):
        train(None, tmp_path / "run", resume=True, fields={"training.steps": 8}, progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_with_the_sizes_and_what_to_lower(
    error: Exception, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, cli: Cli, tiny_run: Path
) -> None:
    from quarterarc.networks import UNet

    def fails(*arguments: Any) -> Tensor:
        raise error

    monkeypatch.setattr(UNet, "forward", fails)
    training = cli("train", "digits", "--out", tmp_path / "run", *tiny)
    assert training.returncode == 2
    last = training.stderr.splitlines()[-1]
    assert "out of memory: training.batch=8 in parts of 8 images of 8x8 pixels" in last
    assert "lower training.batch, raise training.accumulate" in last
    sampling = cli("sample", tiny_run, "--out", tmp_path / "made", "--seeds", "0-3")
    assert sampling.returncode == 2
    assert (
        "out of memory: sampling a batch of 4 images of shape (1, 8, 8) on cpu: lower the batch size" in sampling.stderr
    )
    assert "Traceback" not in training.stderr + sampling.stderr


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, tiny: Tiny) -> None:
    train(read_recipe("digits", [*tiny, "training.keep=2"]), tmp_path, progress=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]


def test_a_full_disk_leaves_the_last_checkpoint_complete(tmp_path: Path, tiny: Tiny) -> None:
    """A limit on the size of files replaces a full disk: writing the weights fails halfway."""
    run = tmp_path / "run"
    train(read_recipe("digits", [*tiny, "training.steps=2"]), run, progress=False)
    size = (checkpoints(run)[-1] / "model.safetensors").stat().st_size
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2})); "
        "from quarterarc.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "train", "digits", "--out", str(run), "--resume", *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert re.search(r"^quarterarc: error: [^\n]+\n\Z", done.stderr, re.MULTILINE)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    load(run)


@pytest.mark.parametrize("head", ["noise", "image", "velocity", "gated", "mean", "both+variance"])
def test_every_head_trains_and_samples(tmp_path: Path, tiny: Tiny, head: str) -> None:
    objective = {"noise": "noise", "image": "image", "velocity": "velocity", "mean": "mean"}.get(head, "both+gradient")
    if head.endswith("variance"):
        objective = "hybrid"
    fields = [*tiny, f"head={head}", f"objective.name={objective}", "training.steps=2"]
    train(read_recipe("digits", fields), tmp_path, progress=False)
    images = generate(load(tmp_path), range(3), "euler", 3)
    assert images.shape == (3, 1, 8, 8)
    assert images.isfinite().all()


def test_bf16_trains_close_to_fp32(tmp_path: Path, tiny: Tiny, tiny_run: Path) -> None:
    train(read_recipe("digits", [*tiny, "training.precision=bf16"]), tmp_path, progress=False)
    for expected, line in zip(log_of(tiny_run), log_of(tmp_path), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-2)  # eight bits of mantissa
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(checkpoints(tmp_path)[-1] / "raw.safetensors").values()
    )


# --- training from Python ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "network.channels": 8,
    "network.multipliers": [1, 2],
    "network.blocks": 1,
    "training.batch": 4,
    "training.steps": 2,
    "training.sample_count": 2,
}
SHORT = {name: value for name, value in SMALL.items() if name.startswith("training.")}


def pixels(count: int = 20, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)


def test_name_mapping_file_and_recipe_train_the_same_network(tmp_path: Path) -> None:
    recipe = read_recipe("digits", fields=SMALL)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    first = train(recipe, tmp_path / "first", progress=False)
    for number, (source, fields) in enumerate(
        [("digits", SMALL), (str(tmp_path / "mine.yaml"), None), (recipe.model_dump(), None)]
    ):
        checkpoint = train(cast(Any, source), tmp_path / str(number), fields=fields, device="cpu", progress=False)
        assert same_weights(first, checkpoint)


def test_tensors_arrays_and_opened_data_train_the_same_network(tmp_path: Path) -> None:
    images = pixels(size=6)
    forms: list[Any] = [images, images.numpy(), from_memory(images)]
    runs = [
        train({"training": {}}, tmp_path / str(number), data=form, fields=SMALL, progress=False)
        for number, form in enumerate(forms)
    ]
    assert all(same_weights(runs[0], run) for run in runs[1:])
    assert load(runs[0]).shape == (1, 6, 6)


def test_images_in_memory_replace_the_data_of_a_recipe_at_their_own_size(tmp_path: Path) -> None:
    labels = np.arange(20) % 3
    run = train("digits", tmp_path, data=(pixels(size=16), labels), fields={**SMALL, "network.attention": "auto"})
    denoise = load(run)
    assert (denoise.shape, denoise.classes) == ((1, 16, 16), 3)


def test_images_in_memory_are_resized_to_the_size_of_a_recipe_for_memory(tmp_path: Path) -> None:
    run = train(Recipe("memory", size=4), tmp_path, data=pixels(), fields=SMALL, progress=False)
    assert load(run).shape == (1, 4, 4)


def test_resuming_with_images_in_memory_needs_the_same_images(tmp_path: Path) -> None:
    recipe, more = Recipe("memory", size=8), {"training.steps": 4}
    train(recipe, tmp_path, data=pixels(), fields=SMALL, progress=False)
    with pytest.raises(InputError, match="images in memory"):
        train(None, tmp_path, fields=more, resume=True, progress=False)
    with pytest.raises(InputError, match="trained on other data"):
        train(None, tmp_path, data=pixels(19), fields=more, resume=True, progress=False)
    assert train(None, tmp_path, data=pixels(), fields=more, resume=True, progress=False).name == "step-00000004"


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        ("digits", {"training.stepz": 3}, "did you mean 'steps'"),
        ("digit", {}, "did you mean 'digits'"),
        (None, {}, "training needs a recipe"),
        ("digits", {"network.name": "no_such_module:Net"}, "cannot import the network 'no_such_module:Net'"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_leaves_no_folder(
    tmp_path: Path, recipe: str | None, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        train(recipe, tmp_path / "run", fields=fields)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_an_error_and_a_known_one_is_used_once(tmp_path: Path) -> None:
    for name, message in (("nothing", "unknown device 'nothing'"), ("cuda:99", "'cuda:99' cannot be used")):
        with pytest.raises(InputError, match=message):
            train("digits", tmp_path / "none", fields=SMALL, device=name)
        assert not (tmp_path / "none").exists()
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    train("digits", tmp_path / "cpu", fields=SMALL, device=torch.device("cpu"), progress=False)
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_a_failed_start_leaves_a_run_that_another_process_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process makes the folder, and writes its recipe, before this one has the lock."""

    @contextmanager
    def late(run: Path) -> Iterator[None]:
        (run / "recipe.yaml").write_text("the recipe of the other process")
        yield

    monkeypatch.setattr("quarterarc.training.api.locked", late)
    with pytest.raises(InputError):
        train("digits", tmp_path / "run", fields={**SMALL, "data.source": "nowhere/"}, progress=False)
    assert (tmp_path / "run" / "recipe.yaml").is_file()


# --- other networks ----------------------------------------------------------------------------------------------

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, out_channels, size, classes=None, *, width=4):
        super().__init__()
        self.size = size
        self.first = nn.Conv2d(in_channels + 1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.unused = nn.Linear(2, 2)

    def forward(self, x, time, labels):
        time = (time / 1000).expand(len(x))[:, None, None, None].expand(-1, 1, *x.shape[2:])
        h = self.norm(self.first(torch.cat([x, time], 1)))
        if self.labels is not None and labels is not None:
            h = h + self.labels(labels)[:, :, None, None]
        return self.last(torch.relu(h))

class OneChannel(Net):
    def forward(self, x, time, labels):
        return super().forward(x, time, labels)[:, :1]

class NoLabels(Net):
    def forward(self, x, time):
        return x

class OneTimePerImage(Net):
    def forward(self, x, time, labels):
        return super().forward(x, time[:, None][:, 0], labels)

class NoWeights(nn.Module):
    def forward(self, x, time, labels):
        return torch.cat([x, x], 1)

def function(): pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module of networks."""
    name = f"networks_{tmp_path.name}"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return name


@pytest.mark.parametrize("labels", [False, True])
def test_any_module_trains_resumes_saves_and_loads(tmp_path: Path, module: str, labels: bool) -> None:
    network = {"name": f"{module}:Net", "arguments": {"width": 6}}
    fields = {**SHORT, "data.labels": labels, "network": network}
    whole = train("digits", tmp_path / "whole", fields={**fields, "training.steps": 4}, progress=False)
    train("digits", tmp_path / "parts", fields=fields, progress=False)
    resumed = train(None, tmp_path / "parts", fields={"training.steps": 4}, resume=True, progress=False)
    assert same_weights(whole, resumed)
    description = json.loads((whole / "config.json").read_text())["denoiser"]["network"]
    filled = {"in_channels": 1, "out_channels": 2, "size": 8, "classes": 10 if labels else None, "width": 6}
    assert description == {"name": f"{module}:Net", "arguments": filled}
    denoise = load(whole)
    again = load(save(denoise, tmp_path / "saved"))
    chosen = [3, 3] if labels else None
    images = generate(denoise, range(2), steps=3, labels=chosen)
    assert torch.equal(generate(again, range(2), steps=3, labels=chosen), images)


def test_loading_without_the_module_is_an_error_of_one_line(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("digits", tmp_path / "run", fields={**SHORT, "network.name": f"{module}:Net"}, progress=False)
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "modules")])
    with pytest.raises(InputError, match=f"cannot import the network '{module}:Net'") as raised:
        load(tmp_path / "run")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("OneChannel", {}, r"returns shape \(2, 1, 8, 8\) .*: the head needs \(2, 2, 8, 8\)"),
        ("NoLabels", {}, r"fails when called as network\(x, time, labels\) .*takes 3 positional arguments"),
        ("OneTimePerImage", {}, r"with x of shape \(2, 1, 8, 8\), time of shape \(\)"),
        ("NoWeights", {}, "has no weights to train"),
        ("Net", {"widht": 3}, "does not accept its arguments.*widht"),
        ("function", {}, "not a subclass of torch.nn.Module"),
        ("Nett", {}, "cannot import the network"),
    ],
)
def test_a_network_that_cannot_be_trained_is_one_line_before_training(
    tmp_path: Path, module: str, name: str, arguments: dict[str, Any], message: str
) -> None:
    network = {"name": f"{module}:{name}", "arguments": arguments}
    with pytest.raises(InputError, match=message) as raised:
        train("digits", tmp_path / "run", fields={**SHORT, "network": network}, progress=False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "path", "message"),
    [
        ("objective.name", "os:system", "is a builtin_function_or_method"),
        ("objective.name", "no_such_module:loss", "cannot import the objective"),
        ("schedule.name", "no_such_module:schedule", "cannot import the schedule"),
        ("head", "subprocess:Popen", "standard library"),
    ],
)
def test_unusable_code_of_a_recipe_is_one_line_before_any_data_is_read(
    tmp_path: Path, field: str, path: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        train("digits", tmp_path / "run", fields={**SHORT, "data.source": "nowhere/", field: path}, progress=False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_format_of_its_random_streams_continues_with_numpys(tmp_path: Path, tiny: Tiny) -> None:
    train(read_recipe("digits", [*tiny, "training.steps=2"]), tmp_path / "run", device="cpu")
    config = checkpoints(tmp_path / "run")[-1] / "config.json"
    about = read_sealed(config)
    assert about["denoiser"].pop("streams") == 2  # version 0.2 did not record it
    write_sealed(config, about)
    recipe = read_recipe("digits", [*tiny, "training.steps=4"])
    trainer = Trainer(recipe, tmp_path / "run", Accelerator(cpu=True), progress=False)
    batch = trainer.batches.of_step(2)[0]
    old = streams(Purpose.EXAMPLE, recipe.training.seed, 2, range(recipe.training.batch), format=1)
    old.uniform(2)
    assert torch.equal(batch.times, old.integers(1, recipe.schedule.steps + 1).double())
    assert torch.equal(batch.noise, old.normal((1, 8, 8)))
    trainer.run_to_end()
    denoise = load(tmp_path / "run")
    assert denoise.streams == 1
    made = generate(denoise, [5], steps=2)
    assert torch.equal(made, sample(denoise, noise([5], (1, 8, 8), format=1), steps=2, seeds=[5]).images)
    assert not torch.equal(made, sample(denoise, noise([5], (1, 8, 8)), steps=2, seeds=[5]).images)


def test_a_run_is_not_resumed_to_fewer_steps_than_it_has(tmp_path: Path, tiny_run: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    wrong = cli("train", "--out", run, "--resume", "training.steps=1")
    assert wrong.returncode == 2
    assert f"training.steps=1, but {run} is at step 6: give at least 6" in wrong.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert cli("train", "--out", run, "--resume", "training.steps=6").returncode == 0


def test_checkpoints_that_a_killed_process_did_not_delete_are_deleted_on_resume(tmp_path: Path, tiny_run: Path) -> None:
    """A kill between writing the last checkpoint and deleting an old one leaves nothing to train."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert len(checkpoints(run)) > 1
    newest = checkpoints(run)[-1]
    train(None, run, fields={"training.keep": 1}, resume=True, progress=False)
    assert checkpoints(run) == [newest]
