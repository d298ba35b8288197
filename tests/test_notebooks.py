"""The notebooks of the documentation: they run as they are, offline, and have the outputs of such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools.run_notebooks import NOTEBOOKS, executed

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_notebook_runs_and_has_the_outputs_of_its_cells(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stored, ran = nbformat.read(path, as_version=4), executed(path, tmp_path)
    assert kinds(ran) == kinds(stored), f"python tools/run_notebooks.py {path.stem}"
    assert not [names for names in kinds(ran) if "stderr" in names]  # no warnings, no bars
    assert path.stat().st_size < 200_000


def kinds(notebook: Any) -> list[list[str]]:
    """What each cell of code shows: `stdout`, or the types of its result."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [name for output in cell.outputs for name in (sorted(output["data"]) if "data" in output else [output["name"]])]
        for cell in cells
    ]
