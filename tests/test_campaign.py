"""The short form of the reliability campaign, that it finds faults, and the figures of its page.

The long form: `python -m tools.campaign all`, see docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.campaign import render
from tools.campaign.disk import allowed
from tools.campaign.results import Outcome, summary, table

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaign uses fork, /proc and mount")


def campaign(out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the parts of a campaign."""
    command = [sys.executable, "-m", "tools.campaign", *words, "--out", str(out)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert out.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(out.read_text(encoding="utf-8"))["parts"]


def failures(parts: dict[str, Any]) -> list[str]:
    values = [(part, failure) for part, result in parts.items() for failure in result["failures"]]
    return [f"{part} {case['index']}: {case['verdict']}: {case['command']}: {case['detail']}" for part, case in values]


def test_kills_commands_files_and_full_disks_end_as_promised(tmp_path: Path) -> None:
    status, parts = campaign(tmp_path / "short.json", "all", "--short")
    assert failures(parts) == []
    assert status == 0
    assert all(result["events"] > 0 for result in parts.values())
    assert list(parts) == ["kills", "commands", "files", *(["disk"] if allowed() else [])]
    assert "train, two processes" in parts["kills"]["counts"]


def test_the_campaign_finds_a_writer_that_leaves_half_a_file_after_a_kill(tmp_path: Path) -> None:
    status, parts = campaign(tmp_path / "torn.json", "kills", "--only", "21,41,61", "--sabotage", "torn_files")
    assert status == 1
    assert ".png is broken" in " ".join(failures(parts))


def test_the_campaign_finds_writes_outside_connections_and_tracebacks(tmp_path: Path) -> None:
    status, parts = campaign(tmp_path / "spy.json", "commands", "--only", CARELESS, "--sabotage", "spying")
    text = " ".join(failures(parts))
    assert status == 1
    assert "write outside: open '../outside/written'" in text
    assert "connection: socket." in text
    assert "KeyError: 'a wrong value'" in text


CARELESS = "6,7,8,9"
"""Commands that train, one of them without --out and one with a wrong value."""


def test_a_case_that_fails_is_counted_and_set_in_bold() -> None:
    outcomes = [Outcome(0, "a", "success", True), Outcome(1, "a", "hang", False), Outcome(2, "b", "success", True)]
    result = summary(outcomes)
    assert (result["cases"], result["failed"]) == (3, 1)
    assert [failure["index"] for failure in result["failures"]] == [1]
    assert table(result).splitlines() == [
        "|  | success | **hang** |",
        "|---|---:|---:|",
        "| a | 1 | 1 |",
        "| b | 1 | 0 |",
        "| all | 2 | 1 |",
    ]


def test_the_figures_of_the_page_are_those_of_the_results() -> None:
    text = render.PAGE.read_text(encoding="utf-8")
    assert text == render.page(text), "run python -m tools.campaign.render"
