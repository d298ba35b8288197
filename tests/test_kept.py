"""Nothing is lost, and nothing wrong is accepted: damaged files, and permissions of new ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterarc.common.errors import InputError
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned, write_tuned
from quarterarc.storage.checkpoints import load
from quarterarc.storage.checksums import DamagedFile
from quarterarc.storage.files import replace_file
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe

Tiny = tuple[str, ...]


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return shutil.copytree(tiny_run, tmp_path / "copied")


def flip(path: Path, place: int) -> None:
    """Flip the lowest bit of a byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- checksums ---------------------------------------------------------------------------------------------------


def damage(checkpoint: Path, name: str) -> None:
    """Flip a bit of a value: of the step in config.json, or of the last weight in a file of weights."""
    content = (checkpoint / name).read_bytes()
    flip(checkpoint / name, content.index(b'"step": ') + 8 if name == "config.json" else len(content) - 5)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_a_checkpoint_names_the_file(name: str, copied: Path) -> None:
    newest = checkpoints(copied)[-1]
    damage(newest, name)
    for used in (newest, copied):
        with pytest.raises(DamagedFile, match=rf"step-00000006/{name} is damaged") as raised:
            load(used)
        assert "\n" not in str(raised.value)


def test_a_flipped_bit_in_tuned_json_names_the_file(copied: Path) -> None:
    newest = checkpoints(copied)[-1]
    path = write_tuned(newest, [TunedGrid("euler", {}, (1.5, 0.25, 0.0), (), {"untuned": 1.0}, "untuned", 2)])
    assert len(read_tuned(newest)) == 1
    flip(path, path.read_bytes().index(b"0.25") + 3)
    with pytest.raises(InputError, match=r"tuned\.json is damaged"):
        read_tuned(newest)


def test_checkpoints_without_checksums_load_and_resume(copied: Path, tiny: Tiny) -> None:
    """Those of version 0.1 have none."""
    for checkpoint in checkpoints(copied):
        config = json.loads((checkpoint / "config.json").read_text())
        del config["checksum"], config["checksums"]
        (checkpoint / "config.json").write_text(json.dumps(config))
    load(copied)
    more = read_recipe("digits", [*tiny, "training.steps=8"])
    assert train(more, copied, resume=True, progress=False).name == "step-00000008"


# --- permissions -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_permissions_of_the_umask(umask: int, tmp_path: Path, tiny: Tiny) -> None:
    run = tmp_path / "run"
    train(read_recipe("digits", [*tiny, "training.steps=2"]), run, progress=False)
    modes = {path: path.stat().st_mode & 0o777 for path in [run, *run.rglob("*")] if path.name != ".lock"}
    assert len(modes) > 8
    assert not {path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o640)
    with replace_file(path) as beside:
        beside.write_text("after")
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
