"""The examples and the commands of the README run as they stand."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from quarterarc.sampling import fitting

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("ddim 10 ")


def test_the_commands_of_the_readme_run(
    tmp_path: Path, tiny: tuple[str, ...], cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written there, with fewer images, steps and parameters."""
    monkeypatch.setitem(fitting.FINE, "tolerance", 1e-2)
    (tmp_path / "PHOTOS").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 200)).save(tmp_path / "PHOTOS" / f"{number}.jpg")
    lines = re.findall(r"^quarterarc ((?:train|sample|tune) .+)$", README, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "train", "sample", "tune", "sample"]
    for number, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        words += tiny if number == 0 else ()
        words += ("--images", "8") if words[0] == "tune" else ()
        done = cli(*(word.replace("0-999", "0-3").replace("5,8,10", "5") for word in words))
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "made").glob("00*.png"))) == 4
