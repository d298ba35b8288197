"""The metric `nearest`: exact neighbours, copies that are planted, and a picture of samples beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, Cli
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.data.holdout import divide
from quarterarc.evaluation.image_files import held_out_images, training_images
from quarterarc.evaluation.measure import evaluate
from quarterarc.evaluation.nearest import copies, nearest, nearest_sheet
from quarterarc.storage.pictures import read_png, write_png
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe


def test_neighbours_are_those_of_exact_distances() -> None:
    drawn = np.random.default_rng(0)
    training = drawn.normal(size=(300, 40)).astype(np.float32) + 100.0  # whose float32 products would cancel
    queries = np.concatenate([drawn.normal(size=(50, 40)).astype(np.float32) + 100.0, training[:3]])
    exact = np.sqrt(((queries[:, None].astype(float) - training[None]) ** 2).mean(2))
    distances, numbers = nearest(queries, training, 3)
    assert np.array_equal(numbers.numpy(), exact.argsort(1)[:, :3])
    assert np.allclose(distances.numpy(), np.sort(exact, 1)[:, :3], rtol=1e-12, atol=0)
    assert distances[-3:, 0].tolist() == [0.0] * 3
    among, others = nearest(training[:7], training, 1, itself=torch.arange(7))
    own = np.sqrt(((training[:7, None].astype(float) - training[None]) ** 2).mean(2))
    own[np.arange(7), np.arange(7)] = np.inf
    assert np.array_equal(others[:, 0].numpy(), own.argmin(1))
    assert np.allclose(among[:, 0].numpy(), own.min(1), rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="300 neighbours of 300"):
        nearest(training, training, 300, itself=torch.arange(300))


def test_planted_copies_are_counted() -> None:
    drawn = torch.Generator().manual_seed(0)
    training, new = torch.rand(200, 64, generator=drawn), torch.rand(30, 64, generator=drawn)
    noisy = training[1:11] + 0.01 * torch.randn(10, 64, generator=drawn)
    twice = torch.cat([training, training[:1]])  # an image that the set contains twice
    assert copies(torch.cat([new, noisy, training[:1]]), twice).tolist() == [False] * 30 + [True] * 11


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with held-out images."""
    run = tmp_path_factory.mktemp("runs") / "held"
    fields = ["data.holdout=0.25", "data.limit=80", "training.steps=1"]
    train(read_recipe("digits", [*TINY, *fields]), run, progress=False)
    return run


def test_the_training_images_of_a_run_are_those_that_it_was_trained_on(held: Path) -> None:
    data = open_data(DataSpec(source="digits", size=8, channels=1, limit=80), progress=False)
    parts = divide(data, 0.25)
    sets = training_images(held), held_out_images(held)
    for part, images in zip(parts, sets, strict=True):
        assert images is not None
        ((_, pixels),) = images.batches(100, lambda _: True)
        assert torch.equal(pixels, data.batch(part.numbers).images)
    assert sets[1] is not None
    assert sets[0].identity != sets[1].identity
    ((_, first),) = training_images(held, limit=5).batches(100, lambda _: True)
    assert torch.equal(first, data.batch(parts[0].numbers[:5]).images)


def test_skipped_images_are_logged_once_for_both_parts(
    tiny: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        write_png(folder / name, torch.zeros(3, 10, 10, dtype=torch.uint8))
    (folder / "bad.png").write_bytes(b"this is no image")
    fields = [f"data.source={folder}", "data.skip_bad=true", "data.holdout=0.25", "training.steps=1"]
    train(read_recipe("digits", [*tiny, *fields]), tmp_path / "run", progress=False)
    caplog.clear()
    assert training_images(tmp_path / "run").count
    assert held_out_images(tmp_path / "run") is not None
    assert caplog.text.count("bad.png") == 1


def test_a_count_never_reaches_images_beyond_the_limit_of_the_run(tiny: tuple[str, ...], tmp_path: Path) -> None:
    train(read_recipe("digits", [*tiny, "data.limit=20", "training.steps=1"]), tmp_path, progress=False)
    assert training_images(tmp_path, limit=50).count == 20
    assert training_images(tmp_path, limit=5).count == 5


def test_the_command_compares_samples_with_training_and_held_out_images(held: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("evaluate", held, "--metrics", "nearest", "--count", "9", "--batch-size", "4", "--steps", "2")
    assert done.returncode == 0, done.stderr
    lines = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert float(lines["share of copies of thumbnails pool features"]) == 0  # of a network that makes noise
    for name in ("of training images to one another:", "of held-out images:"):
        distance = float(next(value for key, value in lines.items() if key.strip() == name))
        assert 0 < distance < float(lines["median distance to the nearest training image:"])
    picture = read_png(held / "nearest.png")
    assert picture.shape == (1, 5 * 68, 2 * (68 + 8 + 200) + 28)  # 9 samples in two columns, each with 3 neighbours
    other = cli("evaluate", held, "--metrics", "nearest,kid", "--reference", "digits", "--count", "9", "--steps", "2",
                "--features", "pixels", "--out", tmp_path / "result.json")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert (tmp_path / "result-nearest.png").is_file()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["nearest"]["held_out_median"] is None
    assert len(result["nearest"]["shown"]) == 9


def test_memorised_images_are_found_and_shown_beside_their_originals(tmp_path: Path, held: Path) -> None:
    training = training_images(held)
    ((_, pixels),) = training.batches(100, lambda _: True)
    made = torch.cat([pixels[:4], torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)])
    result = evaluate(made, held, "nearest", out=tmp_path / "result.json", progress=False)
    assert result["metrics"]["nearest"] == 0.5
    shown = result["nearest"]["shown"]
    assert [row["neighbours"][0] for row in shown[:4]] == [0, 1, 2, 3]
    sheet = read_png(tmp_path / "result-nearest.png")
    assert torch.equal(sheet[:, 2:66, 2:66], sheet[:, 2:66, 78:142])  # the first sample and the image that it copies


def test_images_need_a_reference_and_an_iterable_has_no_picture(tmp_path: Path, held: Path) -> None:
    made = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="nearest: these metrics compare with real images"):
        evaluate(made, None, "nearest", progress=False)
    (tmp_path / "other-nearest.png").mkdir()
    with pytest.raises(InputError, match=r"cannot write to .*other-nearest\.png: it is a folder"):
        evaluate(made, held, "nearest", out=tmp_path / "other.json", progress=False)
    result = evaluate(iter([made]), held, "nearest", out=tmp_path / "result.json", progress=False)
    assert result["nearest"]["picture"] is None


def test_the_page_of_a_run_shows_its_nearest_images(held: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(held, run)
    shutil.copy(next((held / "samples").glob("*.png")), run / "nearest.png")
    train(None, run, resume=True, fields={"training.steps": 2}, progress=False)
    assert "Nearest training images" in (run / "index.html").read_text()


def test_a_sheet_of_one_row_has_one_column() -> None:
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    sheet = nearest_sheet([{"image": 3, "neighbours": [1, 2]}], {3: image}, {1: image, 2: image})
    assert sheet.shape == (1, 68, 68 + 8 + 134)
