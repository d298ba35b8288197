"""`training.compile`: when it applies, that nothing is compiled twice, and what happens where it is not possible."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quarterarc.common import compiling
from quarterarc.common.errors import InputError
from quarterarc.storage.runs import checkpoints
from quarterarc.storage.weights import read_weights
from quarterarc.training import soundness
from quarterarc.training import trainer as trainer_module
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "device", "calls", "obstacle", "expected"),
    [
        ("auto", CPU, 1e9, None, False),
        ("auto", CUDA, compiling.ENOUGH_CALLS - 1, None, False),
        ("auto", CUDA, compiling.ENOUGH_CALLS, None, True),
        ("auto", CUDA, compiling.ENOUGH_CALLS, "no triton", False),
        (False, CUDA, 1e9, None, False),
        (True, CUDA, 1, None, True),
        (True, CPU, 1, None, True),
    ],
)
def test_when_a_network_is_compiled(
    setting: compiling.Compile, device: torch.device, calls: float, obstacle: str | None, expected: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(compiling, "_obstacle", lambda device: obstacle)
    assert compiling.decide(setting, device, calls, "training.compile") is expected
    warned = [record.message for record in caplog.records]
    assert bool(warned) == (obstacle is not None)
    assert all("not compiled (no triton)" in text for text in warned)


def test_an_explicit_request_that_is_not_possible_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_obstacle", lambda device: "no triton")
    with pytest.raises(InputError, match=r"training.compile=true is not possible here \(no triton\): leave it out"):
        compiling.decide(True, CUDA, 1, "training.compile")


def use_backend(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Compile by another backend than inductor, which takes minutes on the CPU: the options of each compilation."""
    compile_module, options = nn.Module.compile, list[dict[str, Any]]()

    def other(self: nn.Module, **given: Any) -> None:
        options.append(given)
        compile_module(self, backend=backend, dynamic=given["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", other)
    torch.compiler.reset()
    return options


def test_training_compiles_once(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Previews, checkpoints and the check before them compile nothing; a resumed run has the same bits."""
    options = use_backend("eager", monkeypatch)
    caplog.set_level(logging.INFO, "quarterarc")
    fields = [*tiny, "training.compile=true", "data.labels=true"]
    train(read_recipe("digits", fields), tmp_path / "whole", progress=False)
    train(read_recipe("digits", [*fields, "training.steps=2"]), tmp_path / "parts", progress=False)
    train(read_recipe("digits", fields), tmp_path / "parts", progress=False, resume=True)
    lines = [record.message for record in caplog.records if "compiled" in record.message]
    assert len(lines) == 1  # this process keeps what the first run compiled
    assert re.fullmatch(r"compiled the network in \d+ s \(graphs: 1\)", lines[0])
    assert options == 3 * [
        {"dynamic": False, "options": {"force_layout_optimization": True, "triton.cudagraphs": False}}
    ]
    whole, parts = (checkpoints(tmp_path / run)[-1] / "raw.safetensors" for run in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    train(read_recipe("digits", [*fields, "training.compile=false"]), tmp_path / "plain", progress=False)
    made, plain = (read_weights(checkpoints(tmp_path / run)[-1] / "raw.safetensors") for run in ("whole", "plain"))
    for name in plain:
        torch.testing.assert_close(made[name], plain[name], rtol=0, atol=1e-4)


def test_a_further_compilation_is_reported(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The check before checkpoints would compile if it called the compiled network: its batches have two images."""
    use_backend("eager", monkeypatch)
    caplog.set_level(logging.INFO, "quarterarc")
    unsound = soundness.unsound

    def calling(denoise: Any, average: Any, optimizer: Any) -> Any:
        denoise.network(torch.zeros(2, 1, 8, 8), torch.zeros(2))
        return unsound(denoise, average, optimizer)

    monkeypatch.setattr(trainer_module, "unsound", calling)
    train(read_recipe("digits", [*tiny, "training.compile=true"]), tmp_path / "run", progress=False)
    assert any(re.match(r"the network was compiled again at step 2 ", record.message) for record in caplog.records)


def test_a_network_that_cannot_be_compiled(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no kernel for this layer")

    use_backend(broken, monkeypatch)
    run = tmp_path / "run"
    with pytest.raises(
        InputError, match=r"the network cannot be compiled \(.*no kernel.*training.compile=false"
    ) as raised:
        train(read_recipe("digits", [*tiny, "training.compile=true"]), run, progress=False)
    assert "\n" not in str(raised.value)
    train(None, run, resume=True, fields={"training.compile": False}, progress=False)
    # as `auto` on a GPU: the run goes on, and the step that failed is not lost
    monkeypatch.setattr(trainer_module, "decide", lambda *_: True)
    train(read_recipe("digits", tiny), tmp_path / "auto", progress=False)
    assert any("the network is not compiled: " in record.message for record in caplog.records)
    made, plain = (checkpoints(folder)[-1] / "raw.safetensors" for folder in (run, tmp_path / "auto"))
    assert made.read_bytes() == plain.read_bytes()
