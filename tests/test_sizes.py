"""Sizes: absurd ones are refused before anything is built; out of memory is one line with what to lower."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import quarterarc as qa
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.common.memory import is_out_of_memory, memory_checked, memory_of, require_memory
from quarterarc.data.patterns import matching_files
from quarterarc.networks import UNet, build_network
from quarterarc.networks.unet import fewest_weights
from quarterarc.training.memory import fewest_bytes
from quarterarc.training.recipe_text import read_recipe
from tools.training_memory import largest_batch, step_bytes


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("network.blocks=100000", "1000"),
        ("network.channels=10000000", "65536"),
        ("network.multipliers=[1,1000000]", "65536"),
        (f"network.multipliers=[{','.join(['1'] * 2000)}]", "32"),
        ("network.channels=60000", "GB"),
        ("data.size=100000", "32768"),
        ("data.size=[1,1000000]", "32768"),
        ("data.size=32768", "GB"),
        ("schedule.steps=1000000000", "1000000"),
        ("training.steps=1000000000000000000000", "1000000000000"),
        ("training.batch=1000000000000", "1000000"),
        ("training.batch=1000000", "GB"),
        ("training.sample_count=1000000000", "10000"),
        ("data.source=/proc/**", "also matches /proc/"),
    ],
)
def test_absurd_recipes_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quarterarc.training.memory.require_memory", with_32_gb)
    monkeypatch.setattr("quarterarc.networks.require_memory", with_32_gb)
    started = time.perf_counter()
    large = () if field.startswith("data.source") else ("network.attention=[]", "network.channels=128")
    assert main(["train", "digits", *large, field, "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert limit in message
    assert field.partition("=")[0].rpartition(".")[2] in message or "proc" in message
    assert not (tmp_path / "run").exists()
    assert time.perf_counter() - started < 5.0  # a loaded machine; nothing is allocated


def with_32_gb(size: float, device: torch.device, describe: Callable[[], str]) -> None:
    if size > 32e9:
        raise InputError(f"out of memory: more than 32 GB: {describe()}")


@pytest.mark.parametrize("words", ["--batch-size 1000000000000", "--seeds 0-1000000000000", "--steps 1000000000"])
def test_absurd_requests_to_sample_are_refused_at_once(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert main(["sample", str(tiny_run), "--out", str(tmp_path / "made"), *words.split()]) == 2
    assert "at most" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_absurd_counts_are_refused_at_once(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 10,000,000"):
        qa.evaluate(tiny_run, "digits", ["fid"], features="pixels", count=10**12)
    with pytest.raises(InputError, match="batch_size"):
        qa.evaluate("digits", "digits", ["fid"], features="pixels", batch_size=10**12)
    for measure in (-5, 0, 1, 10**12):
        assert main(["demo", "--measure", str(measure), "--out", str(tmp_path / "demo")]) == 2
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("images", ["-5", "7", "1000000000000"])
def test_tune_prints_nothing_before_its_checks(tiny_run: Path, capsys: pytest.CaptureFixture[str], images: str) -> None:
    assert main(["tune", str(tiny_run), "--images", images]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "at least 8 images and at most" in printed.err
    assert main(["tune", str(tiny_run), "--sampler", "ddpm", "--nfe", "4", "--images", "8"]) == 2
    assert capsys.readouterr().out == ""


def test_the_bound_of_a_network_is_close_below_its_weights() -> None:
    for channels, multipliers, blocks in ((8, (1, 1), 1), (32, (1, 2, 2), 2), (16, (1, 4, 1), 3)):
        with torch.device("meta"):
            network = UNet(3, 6, channels, multipliers, blocks)
        weights = sum(weight.numel() for weight in network.parameters())
        assert 0.3 * weights < fewest_weights(channels, multipliers, blocks) <= weights


def test_networks_too_large_for_the_machine_are_not_built() -> None:
    sizes = {"in_channels": 3, "out_channels": 3, "multipliers": [1, 2]}
    for arguments in ({**sizes, "channels": 10**6}, {**sizes, "channels": 8, "blocks": 10**9}):
        with pytest.raises(InputError, match=r"out of memory: .* is too large"):
            build_network(arguments)
    with pytest.raises(InputError, match="at most 32 levels of 1,000 blocks"):
        build_network({**sizes, "channels": 8, "blocks": 1001})


def test_a_failed_allocation_is_recognised_by_its_text() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1600 bytes"),
        RuntimeError("Storage size calculation overflowed with sizes=[400000000000, 100000000000]"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
    ):
        assert is_out_of_memory(error), error
        with (
            pytest.raises(InputError, match=r"out of memory: this \(at most \d+\.\d GB were in use\)"),
            memory_checked(lambda: "this"),
        ):
            raise error
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(InputError, match=r"^its own$"), memory_checked(lambda: "this"):
        raise InputError("its own")


def test_the_memory_of_this_machine_is_known_and_required() -> None:
    cpu = torch.device("cpu")
    assert (memory_of(cpu) or 0) > 10**8
    require_memory(10**6, cpu, lambda: "this")
    with pytest.raises(InputError, match=r"at least 1,000,000 GB are needed, and cpu has .* GB: this"):
        require_memory(1e15, cpu, lambda: "this")


def test_evaluation_out_of_memory_names_the_batch_and_what_to_lower(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1600000000 bytes")

    monkeypatch.setattr(UNet, "forward", fail)
    sampled = ("--reference", "digits", "--features", "pixels", "--metrics", "fid")
    for words in (sampled, ("--metrics", "bits-per-dim", "--terms", "2")):
        assert main(["evaluate", str(tiny_run), "--count", "4", *words]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        for text in ("out of memory", "batch", "--batch-size"):
            assert text in message


def test_features_that_run_out_of_memory_name_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("quarterarc.evaluation.extractors.Pixels.__call__", fail)
    with pytest.raises(InputError, match=r"out of memory: .*'pixels'.* batch.*--batch-size"):
        qa.evaluate("digits", "digits", ["fid"], features="pixels")


def test_a_pattern_matches_like_glob_and_follows_circles_once(tmp_path: Path) -> None:
    for name in ("a/1.parquet", "a/b/2.parquet", "a/b/.h/3.parquet", "c/4.parquet", "c/.5.parquet", "6.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")

    def names(pattern: str) -> list[str]:
        return sorted(file.relative_to(tmp_path).as_posix() for file in matching_files(str(tmp_path / pattern)))

    assert names("**/*.parquet") == ["6.parquet", "a/1.parquet", "a/b/2.parquet", "c/4.parquet"]
    assert names("a/**/[0-9].*") == ["a/1.parquet", "a/b/2.parquet"]
    assert names("**/.h/*") == ["a/b/.h/3.parquet"]
    assert names("*.parquet") == ["6.parquet"]
    assert names("**/b/**") == ["a/b/2.parquet"]


def test_a_pattern_visits_a_bounded_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quarterarc.data.patterns.MOST_VISITED", 10)
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
    with pytest.raises(InputError, match="visits more than 10 files: give a narrower one"):
        list(matching_files(f"{tmp_path}/**/*.parquet"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bound_of_a_training_step_is_below_what_the_step_takes(precision: str) -> None:
    """For eager mode; a compiled step keeps the same tensors at least."""
    needs = {}
    for recompute in ("false", "true"):
        fields = ["network.channels=8", "network.blocks=1", "network.attention=auto", "data.size=16"]
        recipe = read_recipe("digits", [*fields, f"training.precision={precision}", f"training.recompute={recompute}"])
        bytes_of = step_bytes(recipe, 64)
        needs[recompute] = bytes_of["kept"]
        assert 0.05 * bytes_of["peak"] < fewest_bytes(recipe, 64) <= bytes_of["peak"]
    assert needs["true"] < needs["false"] / 4
    peak = step_bytes(recipe, 40)["peak"]
    assert largest_batch(recipe, peak) == 40
    assert largest_batch(recipe, peak - 1) == 39
    assert largest_batch(recipe, 1.0) == 0
