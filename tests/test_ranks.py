"""A distributed run in which one process fails or is killed: all end soon, with one line, and nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from conftest import Distributed


def lines_of(errors: str) -> list[str]:
    """The lines of the command line among those of the launcher."""
    assert 'quarterarc/cli/__init__.py", line' not in errors  # a traceback
    return re.findall(r"^quarterarc: (?:error|stopped).*$", errors, flags=re.MULTILINE)


def test_an_error_of_all_processes_is_reported_once(tiny_run: Path, tmp_path: Path, distributed: Distributed) -> None:
    done = distributed("sample", tiny_run, "--out", tmp_path / "made", "--sampler", "eular", fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "did you mean 'euler'" in done.stderr


def test_an_image_that_one_process_cannot_read_ends_all(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """The other one waits for the gradient of this one."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    data = ("data.source=images", "data.size=8", "data.channels=1", "data.memory=stream")
    done = distributed("train", "digits", "--out", "run", *tiny, *data, fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "3.png" in lines_of(done.stderr)[0]


def test_a_checkpoint_that_the_first_process_cannot_write_ends_all(
    tmp_path: Path, tiny: tuple[str, ...], distributed: Distributed
) -> None:
    """As on a full disk."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("not a folder")
    done = distributed("train", "digits", "--out", "run", *tiny, fails=True)
    assert len(lines_of(done.stderr)) == 1
    assert "checkpoints" in lines_of(done.stderr)[0]
