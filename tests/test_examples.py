"""Every example runs as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(example: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ddim 10 ")


def test_the_commands_of_the_readme_run(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """As they are written there, on a few images and for a few steps."""
    (tmp_path / "PHOTOS").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 200)).save(tmp_path / "PHOTOS" / f"{number}.jpg")
    lines = re.findall(r"^quarterarc ((?:train|sample|tune) .+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "train", "sample", "tune", "sample"]
    for place, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        words += tiny if place == 0 else ()
        words += ("--images", "8") if words[0] == "tune" else ()
        words = [word.replace("0-999", "0-3").replace("5,8,10", "5") for word in words]
        command = [sys.executable, "-m", "quarterarc", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "made").glob("00*.png"))) == 4
