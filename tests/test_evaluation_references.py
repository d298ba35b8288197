"""References and results: layouts are read back, metrics rank sets of digits, incomparable results raise."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quarterarc import __version__
from quarterarc.closed_form import MixtureData
from quarterarc.common.devices import Processes
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data, to_float
from quarterarc.denoiser import Traits
from quarterarc.estimate import Estimate
from quarterarc.evaluation import (
    METRICS,
    Extractor,
    ImageFeatures,
    SampledSet,
    Settings,
    collect,
    differences,
    evaluate,
    extractor,
    frechet_distance,
    inception_score_adm,
    kernel_distance,
    open_reference,
    precision_recall,
    save_statistics,
    table,
)
from quarterarc.evaluation.metrics import label
from quarterarc.evaluation.references import read_statistics
from quarterarc.evaluation.sets import TensorSet
from quarterarc.likelihood import LikelihoodSettings, evaluate_likelihood
from quarterarc.likelihood import evaluation as models
from quarterarc.likelihood.variational import bits_per_dim
from quarterarc.sampling.plans import Sampling
from quarterarc.schedules import schedule

ALL = ["fid", "precision", "recall", "density", "coverage", "is", "kid"]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    data = open_data(DataSpec(source="digits", size=8, channels=1), progress=False)
    return data.batch(range(data.count or 0)).images


@pytest.fixture(scope="module")
def halves(digits: Tensor) -> tuple[Tensor, Tensor]:
    return digits[::2], digits[1::2]


@pytest.fixture(scope="module")
def result(halves: tuple[Tensor, Tensor]) -> dict[str, Any]:
    return evaluate(
        halves[0], halves[1], ALL, features="digits", settings=Settings(subsets=10, subset_size=300), progress=False
    )


class Both(nn.Module):
    """A small substitute for Inception: 64 pool features, 16 spatial features and 10 logits."""

    kinds = ("pool", "spatial", "logits")
    resize = "none"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flatten(1).float() / 255.0
        return {"pool": x, "spatial": x[:, 24:40], "logits": x[:, :10]}


@pytest.fixture(scope="module")
def stand_in() -> Extractor:
    return Extractor.of("stand-in", Both())


@pytest.fixture(scope="module")
def collected(halves: tuple[Tensor, Tensor], stand_in: Extractor) -> ImageFeatures:
    return collect(TensorSet(halves[1]), stand_in, ["pool", "spatial"], ["pool"], progress=False)


# metrics


def test_metrics_separate_real_digits_from_noise(halves: tuple[Tensor, Tensor], result: dict[str, Any]) -> None:
    real = result["metrics"]
    shaped = torch.rand(halves[0].shape, generator=torch.Generator().manual_seed(0))
    noise = evaluate((shaped * 255).to(torch.uint8), halves[1], ALL, features="digits", progress=False)["metrics"]
    assert real["fid"] < 3.0
    assert noise["fid"] > 30 * real["fid"]
    assert real["precision"] > 0.8
    assert real["recall"] > 0.8
    assert noise["precision"] < 0.1
    assert 0.9 < real["density"] < 1.2
    assert noise["coverage"] < 0.1
    assert real["is"] > 6.0  # ten classes in equal parts, predicted with certainty, score 10
    assert noise["is"] < 2.0
    assert abs(real["kid"]) < 1.0 < noise["kid"]
    assert real["is_std"] > 0.0


def test_metrics_equal_the_functions_of_features(halves: tuple[Tensor, Tensor], result: dict[str, Any]) -> None:
    take = extractor("digits")
    (fake, logits), (real, _) = ((take(half)["pool"], take(half)["logits"]) for half in halves)
    values = result["metrics"]
    # features of another batch size differ in the last bit of float32
    assert values["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-4)
    assert (values["precision"], values["recall"]) == pytest.approx(precision_recall(real, fake), abs=0.003)
    kid = kernel_distance(fake, real, 10, 300)
    assert (values["kid"], values["kid_std"]) == pytest.approx((kid.mean, kid.std), rel=1e-3, abs=1e-4)
    adm = evaluate(halves[0], None, ["is"], features="digits", settings=Settings(inception_score="adm"), progress=False)
    assert adm["metrics"]["is"] == pytest.approx(inception_score_adm(logits).mean, rel=1e-5)
    assert adm["reference"] is None


def test_a_mode_collapse_has_precision_1_and_recall_0(halves: tuple[Tensor, Tensor]) -> None:
    collapsed = halves[1][:1].repeat(100, 1, 1, 1)
    values = evaluate(collapsed, halves[1], ["precision", "recall"], features="digits", progress=False)["metrics"]
    assert values["precision"] == 1.0
    assert values["recall"] < 0.01  # the one digit itself


def test_equal_sets_have_distance_0(digits: Tensor) -> None:
    values = evaluate("digits", digits, ["fid", "precision", "recall", "coverage"], features="pixels", progress=False)[
        "metrics"
    ]
    assert values["fid"] < 1e-10
    assert (values["precision"], values["recall"], values["coverage"]) == (1.0, 1.0, 1.0)


def test_a_result_contains_extractor_counts_settings_and_labels(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert result["quarterarc"] == __version__
    assert result["extractor"] == extractor("digits").describe()
    assert result["images"]["count"] == 899
    assert result["images"]["shape"] == [1, 8, 8]
    assert result["reference"]["count"] == 898
    assert result["settings"] == {
        "neighbours": 3, "inception_score": "torch-fidelity", "splits": 10, "subsets": 10, "subset_size": 300,
        "seed": 2020,
    }  # fmt: skip
    assert result["labels"]["fid"] == "Frechet distance of digits pool features"
    assert result["labels"]["precision"] == "precision of digits pool features, k = 3"
    assert set(result["versions"]) == {"python", "torch", "numpy"}
    assert label("fid", "inception") == "FID"
    assert label("is", "inception", Settings(inception_score="adm")) == "inception score (adm)"


def test_few_images_cause_a_note(halves: tuple[Tensor, Tensor]) -> None:
    few = evaluate(halves[0][:100], halves[1], ["fid"], features="digits", progress=False)
    assert "100 images, fewer than 2 x 64 = 128" in few["notes"][0]


def test_kid_of_few_images_records_the_subset_size(halves: tuple[Tensor, Tensor]) -> None:
    few = evaluate(halves[0][:50], halves[1], ["kid"], features="digits", progress=False)
    assert few["settings"]["subset_size"] == 50


def test_sampled_images_are_evaluated_with_a_description(digits: Tensor, halves: tuple[Tensor, Tensor]) -> None:
    denoise = MixtureData(to_float(halves[0]), h=0.05)
    with pytest.raises(InputError, match="does not declare the shape"):
        SampledSet(lambda x, angle: denoise(x, angle), range(4))
    made = SampledSet(denoise, range(64), Sampling("ddim", 20))
    values = evaluate(made, halves[0], ["precision", "recall"], features="digits", batch_size=32, progress=False)
    assert values["metrics"]["precision"] > 0.9
    sampling = values["images"]["sampling"]
    assert (sampling["sampler"], sampling["steps"], sampling["nfe"], sampling["seeds"]) == ("ddim", 20, 20, "0-63")
    with pytest.raises(InputError, match="no seeds"):
        SampledSet(denoise, [])


class Shaped:
    """A denoiser that declares the shape of its images."""

    traits = Traits(shape=(1, 8, 8))

    def __init__(self, inner: Callable[..., Estimate]) -> None:
        self.inner = inner

    def __call__(self, x: Tensor, angle: Any) -> Estimate:
        return self.inner(x, angle)


def test_samples_with_nan_raise_with_the_first_seed(halves: tuple[Tensor, Tensor]) -> None:
    def wrong(x: Tensor, angle: Any) -> Estimate:
        image = torch.zeros_like(x)
        image[3] = torch.nan
        return Estimate(image, torch.zeros_like(x))

    with pytest.raises(InputError, match="sampled 1 of 8 images with NaN or infinity, first the image of seed 13"):
        evaluate(
            SampledSet(Shaped(wrong), range(10, 18), Sampling("ddim", 2)),
            halves[0],
            ["fid"],
            features="digits",
            progress=False,
        )


# references


@pytest.mark.parametrize("name", ["ref.safetensors", "ref.npz"])
def test_saved_statistics_are_read_back_exactly(
    collected: ImageFeatures, stand_in: Extractor, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "deep" / name
    save_statistics(path, collected, stand_in.describe(), what="digits", fingerprint="abc")
    read = read_statistics(path)
    for kind in ("pool", "spatial"):
        assert torch.equal(read.saved.statistics[kind].mean, collected.statistics[kind].mean)
        assert torch.equal(read.saved.statistics[kind].covariance, collected.statistics[kind].covariance)
        assert read.saved.statistics[kind].count == 898
    assert torch.equal(read.saved.vectors["pool"], collected.vectors["pool"])
    assert (read.shape, read.count, read.fingerprint) == ((1, 8, 8), 898, "abc")
    assert read.extractor == stand_in.describe()


def test_all_layouts_of_statistics_give_the_same_distance(
    halves: tuple[Tensor, Tensor], collected: ImageFeatures, stand_in: Extractor, tmp_path: Path
) -> None:
    """Layouts: safetensors and npz of `save_statistics`, pytorch-fid (mu, sigma), ADM with and without images."""
    metrics = ["fid", "sfid"]
    direct = evaluate(halves[0], halves[1], metrics, features=stand_in, progress=False)
    save_statistics(tmp_path / "ours.safetensors", collected, stand_in.describe(), what="digits",
                    fingerprint=direct["reference"]["fingerprint"], vectors=False)  # fmt: skip
    save_statistics(tmp_path / "ours.npz", collected, stand_in.describe(), what="digits", vectors=False)
    statistics = {
        kind: (values.mean.numpy(), values.covariance.numpy()) for kind, values in collected.statistics.items()
    }
    fid: dict[str, Any] = dict(zip(("mu", "sigma"), statistics["pool"], strict=True))
    adm: dict[str, Any] = {**fid, **dict(zip(("mu_s", "sigma_s"), statistics["spatial"], strict=True))}
    np.savez(tmp_path / "pytorch_fid.npz", **fid)
    np.savez(tmp_path / "adm.npz", **adm)
    np.savez(tmp_path / "adm_images.npz", halves[1].permute(0, 2, 3, 1).numpy(), **adm)
    np.savez(tmp_path / "images.npz", halves[1].permute(0, 2, 3, 1).numpy())
    for name in ("ours.safetensors", "ours.npz", "adm.npz", "adm_images.npz", "images.npz"):
        result = evaluate(halves[0], tmp_path / name, metrics, features=stand_in, progress=False)
        assert result["metrics"] == pytest.approx(direct["metrics"], rel=1e-12), name
    only = evaluate(halves[0], tmp_path / "pytorch_fid.npz", ["fid"], features=stand_in, progress=False)
    assert only["metrics"]["fid"] == pytest.approx(direct["metrics"]["fid"], rel=1e-12)
    with pytest.raises(InputError, match="no statistics of spatial features"):
        evaluate(halves[0], tmp_path / "pytorch_fid.npz", ["sfid"], features=stand_in, progress=False)
    with pytest.raises(InputError, match=r"no pool feature vectors, which precision.*--with-features"):
        evaluate(halves[0], tmp_path / "ours.npz", ["fid", "recall"], features=stand_in, progress=False)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as ours:  # what pytorch-fid reads
        assert np.array_equal(ours["mu"], fid["mu"])
        assert np.array_equal(ours["sigma"], fid["sigma"])
    # statistics of other features are not used if the file holds the images too
    pixels = evaluate(halves[0], halves[1], ["fid", "recall"], features="digits", progress=False)
    np.savez(
        tmp_path / "of_inception.npz", halves[1].permute(0, 2, 3, 1).numpy(), mu=np.zeros(2048), sigma=np.eye(2048)
    )
    through = evaluate(halves[0], tmp_path / "of_inception.npz", ["fid", "recall"], features="digits", progress=False)
    assert through["metrics"] == pixels["metrics"]
    assert through["reference"]["statistics"] == []
    # the same images, saved or not, are the same reference
    saved = evaluate(halves[0], tmp_path / "ours.safetensors", metrics, features=stand_in, progress=False)
    assert differences(direct, saved) == []


def test_saved_vectors_support_every_metric(halves: tuple[Tensor, Tensor], stand_in: Extractor, tmp_path: Path) -> None:
    metrics = ["fid", "precision", "recall", "density", "coverage", "kid"]
    path = tmp_path / "reference.safetensors"
    evaluate(halves[1], halves[0], ["fid"], features=stand_in, save_to=path, save_features=True, progress=False)
    options: dict[str, Any] = {"settings": Settings(subsets=5, subset_size=300), "progress": False}
    direct = evaluate(halves[0], halves[1], metrics, features=stand_in, **options)["metrics"]
    assert evaluate(halves[0], path, metrics, features=stand_in, **options)["metrics"] == pytest.approx(
        direct, rel=1e-12
    )


def test_references_that_cannot_be_used_raise(
    halves: tuple[Tensor, Tensor], collected: ImageFeatures, stand_in: Extractor, tmp_path: Path
) -> None:
    def message_for(name: str, metrics: Sequence[str] = ("fid",), features: str | Extractor = stand_in) -> str:
        with pytest.raises(InputError) as caught:
            evaluate(halves[0], tmp_path / name, list(metrics), features=features, progress=False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no reference at" in message_for("none.npz")
    assert "no such data" in message_for("none")
    (tmp_path / "empty").mkdir()
    assert "no images under" in message_for("empty")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('a pickle was run')",))

    for name in ("stats.pkl", "stats.npz", "stats.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"mu": Evil()}))
        assert "never loaded" in message_for(name)
    np.savez(tmp_path / "objects.npz", mu=np.array([Evil()], dtype=object), sigma=np.eye(2))
    assert "holds a pickle" in message_for("objects.npz")
    np.savez(tmp_path / "half.npz", mu=np.zeros(64))
    assert "holds mu but no sigma" in message_for("half.npz")
    np.savez(tmp_path / "nothing.npz", other=np.zeros(3))
    assert "neither statistics (mu, sigma) nor images (arr_0), only other" in message_for("nothing.npz")
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "2048 pool features, but 'stand-in' computes 64" in message_for("wide.npz")
    np.savez(tmp_path / "square.npz", mu=np.zeros(64), sigma=np.eye(63))
    assert "the statistics in" in message_for("square.npz")
    assert "(64, 64)" not in message_for("square.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(64, np.nan), sigma=np.eye(64))
    assert "NaN" in message_for("nan.npz")
    np.savez(tmp_path / "bent.npz", mu=np.zeros(64), sigma=np.triu(np.ones((64, 64))))
    assert "not symmetric" in message_for("bent.npz")
    save_statistics(tmp_path / "ours.safetensors", collected, stand_in.describe(), what="digits")
    assert "name is stand-in, not digits" in message_for("ours.safetensors", features="digits")
    whole = (tmp_path / "ours.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not readable as safetensors" in message_for("cut.safetensors")
    with pytest.raises(InputError, match="use one of these endings"):
        save_statistics(tmp_path / "ours.pkl", collected, stand_in.describe(), what="digits")
    with pytest.raises(InputError, match="give a reference"):
        evaluate(halves[0], None, ["fid"], features=stand_in, progress=False)


def test_statistics_of_other_weights_raise(
    halves: tuple[Tensor, Tensor], collected: ImageFeatures, stand_in: Extractor, tmp_path: Path
) -> None:
    save_statistics(tmp_path / "ours.npz", collected, {**stand_in.describe(), "weights_sha256": "0"}, what="digits")
    with pytest.raises(InputError, match="other features: weights_sha256 is 0, not"):
        evaluate(halves[0], tmp_path / "ours.npz", ["fid"], features=stand_in, progress=False)


def test_shapes_and_counts_are_checked_before_features_are_computed(halves: tuple[Tensor, Tensor]) -> None:
    larger = halves[1].repeat_interleave(2, 2)
    with pytest.raises(
        InputError,
        match=r"\(8x8 pixels and 1 channel\) and the reference \(16x8 pixels and 1 channel\) .*never resized",
    ):
        evaluate(halves[0], larger, ["fid"], features="pixels", progress=False)
    with pytest.raises(InputError, match="3 channels"):
        evaluate(halves[0], halves[1].expand(-1, 3, -1, -1), ["fid"], features="pixels", progress=False)
    with pytest.raises(InputError, match="the images: 3 images, but 'precision' needs at least 4"):
        evaluate(halves[0][:3], halves[1], ["precision"], features="pixels", progress=False)
    with pytest.raises(InputError, match="the reference: 1 image, but 'fid' needs at least 2"):
        evaluate(halves[0], halves[1][:1], ["fid"], features="pixels", progress=False)
    with pytest.raises(InputError, match="the images: 9 images, but 'is' needs at least 10"):
        evaluate(halves[0][:9], None, ["is"], features="digits", progress=False)


def test_metrics_that_the_features_do_not_support_raise(halves: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="'sfid' needs spatial features, but 'digits' computes pool and logits"):
        evaluate(halves[0], halves[1], ["sfid"], features="digits", progress=False)
    with pytest.raises(InputError, match="'is' needs logits features, but 'pixels' computes pool"):
        evaluate(halves[0], halves[1], ["is"], features="pixels", progress=False)
    with pytest.raises(InputError, match=r"unknown metric 'fiid'; did you mean 'fid'\?"):
        evaluate(halves[0], halves[1], ["fiid"], features="pixels", progress=False)
    with pytest.raises(InputError, match="there are no metrics"):
        evaluate(halves[0], halves[1], [], features="pixels", progress=False)
    with pytest.raises(InputError, match="evaluates a model"):
        evaluate(halves[0], halves[1], ["bits-per-dim"], features="pixels", progress=False)
    with pytest.raises(InputError, match="unknown inception score 'improved'"):
        Settings(inception_score="improved")
    with pytest.raises(InputError, match="neighbours must be at least 1"):
        Settings(neighbours=0)


def test_only_frechet_distances_need_no_vectors() -> None:
    for name, metric in METRICS.items():
        assert metric.needs_vectors == (name not in ("fid", "sfid"))
        assert metric.needs_reference == (name != "is")


# comparison


def test_a_table_of_incomparable_results_raises(halves: tuple[Tensor, Tensor], result: dict[str, Any]) -> None:
    other = {**result, "images": {**result["images"], "sampling": {"steps": 50}}}
    text = table({"ten": result, "fifty": other})
    assert text.splitlines()[0].startswith("|  | fid | precision | recall |")
    assert len(text.splitlines()) == 4
    fewer = evaluate(halves[0][:500], halves[1], ["fid"], features="pixels", progress=False)
    with pytest.raises(
        InputError, match=r"fewer and all differ in extractor name: digits and pixels.*number of images"
    ):
        table({"all": result, "fewer": fewer})
    text = table({"all": result, "fewer": fewer}, anyway=True)
    assert "Not comparable: fewer and all differ in number of images: 899 and 500." in text
    with pytest.raises(InputError, match="not a result of metrics of images"):
        table({"model": {"metrics": {}}})
    with pytest.raises(InputError, match="no results"):
        table({})


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("extractor", "weights_sha256", "0"),
        ("extractor", "resize", "none"),
        ("images", "count", 1),
        ("images", "shape", [3, 8, 8]),
        ("reference", "fingerprint", "0"),
        ("reference", "count", 1),
        ("settings", "neighbours", 5),
        ("settings", "inception_score", "adm"),
    ],
)
def test_differences_of_results_are_listed(result: dict[str, Any], where: str, key: str, value: object) -> None:
    (line,) = differences(result, {**result, where: {**result[where], key: value}})
    assert str(value) in line
    assert str(result[where][key]) in line
    assert differences(result, result) == []


# likelihood metrics


class Scheduled(Shaped):
    """A denoiser with a schedule, as the bound requires."""

    traits = Traits(shape=(1, 8, 8), schedule=schedule("linear", 20))

    def __init__(self, digits: Tensor) -> None:
        super().__init__(MixtureData(to_float(digits), h=0.1))


@pytest.mark.parametrize("count", [2, 3])
def test_likelihoods_of_several_processes_merge_to_the_whole(
    digits: Tensor, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every part is computed as in a process of its own; only the communication is replaced."""
    model, images = Scheduled(digits), TensorSet(digits[:9])
    names, settings = ["bits-per-dim", "flow-bits-per-dim"], LikelihoodSettings(terms=4)
    whole = evaluate_likelihood(model, images, names, settings, batch_size=4, progress=False)
    shares: tuple[list[Any], list[Any]] = ([], [])
    turn = itertools.cycle((0, 1))

    def gathered(partial: list[Any]) -> list[Any]:
        sums = shares[next(turn)]
        sums += partial
        return sums

    monkeypatch.setattr("accelerate.utils.gather_object", gathered)
    for rank in reversed(range(count)):
        monkeypatch.setattr(models, "processes", lambda rank=rank: Processes(rank, count))
        shared = evaluate_likelihood(model, images, names, settings, batch_size=4, progress=False)
        assert bool(shared) == (rank == 0)
    for name in names:
        for key in ("bits_per_dim", "standard_error", "images"):  # float64 sums in another order
            assert shared["metrics"][name][key] == pytest.approx(whole["metrics"][name][key], rel=1e-10)


def test_bits_per_dim_of_a_set_equal_those_of_its_images(digits: Tensor) -> None:
    model, images = Scheduled(digits), digits[:10]
    settings = LikelihoodSettings(variance="small", terms=4)
    result = evaluate_likelihood(model, TensorSet(images), ["bits-per-dim"], settings, batch_size=4, progress=False)
    expected = bits_per_dim(model, images, "small", terms=4, progress=False)
    bits = result["metrics"]["bits-per-dim"]
    # float32 estimates in batches of another size
    assert bits["bits_per_dim"] == pytest.approx(float(expected.total.mean()), rel=1e-5)
    assert bits["images"] == 10
    with pytest.raises(InputError, match="give images of that shape"):
        evaluate_likelihood(model, TensorSet(images.repeat_interleave(2, 2)), ["bits-per-dim"], progress=False)


def test_open_reference_returns_a_reference_unchanged(digits: Tensor) -> None:
    known = open_reference(digits)
    assert open_reference(known) is known
    with pytest.raises(InputError, match="got int"):
        open_reference(7)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", ">i2", "u8", "g"])
def test_statistics_of_any_number_type_and_byte_order_are_read(tmp_path: Path, dtype: str) -> None:
    mean, covariance = np.arange(3, dtype=dtype), np.eye(3, dtype=dtype)
    np.savez(tmp_path / "reference.npz", mu=mean, sigma=covariance)
    saved = read_statistics(tmp_path / "reference.npz").saved.statistics["pool"]
    assert saved.mean.tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(saved.covariance, torch.eye(3, dtype=saved.covariance.dtype))
