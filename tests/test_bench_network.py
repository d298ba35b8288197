"""The network benchmark compares networks with equal weights."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.network import CASES, randomise
from quarterarc.networks import UNet


def test_both_networks_are_timed_and_their_outputs_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert main(["network", "--cases", "digits", "--repeats", "1", "--batch", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [(row["case"], row["task"], row["batch"]) for row in rows] == [
        ("digits", "forward", 2),
        ("digits", "training", 2),
    ]
    for row in rows:
        assert f"| {row['case']} | {row['parameters']:.2f} | {row['task']} |" in printed
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"], rel=1e-12)  # of the one pair
        assert row["difference"] < 1e-5  # float32, outputs of order 1


def test_weights_are_random_and_nowhere_zero() -> None:
    """With zeros at the ends of its blocks, the output of a network would not depend on the layers before them."""
    network = UNet(**CASES["digits"].network)
    randomise(network)
    assert all(bool((weight != 0.0).all()) for weight in network.parameters())
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert 0.05 < float(network.eval()(x, torch.tensor(0.5)).std()) < 20.0


def test_an_unknown_case_is_an_input_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", "--cases", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
