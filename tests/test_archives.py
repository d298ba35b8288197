"""`sample --out made.npz`: one file in ADM's layout, complete or not there, which an interrupted command continues."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quarterarc as qa
from conftest import Cli, Distributed
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.evaluation.image_files import open_set
from quarterarc.evaluation.references import open_reference
from quarterarc.sampling import Sampling, write_samples
from quarterarc.storage.npz import Rows, write_npz
from quarterarc.storage.temporary import temporary

SHAPE = (3, 4, 5)
REQUEST = Sampling("rotation", 2)


def denoiser(calls: list[int] | None = None, stop_at: int | None = None, classes: int | None = None) -> qa.Denoiser:
    """A denoiser whose images depend on their noise.

    Args:
        calls: receives the size of every batch that is evaluated.
        stop_at: the call that is interrupted, from 0.
        classes: number of labels.
    """
    calls = [] if calls is None else calls

    def network(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(x))
        shift = 0.0 if labels is None else 0.2 * labels.reshape(-1, 1, 1, 1)
        return (x * 0.3 + shift).clamp(-1, 1)

    table = qa.schedule("arc", 10)
    return qa.Denoiser(network, table, qa.head("image", table), SHAPE, classes=classes)


def write(out: Path, seeds: Any, denoise: qa.Denoiser | None = None, **options: Any) -> dict[str, Any]:
    """Write an archive in batches of 3, of a model that is identified."""
    about = {"checkpoint_sha256": "abc"}
    options = {"batch_size": 3, "about": about, "progress": False, **options}
    record = write_samples(denoise or denoiser(), out, seeds, options.pop("sampling", REQUEST), **options)
    assert record is not None
    return record


def test_the_file_holds_images_labels_and_settings_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    out, seeds, denoise = tmp_path / "deep" / "made.npz", [7, 3, 4, 5, 0, 2, 9], denoiser(classes=3)
    record = write(out, seeds, denoise, labels=[2, 0])
    labels = [2, 0, 2, 0, 2, 0, 2]
    expected = qa.generate(denoise, seeds, REQUEST, labels=labels, batch_size=3, progress=False)
    with np.load(out, allow_pickle=False) as made:
        assert made.files == ["arr_0", "arr_1", "samples"]
        assert np.array_equal(made["arr_0"], qa.to_uint8(expected).permute(0, 2, 3, 1).numpy())
        assert made["arr_1"].dtype == np.int64
        assert made["arr_1"].tolist() == labels
        assert json.loads(made["samples"].item()) == record
    assert (record["seeds"], record["count"], record["nfe"], record["complete"]) == ("7,3-5,0,2,9", 7, 2, True)
    assert (record["sampler"], record["steps"], record["labels"]) == ("rotation", 2, [2, 0])
    assert [path.name for path in out.parent.iterdir()] == ["made.npz"]


def test_evaluate_refers_to_the_settings_of_a_file(tmp_path: Path) -> None:
    write(tmp_path / "made.npz", range(4))
    images = open_set(tmp_path / "made.npz")
    assert images.sampling is not None
    assert (images.sampling["sampler"], images.sampling["seeds"], images.sampling["nfe"]) == ("rotation", "0-3", 2)
    assert "images_per_second" not in images.sampling
    reference = open_reference(tmp_path / "made.npz").images
    assert reference is not None
    assert reference.sampling == images.sampling


@pytest.mark.parametrize("other", [np.zeros(3), np.array("no JSON"), np.array("[1]"), np.array(""), np.array(["{}"])])
def test_an_array_of_the_same_name_in_the_file_of_another_program_is_none_of_ours(tmp_path: Path, other: Any) -> None:
    np.savez(tmp_path / "theirs.npz", np.zeros((2, 4, 4, 3), np.uint8), samples=other)
    assert open_set(tmp_path / "theirs.npz").sampling is None
    with pytest.raises(InputError, match=r"theirs\.npz exists, and was not written by `quarterarc sample`"):
        write(tmp_path / "theirs.npz", range(2))


def test_an_interrupted_file_is_continued_and_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    """Also with another batch size; what is there is not computed again."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "made.npz", range(11), denoiser(stop_at=4))
    assert not (tmp_path / "made.npz").exists()
    partial = tmp_path / "made.npz.partial"
    assert {path.name for path in partial.iterdir()} == {"00000000.npz", "00000003.npz", "samples.json", ".lock"}
    calls = list[int]()
    record = write(tmp_path / "made.npz", range(11), denoiser(calls), batch_size=4)
    assert calls == [4, 4, 1, 1]  # two steps per batch
    assert not partial.exists()
    whole = write(tmp_path / "whole.npz", range(11))
    assert {**record, "images_per_second": 0} == {**whole, "images_per_second": 0}
    with np.load(tmp_path / "made.npz") as made, np.load(tmp_path / "whole.npz") as expected:
        assert np.array_equal(made["arr_0"], expected["arr_0"])


def test_damaged_batches_are_sampled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "made.npz", range(12), denoiser(stop_at=6))
    partial = tmp_path / "made.npz.partial"
    content = bytearray((partial / "00000003.npz").read_bytes())
    content[content.index(b"images.npy") + 180] ^= 1
    (partial / "00000003.npz").write_bytes(content)
    write_npz(partial / "00000006.npz", {"places": np.array([6]), "images": np.zeros((1, 9, 9, 3), np.uint8),
                                         "nfe": np.array(2.0)})  # fmt: skip
    write(tmp_path / "made.npz", range(12))
    assert caplog.text.count("is damaged: its images are sampled again") == 2
    write(tmp_path / "whole.npz", range(12))
    with np.load(tmp_path / "made.npz") as made, np.load(tmp_path / "whole.npz") as expected:
        assert np.array_equal(made["arr_0"], expected["arr_0"])


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("angles, steps", {"sampling": Sampling("rotation", 3)}),
    ("seeds", {"seeds": range(5)}),
    ("checkpoint_sha256", {"about": {"checkpoint_sha256": "other"}}),
]


@pytest.mark.parametrize(("changed", "options"), OTHERS)
def test_other_images_never_replace_a_file_or_continue_an_unfinished_one(
    tmp_path: Path, changed: str, options: dict[str, Any]
) -> None:
    options = {"seeds": range(6), **options}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "half.npz", range(6), denoiser(stop_at=2))
    write(tmp_path / "made.npz", range(6))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("half.npz", "made.npz"):
        with pytest.raises(InputError, match=rf"holds samples with other settings \({changed}\): give another --out"):
            write(tmp_path / name, **options)
    with pytest.raises(InputError, match="cannot be compared"):
        write(tmp_path / "made.npz", range(6), sampling=Sampling(Local()))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class Local(qa.samplers.Sampler):
    """A sampler whose settings are not known."""

    scale = torch.tensor(1.0)

    def __init__(self) -> None:
        self.table = torch.zeros(2)

    def __call__(self, denoise: Any, x: Tensor, angles: Any, draw: Any) -> Iterator[qa.samplers.State]:
        yield qa.samplers.State(x, angles[-1], None)


def test_a_complete_file_is_not_computed_again_but_checked(tmp_path: Path) -> None:
    out = tmp_path / "made.npz"
    record, content, calls = write(out, range(6)), out.read_bytes(), list[int]()
    partial = tmp_path / "made.npz.partial"
    partial.mkdir()
    (partial / "samples.json").write_text("{}")  # left by a process that was killed before it removed it
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = partial.with_name(temporary(partial).name.replace(f"-{os.getpid()}", f"-{ended.pid}"))
    half.mkdir()  # or while it did
    assert write(out, range(6), denoiser(calls)) == record
    assert (calls, out.read_bytes(), [*tmp_path.iterdir()]) == ([], content, [out])
    damaged = bytearray(content)
    damaged[200] ^= 1
    out.write_bytes(damaged)
    with pytest.raises(InputError, match=r"made\.npz is damaged"):
        write(out, range(6))
    out.write_bytes(content[:100])
    with pytest.raises(InputError, match="is not an npz file"):
        write(out, range(6))


def test_a_folder_of_another_purpose_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "made.npz.partial").mkdir()
    (tmp_path / "made.npz.partial" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else: rename or remove it"):
        write(tmp_path / "made.npz", range(2))
    assert (tmp_path / "made.npz.partial" / "notes.txt").read_text() == "mine"
    (tmp_path / "folder.npz").mkdir()
    write(tmp_path / "folder.npz", range(2))  # a folder stays a folder
    assert (tmp_path / "folder.npz" / "000001.png").is_file()


def test_what_is_no_file_and_no_seeds_are_errors_of_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "made.npz")
    with pytest.raises(InputError, match="is not a regular file"):
        write(tmp_path / "made.npz", range(2))
    (tmp_path / "text").write_text("")
    with pytest.raises(InputError, match="is not a writable folder"):
        write(tmp_path / "text" / "made.npz", range(2))
    for name in ("none.npz", "none"):
        with pytest.raises(InputError, match="no seeds were given"):
            write(tmp_path / name, [])
    assert {path.name for path in tmp_path.iterdir()} == {"made.npz", "text"}


def test_an_error_before_the_first_image_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learned"):
        write(tmp_path / "new" / "made.npz", range(2), sampling=Sampling("ddpm", 2, options={"variance": "learned"}))
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_keeps_the_batches_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, arrays: Any, durable: bool = True) -> None:
        if not durable:
            return write_npz(path, arrays, durable)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("quarterarc.sampling.archives.write_npz", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "made.npz", range(6))
    assert [path.name for path in tmp_path.iterdir()] == ["made.npz.partial"]
    monkeypatch.undo()
    calls = list[int]()
    write(tmp_path / "made.npz", range(6), denoiser(calls))
    assert calls == []


def test_a_large_array_is_written_and_read_without_being_in_memory(tmp_path: Path) -> None:
    part = np.arange(2**20, dtype=np.uint8).reshape(-1, 4)
    rows = Rows((64 * len(part), 4), part.dtype, (part for _ in range(64)))
    tracemalloc.start()
    write_npz(tmp_path / "large.npz", {"rows": rows})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23  # of 2^26 bytes
    with np.load(tmp_path / "large.npz") as read:
        assert np.array_equal(read["rows"], np.concatenate([part] * 64))


@pytest.mark.parametrize("name", ["samples", "about", "mu"])
def test_an_array_of_elements_without_bytes_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8))
    header = {"descr": "<U0", "fortran_order": False, "shape": ()}
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, archive.open(f"{name}.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match="has elements of 0 bytes"):
        open_reference(tmp_path / "a.npz")


def test_two_processes_write_the_file_of_one(tiny_run: Path, tmp_path: Path, distributed: Distributed) -> None:
    arguments = ["sample", str(tiny_run), "--seeds", "0-8", "--sampler", "ddim", "--steps", "3", "--batch-size", "2"]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path / "one.npz")]) == 0
    done = distributed(*arguments, "--out", tmp_path / "two.npz")
    assert done.stdout == f"9 images, 3 network evaluations per image, in {tmp_path / 'two.npz'}\n"
    assert not (tmp_path / "two.npz.partial").exists()
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert np.array_equal(one["arr_0"], two["arr_0"])  # the batches are the same ones
        records = [json.loads(made["samples"].item()) for made in (one, two)]
    assert [{**record, "images_per_second": 0} for record in records[:1]] == [{**records[1], "images_per_second": 0}]


def test_the_command_line_samples_to_a_file_and_evaluates_it(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("sample", tiny_run, "--out", "made.npz", "--seeds", "0-9", "--steps", "2", "--device", "cpu")
    assert done.stdout == "10 images, 2 network evaluations per image, in made.npz\n", done.stderr
    done = cli("evaluate", "made.npz", "--reference", "made.npz", "--features", "pixels", "--metrics", "kid",
               "--out", "result.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"]["sampling"]["checkpoint"] == "step-00000006"
    done = cli("sample", tiny_run, "--out", "made.npz", "--seeds", "0-9", "--steps", "3", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.endswith("made.npz holds samples with other settings (angles, steps): give another --out\n")
