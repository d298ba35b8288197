"""Class labels: from folders at any level, over splits, spread by a limit, balanced in training, and by name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from data_samples import encode, patch, table
from quarterarc import generate, load, tune
from quarterarc.cli.arguments import parse_labels
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, ImageData, from_memory, open_data
from quarterarc.data.labels import Labels, limited
from quarterarc.data.order import balanced_indices
from quarterarc.sampling import fitting
from quarterarc.sampling.plans import Sampling, note_missing_labels, numbered_labels
from quarterarc.sampling.sheets import labels_of_sheet, rows_of
from quarterarc.sampling.tuned_grids import read_tuned
from quarterarc.storage.pictures import read_png
from quarterarc.storage.runs import newest_checkpoint
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(patch(number, 8, 8)))
    return folder


def opened(source: Path | str, **fields: Any) -> ImageData:
    spec = DataSpec.model_validate({"source": str(source), "size": 8, "labels": True, **fields})
    return open_data(spec, progress=False)


def classes(data: ImageData) -> list[str]:
    assert data.count is not None
    labels = data.batch(range(data.count)).labels
    assert labels is not None
    return [data.class_names[label] if data.class_names else str(label) for label in labels.tolist()]


def message_of(source: Path | str, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(source, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders -----------------------------------------------------------------------------------------------------


def test_the_classes_are_the_first_folders_that_differ_or_those_of_a_level(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep", "set/v1/cat/a/0.png", "set/v1/cat/b/0.png", "set/v1/dog/a/0.png")
    assert classes(opened(deep)) == ["cat", "cat", "dog"]
    assert classes(opened(deep, labels="folder")) == ["cat", "cat", "dog"]
    assert classes(opened(deep, label_level=3)) == ["cat", "cat", "dog"]
    assert classes(opened(deep, label_level=-1)) == ["a", "b", "a"]
    assert classes(opened(deep, label_level=-2)) == ["cat", "cat", "dog"]
    assert classes(opened(deep, label_level=1)) == ["set"] * 3
    assert "0.png lies 4 folders deep; give a level" in message_of(deep, label_level=5)
    with pytest.raises(InputError, match="label_level"):
        DataSpec(source="x", size=8, label_level=0)
    single = write(tmp_path / "single", "only/0.png")
    assert classes(opened(single)) == ["only"]
    loose = write(tmp_path / "loose", "cat/0.png", "1.png")
    assert "but 1.png lies in none" in message_of(loose)


def test_train_and_val_trees_are_splits_with_the_classes_of_all(tmp_path: Path) -> None:
    tree = write(
        tmp_path / "tree", "train/bee/0.png", "train/cat/0.png", "Validation/ant/0.png", "Validation/cat/0.png"
    )
    train, val = opened(tree), opened(tree, split="val")
    assert list(train.class_names) == list(val.class_names) == ["ant", "bee", "cat"]
    assert (classes(train), classes(val)) == (["bee", "cat"], ["ant", "cat"])
    assert train.notes[0] == (f"folder {tree}: the split 'train' has 2 images; 2 in Validation are left out")
    assert opened(tree, labels=False).count == 2
    assert "has no split 'test' (splits: Validation, train)" in message_of(tree, split="test")
    flat = write(tmp_path / "flat", "train/0.png", "val/0.png")
    assert opened(flat, labels=False).count == 1
    assert "are splits (train, val), not classes" in message_of(flat)
    no_tree = write(tmp_path / "no", "train/0.png", "bus/0.png")
    assert classes(opened(no_tree)) == ["bus", "train"]
    assert "has no split 'val'; give the files" in message_of(no_tree, split="val")


def test_folders_that_could_be_classes_are_mentioned(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "cat/0.png", "dog/0.png", "emu/0.png", "fox/0.png")
    hint = "its 4 subfolders (cat, dog, emu, ...) would be classes with data.labels=folder"
    assert hint in opened(folder, labels=False).notes
    assert hint not in opened(folder).notes
    assert not any("would be classes" in note for note in opened(write(folder, "0.png"), labels=False).notes)


def test_labels_of_another_kind_than_the_source_has_are_an_error(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    folder = write(tmp_path / "set", "cat/0.png", "dog/0.png")
    parquet.write_table(table([encode(patch(0))], [0]), tmp_path / "a.parquet")
    assert "has no labels by 'column': give data.labels=folder or data.labels=file or data.labels=true" in message_of(
        folder, labels="column"
    )
    assert "has no labels by 'folder': give data.labels=column or data.labels=true" in message_of(
        tmp_path / "a.parquet", labels="folder"
    )
    assert "digits has no labels by 'file': give data.labels=true" in message_of("digits", labels="file")
    assert opened(tmp_path / "a.parquet", labels="column").classes == 1
    assert "dataset.json (EDM's layout), or a file with the ending .cls" in message_of(folder, labels="file")


def test_text_that_is_a_number_of_thousands_of_digits_is_a_class(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    cells = arrow.table({"image": [encode(patch(0, 8, 8))] * 3, "label": ["10", "9" * 5000, "9"]})
    parquet.write_table(cells, tmp_path / "a.parquet")
    assert classes(opened(tmp_path / "a.parquet")) == ["10", "9" * 5000, "9"]


# --- the limit ---------------------------------------------------------------------------------------------------


def test_a_limit_is_spread_over_the_classes() -> None:
    labels = Labels(np.array([0] * 6 + [2] * 3 + [1] * 1 + [0] * 2), 3)
    assert limited(labels, 12, 5).tolist() == [0, 1, 6, 7, 9]
    assert limited(labels, 12, 3).tolist() == [0, 6, 9]
    assert limited(labels, 12, 9).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # the smaller classes are used up
    assert limited(labels, 12, 12).tolist() == limited(labels, 12, None).tolist() == list(range(12))
    assert limited(None, 12, 3).tolist() == [0, 1, 2]


def test_the_limit_of_every_source_is_spread(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet
    from datasets import Dataset

    images = [encode(patch(number, 8, 8)) for number in range(6)]
    numbers = [0, 0, 0, 0, 1, 1]
    for number, image in enumerate(images):
        path = tmp_path / "folder" / "ab"[numbers[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    parquet.write_table(table(images, numbers), tmp_path / "a.parquet")
    Dataset(table(images, numbers)).save_to_disk(tmp_path / "saved")
    pixels = np.stack([patch(number, 8, 8) for number in range(6)]).transpose(0, 3, 1, 2)
    spec = DataSpec(source="memory", size=8, labels=True, limit=3)
    pictures = [Image.fromarray(patch(number, 8, 8)) for number in range(6)]
    for data in (
        *(opened(tmp_path / name, limit=3) for name in ("folder", "a.parquet", "saved")),
        open_data(spec, images=(pixels, numbers)),
        open_data(spec, images=(pictures, numbers)),
    ):
        batch = data.batch(range(3))
        assert (batch.images.numpy() == pixels[[0, 1, 4]]).all()
        assert batch.labels is not None
        assert batch.labels.tolist() == [0, 0, 1]
        assert any(mark in data.name(2) for mark in ("b/4.png", "row 4", "image 4"))  # type: ignore[attr-defined]
        assert data.classes == 2
    assert opened(tmp_path / "a.parquet", limit=3).fingerprint != opened(tmp_path / "a.parquet").fingerprint
    digits = opened("digits", channels=1, limit=25)
    assert np.bincount(digits.batch(range(25)).labels.numpy()).tolist() == [3] * 5 + [2] * 5  # type: ignore[union-attr]
    assert torch.equal(from_memory(pixels, limit=3).batch(range(3)).images, torch.from_numpy(pixels[:3]))


# --- training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three named classes of 2, 4 and 6 images, whose classes take turns."""
    folder, run = tmp_path_factory.mktemp("set"), tmp_path_factory.mktemp("run") / "labelled"
    write(folder, *(f"{name}/{number}.png" for name, count in COUNTS.items() for number in range(count)))
    fields = {"data.source": str(folder), "data.labels": "folder", "data.balanced": True, "training.drop_labels": 0.25}
    train(read_recipe("digits", TINY), run, fields={**fields, "training.sample_count": 9}, progress=False)
    return run


COUNTS = {"ant": 2, "bee": 4, "cow": 6}


def test_balanced_classes_take_turns_and_every_image_its_own() -> None:
    places = [np.array([0, 5]), np.array([1, 2, 3, 4]), np.array([6])]
    images = balanced_indices(range(36), 7, places).reshape(12, 3)
    label_of = {int(image): label for label, members in enumerate(places) for image in members}
    assert all(sorted(label_of[image] for image in turn) == [0, 1, 2] for turn in images.tolist())
    counts = np.bincount(images.ravel(), minlength=7)
    assert counts.tolist() == [6, 3, 3, 3, 3, 6, 12]  # 12 per class, equally often within it
    assert len({tuple(label_of[image] for image in turn) for turn in images.tolist()}) > 1  # in changing orders
    assert balanced_indices([35, 3, 20], 7, places).tolist() == images.ravel()[[35, 3, 20]].tolist()
    assert (balanced_indices(range(36), 8, places) != images.ravel()).any()


def test_balanced_training_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.balanced=true needs images with labels \(data\.labels=true\)"):
        train(read_recipe("digits", TINY), tmp_path / "run", fields={"data.balanced": True}, progress=False)
    assert not (tmp_path / "run").exists()


def test_contact_sheets_of_a_run_have_a_row_per_class(labelled: Path) -> None:
    plain = (3 * 66 + 2, 3 * 66 + 2)  # 9 images of 8x8, enlarged eight times
    for name in ("training-images.png", "samples/step-00000006.png"):
        height, width = read_png(labelled / name).shape[1:]
        assert height == plain[0]
        assert width > plain[1] - 66  # the names are before the rows


def test_rows_of_a_sheet_are_classes() -> None:
    assert labels_of_sheet(3, 9) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert labels_of_sheet(10, 40) == [label for label in range(10) for _ in range(4)]
    assert labels_of_sheet(100, 16) == [label for label in (0, 25, 50, 75) for _ in range(4)]
    assert labels_of_sheet(5, 1) == [0]
    assert rows_of([2, 0, None, 2, 0, 2], 4, ["a", "b", "c"]) == ([[1, 4], [0, 3]], ["a", "c"])


# --- sampling ----------------------------------------------------------------------------------------------------


def test_labels_are_given_by_number_range_or_name(labelled: Path, tmp_path: Path, cli: Any) -> None:
    assert parse_labels("cat,dog,3,5-7, big-cat ") == ["cat", "dog", 3, 5, 6, 7, "big-cat"]
    assert parse_labels(None) is None
    assert parse_labels('"a, b" ,c,"10","say ""x""", "",d"e') == ["a, b", "c", "10", 'say "x"', "", 'd"e']
    done = cli("sample", labelled, "--out", "named", "--seeds", "0-4", "--labels", "cow,ant", "--steps", 2)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "named/samples.json").read_text())
    assert about["image_labels"] == {"0": 2, "1": 0, "2": 2, "3": 0, "4": 2}
    assert about["class_names"] == {"0": "ant", "2": "cow"}
    sheet = read_png(tmp_path / "named/contact-sheet.png")
    assert sheet.shape[1] == 2 * 66 + 2
    again = cli("sample", labelled, "--out", "named", "--seeds", "0-4", "--labels", "2,0", "--steps", 2)
    assert again.returncode == 0  # the same images: the labels by number
    assert "no labels were given" not in done.stderr + again.stderr
    without = cli("sample", labelled, "--out", "without", "--seeds", "0", "--steps", 2)
    assert without.returncode == 0
    assert without.stderr.count("no labels were given") == 1
    assert "--labels takes numbers, 0 to 2, or names" in without.stderr
    for labels, reason in (
        ("cat", "unknown class 'cat'"),
        ("3", "with the labels 0..2, got the label 3"),
        ("", "whole"),
    ):
        done = cli("sample", labelled, "--out", "other", "--labels", labels)
        assert done.returncode == 2
        assert reason in done.stderr
    denoise = load(labelled)
    commas = replace(denoise, class_names=("a, b", "2", "cow"))
    assert numbered_labels(commas, parse_labels('"a, b",cow,"2",2')) == [0, 2, 1, 2]
    with pytest.raises(
        InputError, match=r"unknown class 'a'.*number from 0 to 2; a name with a comma in double quotes"
    ):
        numbered_labels(commas, parse_labels("a, b"))
    images = generate(denoise, range(3), steps=2, labels=["bee", 1, "bee"], progress=False)
    for one in ("bee", 1, np.int64(1), torch.tensor(1), np.array([1, 1, 1])):
        assert torch.equal(images, generate(denoise, range(3), steps=2, labels=one, progress=False))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'cat': the model's classes have no names; give numbers"):
        numbered_labels(replace(denoise, class_names=()), ["cat"])
    for label in ("cat", 0):
        with pytest.raises(InputError, match=f"trained without labels, got the label {label}: leave labels out"):
            numbered_labels(replace(denoise, classes=None, class_names=()), [label])
    with pytest.raises(InputError, match=r"a label is the number or the name of a class, got 1\.5"):
        numbered_labels(denoise, [1.5])  # type: ignore[list-item]


def test_labels_outside_the_classes_are_an_error_with_every_sampler(labelled: Path) -> None:
    denoise = load(labelled)
    without = replace(denoise, unlabelled=False)
    for network, labels, wrong in ((denoise, [11, 2], 11), (denoise, [-1, 2], -1), (without, [3, 2], 3)):
        for sampler in ("ddim", "multistep"):
            with pytest.raises(InputError, match=rf"with the labels 0\.\.2, got the label {wrong}"):
                generate(network, range(2), sampler, 2, labels=labels, progress=False)
    assert generate(denoise, range(2), "ddim", 2, labels=[3, 2], progress=False).isfinite().all()  # 3 is "no label"


def test_the_note_on_missing_labels_is_for_models_that_can_do_without(
    labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    denoise = load(labelled)
    with caplog.at_level("INFO", "quarterarc"):
        note_missing_labels(replace(denoise, unlabelled=False), None)
        assert not caplog.text
        note_missing_labels(denoise, None)
    assert "no labels were given" in caplog.text


def test_a_grid_is_tuned_to_a_guided_flow_and_used_with_it_alone(
    labelled: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fitting.FINE, "tolerance", 1e-2)  # other tests measure how good a tuned grid is
    run = Path(shutil.copytree(labelled, tmp_path / "run"))
    words = ("--nfe", "6", "--images", "8", "--no-weights")
    done = cli("tune", run, *words, "--guidance", "2")
    assert done.returncode == 0, done.stderr
    assert "6 evaluations (3 steps after a free first one)" in done.stdout
    assert "Sample with --guidance 2.0 --labels LIST --grid tuned" in done.stdout
    cli("tune", run, "--nfe", "3", *words[2:])
    guided, plain = read_tuned(newest_checkpoint(run))
    assert (guided.flow, guided.steps, guided.nfe) == ("guided by 2.0", 3, 6)
    assert (plain.flow, plain.steps, plain.nfe) == (None, 3, 3)
    denoise = load(run)
    for guidance, tuned in ((None, plain), (2.0, guided)):
        plan = Sampling(steps=3, grid="tuned", guidance=guidance).plan(denoise)
        assert plan.angles.tolist() == list(tuned.angles)
    with pytest.raises(InputError, match=r"guided by 3\.0 \(tuned: .*\): run `quarterarc tune --guidance 3\.0` for it"):
        Sampling(steps=3, grid="tuned", guidance=3.0).plan(denoise)
    with pytest.raises(InputError, match="with or without guidance, and this one is projected"):
        Sampling(steps=3, grid="tuned", guidance=2.0, projection="image").plan(denoise)
    assert tune(denoise, 3, images=8, weights=False, guidance=2.0, progress=False).flow == "guided by 2.0"


def test_guidance_of_a_network_without_classes_is_an_error(tiny_run: Path, cli: Any) -> None:
    done = cli("tune", tiny_run, "--nfe", "6", "--guidance", "2")
    assert done.returncode == 2
    assert "guidance needs a network that was trained with labels (data.labels=true): leave it out" in done.stderr


def test_the_commands_of_the_page_run(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As they are written in docs/labels.md, with fewer images, steps and parameters."""
    monkeypatch.setitem(fitting.FINE, "tolerance", 1e-2)
    page = (Path(__file__).parent.parent / "docs/labels.md").read_text(encoding="utf-8")
    lines = re.findall(r"^quarterarc (.+)$", page, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "sample", "tune", "sample", "evaluate"]
    small = {"0-63": "0-3", "20": "6", "10": "3", "1000": "40"}
    more = {"train": TINY, "tune": ("--images", "8", "--no-weights"), "evaluate": ("--steps", "2")}
    for line in lines:
        words = [small.get(word, word) for word in shlex.split(line)]
        done = cli(*words, *more.get(words[0], ()))
        assert done.returncode == 0, (line, done.stderr)
    assert len(list((tmp_path / "tuned").glob("00*.png"))) == 4
