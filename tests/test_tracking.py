"""Trackers receive the log and the contact sheets, and nothing that is wrong with them stops training."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import GeneralTracker

from conftest import Cli
from quarterarc.common.errors import InputError
from quarterarc.training import tracking
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.tracking import _identity


class Recorder(GeneralTracker):  # type: ignore[misc]
    """A tracker that records what it receives."""

    name = "recorder"
    requires_logging_directory = False
    received: ClassVar[list[tuple[Any, ...]]] = []
    fails: ClassVar[str] = ""

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        if self.fails == "start":
            raise RuntimeError("no account:\nlog in")
        self.received.append(("start", self.project))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.received.append(("configuration", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        if self.fails == "log":
            raise ConnectionError("the service is down")
        self.received.append(("log", step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.received.append(("images", step, {name: images[0].shape for name, images in values.items()}))

    def finish(self) -> None:
        self.received.append(("finish",))


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "received", [])


PATH = f"training.track={__name__}:Recorder"


def test_a_tracker_receives_recipe_lines_and_contact_sheets(tmp_path: Path, tiny: Sequence[str]) -> None:
    train(read_recipe("digits", [*tiny, PATH]), tmp_path, progress=False)
    kinds = [kind for kind, *_ in Recorder.received]
    assert kinds == ["start", "configuration", "log", "log", "log", "images", "finish"]
    fields = Recorder.received[1][1]
    assert (fields["training.batch"], fields["network.multipliers"], fields["head"]) == (8, "(1, 2)", "both")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line, (_, step, values) in zip(lines, Recorder.received[2:5], strict=True):
        assert step == line["step"]
        assert {name: line[name] for name in ("loss", "velocity", "gradient_norm", "learning_rate")}.items() <= (
            values.items()
        )
    assert Recorder.received[5] == ("images", 6, {"samples": (134, 134, 3)})  # 2 rows of 2 images, in colour


def test_trackers_are_ended_if_training_does_not_begin(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe("digits", [*tiny, PATH, "training.steps=1"])
    train(recipe, tmp_path / "run", progress=False)
    Recorder.received.clear()
    with pytest.raises(InputError, match=r"complete at step 1, and optimizer\.clip would have no effect"):
        train(recipe, tmp_path / "run", fields={"optimizer.clip": 2}, resume=True, progress=False)
    assert [kind for kind, *_ in Recorder.received] == ["start", "configuration", "finish"]
    Recorder.received.clear()
    monkeypatch.setattr("quarterarc.training.trainer.write_training_sheet", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(recipe, tmp_path / "other", progress=False)
    assert [kind for kind, *_ in Recorder.received] == ["start", "configuration", "finish"]


def test_a_tracker_that_fails_is_left_and_training_goes_on(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recorder, "fails", "log")
    with caplog.at_level(logging.WARNING, "quarterarc"):
        train(read_recipe("digits", [*tiny, PATH]), tmp_path, progress=False)
    messages = [record.message for record in caplog.records if "tracker" in record.message]
    assert [message.endswith("receives nothing more (the service is down); training goes on") for message in messages]
    assert len(messages) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tensorbord", "tensorboard"),
        ("nobody:Tracker", "cannot import the tracker 'nobody:Tracker'"),
        ("pathlib:Path", "not a class derived from accelerate.tracking.GeneralTracker"),
        ("tensorboard,absent", "unknown tracker 'absent'"),
        ("clearml", "training.track=clearml needs clearml, which is not installed: pip install clearml"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_one_line_before_anything_starts(
    value: str, message: str, cli: Cli, tiny: Sequence[str], tmp_path: Path
) -> None:
    done = cli("train", "digits", "--out", "run", *tiny, f"training.track={value}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_started_is_one_line(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "fails", "start")
    with pytest.raises(InputError, match=r"cannot be started \(no account: log in\): set it up, or leave it out"):
        train(read_recipe("digits", [*tiny, PATH]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_curves_and_pictures_once_also_of_a_resumed_run(tmp_path: Path, tiny: Sequence[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fields = [*tiny, "training.sample_every=4"]
    train(read_recipe("digits", [*fields, "training.steps=4"]), tmp_path, progress=False)
    train(read_recipe("digits", [*fields, "training.track=tensorboard"]), tmp_path, resume=True, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert [event.step for event in events.Images("samples")] == [4, 6]
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]


def test_no_tracker_is_used_if_the_list_is_empty(tmp_path: Path, tiny: Sequence[str]) -> None:
    train(read_recipe("digits", [*tiny, "training.track=[]", "training.steps=1"]), tmp_path, progress=False)
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_and_trackio_continue_a_resumed_run_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Fake:
        requires_logging_directory = False

        def __init__(self, project: str, **options: Any) -> None:
            made.append((project, options))

        def start(self) -> None: ...

    monkeypatch.setattr(tracking, "_class_of", lambda name: Fake)
    for step in (0, 5):
        tracking._started("wandb", tmp_path, step)
    tracking._started("wandb", tmp_path, 0)  # a new run in the same folder
    first, resumed, new = [options["id"] for _, options in made]
    assert first == resumed != new
    assert made[1] == ("quarterarc", {"name": tmp_path.name, "dir": str(tmp_path), "id": first, "resume": "allow"})
    tracking._started("trackio", tmp_path, 5)
    assert made[-1][1] == {"name": f"{tmp_path.name}-{new}", "resume": "allow"}
    assert _identity(tmp_path, 1) == new
