"""The examples and the commands of the README run as they stand."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from PIL import Image

from quarterarc.sampling import fitting

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The folder PHOTOS of the README's code, in the folder in which the code runs."""
    folder = tmp_path / "PHOTOS"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (40, 30), (30 * number, 20, 200)).save(folder / f"{number}.jpg")
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_python_of_the_readme_and_of_the_page_on_samplers_runs(
    photos: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is written there, with fewer images, pixels, steps and parameters."""
    monkeypatch.chdir(photos.parent)
    (training,), (comparison,) = (
        re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        for page in (README, (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8"))
    )
    small = {
        'data="PHOTOS")': 'data="PHOTOS", fields=fields)',
        "range(1000)": "range(4)",
        "count=1000": 'count=8, features="pixels"',
    }
    for written, replacement in small.items():
        assert written in training
        training = training.replace(written, replacement)
    fields = {name: yaml.safe_load(value) for name, value in (field.split("=") for field in (*tiny, "data.size=8"))}
    variables: dict[str, Any] = {"fields": fields}
    exec(compile(training, "README.md", "exec"), variables)
    assert variables["images"].shape == (4, 3, 8, 8)
    assert set(variables["result"]["metrics"]) == {"fid", "precision", "recall"}
    exec(compile(comparison, "docs/samplers.md", "exec"), {})
    assert "ddim 10" in capsys.readouterr().out


def test_the_commands_of_the_readme_run(
    photos: Path, tiny: tuple[str, ...], cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written there, with fewer images, steps and parameters."""
    monkeypatch.setitem(fitting.FINE, "tolerance", 1e-2)  # other tests measure how good a tuned grid is
    lines = re.findall(r"^quarterarc ((?:train|sample|tune|distill) .+)$", README, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "train", "sample", "tune", "sample", "distill", "sample"]
    small = {
        "0-999": "0-3",
        "5,8,10": "5",
    }
    for number, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        words += (*tiny, "data.size=8") if number == 0 else ()
        words += ("--images", "8") if words[0] == "tune" else ()
        words += ("teacher.images=8", "training.steps=2") if words[0] == "distill" else ()
        done = cli(*(small.get(word, word) for word in words))
        assert done.returncode == 0, done.stderr
    for made in ("made", "at-once"):
        assert len(list((photos.parent / made).glob("00*.png"))) == 4
