"""Scales: the papers' settings take their first steps on generated data; a classifier tells images apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec
from quarterarc.evaluation.extractors import Extractor
from quarterarc.experiments.classifier import Classifier, main, trained_classifier
from quarterarc.experiments.lab import Lab
from quarterarc.experiments.measures import leading
from quarterarc.experiments.scales import Scale, scale
from quarterarc.experiments.zhang2023.ablation import DDIM, OURS
from quarterarc.storage.checkpoints import load


def write_images(folder: Path, count: int, height: int, width: int) -> Path:
    random = np.random.Generator(np.random.PCG64(0))
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


class Means(torch.nn.Module):
    """Features for tests: the mean of each channel, and where the image is bright."""

    kinds = ("pool", "spatial")

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 2)
        return {"pool": small.mean((2, 3)), "spatial": small.flatten(1)}


def shrunk(found: Scale) -> Scale:
    """The same data, schedule, objective and levels, with a network of 8 channels and two steps of two images."""
    recipe = found.recipe
    network = recipe.network.model_copy(update={"channels": 8, "blocks": 1, "attention": (), "dropout": 0.0})
    training = recipe.training.model_copy(
        update={"steps": 2, "batch": 2, "sample_count": 1, "compile": False, "precision": "fp32"}
    )
    data = recipe.data.model_copy(update={"limit": None})
    small = recipe.model_copy(update={"network": network, "training": training, "data": data})
    return replace(found, recipe=small, images=4, batch=4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cifar10", (32, 32)), ("cifar10-short", (32, 32)), ("celeba64", (218, 178)), ("church256", (300, 256))],
)
def test_the_papers_settings_take_their_first_steps(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 6, *shape)
    found = shrunk(scale(name, data=str(folder)))
    lab = Lab(found, tmp_path / "cache", progress=False)
    lab.__dict__["extractor"] = Extractor.of("means", Means())
    side = scale(name).recipe.data.size
    for row in (DDIM, OURS) if name == "cifar10" else (OURS,):
        values = lab.measured(row.cell(found, 2, 0))
        assert values["nfe"] == 2
        assert set(found.metrics) <= set(values)
        denoise = load(row.arm.folder(found, 0, lab.cache))
        assert denoise.shape == (3, side, side)


def labelled(folder: Path) -> Path:
    """Two classes that anybody can tell apart: bright at the top, or at the bottom."""
    random = np.random.Generator(np.random.PCG64(1))
    for label in (0, 1):
        (folder / str(label)).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[8 * label : 8 * label + 8] += 120
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def test_a_classifier_is_trained_once_and_tells_its_classes_apart(tmp_path: Path) -> None:
    spec = DataSpec(source=str(labelled(tmp_path / "images")), size=16)
    made = trained_classifier(spec, tmp_path / "kept", progress=False, steps=20)
    (weights,) = (tmp_path / "kept").glob("*.safetensors")
    written = weights.stat().st_mtime_ns
    again = trained_classifier(spec, tmp_path / "kept", progress=False, steps=20)
    assert weights.stat().st_mtime_ns == written
    assert made.describe() == again.describe()
    images = torch.full((2, 3, 16, 16), 60, dtype=torch.uint8)
    images[0, :, :8], images[1, :, 8:] = 180, 180
    features = made(images)
    assert features["logits"].argmax(1).tolist() == [0, 1]
    assert features["pool"].shape == (2, 128)
    assert features["spatial"].shape == (2, 8 * 64)  # for sFID: few enough for a covariance, and with their places


def test_spatial_features_keep_their_places() -> None:
    torch.manual_seed(0)
    network = Classifier(3, 2).eval()
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, :8, :8] = 255
    with torch.no_grad():
        one, other = (network(each)["spatial"].reshape(8, 8, 8) for each in (image, image.flip(3)))
    moved = (one - other).abs().sum(0)
    assert moved[:3, :3].mean() > 10 * moved[5:, 3:5].mean()  # what changed is where the corner was


def test_the_classifier_script_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path / "images")
    out = tmp_path / "weights" / "classifier.safetensors"
    assert main(["--data", str(folder), "--size", "16", "--steps", "2", "--out", str(out), "--device", "cpu"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert out.is_file()
    with pytest.raises(InputError, match="label"):
        trained_classifier(DataSpec(source=str(folder / "0"), size=16), tmp_path / "kept", progress=False, steps=1)


def test_test_images_are_those_that_no_arm_has_seen() -> None:
    found = scale("digits")
    data, numbers = found.test_images() or pytest.fail("digits leave some out")
    assert numbers == range(1500, 1797)
    assert data.count == 1797
    assert found.training_data().count == 1500
    whole = found.recipe.data.model_copy(update={"limit": None})
    assert replace(found, recipe=found.recipe.model_copy(update={"data": whole})).test_images() is None


def test_the_leading_grid_is_that_of_ddims_code(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    table = denoise.schedule
    times = [table.time(angle) for angle in leading(denoise, 10)]
    assert times == pytest.approx([901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0])  # seq = range(0, 1000, 100)
    assert [table.time(angle) for angle in leading(denoise, 1000)[:2]] == pytest.approx([1000, 999])
