"""The benchmark of a sampler against bare calls of its network."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main


def test_a_trajectory_and_bare_calls_are_timed_in_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ["--cases", "digits", "--samplers", "multistep,ddpm", "--nfe", "2", "--repeats", "2", "--batch", "2"]
    assert main(["overhead", *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [(row["case"], row["sampler"], row["batch"]) for row in rows] == [
        ("digits", "multistep", 2),
        ("digits", "ddpm", 2),
    ]
    for row in rows:
        assert f"| digits | 2 | {row['sampler']} |" in printed
        pairs = zip(row["seconds"]["trajectory"], row["seconds"]["bare"], strict=True)
        assert row["low"] <= row["ratio"] == pytest.approx(sum(ours / bare for ours, bare in pairs) / 2)
        assert row["trajectory"] > 0


@pytest.mark.parametrize(("option", "value"), [("--cases", "digit"), ("--samplers", "multisteps")])
def test_an_unknown_name_is_an_input_error(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overhead", option, value]) == 2
    assert "did you mean" in capsys.readouterr().err
