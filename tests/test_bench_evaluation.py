import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation as bench
from quarterarc.common.errors import InputError


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(given)


def test_the_options_need_no_torch() -> None:
    code = "import sys; from quarterarc.bench.evaluation import add_arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_small_run_prints_and_writes_both_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DEFICIENT", 64)
    out = tmp_path / "new" / "bench.json"
    args = arguments("--dimensions", "24", "--sizes", "300", "--repeats", "1", "--threads", "1", "--out", str(out))
    assert bench.main(args) == 0
    report = json.loads(out.read_text())
    ways = {row["way"]: row for row in report["frechet"]}
    assert ways["quarterarc"]["error"] < 1e-12
    assert ways["quarterarc"]["FD(X, X), rank n/2"] < 1e-10
    assert all(row["error"] < 1e-6 for row in ways.values())  # the same number, to their own accuracy
    ours, *others = report["precision_recall"]
    assert ours["way"] == "quarterarc"
    for row in others:
        # their shares are means in float32
        assert (row["precision"], row["recall"]) == pytest.approx((ours["precision"], ours["recall"]), abs=1e-6)
    assert 0.0 < ours["precision"] < 1.0
    printed = capsys.readouterr().out
    assert all(row["way"] in printed for row in (*report["frechet"], *report["precision_recall"]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")
def test_peak_memory_is_a_copy_and_some_blocks_of_pairs() -> None:
    size, dimensions = 9000, 64
    run = bench._in_process("quarterarc", size, dimensions, threads=1)
    copies, block = 2 * 4 * size * dimensions / 2**20, 4 * 2048**2 / 2**20
    # a block of bounds, masks and candidates beside it, and 20 MiB for the allocator; a whole matrix is 309 MiB
    assert run["peak_mib"] < copies + 5 * block + 20


def test_what_does_not_fit_in_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench._fits("quarterarc", 10**9, 64)
    assert bench._fits("torch-fidelity, whole matrices", 100, 64)
    assert not bench._fits("torch-fidelity, whole matrices", 10**7, 64)
    assert "left out, it needs" in capsys.readouterr().err


def test_sizes_that_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="sizes at least 5"):
        bench.main(arguments("--sizes", "4"))
