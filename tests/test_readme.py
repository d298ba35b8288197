"""The README's commands and Python blocks run, on a few images and for a few steps."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quarterarc import noise, to_uint8
from quarterarc.cli import main
from quarterarc.storage.pictures import write_png
from quarterarc.training.recipe import read_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if language == "python"]
COMMANDS = [command for _, text in FENCED for command in re.findall(r"^quarterarc (.+)$", text, re.MULTILINE)]

TINY = (
    "network.channels=8",
    "network.multipliers=[1,1]",
    "network.blocks=1",
    "training.steps=2",
    "training.batch=4",
    "training.sample_count=4",
)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with PHOTOS/ in it."""
    folder = tmp_path / "PHOTOS"
    folder.mkdir()
    for number, image in enumerate(noise(range(12), (3, 30, 40))):
        write_png(folder / f"{number}.png", to_uint8(image))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with every change made; a change that no longer applies fails the test."""
    for old, new in changes.items():
        assert old in text, f"the README no longer contains {old!r}"
        text = text.replace(old, new)
    return text


def test_the_readme_has_the_blocks_and_commands_that_are_tested() -> None:
    assert len(BLOCKS) == 2
    assert [command.split()[0] for command in COMMANDS] == [
        "train", "train", "sample", "tune", "sample", "experiment", "experiment", "experiment",
    ]  # fmt: skip


def test_commands_for_own_images_run(photos: Path) -> None:
    changes: dict[str, Callable[[str], str]] = {
        "train": lambda command: f"{command} {' '.join(TINY)}" if "PHOTOS" in command else command,
        "sample": lambda command: replaced(command, {"0-999": "0-3"}).replace("--steps 5", "--steps 2"),
        "tune": lambda command: replaced(command, {"5,8,10": "2"}) + " --images 8",
    }
    for command in COMMANDS[:5]:
        words = shlex.split(command, comments=True)
        words = shlex.split(changes[words[0]](shlex.join(words)))
        assert main(words) == 0, command
    assert len(list((photos / "made").glob("00*.png"))) == 4
    assert len(list((photos / "fast").glob("00*.png"))) == 4


def test_experiment_commands_plan(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe("digits", [*TINY, "network.attention=[]"])
    (photos / "mine.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    for command in COMMANDS[5:]:
        words = shlex.split(command, comments=True)
        assert main([*words, *(() if "--dry-run" in words else ("--dry-run",))]) == 0, command
    assert capsys.readouterr().out.count("on this machine") == 2 + 15  # two tables, then all fifteen experiments


def test_the_python_block_of_own_images_runs(photos: Path) -> None:
    code = replaced(
        BLOCKS[0],
        {
            'data="PHOTOS/", size=32': (
                'data="PHOTOS/", size=32, '
                'network={"channels": 8, "blocks": 1, "multipliers": [1, 1], "attention": []}, '
                'training={"steps": 2, "batch": 4, "sample_count": 4}'
            ),
            "range(1000)": "range(8)",
            '["fid", "precision", "recall"], count=1000': (
                '["fid", "precision", "recall"], count=8, features="pixels", steps=2'
            ),
        },
    )
    names: dict[str, object] = {}
    exec(code, names)
    images, result = names["images"], names["result"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (8, 3, 32, 32)
    assert isinstance(result, dict)
    assert set(result["metrics"]) == {"fid", "precision", "recall"}


def test_the_ten_lines_of_python_run(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[1]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    errors = {line.split()[0]: float(line.split("(")[1].split(",")[0].rstrip(")")) for line in done.stdout.splitlines()}
    assert errors["multistep"] < min(errors["heun"], errors["ddim"])
