"""The evaluation benchmark: every implementation computes the same numbers."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation
from benchmarks.__main__ import main


def test_a_small_run_prints_and_writes_both_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "DEFICIENT", 64)
    out = tmp_path / "new" / "bench.json"
    assert main(["evaluation", "--dimensions", "24", "--sizes", "300", "--repeats", "1", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    frechet = {row["implementation"]: row for row in report["frechet"]}
    assert frechet["quarterarc"]["error"] < 1e-12
    assert frechet["quarterarc"]["FD(X, X), rank n/2"] < 1e-10
    assert all(row["error"] < 1e-6 for row in frechet.values())  # the same number, to each one's own accuracy
    ours, *others = report["precision_recall"]
    assert ours["implementation"] == "quarterarc"
    for row in others:
        # their shares are means in float32
        assert (row["precision"], row["recall"]) == pytest.approx((ours["precision"], ours["recall"]), abs=1e-6)
    assert 0.0 < ours["precision"] < 1.0
    printed = capsys.readouterr().out
    assert all(f"| {row['implementation']} |" in printed for row in (*report["frechet"], *report["precision_recall"]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")
def test_peak_memory_is_a_copy_and_some_blocks_of_pairs() -> None:
    size, dimensions = 9000, 64
    run = evaluation._in_process("quarterarc", size, dimensions)
    copies, block = 2 * 4 * size * dimensions / 2**20, 4 * 2048**2 / 2**20
    # a block of bounds, masks and candidates beside it, and 20 MiB for the allocator; a whole matrix is 309 MiB
    assert run["peak_mib"] < copies + 5 * block + 20


def test_an_implementation_that_does_not_fit_in_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation._fits("quarterarc", 10**9, 64)
    assert evaluation._fits("torch-fidelity, whole matrices", 100, 64)
    assert not evaluation._fits("torch-fidelity, whole matrices", 10**7, 64)
    assert "left out, it needs" in capsys.readouterr().err


def test_sets_below_5_images_are_an_input_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluation", "--sizes", "4"]) == 2
    assert "at least 5 images, got --sizes 4" in capsys.readouterr().err
