"""Training: the same numbers whatever happens to the process, and nothing half written."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quarterarc.common.errors import InputError
from quarterarc.objectives import WeightedErrors
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints
from quarterarc.training import ema
from quarterarc.training.recipe import read_recipe
from quarterarc.training.trainer import Diverged, train

FILES = ("model.safetensors", "raw.safetensors", "optimizer.safetensors")


def start(run: Path, *fields: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "quarterarc", "train", "digits", "--out", str(run), *fields]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def same_weights(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def log_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def test_a_run_leaves_what_it_promises(tiny_run):
    assert (tiny_run / "recipe.yaml").is_file()
    assert [path.name for path in checkpoints(tiny_run)] == [f"step-{step:08d}" for step in (2, 4, 6)]
    log = log_of(tiny_run)
    assert [line["step"] for line in log] == [2, 4, 6]
    assert log[-1]["images"] == 48
    for line in log:
        # math.md, section 4: Eq. 12 with gamma 1 is image + noise + velocity, and image + noise = velocity + residual
        assert line["loss"] == pytest.approx(line["image"] + line["noise"] + line["velocity"], rel=1e-5)
        assert line["image"] + line["noise"] == pytest.approx(line["velocity"] + line["residual"], rel=1e-4)
    assert (tiny_run / "samples" / "step-00000006.png").is_file()
    assert list((tiny_run / "tensorboard").glob("events*"))
    leftovers = [path for path in tiny_run.rglob(".*") if path.name != ".lock"]
    assert not leftovers


def test_training_learns(tmp_path, tiny):
    """A minute of arithmetic is enough to see the loss fall well below that of knowing nothing, which is 3."""
    fields = ("training.steps=150", "training.checkpoint_every=150", "training.log_every=10", "training.batch=32")
    train(read_recipe("digits", [*tiny, "network.channels=16", *fields]), tmp_path, progress=False)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("extra", [(), ("network.dropout=0.2", "training.accumulate=2", "data.labels=true")])
def test_a_resumed_run_is_bit_identical(tmp_path, tiny, extra):
    recipe = read_recipe("digits", [*tiny, *extra])
    whole = train(recipe, tmp_path / "whole", progress=False)
    # checkpointed in the middle of a log interval, stopped by having fewer steps, and gone on with
    short = read_recipe("digits", [*tiny, *extra, "training.steps=3", "training.log_every=4"])
    train(short, tmp_path / "parts", progress=False)
    resumed = train(recipe, tmp_path / "parts", resume=True, progress=False)
    assert same_weights(whole, resumed)


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path, tiny_run, tiny):
    """SIGKILL, while it starts, steps or writes: what is left is always whole, and resuming ends in the same bits."""
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


def test_a_run_says_whether_it_knows_images_without_labels(tmp_path, tiny, cli):
    for share, knows in ((0.0, False), (0.1, True)):
        fields = ("data.labels=true", f"training.drop_labels={share}", "training.steps=1")
        train(read_recipe("digits", [*tiny, *fields]), tmp_path / str(share), progress=False)
        assert load(tmp_path / str(share)).unlabelled == knows
    done = cli("sample", tmp_path / "0.0", "--out", "made", "--seeds", "0-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "for every image: give labels" in done.stderr
    assert not (tmp_path / "made").exists()


def test_without_a_compiler_compiling_is_refused_in_one_line(tmp_path, tiny, monkeypatch, cli_process):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = cli_process("train", "digits", "--out", "run", *tiny, "training.compile=true")
    assert done.returncode == 2
    assert re.fullmatch(r"quarterarc: error: training.compile=true cannot be done here [^\n]+\n", done.stderr)
    assert not checkpoints(tmp_path / "run")


def test_a_write_cut_short_is_never_taken_for_a_checkpoint(tmp_path, tiny, tiny_run):
    run = tmp_path / "run"
    train(read_recipe("digits", [*tiny, "training.steps=2"]), run, progress=False)
    half = run / "checkpoints" / ".step-00000004.123"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    incomplete = run / "checkpoints" / "step-00000005"
    incomplete.mkdir()
    (incomplete / "config.json").write_text("{}")
    resumed = train(read_recipe("digits", tiny), run, resume=True, progress=False)
    assert same_weights(resumed, checkpoints(tiny_run)[-1])
    assert not half.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_first(tmp_path, tiny, number):
    run = tmp_path / "run"
    process = start(run, *tiny, "training.steps=100000", "training.checkpoint_every=100000")
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in errors
    assert "Traceback" not in errors
    step = json.loads((checkpoints(run)[-1] / "config.json").read_text())["step"]
    assert step >= log_of(run)[-1]["step"]


def test_two_processes_lose_what_one_loses(tmp_path, tiny, tiny_run):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--mixed_precision=no",
               f"--main_process_port={29500 + os.getpid() % 1000}", "-m", "quarterarc", "train", "digits",
               "--out", str(tmp_path / "two"), *tiny]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for one, two in zip(log_of(tiny_run), log_of(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_accumulation_is_the_same_step(tmp_path, tiny, tiny_run):
    """The same global batch in two parts: equal up to the order of a few float32 additions, on a GPU of TF32 ones."""
    close = 1e-3 if torch.cuda.is_available() else 1e-5
    train(read_recipe("digits", [*tiny, "training.accumulate=2"]), tmp_path, progress=False)
    for one, two in zip(log_of(tiny_run), log_of(tmp_path), strict=True):
        assert two == pytest.approx(one, rel=close)


def test_the_exported_weights_are_the_moving_average(tiny_run):
    folders = checkpoints(tiny_run)
    raw = [load_file(folder / "raw.safetensors") for folder in folders]
    exported = load_file(folders[-1] / "model.safetensors")
    differs = [name for name in exported if not torch.equal(exported[name], raw[-1][name])]
    assert differs
    network = load(tiny_run).network
    assert isinstance(network, torch.nn.Module)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], exported[name]) for name in exported)


def test_moving_average_with_warm_up():
    assert [ema.decay_at(step, 0.9999, True) for step in (0, 8, 90)] == [1 / 10, 9 / 18, 91 / 100]
    assert ema.decay_at(10**9, 0.9999, True) == 0.9999
    assert ema.decay_at(0, 0.9999, False) == 0.9999
    average, weights = [torch.tensor([1.0])], [torch.tensor([3.0])]
    ema.update(average, weights, 0.75)
    assert average[0].item() == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny, monkeypatch):
    call = WeightedErrors.__call__
    seen = []

    def broken(self, *arguments):
        losses = call(self, *arguments)
        seen.append(1)
        if len(seen) == 4:
            losses.total[0] *= float("nan")
        return losses

    monkeypatch.setattr(WeightedErrors, "__call__", broken)
    with pytest.raises(Diverged, match=r"at step 3 .*indices \[.*step-00000002") as stopped:
        train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert "\n" not in str(stopped.value)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    load(tmp_path)


def test_a_folder_in_use_or_with_another_run_is_refused(tmp_path, tiny, tiny_run):
    with pytest.raises(InputError, match="already holds a run"):
        train(read_recipe("digits", tiny), tiny_run, progress=False)
    with pytest.raises(InputError, match=r"another recipe \(it differs in head\)"):
        train(
            read_recipe(
                "digits",
                [
                    *tiny,
                    "head=noise",
                ],
            ),
            tiny_run,
            resume=True,
            progress=False,
        )
    run = tmp_path / "busy"
    process = start(run, *tiny, "training.steps=100000")
    try:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(InputError, match="another process is training"):
            train(read_recipe("digits", tiny), run, resume=True, progress=False)
    finally:
        process.kill()
        process.communicate()


def test_only_the_last_checkpoints_are_kept(tmp_path, tiny):
    train(read_recipe("digits", [*tiny, "training.keep=2"]), tmp_path, progress=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, tiny):
    """A limit on the size of files stands in for a disk that is full: writing the weights fails half way."""
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
def test_every_head_trains_and_samples(tmp_path, tiny, head):
    from quarterarc import generate

    objective = {"noise": "noise", "image": "image", "velocity": "velocity", "mean": "mean"}.get(head, "both+gradient")
    if head.endswith("variance"):
        objective = "hybrid"
    fields = [*tiny, f"head={head}", f"objective.name={objective}", "training.steps=2"]
    train(read_recipe("digits", fields), tmp_path, progress=False)
    images = generate(load(tmp_path), range(3), "euler", 3)
    assert images.shape == (3, 1, 8, 8)
    assert images.isfinite().all()


def test_bf16_trains_close_to_fp32(tmp_path, tiny, tiny_run):
    train(read_recipe("digits", [*tiny, "training.precision=bf16"]), tmp_path, progress=False)
    for one, two in zip(log_of(tiny_run), log_of(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-2)  # eight bits of mantissa
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(checkpoints(tmp_path)[-1] / "raw.safetensors").values()
    )
