"""The README's experiment commands plan their work; `test_examples.py` runs the others, and the Python blocks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from quarterarc.cli import main
from quarterarc.training.recipe_text import read_recipe

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


def test_the_readme_has_the_blocks_and_commands_that_are_tested() -> None:
    assert len(BLOCKS) == 1
    assert [command.split()[0] for command in COMMANDS] == [
        "train", "train", "sample", "tune", "sample", "distill", "sample", "experiment", "experiment", "experiment",
    ]  # fmt: skip


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("demo.html")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_work_in_zsh_as_printed(page: Path) -> None:
    """A terminal with zsh takes # for a word, and brackets without quotes for the name of a file."""
    for line in re.findall(
        r"^(?: {4}|<pre><code>)?((?:quarterarc|make|pip|python) .+)$", page.read_text("utf-8"), re.M
    ):
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"|\{\{.*?\}\}|</code></pre>", "", line)
        assert not re.search(r"[\[\]*?#]", unquoted), line


def test_experiment_commands_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe("digits", [*TINY, "network.attention=[]"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    for command in COMMANDS[7:]:
        words = shlex.split(command, comments=True)
        assert main([*words, *(() if "--dry-run" in words else ("--dry-run",))]) == 0, command
    assert capsys.readouterr().out.count("on this machine") == 2 + 17 + 1  # two tables, all seventeen, their total
