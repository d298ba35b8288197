"""The page of a run: self-contained, complete, and of no consequence for training."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import threading
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY
from quarterarc.objectives.errors import WeightedErrors
from quarterarc.report import Series, responsive_chart, write_page
from quarterarc.storage.runs import checkpoints, sheet_name, sheets
from quarterarc.training import page as page_module
from quarterarc.training.api import train
from quarterarc.training.background import Background
from quarterarc.training.page import PAGE, Pace, RunPage
from quarterarc.training.previews import FEWEST, FIRST, Previews
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.trainer import Diverged


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with previews, in a folder whose name needs quotes, resumed once."""
    run = tmp_path_factory.mktemp("runs") / "with space"
    fields = [*TINY, "training.sample_every=2"]
    train(read_recipe("digits", [*fields, "training.steps=4"]), run, progress=False)
    train(read_recipe("digits", fields), run, resume=True, progress=False)
    return run


def text_of(run: Path) -> str:
    return (run / PAGE).read_text(encoding="utf-8")


def test_the_page_is_one_file_with_curves_pictures_recipe_and_commands(watched: Path) -> None:
    text = text_of(watched)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing outside of the page
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)
    assert len(re.findall(r'src="data:image/png;base64', text)) == 4  # also of the steps before the run was resumed
    for title in ("Loss", "Errors of the estimates", "Norm of the gradient"):
        assert text.count(f"<title>{title}</title>") == 2  # for wide and narrow screens
    assert unescape(text).count((watched / "recipe.yaml").read_text()) == 1
    commands = [shlex.split(unescape(line)) for line in re.findall(r"<code>(quarterarc .*)</code>", text)]
    assert commands[0] == ["quarterarc", "train", "--out", str(watched), "--resume", "training.steps=12"]
    assert commands[1][:4] == ["quarterarc", "sample", str(watched), "--out"]
    assert "<b>6</b><span>of 6 steps</span>" in text
    assert '<b id="state">complete</b>' in text
    assert "<script>" not in text  # which would load a finished page again and again


def test_charts_of_a_narrow_screen_have_letters_of_12_pixels() -> None:
    wide, narrow = responsive_chart([Series("a", [1, 2], [1, 2])], "t", "x", "y").split("\n<svg")
    assert 'class="chart wide"' in wide
    assert 'class="chart narrow"' in narrow
    width = re.search(r'viewBox="0 0 (\d+) ', narrow)
    assert width is not None
    assert int(width[1]) <= 390 - 2 * 20  # the margins of the page: the chart is not reduced
    assert [int(size) for size in re.findall(r'font-size="(\d+)"', narrow) if int(size) < 12] == []
    places = [float(x) for x in re.findall(r'<text x="([\d.]+)"', narrow)]
    assert max(places) < int(width[1])


def test_nothing_that_is_wrong_with_the_page_stops_training(
    tmp_path: Path, tiny: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place, and damaged files that it is made of."""
    (tmp_path / PAGE).mkdir(parents=True)
    (tmp_path / PAGE / "file").touch()
    with caplog.at_level(logging.WARNING, "quarterarc"):
        train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert [record.message for record in caplog.records if "page" in record.message][1:] == []
    assert f"{PAGE} cannot be written" in caplog.text
    assert checkpoints(tmp_path)[-1].name == "step-00000006"

    shutil.rmtree(tmp_path / PAGE)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "lo\nnull\n')
    (tmp_path / "samples" / sheet_name(3)).write_bytes(b"no picture")
    train(read_recipe("digits", [*tiny, "training.steps=8"]), tmp_path, resume=True, progress=False)
    assert "of 8 steps" in text_of(tmp_path)


def test_the_page_shows_why_a_run_has_ended(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = WeightedErrors.__call__

    def broken(self: WeightedErrors, *arguments: Any) -> Any:
        losses = call(self, *arguments)
        losses.total[0] *= float("nan")
        return losses

    monkeypatch.setattr(WeightedErrors, "__call__", broken)
    with pytest.raises(Diverged):
        train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert "stopped by an error: the gradient is not finite at step 0" in unescape(text_of(tmp_path))


def test_the_page_is_written_on_the_thread_of_the_checkpoints(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only at the end, when nothing is left to train, by the main thread."""
    threads = []

    def noted(*arguments: Any, **values: Any) -> None:
        threads.append((threading.current_thread() is threading.main_thread(), values["active"]))
        write_page(*arguments, **values)

    monkeypatch.setattr(page_module, "write_page", noted)
    monkeypatch.setattr(page_module, "INTERVAL", 0.0)
    monkeypatch.setattr(page_module, "SHARE", float("inf"))
    train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert len(threads) > 2
    assert all(main is not active for main, active in threads)


def test_work_that_is_offered_is_left_out_while_other_work_is_under_way() -> None:
    held, done = threading.Event(), list[str]()
    with Background() as background:
        background.start(lambda: held.wait(30))
        background.offer(lambda: lambda: done.append("left out"))
        held.set()
        background.wait()
        background.offer(lambda: lambda: done.append("page"))
    assert done == ["page"]


def test_previews_come_within_a_minute_and_early_ones_end_with_the_first_regular_one() -> None:
    now = 100.0
    previews = Previews(Path(), 64, every=5000, batch=64, clock=lambda: now)
    times = []
    for second in range(4000):  # a step per second
        now = 100.0 + second
        if previews.early(second + 1):
            times.append(second)
    assert times == [30, 120, 480, 1920]
    assert times[0] == FIRST < 60
    previews = Previews(Path(), 64, every=10, batch=64, clock=lambda: now)
    assert not previews.early(1)
    now += 100
    assert not previews.early(11)


def test_an_early_preview_has_as_many_images_as_take_ten_seconds() -> None:
    previews = Previews(Path(), 64, every=5000, batch=64)
    assert previews.affordable(None) == FEWEST
    assert [previews.affordable(rate) for rate in (0.1, 5.0, 1000.0)] == [FEWEST, 20, 64]
    assert Previews(Path(), 2, every=9, batch=2).affordable(0.1) == 2


def test_pace_does_not_count_the_first_step() -> None:
    times = iter((60.0, 60.5, 61.0, 61.5, 62.0))  # the first step compiles for a minute
    pace = Pace(lambda: next(times))
    for step in range(1, 6):
        pace.add(step)
    assert pace.rate == 2.0


def test_the_commands_of_a_run_with_labels_sample_its_classes(tmp_path: Path) -> None:
    page = RunPage(tmp_path, read_recipe("digits", ["data.labels=true"]), classes=10)
    page.at(5)()
    text = text_of(tmp_path)
    assert "--resume</code>" in text  # to the planned end
    assert "--seeds 0-63 --labels 0-9</code>" in text


def test_sheets_with_names_of_classes_are_not_reduced_on_a_narrow_screen(tmp_path: Path) -> None:
    from quarterarc.storage.pictures import write_png

    (tmp_path / "samples").mkdir()
    write_png(tmp_path / "samples" / sheet_name(5), torch.zeros(1, 8, 8, dtype=torch.uint8))
    for classes, expected in ((10, 1), (None, 0)):
        RunPage(tmp_path, read_recipe("digits", ["data.labels=true"]), classes=classes).at(5)()
        assert text_of(tmp_path).count('<div class="scroll"><img ') == expected
    assert "(max-width: 600px) { .scroll > img { max-width: none; } }" in text_of(tmp_path)


def test_the_page_of_a_flow_map_has_sheets_of_1_2_and_4_evaluations(tmp_path: Path) -> None:
    from quarterarc.storage.pictures import write_png

    (tmp_path / "samples").mkdir()
    for step in range(1, 31):
        for evaluations in (1, 2, 4):
            write_png(tmp_path / "samples" / sheet_name(step, evaluations), torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert list(sheets(tmp_path)[30]) == ["1 evaluation", "2 evaluations", "4 evaluations"]
    page = RunPage(tmp_path, read_recipe("digits", ["objective.name=flow-map"]), processes=4)
    page.at(30)()
    text = text_of(tmp_path)
    assert text.count("<img ") == 3 * page_module.SHOWN
    assert text.count("4 evaluations") == page_module.SHOWN
    assert "torchrun --standalone --nproc-per-node 4 -m quarterarc train --out" in text
    assert "--steps 1" in text
    assert "<script>" in text
