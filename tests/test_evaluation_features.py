"""Features: equal for equal pixels, for any storage, number of processes or interrupt; extractors by name."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quarterarc.common.devices import Processes
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, RawBatch, open_data
from quarterarc.data.image_set import ImageSet
from quarterarc.evaluation import evaluate
from quarterarc.evaluation import features as features_module
from quarterarc.evaluation.extractors import Extractor, extractor
from quarterarc.evaluation.extractors.digits import HELD_OUT, WEIGHTS
from quarterarc.evaluation.extractors.inception import FILE, Inception, find_weights, load_inception, resize_tf1
from quarterarc.evaluation.features import ImageFeatures, collect
from quarterarc.evaluation.image_files import NpzSet, open_set
from quarterarc.evaluation.sets import BatchSet, TensorSet
from quarterarc.evaluation.statistics import Statistics
from quarterarc.storage.pictures import write_png
from quarterarc.storage.weights import save_tensors


@pytest.fixture(scope="module")
def digits() -> RawBatch:
    data = open_data(DataSpec(source="digits", size=8, channels=1, labels=True), progress=False)
    return data.batch(range(data.count or 0))


def write_folder(folder: Path, images: Iterable[Tensor]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        write_png(folder / f"{number:04d}.png", image)
    return folder


# the digits classifier


def test_digits_classifier_classifies_held_out_digits(digits: RawBatch) -> None:
    held = torch.arange(len(digits.images)) % HELD_OUT == HELD_OUT - 1
    assert digits.labels is not None
    made = extractor("digits")(digits.images[held])
    assert (made["logits"].argmax(1) == digits.labels[held]).double().mean() >= 0.98
    assert made["pool"].shape == (359, 64)
    assert WEIGHTS.stat().st_size < 300_000


def test_digits_classifier_classifies_enlarged_digits(digits: RawBatch) -> None:
    enlarged = digits.images[:200].repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert digits.labels is not None
    made = extractor("digits")(enlarged)
    assert (made["logits"].argmax(1) == digits.labels[:200]).double().mean() >= 0.95


# extractors


def test_description_contains_name_weights_and_resize() -> None:
    description = extractor("digits").describe()
    assert description["name"] == "digits"
    assert "16x16" in description["resize"]
    assert len(description["weights_sha256"]) == 64
    assert extractor("digits").weights == description["weights_sha256"]
    changed: Any = extractor("digits").network
    changed.first.weight.data[0, 0, 0, 0] += 1e-6
    assert Extractor.of("digits", changed).weights != description["weights_sha256"]


def test_images_of_another_dtype_or_shape_raise(digits: RawBatch) -> None:
    take = extractor("digits")
    with pytest.raises(InputError, match=r"quarterarc.to_uint8\(images\)"):
        take(digits.images[:2].float())
    with pytest.raises(InputError, match="3 channels"):
        take(digits.images[:2].expand(-1, 3, -1, -1))
    with pytest.raises(InputError, match="64x64 pixels, but 'digits' features need sides of 8 to 32 pixels"):
        take(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match="uint8 of shape"):
        TensorSet(torch.zeros(2, 1, 8, 8))


def test_unknown_names_and_superfluous_weights_raise() -> None:
    with pytest.raises(
        InputError,
        match=r"did you mean 'digits'\?.*dinov2, efficientnet, inception, pixels, thumbnails; or an import path",
    ):
        extractor("digit")
    with pytest.raises(InputError, match="take no weights"):
        extractor("digits", weights="a.pth")


class Brightness(nn.Module):
    """A network from outside the package."""

    resize = "none at all"

    def forward(self, images: Tensor) -> Any:
        return images.flatten(1).double().mean(1, keepdim=True)


class Broken(Brightness):
    def forward(self, images: Tensor) -> Any:
        return {"pool": images}


@pytest.fixture
def external_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("their_features")
    module.Brightness, module.ready, module.broken, module.number = Brightness, Brightness(), Broken(), 7
    monkeypatch.setitem(sys.modules, "their_features", module)


@pytest.mark.parametrize("name", ["their_features:Brightness", "their_features:ready"])
def test_extractors_are_found_by_import_path(external_module: None, name: str, digits: RawBatch) -> None:
    take = extractor(name)
    assert take.describe()["resize"] == "none at all"
    expected = digits.images[:5].float().flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(take(digits.images[:5])["pool"], expected)
    result = evaluate(digits.images[:50], digits.images[50:], ["fid"], features=name, progress=False)
    assert result["extractor"]["name"] == name


def test_networks_that_cannot_be_used_raise(external_module: None, digits: RawBatch) -> None:
    for name, message in (
        ("their_features:nothing", "no attribute 'nothing'"),
        ("no_such_package:it", "No module named"),
        ("their_features:number", "is a int: a class or function is expected"),
    ):
        with pytest.raises(InputError, match=message):
            extractor(name)
    with pytest.raises(InputError, match=r"returns pool features of shape \(5, 1, 8, 8\) for 5 images"):
        extractor("their_features:broken")(digits.images[:5])


# inception


def tf1_resize(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's loop over pixels (`resize_bilinear_op.cc`), in float32, without half-pixel centres: (H, W)."""
    height, width = image.shape
    scale_y, scale_x = np.float32(height / size), np.float32(width / size)
    out = np.empty((size, size), np.float32)
    for i in range(size):
        y = np.float32(i) * scale_y
        top = int(np.floor(y))
        bottom, dy = min(top + 1, height - 1), np.float32(y - np.float32(top))
        for j in range(size):
            x = np.float32(j) * scale_x
            left = int(np.floor(x))
            right, dx = min(left + 1, width - 1), np.float32(x - np.float32(left))
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            out[i, j] = above + (below - above) * dy
    return out


@pytest.mark.parametrize("shape", [(8, 8), (32, 20), (299, 299), (310, 501)])
def test_resize_equals_tensorflows_bit_for_bit(shape: tuple[int, int]) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.float32)
    made = resize_tf1(torch.from_numpy(pixels)[None, None], 299, 299)[0, 0].numpy()
    assert np.array_equal(made, tf1_resize(pixels, 299))
    if shape == (299, 299):
        assert np.array_equal(made, pixels)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the published names, without the counters that the published file lacks."""
    torch.manual_seed(0)
    state = Inception().state_dict()
    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save({name: weight for name, weight in state.items() if not name.endswith("num_batches_tracked")}, path)
    return path


def test_inception_has_the_published_parameter_names_and_shapes(inception_weights: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    # 94 convolutions with 4 tensors of batch normalisation per convolution, and the last layer
    assert len(state) == 94 * 5 + 2
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6d.branch7x7_2.conv.weight": (160, 160, 1, 7),
        "Mixed_6e.branch1x1.bn.bias": (192,),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch1x1.conv.weight": (320, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert tuple(state[name].shape) == shape


def test_inception_computes_three_kinds_of_features(inception_weights: Path, digits: RawBatch) -> None:
    take = extractor("inception", weights=inception_weights)
    seen: dict[str, torch.Tensor] = {}
    network: Any = take.network
    network.Mixed_6d.register_forward_hook(lambda module, given, made: seen.update(spatial=made))
    made = take(digits.images[:2])
    assert {kind: tuple(values.shape) for kind, values in made.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    # position (h, w), channel c has index (17 h + w) 7 + c
    assert made["spatial"][1, (17 * 3 + 5) * 7 + 2] == seen["spatial"][1, 2, 3, 5]
    torch.testing.assert_close(made["logits"], made["pool"] @ network.fc.weight.T)
    colour = take(digits.images[:2].expand(-1, 3, -1, -1))
    assert torch.equal(made["pool"], colour["pool"])


def test_hash_of_inception_weights_is_independent_of_the_format(inception_weights: Path, tmp_path: Path) -> None:
    save_file(torch.load(inception_weights, weights_only=True), tmp_path / "inception.safetensors")
    one, other = (
        extractor("inception", weights=path).weights for path in (inception_weights, tmp_path / "inception.safetensors")
    )
    assert one == other


def test_inception_weights_that_cannot_be_used_raise(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('a pickle was run')",))

    for name, content in (("evil", {"fc.weight": Evil()}), ("list", [1, 2])):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match="does not hold tensors only"):
            load_inception(tmp_path / f"{name}.pth")
    (tmp_path / "cut.pth").write_bytes(inception_weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="does not hold tensors only"):
        load_inception(tmp_path / "cut.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold the weights of FID's Inception"):
        load_inception(tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"no weights at .*give the file {FILE}"):
        load_inception(tmp_path / "none.pth")


def test_error_for_missing_inception_weights_names_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(url: str, timeout: float) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(InputError, match="not known") as caught:
        extractor("inception")
    assert f"put https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE} at" in str(caught.value)
    assert str(tmp_path / "checkpoints" / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "checkpoints").iterdir())
    (tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth").touch()
    assert find_weights().name.startswith("pt_inception")


def test_a_failing_import_of_transformers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "transformers", Breaks("transformers"))
    with pytest.raises(InputError, match=r"whose import fails .*nms does not exist.*remove torchvision"):
        extractor("dinov2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="need transformers"):
        extractor("dinov2")


def test_dinov2_returns_the_class_token_of_normalised_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    seen = {}

    class Model(nn.Module):
        @classmethod
        def from_pretrained(cls, folder: str, use_safetensors: bool) -> Model:
            assert (folder, use_safetensors) == (str(tmp_path), True)
            return cls()

        def forward(self, pixel_values: Tensor) -> Any:
            seen["pixels"] = pixel_values
            return type("Output", (), {"last_hidden_state": torch.arange(24.0).reshape(2, 3, 4)})

    library: Any = ModuleType("transformers")
    library.Dinov2Model = Model
    monkeypatch.setitem(sys.modules, "transformers", library)
    with pytest.raises(InputError, match="no DINOv2 model at"):
        extractor("dinov2", weights=tmp_path / "none")
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8)
    made = extractor("dinov2", weights=tmp_path)(images)["pool"]
    assert made.tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert seen["pixels"].shape == (2, 3, 224, 224)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert seen["pixels"][0, channel, 9, 9].item() == pytest.approx(-mean / std, rel=1e-5)
        assert seen["pixels"][1, channel, 9, 9].item() == pytest.approx((1 - mean) / std, rel=1e-5)


# collect


def test_features_are_equal_bit_for_bit_for_any_storage(digits: RawBatch, tmp_path: Path) -> None:
    images = digits.images[:70]
    folder = write_folder(tmp_path / "png", images)
    np.savez(tmp_path / "images.npz", images.permute(0, 2, 3, 1).numpy())
    take = extractor("digits")
    sets: list[ImageSet] = [
        TensorSet(images),
        BatchSet(images.split(9)),
        open_set(folder),
        NpzSet(tmp_path / "images.npz"),
    ]
    first, *others = (
        collect(images, take, ["pool"], ["pool", "logits"], batch_size=16, progress=False) for images in sets
    )
    assert torch.equal(first.vectors["pool"], torch.cat([take(part)["pool"] for part in images.split(16)]))
    for other in others:
        assert other.count == 70
        assert other.shape == (1, 8, 8)
        assert torch.equal(other.vectors["pool"], first.vectors["pool"])
        assert torch.equal(other.vectors["logits"], first.vectors["logits"])
        assert torch.equal(other.statistics["pool"].mean, first.statistics["pool"].mean)


def test_statistics_alone_keep_no_vectors(digits: RawBatch) -> None:
    features = collect(TensorSet(digits.images[:100]), extractor("digits"), ["pool"], progress=False)
    assert not features.vectors
    assert features.statistics["pool"].count == 100


@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_of_several_processes_merge_to_the_whole(
    digits: RawBatch, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every part is computed as in a process of its own; only the communication is replaced."""
    images, take = TensorSet(digits.images[:90]), extractor("digits")
    whole = collect(images, take, ["pool"], ["logits"], batch_size=16, progress=False)
    parts: list[Any] = []

    def gathered(process: Processes, value: Any) -> list[Any]:
        if value is None:  # the error of a block that raises in all processes together
            return [None]
        parts.append(value)
        return parts

    monkeypatch.setattr(Processes, "gathered", gathered)
    for rank in reversed(range(count)):
        monkeypatch.setattr(features_module, "processes", lambda rank=rank: Processes(rank, count))
        shared = collect(images, take, ["pool"], ["logits"], batch_size=16, progress=False)
        assert (shared.count == 0) == (rank > 0)
    assert shared.count == 90
    assert torch.equal(shared.vectors["logits"], whole.vectors["logits"])
    # float64 sums in another order
    torch.testing.assert_close(shared.statistics["pool"].mean, whole.statistics["pool"].mean, rtol=1e-13, atol=1e-13)
    for one, other in [(shared.statistics["pool"].covariance, whole.statistics["pool"].covariance)]:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Interrupts(nn.Module):
    """Counts images, and raises KeyboardInterrupt after a number of batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left, self.seen = batches, 0

    def forward(self, images: Tensor) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left, self.seen = self.left - 1, self.seen + len(images)
        return images.flatten(1).float()


def test_an_interrupted_pass_continues_at_the_next_batch(digits: RawBatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "png", digits.images[:50])
    cache = tmp_path / "cache"

    def run(network: nn.Module, cache: Path | None = cache) -> ImageFeatures:
        take = Extractor.of("pixels", network)
        return collect(open_set(folder), take, ["pool"], ["pool"], batch_size=8, cache=cache, progress=False)

    whole = run(Interrupts(99), cache=None)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupts(3))
    again = Interrupts(99)
    resumed = run(again)
    assert again.seen == 50 - 3 * 8
    assert torch.equal(resumed.vectors["pool"], whole.vectors["pool"])
    assert torch.equal(resumed.statistics["pool"].covariance, whole.statistics["pool"].covariance)
    assert resumed.count == 50
    write_png(folder / "0007.png", 255 - digits.images[7])  # other images have no cached features
    other = Interrupts(99)
    assert not torch.equal(run(other).vectors["pool"], whole.vectors["pool"])
    assert other.seen == 50


def test_nan_in_features_raises_with_count_and_first_row(digits: RawBatch) -> None:
    class Bad(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pixels = images.flatten(1).float()
            return torch.where(pixels.mean(1, keepdim=True) == 255.0, torch.nan, pixels)

    images = digits.images[:40].clone()
    images[[21, 23]] = 255
    with pytest.raises(
        InputError, match=r"the pool features of the images \('bad'\) hold .* in 2 of 16 rows, first in row 21"
    ):
        collect(TensorSet(images), Extractor.of("bad", Bad()), ["pool"], batch_size=16, progress=False)


def test_sets_that_cannot_be_read_raise(digits: RawBatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        collect(BatchSet([]), extractor("digits"), ["pool"], progress=False)
    with pytest.raises(InputError, match="different shapes"):
        collect(BatchSet([torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 9, 8, dtype=torch.uint8)]),
                extractor("digits"), ["pool"], progress=False)  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images under"):
        open_set(tmp_path / "empty")

    folder = write_folder(tmp_path / "png", digits.images[:20])
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot use .*0003\.png") as caught:
        collect(open_set(folder), extractor("digits"), ["pool"], progress=False)
    assert "skip_bad" not in str(caught.value)
    (folder / "0003.png").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"cannot use .*0003\.png"):
        collect(open_set(folder), extractor("digits"), ["pool"], progress=False)
    write_png(folder / "0003.png", torch.zeros(1, 9, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"0003\.png is 9x8 gray, but .*0000\.png is 8x8 gray"):
        collect(open_set(folder), extractor("digits"), ["pool"], progress=False)
    write_png(folder / "0003.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"0003\.png is 8x8 colour"):
        collect(open_set(folder), extractor("digits"), ["pool"], progress=False)


def test_an_npz_without_images_raises(digits: RawBatch, tmp_path: Path) -> None:
    images = digits.images[:5].permute(0, 2, 3, 1).numpy()
    path = tmp_path / "images.npz"
    for arrays, message in (
        ([images.astype(np.float32)], "uint8.*got float32"),
        ([images[0]], r"got uint8 \(8, 8, 1\)"),
        ([images[:0]], "holds no images"),
        ([np.array([{"a": 1}], dtype=object)], "pickle"),
    ):
        np.savez(path, *arrays)
        with pytest.raises(InputError, match=message):
            NpzSet(path)
    np.savez(path, other=images)
    with pytest.raises(InputError, match="save them as arr_0"):
        NpzSet(path)
    path.write_bytes(b"\x80\x04no zip")
    with pytest.raises(InputError, match="not an npz file"):
        NpzSet(path)


def test_wanted_batches_of_a_compressed_npz(digits: RawBatch, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", digits.images[:50].permute(0, 2, 3, 1).numpy())
    batches = dict(NpzSet(tmp_path / "images.npz").batches(16, lambda number: number in (1, 3)))
    assert torch.equal(batches[1], digits.images[16:32])
    assert torch.equal(batches[3], digits.images[48:50])


def test_statistics_of_a_pass_equal_those_of_its_vectors(digits: RawBatch) -> None:
    features = collect(TensorSet(digits.images[:200]), extractor("pixels"), ["pool"], ["pool"], progress=False)
    expected = Statistics.of(features.vectors["pool"])
    torch.testing.assert_close(features.statistics["pool"].covariance, expected.covariance, rtol=1e-12, atol=1e-14)
    assert features.vectors["pool"].max() <= 1.0


def test_damaged_features_of_a_finished_batch_are_computed_again(digits: RawBatch, tmp_path: Path) -> None:
    pixels, images = extractor("pixels"), TensorSet(digits.images[:24])

    def vectors() -> Tensor:
        collected = collect(images, pixels, ["pool"], ["pool"], batch_size=8, cache=tmp_path, progress=False)
        return collected.vectors["pool"]

    whole = vectors()
    shards = sorted(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 3
    content = shards[1].read_bytes()
    other = tmp_path / "other"
    save_tensors({"shape": torch.tensor([1, 8]), "pool": torch.zeros(8)}, other)
    for damage in (content[: len(content) // 2], b"", b"\xff" * 100, other.read_bytes()):
        shards[1].write_bytes(damage)
        assert torch.equal(vectors(), whole)
        assert shards[1].read_bytes() == content
