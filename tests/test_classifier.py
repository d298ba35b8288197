"""The label classifier: it learns its classes, its weights are cached, and bad files give one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec
from quarterarc.evaluation.extractors import extractor
from quarterarc.evaluation.extractors.classifier import Classifier, fit, load_classifier, main, trained_classifier


def labelled(folder: Path) -> Path:
    """Two classes of images: bright at the top, or bright at the bottom."""
    random = np.random.Generator(np.random.PCG64(1))
    for label in (0, 1):
        (folder / str(label)).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[8 * label : 8 * label + 8] += 120
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def test_a_classifier_is_trained_once_and_separates_its_classes(tmp_path: Path) -> None:
    spec = DataSpec(source=str(labelled(tmp_path / "images")), size=16)
    first = trained_classifier(spec, tmp_path / "kept", progress=False, steps=20)
    (weights,) = (tmp_path / "kept").glob("*.safetensors")
    written = weights.stat().st_mtime_ns
    second = trained_classifier(spec, tmp_path / "kept", progress=False, steps=20)
    assert weights.stat().st_mtime_ns == written
    assert first.describe() == second.describe()
    images = torch.full((2, 3, 16, 16), 60, dtype=torch.uint8)
    images[0, :, :8], images[1, :, 8:] = 180, 180
    features = first(images)
    assert features["logits"].argmax(1).tolist() == [0, 1]
    assert features["pool"].shape == (2, 128)
    assert features["spatial"].shape == (2, 8 * 64)  # few enough for the covariance of sFID


def test_spatial_features_change_where_the_image_changes() -> None:
    torch.manual_seed(0)
    network = Classifier(3, 2).eval()
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, :8, :8] = 255
    with torch.no_grad():
        original, mirrored = (network(x)["spatial"].reshape(8, 8, 8) for x in (image, image.flip(3)))
    moved = (original - mirrored).abs().sum(0)
    assert moved[:3, :3].mean() > 10 * moved[5:, 3:5].mean()  # the bright corner


def test_the_command_line_writes_a_file_that_load_classifier_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled(tmp_path / "images")
    out = tmp_path / "weights" / "classifier.safetensors"
    assert main(["--data", str(folder), "--size", "16", "--steps", "2", "--out", str(out), "--device", "cpu"]) == 0
    assert "accuracy" in capsys.readouterr().out
    network = load_classifier(out)
    assert (network.channels, network.classes.out_features) == (3, 2)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    features = extractor("classifier", weights=out)(images)
    assert torch.equal(features["pool"], network.eval()(images)["pool"])
    with pytest.raises(InputError, match="need weights"):
        extractor("classifier")


def test_images_without_labels_and_bad_files_raise_input_errors(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "images")
    with pytest.raises(InputError, match="label"):
        trained_classifier(DataSpec(source=str(folder / "0"), size=16), tmp_path / "kept", progress=False, steps=1)
    with pytest.raises(InputError, match="there is no file"):
        load_classifier(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not hold the weights of a classifier"):
        load_classifier(tmp_path / "other.safetensors")


def test_training_stops_after_the_given_steps_or_with_the_batches() -> None:
    batches = [(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.long))] * 3
    for steps, expected in ((2, 2), (5, 3)):
        network = Classifier(1, 2)
        fit(network, batches, steps, progress=False)
        assert int(network.state_dict()["first.1.num_batches_tracked"]) == expected
        assert not network.training


def test_weights_are_deterministic(tmp_path: Path) -> None:
    spec = DataSpec(source=str(labelled(tmp_path / "images")), size=16)
    weights = []
    for name in ("first", "second"):
        trained_classifier(spec, tmp_path / name, progress=False, steps=2)
        (path,) = (tmp_path / name).glob("*.safetensors")
        weights.append(load_file(path))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
