"""Held-out images are never trained on, are the same everywhere, and their loss is logged beside that of training."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.data.holdout import divide
from quarterarc.data.images import MemoryImages
from quarterarc.storage.runs import checkpoints
from quarterarc.storage.weights import read_weights
from quarterarc.training.api import train
from quarterarc.training.held_out import FEWEST, MOST, HeldOut, examples_of
from quarterarc.training.recipe_text import read_recipe


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_parts_are_disjoint_and_complete() -> None:
    data = open_data(DataSpec(source="digits", size=8, channels=1, labels=True), progress=False)
    assert data.count is not None
    for share, expected in ((0.1, 180), (1e-6, 1), (0.99999, 1796)):
        trained, held = divide(data, share)
        assert held.count == expected
        assert sorted([*trained.numbers, *held.numbers]) == list(range(data.count))
        assert trained.fingerprint != held.fingerprint
    trained, held = divide(data, 0.1)
    assert "180 held out of training" in trained.description
    batch, whole = held.batch([3, 0]), data.batch(held.numbers[[3, 0]])
    assert torch.equal(batch.images, whole.images)
    assert batch.labels is not None
    assert whole.labels is not None
    assert torch.equal(batch.labels, whole.labels)
    with pytest.raises(IndexError):
        held.batch([180])
    assert np.array_equal(divide(data, 0.1)[1].numbers, held.numbers)


def test_one_image_and_a_stream_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_data(DataSpec(source="digits", size=8, channels=1, limit=1), progress=False)
    with pytest.raises(InputError, match="at least 2 images"):
        divide(one, 0.5)
    monkeypatch.setattr(one, "count", None)
    with pytest.raises(InputError, match="not a stream"):
        divide(one, 0.5)


def test_training_never_reads_a_held_out_image_except_for_their_loss(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images of some epochs, against those that are held out; training reads on another thread meanwhile."""
    read: dict[bool, set[int]] = {True: set(), False: set()}
    here = threading.local()
    batch, held_out_batch = MemoryImages.batch, HeldOut._batch
    sizes = []

    def noted(self: MemoryImages, numbers: Any) -> Any:
        read[getattr(here, "held_out", False)] |= {int(number) for number in numbers}
        return batch(self, numbers)

    def marked(self: HeldOut, places: range) -> Any:
        here.held_out = True
        made = held_out_batch(self, places)
        here.held_out = False
        sizes.append(len(places))
        return made

    monkeypatch.setattr(MemoryImages, "batch", noted)
    monkeypatch.setattr(HeldOut, "_batch", marked)
    fields = [*tiny, "data.holdout=0.4", "data.limit=20", "training.batch=16", "training.accumulate=2"]
    train(read_recipe("digits", fields), tmp_path, progress=False)
    data = open_data(DataSpec(source="digits", size=8, channels=1, limit=20), progress=False)
    trained, held = divide(data, 0.4)
    assert read == {False: {*trained.numbers}, True: {*held.numbers}}
    assert sizes == [8, 8] * 3  # in the parts of the batch, at each line of the log
    assert all(0 < line["held_out_loss"] < 10 for line in log_of(tmp_path))


def test_the_held_out_loss_changes_no_weight_and_is_the_same_in_a_resumed_run(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [*tiny, "data.holdout=0.1", "network.dropout=0.2"]
    train(read_recipe("digits", fields), tmp_path / "whole", progress=False)
    train(read_recipe("digits", [*fields, "training.steps=2"]), tmp_path / "parts", progress=False)
    train(read_recipe("digits", fields), tmp_path / "parts", resume=True, progress=False)
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert [line["held_out_loss"] for line in whole] == [line["held_out_loss"] for line in parts]
    assert len({line["held_out_loss"] for line in whole}) == 3
    monkeypatch.setattr("quarterarc.training.held_out.HeldOut.loss", lambda *_: 1.0)
    train(read_recipe("digits", fields), tmp_path / "without", progress=False)
    weights = [read_weights(checkpoints(tmp_path / name)[-1] / "raw.safetensors") for name in ("whole", "without")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    page = (tmp_path / "whole" / "index.html").read_text()
    assert "<span>held-out loss</span>" in page
    with pytest.raises(InputError, match=r"differs in data\.holdout"):
        train(read_recipe("digits", [*fields, "data.holdout=0"]), tmp_path / "whole", resume=True, progress=False)


def test_the_held_out_loss_of_a_flow_map(tmp_path: Path, tiny: Sequence[str]) -> None:
    fields = [*tiny, "data.holdout=0.1", "objective.name=flow-map", "training.steps=2", "training.drop_labels=0.5"]
    train(read_recipe("digits", [*fields, "data.labels=true"]), tmp_path, progress=False)
    assert 0 < log_of(tmp_path)[-1]["held_out_loss"] < 10


def test_the_held_out_loss_takes_a_small_share_of_the_time() -> None:
    recipe = read_recipe("digits", ["data.holdout=0.1"])
    assert examples_of(recipe) == 0.02 * 3 * 50 * 64
    assert examples_of(read_recipe(recipe, ["training.log_every=1"])) == FEWEST
    assert examples_of(read_recipe(recipe, ["training.log_every=1000"])) == MOST
