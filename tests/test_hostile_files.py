"""The hostile files that other tests open are the same for the same generator, and small."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hostile_files import KINDS, clear, hostile_file


def contents(folder: Path) -> dict[str, bytes | str]:
    """The files of a folder: the bytes of small regular ones, the type of others."""
    return {
        path.name: path.read_bytes()
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24
        else str(os.lstat(path).st_mode)
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_depends_on_the_generator_only(tmp_path: Path, kind: str) -> None:
    written = []
    for _ in range(2):
        random = np.random.default_rng(5)
        for _ in range(5):
            hostile = hostile_file(random, tmp_path, kind)
            assert hostile.path.parent == tmp_path or hostile.path == tmp_path
            written.append((hostile, contents(tmp_path)))
            assert sum(path.lstat().st_blocks for path in tmp_path.iterdir()) * 512 < 2**26
            clear(tmp_path)
    assert written[:5] == written[5:]
