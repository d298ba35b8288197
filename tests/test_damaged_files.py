"""Damaged files of our own: any JSON value anywhere ends in one line that names the file, or in the same as before."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import quarterarc as qa
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.experiments import measuring
from quarterarc.experiments.writing import write_index
from quarterarc.likelihood.evaluation import _PartialSum
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned, write_tuned
from quarterarc.storage.checksums import write_sealed
from quarterarc.storage.files import parse_json, read_json
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.log import read_log

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    float("inf"),
    float("nan"),
    "",
    [],
    {},
    10**400,
    "../x",
    1e300,
    0,
    [[[]]],
    -0.5,
)
"""What replaces a value; and it is removed."""
TEXTS = (b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"nul", b"\x00" * 9, b"1", b'"x"', b"9" * 5000)
"""What replaces a whole file; and it is a folder."""
REMOVED = object()


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values within a value; of lists the first two entries."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


def changed(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    target = copy
    for key in path[:-1]:
        target = target[key]
    if new is REMOVED:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return copy


def damages(original: bytes, count: int, texts: tuple[bytes, ...]) -> Iterator[bytes | None]:
    """The whole texts, a folder (None), and `count` texts with one value replaced, without checksums."""
    value = json.loads(original)
    for key in ("checksum", "checksums"):
        value.pop(key, None)
    yield from (*texts, None)
    single = [
        (path, new) for path, new in itertools.product(places(value), (*VALUES, REMOVED)) if path or new is not REMOVED
    ]
    for path, new in random.Random(0).sample(single, min(count, len(single))):
        yield json.dumps(changed(value, path, new)).encode()


def message_of(read: Callable[[], object]) -> str:
    """The message of an InputError or OSError, as the command line prints it; nothing if there is none."""
    try:
        read()
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return ""


def survives(
    file: Path, read: Callable[[], object], count: int = 100, line: bool = False, texts: tuple[bytes, ...] = TEXTS
) -> None:
    """Assert that `read` returns, or raises an InputError of one line that names the file or its folder."""
    original = file.read_bytes()
    first, *rest = original.splitlines(keepends=True) if line else [original]
    for damage in damages(first, count, texts):
        file.unlink()
        if damage is None:
            file.mkdir()
        else:
            file.write_bytes(damage + b"\n" * line + b"".join(rest))
        message = message_of(read)
        assert "\n" not in message, message
        assert not message or any(part.name in message for part in (file, *file.parents[:3])), (damage, message)
        if damage is None:
            file.rmdir()
        file.write_bytes(original)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_parsing_json_raises_for_depth_and_huge_numbers() -> None:
    for text in ("[" * 100_000, "9" * 5000, "1" + "0" * 19, "-" + "9" * 30, "{", ""):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    assert parse_json(f"[{2**63 - 1}, -5, 1e400]") == [2**63 - 1, -5, float("inf")]


def test_config_of_a_checkpoint(run: Path) -> None:
    for old in checkpoints(run)[:-1]:
        shutil.rmtree(old)
    config = checkpoints(run)[-1] / "config.json"
    survives(config, lambda: qa.load(run))
    survives(config, lambda: train(None, run, resume=True, progress=False), count=10, texts=TEXTS[:3])


def test_log_of_a_run(run: Path) -> None:
    survives(run / "metrics.jsonl", lambda: read_log(run), line=True)
    survives(run / "metrics.jsonl", lambda: train(None, run, resume=True, progress=False), 2, True, TEXTS[:3])


def test_tuned_grids(run: Path) -> None:
    checkpoint = checkpoints(run)[-1]
    angles = (1.5, 0.9, 0.0)
    write_tuned(checkpoint, [TunedGrid("multistep", {"order": 2}, angles, (), {"untuned": 0.1}, "untuned", 2, 0.5)])
    survives(checkpoint / "tuned.json", lambda: read_tuned(checkpoint))


def test_settings_of_a_sample_folder(run: Path, tmp_path: Path) -> None:
    words = ["sample", str(run), "--out", str(tmp_path / "made"), "--seeds", "0-1", "--steps", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main(words) == 0
        printed = 0

        def again() -> None:
            nonlocal printed
            status, lines = main(words), errors.getvalue()[printed:]
            printed = len(errors.getvalue())
            if status:
                raise InputError(lines.rstrip("\n").rpartition("\n")[2])

        survives(tmp_path / "made" / "samples.json", again, count=50, texts=TEXTS[:3])
        features = {"features": "pixels", "device": "cpu", "progress": False}
        reference = read_json(tmp_path / "made" / "samples.json")
        assert reference["complete"]
        survives(
            tmp_path / "made" / "samples.json",
            lambda: qa.evaluate(tmp_path / "made", tmp_path / "made", ["fid"], **features),  # type: ignore[arg-type]
            count=20,
            texts=TEXTS[:3],
        )


def test_results_of_experiments(tmp_path: Path) -> None:
    result = {"experiment": "steps", "title": "How?", "source": "Fig. 1", "seeds": [0], "scale": "digits",
              "setting": "Small.", "claims": [{"verdict": "held"}]}  # fmt: skip
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "results.json").write_text(json.dumps(result))
    assert write_index(tmp_path) is not None
    survives(tmp_path / "steps" / "results.json", lambda: write_index(tmp_path))


def test_partial_sums_of_likelihoods_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "sum.json"
    write_sealed(path, {"batches": 3, "value": 7.5})
    whole = _PartialSum(float, path)
    assert (whole.batches, whole.value) == (3, 7.5)
    for damage in TEXTS:
        path.write_bytes(damage)
        anew = _PartialSum(float, path)
        assert (anew.batches, anew.value) == (0, None)
    path.write_text(json.dumps({**json.loads(json.dumps({"batches": 3, "value": 7.5})), "checksum": "0"}))
    assert _PartialSum(float, path).batches == 0


def test_damaged_cells_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cells" / "abc"
    cell = SimpleNamespace(
        arm=SimpleNamespace(name="an arm"), seed=0, measure="fake", settings=(), get=lambda name: None
    )
    lab = SimpleNamespace(denoiser=lambda arm, seed: "unstable", cache=tmp_path)
    monkeypatch.setattr(measuring, "cell_folder", lambda lab, cell: folder)
    values = measuring.measure(lab, cell)  # type: ignore[arg-type]
    whole = (folder / "cell.json").read_bytes()
    for damage in damages(whole, 20, TEXTS[:4]):
        (folder / "cell.json").unlink()
        if damage is None:
            (folder / "cell.json").mkdir()
        else:  # with the checksum of the whole one
            seal = {"checksum": json.loads(whole)["checksum"]}
            damaged = json.loads(damage) if damage[:1] == b"{" and damage[-1:] == b"}" else None
            (folder / "cell.json").write_bytes(json.dumps({**damaged, **seal}).encode() if damaged else damage)
        assert measuring.measure(lab, cell) == values  # type: ignore[arg-type]
    (folder / "cell.json").write_text(json.dumps({"values": {"fid": 1.0}}))  # of version 0.1, without a checksum
    assert measuring.measure(lab, cell) == {"fid": 1.0}  # type: ignore[arg-type]


def test_damaged_verdicts_on_images_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    spec = DataSpec(source=str(tmp_path / "images"), size=8, channels=1, skip_bad=True, memory="stream")

    def count() -> int | None:
        return open_data(spec, cache_dir=tmp_path / "cache", progress=False).count

    assert count() == 1
    (note,) = (tmp_path / "cache" / "checked").glob("*.json")
    for damage in damages(note.read_bytes(), 20, TEXTS):
        if damage is not None:
            note.write_bytes(damage if damage in TEXTS else damage[:-1] + b', "checksum": "0"}')
            assert count() == 1
    note.unlink()
    note.mkdir()
    with pytest.raises(InputError, match=note.name):
        count()
