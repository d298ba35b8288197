"""Progress: a bar in a terminal or a notebook, lines in a log file, and none of them stands still."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Cli
from quarterarc.common import progress as progress_module
from quarterarc.common.progress import FIRST, MOST, _Lines, progress_bar, working
from quarterarc.evaluation import measure
from quarterarc.sampling import fitting, tuning


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "show", "drawn"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_is_drawn_on_a_terminal_if_it_is_to_be_shown(
    stream: Callable[[], io.StringIO], show: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = stream()
    monkeypatch.setattr(sys, "stderr", output)
    with progress_bar(3, "image", "sampling", show) as bar:
        for number in range(3):
            bar.note(loss=str(number))
            bar.update()
    assert bool(output.getvalue()) == drawn
    if drawn:
        assert "sampling" in output.getvalue()
        assert "3/3" in output.getvalue()
        assert "loss 2" in output.getvalue()


def test_a_notebook_has_a_bar_although_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setattr(progress_module.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with progress_bar(3, "image", "sampling") as bar:
        bar.update(3)
    assert "3/3" in output.getvalue()


@pytest.mark.parametrize("form", [progress_bar, working])
def test_the_time_goes_on_while_a_step_takes_long(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "TICK", 0.02)
    output = Terminal()
    monkeypatch.setattr(sys, "stderr", output)
    with working("computing fid") if form is working else progress_bar(3, "image", "computing fid"):
        until = time.monotonic() + 30
        before = len(output.getvalue())
        while len(output.getvalue()) == before and time.monotonic() < until:
            time.sleep(0.01)
        assert "computing fid" in output.getvalue()[before:]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_has_lines_with_the_loss_from_the_first_steps() -> None:
    clock, file = Clock(), io.StringIO()
    lines = _Lines(1000, "step", "mine", 100, True, file, clock)
    for step in range(101, 111):
        clock.now += 0.1
        lines.note(f"loss {step / 1000}")
        lines.update(1)
    assert file.getvalue().splitlines() == [
        "mine: 101 of 1,000 steps, 1 min 30 s left, loss 0.101",
        "mine: 110 of 1,000 steps, 1 min 29 s left, loss 0.11",
    ]
    clock.now += 60
    lines.close()
    assert file.getvalue().splitlines()[-1] == "mine: 110 of 1,000 steps, ended after 1 min 1 s, loss 0.11"


def test_lines_grow_apart_and_go_on_without_progress() -> None:
    clock, file = Clock(), io.StringIO()
    lines = _Lines(None, "image", "sample", 0, False, file, clock)
    times, seen = [], 0
    for second in range(1, 40_000):
        clock.now = 1000.0 + second
        lines.tick()
        if file.getvalue().count("\n") > seen:
            seen += 1
            times.append(second)
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == FIRST
    assert min(gaps) == 10
    assert max(gaps) == MOST
    assert gaps == sorted(gaps)
    assert file.getvalue().splitlines()[0] == "sample: 0 images, 5.0 s so far"


def test_short_work_has_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    with progress_bar(3, "image", "sampling") as bar:
        bar.update(3)
    assert output.getvalue() == ""


def test_a_full_or_closed_log_file_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    for file in (Full(), closed := io.StringIO()):
        closed.close()
        _Lines(9, "step", "mine", 0, True, file).update(1)
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(3, "image", "sampling") as bar:
        bar.update()


def test_the_commands_show_what_they_do_in_a_log_file(
    cli: Cli, tiny_run: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a line per update, as if each took longer than the time between two lines."""
    monkeypatch.setattr(progress_module, "FIRST", 0.0)
    monkeypatch.setattr(progress_module, "MOST", 0.0)
    trained = cli("train", "digits", "--out", "run", *tiny)
    assert re.search(r"^digits: 1 of 6 steps, .*, loss \d\.\d{4}$", trained.stderr, re.MULTILINE)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(tuning, "TRIED", 1)
    monkeypatch.setitem(fitting.FINE, "tolerance", 0.1)
    tuned = cli("tune", "run", "--nfe", "3", "--images", "8")
    assert "tune 3 steps: 1 of 7 rounds" in tuned.stderr
    assert "tune 3 steps: 7 of 7 rounds, ended" in tuned.stderr
    distilled = cli("distill", "run", "--out", "map", *tiny, "training.steps=2", "teacher.images=8")
    assert "sample: 8 of 8 images" in distilled.stderr
    assert "distillation: 1 of 2 steps" in distilled.stderr

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return compute(*arguments)

    compute = measure._compute
    monkeypatch.setattr(measure, "_compute", slow)
    monkeypatch.setattr(progress_module, "TICK", 0.01)
    measured = cli("evaluate", "run", "--reference", "run", "--features", "pixels", "--count", "8", "--metrics", "kid")
    assert re.search(r"^features of the \w+ run: 8 of 8 images", measured.stderr, re.MULTILINE)
    assert re.search(r"^computing kid: .* so far$", measured.stderr, re.MULTILINE)
