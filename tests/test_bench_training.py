"""The benchmarks of training and sampling measure what users run; the command for a GPU survives what fails in it."""

from __future__ import annotations

import json
import re
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import gpu_parts
from benchmarks import gpu, network, sampling, training
from benchmarks.__main__ import main
from benchmarks.example import Example
from benchmarks.gpu import Part
from benchmarks.network import Case
from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet
from quarterarc.training import previews
from quarterarc.training.learner import Learner

TINY = Case({"in_channels": 1, "out_channels": 2, "channels": 8, "multipliers": (1, 2)}, 8, 4, 4)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.CASES, "digits", TINY)
    monkeypatch.setattr(training, "IMAGES", 16)


def test_our_turns_are_whole_steps_of_the_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn of either loop takes the same number of steps, and all of ours are steps of one run from its start."""
    turns: list[str] = []
    step, peer = Learner.step, Example._step

    def ours(learner: Learner, *arguments: Any) -> Any:
        turns.append("ours")
        return step(learner, *arguments)

    def theirs(example: Example, batch: dict[str, torch.Tensor]) -> None:
        turns.append("theirs")
        peer(example, batch)

    monkeypatch.setattr(Learner, "step", ours)
    monkeypatch.setattr(Example, "_step", theirs)
    out = tmp_path / "training.json"
    assert main(["training", "--cases", "digits", "--rounds", "2", "--steps", "2", "--out", str(out)]) == 0
    first = [whose for whose in ("theirs", "ours") for _ in range(training.WARMUP)]
    assert turns == [*first, *("ours", "ours", "theirs", "theirs"), *("theirs", "theirs", "ours", "ours")]
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["our mode"], row["their mode"], row["batch"]) == ("eager", "eager", 4)
    ratios = [other / own for own, other in zip(row["seconds"]["ours"], row["seconds"]["theirs"], strict=True)]
    assert row["ratio"] == pytest.approx(sum(ratios) / 2, rel=1e-12)  # the median of two
    assert row["ours"] == pytest.approx(4 * row["our steps/s"], rel=1e-12)
    assert row["drawing"] > 0
    assert "| digits, 4 | eager | eager |" in capsys.readouterr().out


def test_no_turn_holds_a_preview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the first steps take long enough for one, as those that compile do."""
    monkeypatch.setattr(previews, "FIRST", 0.0)
    made: list[object] = []
    monkeypatch.setattr(previews.Previews, "make", lambda *arguments: made.append(arguments))
    assert main(["training", "--cases", "digits", "--rounds", "1", "--steps", "2"]) == 0
    assert not made
    assert re.search(r"\| digits, 4 \| eager \| eager \| [\d,.]+ \|", capsys.readouterr().out)


def test_both_train_on_the_given_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []

    def measure(name: str, images: torch.Tensor, *rest: object) -> list[Any]:
        given.append(images)
        return []

    monkeypatch.setattr(training, "_measure", measure)
    for number in range(5):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    assert main(["training", "--cases", "digits", "--data", str(tmp_path)]) == 0
    assert given[0].shape == (5, 1, 8, 8)
    assert sorted(given[0].flatten(1).float().mean(1).tolist()) == [0, 1, 2, 3, 4]


def test_too_few_images_are_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    assert main(["training", "--cases", "digits", "--data", str(tmp_path)]) == 2
    assert "fewer than a batch of 4" in capsys.readouterr().err


def test_a_loop_that_fails_is_reported_in_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(Example, "_step", fail)
    assert main(["training", "--cases", "digits", "--rounds", "1"]) == 0
    assert "| digits, 4 | eager | eager | theirs: out of memory |" in capsys.readouterr().out


@pytest.mark.parametrize("tuned", [False, True])
def test_the_example_learns(tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are flipped or not, in [-1, 1], and its loss falls."""
    monkeypatch.setattr(nn.Module, "compile", lambda *arguments, **options: None)
    torch.manual_seed(0)
    images = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    images[..., 0] = 255
    unet = UNet(**{**TINY.network, "out_channels": 1})
    example = Example(to_diffusers(unet), images, 8, torch.device("cpu"), "fp32", tuned)
    batch = next(example._epochs())["input"]
    assert batch.shape == (8, 1, 8, 8)
    assert {float(row[0]) for row in batch.flatten(1)} <= {-1.0, 1.0}
    assert torch.equal(batch.sum(3), torch.full((8, 1, 8), -6.0))
    example.steps(1)
    first = example.loss
    example.rate.step = lambda: None  # its warm-up takes 500 steps
    for group in example.optimizer.param_groups:
        group["lr"] = 1e-2
    example.steps(9)
    assert example.loss < 0.9 * first


def test_both_sample_with_the_same_weights_and_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for kind in (sampling.Ours, sampling.Theirs):
        build = kind.__init__

        def counted(arm: object, unet: UNet, *rest: object, build=build) -> None:  # type: ignore[no-untyped-def]
            build(arm, unet, *rest)
            module = unet if isinstance(arm, sampling.Ours) else arm.pipeline.unet  # type: ignore[attr-defined]
            module.register_forward_hook(lambda *call: calls.append(type(arm).__name__))

        monkeypatch.setattr(kind, "__init__", counted)
    out = tmp_path / "sampling.json"
    words = ["sampling", "--cases", "digits", "--count", "6", "--batch", "4", "--nfe", "5", "--rounds", "1"]
    assert main([*words, "--out", str(out)]) == 0
    # one batch to warm up, then two batches for images and two for files
    assert [calls.count(whose) for whose in ("Ours", "Theirs")] == [25, 25]
    rows = json.loads(out.read_text())["rows"]
    assert [(row["task"], row["our mode"], row["their mode"]) for row in rows] == [
        ("images", "eager", "eager"),
        ("files", "eager", "eager"),
    ]
    assert all(row["ratio"] > 0 for row in rows)
    assert capsys.readouterr().out.count("| digits, 4 | ") == 2


def test_parts_take_turns_and_those_that_fail_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # two parts at once would create the same file
    lines: list[str] = []
    chosen = [Part(kind, "gpu_parts", {"kind": kind}) for kind in ("fails", "first", "dies", "second")]
    parts = gpu.measure(chosen, 60, lines.append)["parts"]
    assert [part.get("error") for part in parts] == [
        "error: no such network",
        None,
        "the process ended with status 9",
        None,
    ]
    assert [part["rows"] for part in parts] == [[], [{"kind": "first"}], [], [{"kind": "second"}]]
    assert [line for line in lines if line.startswith("|")] == ["| first |", "| second |"]


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    running = tmp_path / gpu_parts.RUNNING
    chosen = [Part(kind, "gpu_parts", {"kind": kind}) for kind in ("hangs", "second")]
    parts = gpu.measure(chosen, 50, lambda line: None, lambda: 100.0 if running.exists() else 0.0)["parts"]
    assert [part["error"] for part in parts] == [
        "not finished within the time limit",
        "not measured within the time limit",
    ]
    assert [part["rows"] for part in parts] == [[{"kind": "hangs"}], []]  # what was measured is kept
    assert running.exists()  # its process was ended


def test_the_parts_fit_the_benchmarks() -> None:
    """Every option is a parameter of the benchmark that it is for, and none is missing."""
    for part in gpu.parts("cuda", "bf16", True):
        parameters = signature(import_module(part.module).run).parameters
        assert {name for name in parameters if parameters[name].default is Parameter.empty} == set(part.options)
        assert {"show", "add", "ready"} < set(parameters)
