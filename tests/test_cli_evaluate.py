"""`quarterarc evaluate`: a run, its sample folder and two processes give the same numbers; an error is one line."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Distributed
from quarterarc.cli import main
from quarterarc.data import DataSpec, open_data
from quarterarc.evaluation.features import collect
from quarterarc.storage.pictures import write_png
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe

Fails = Callable[..., str]

METRICS = "fid,precision,recall,density,coverage,is"


@pytest.fixture(scope="module")
def digits() -> Tensor:
    data = open_data(DataSpec(source="digits", size=8, channels=1), progress=False)
    return data.batch(range(data.count or 0)).images


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail, and return its one line."""

    def call(*arguments: object) -> str:
        assert main(["evaluate", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"quarterarc: error: [^\n]+\n", printed.err), printed.err
        return printed.err

    return call


def evaluate(out: Path, *arguments: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--features", "digits", "--out", str(out)]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def write_folder(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        write_png(folder / f"{number:04d}.png", image)
    return folder


def test_a_run_and_its_sample_folder_have_equal_metrics(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["--steps", 2, "--sampler", "ddim"]
    measured = ["--reference", "digits", "--metrics", METRICS, "--count", 40]
    one = evaluate(tmp_path / "deep" / "run.json", tiny_run, *measured, *sampled)
    printed = capsys.readouterr().out
    assert "Frechet distance of digits pool features" in printed
    assert "run.json" in printed
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.json"]  # no features are left
    assert main(["sample", str(tiny_run), "--out", str(tmp_path / "made"), "--seeds", "0-39", *map(str, sampled)]) == 0
    other = evaluate(tmp_path / "made.json", tmp_path / "made", "--reference", tiny_run, "--metrics", METRICS)
    assert one["metrics"] == other["metrics"]
    assert one["images"]["count"] == other["images"]["count"] == 40  # the overview does not count
    for key in ("sampler", "steps", "grid", "angles", "checkpoint_sha256", "nfe"):
        assert one["images"]["sampling"][key] == other["images"]["sampling"][key]
    assert one["images"]["sampling"]["seeds"] == "0-39"
    # a run as reference stands for the images that it was trained on
    assert one["reference"]["fingerprint"] == other["reference"]["fingerprint"]


def test_a_run_is_sampled_as_often_as_the_reference_has_images(tiny_run: Path, digits: Tensor, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "some", digits[:30])
    result = evaluate(tmp_path / "a.json", tiny_run, "--reference", folder, "--metrics", "fid", "--steps", 1)
    assert result["images"]["count"] == 30
    assert "30 images, fewer than" in result["notes"][0]


def test_saved_statistics_replace_the_images_of_a_reference(
    digits: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "half", digits[::20])
    saved = tmp_path / "deep" / "ref.safetensors"
    assert main(["evaluate", "digits", "--save-reference", str(saved), "--features", "digits", "--with-features"]) == 0
    assert "statistics of 1,797 images of digits: " in capsys.readouterr().out
    assert [path.name for path in saved.parent.iterdir()] == ["ref.safetensors"]
    direct = evaluate(tmp_path / "a.json", folder, "--reference", "digits", "--metrics", METRICS)
    through = evaluate(tmp_path / "b.json", folder, "--reference", saved, "--metrics", METRICS,
                       "--save-reference", tmp_path / "other.npz")  # fmt: skip
    assert through["metrics"] == pytest.approx(direct["metrics"], rel=1e-12)
    assert through["reference"]["fingerprint"] == direct["reference"]["fingerprint"]
    with np.load(tmp_path / "other.npz", allow_pickle=False) as other:
        assert other["mu"].shape == (64,)
        assert "features" not in other


@pytest.mark.parametrize("use_cpu", [True, False], ids=["ACCELERATE_USE_CPU", "plain torchrun"])
def test_two_processes_give_the_same_result_as_one(
    tiny_run: Path, tmp_path: Path, distributed: Distributed, use_cpu: bool
) -> None:
    arguments = ["evaluate", str(tiny_run), "--reference", "digits", "--metrics", METRICS, "--features", "digits",
                 "--count", "50", "--steps", "2", "--batch-size", "16", "--device", "cpu"]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "one.json")]) == 0
    distributed(*arguments, "--out", tmp_path / "two.json", use_cpu=use_cpu)
    one, two = (json.loads((tmp_path / out).read_text()) for out in ("one.json", "two.json"))
    # the batches are the same, so only the order of float64 sums differs
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-10, abs=1e-10)
    assert {**one, "metrics": 0} == {**two, "metrics": 0}


def test_bits_per_dim_of_a_run_are_those_of_its_training_images(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bits.json"
    bits = ["evaluate", str(tiny_run), "--metrics", "bits-per-dim", "--terms", "2", "--count", "6", "--out", str(out)]
    assert main(bits) == 0
    assert "bits-per-dim" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["metrics"]["bits-per-dim"]["images"] == 6
    assert result["data"]["count"] == 6


@pytest.mark.parametrize("name", ["bits-per-dim", "flow-bits-per-dim"])
def test_an_interrupted_likelihood_continues_at_the_next_image(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from quarterarc.likelihood import evaluation as models

    function = "bits_per_dim" if name == "bits-per-dim" else "flow_bits_per_dim"
    measure, numbers = getattr(models, function), list[int]()

    def interrupted(*args: Any, **options: Any) -> Any:
        numbers.extend(options["numbers"])
        if numbers == [0, 1, 2]:
            raise KeyboardInterrupt
        coarse = {} if name == "bits-per-dim" else {"tolerance": 0.1}  # the cost of the flow grows with its accuracy
        return measure(*args, **{**options, **coarse})

    def command(out: str) -> list[str]:
        words = ["--terms", "3", "--batch-size", "3"] if name == "bits-per-dim" else ["--batch-size", "1"]
        return ["evaluate", str(tiny_run), "--metrics", name, "--count", "5", *words, "--out", str(tmp_path / out)]

    monkeypatch.setattr(models, function, interrupted)
    assert main(command("a.json")) == 130
    assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json.partial").is_dir()
    assert main(command("a.json")) == 0
    assert numbers == [0, 1, 2, 2, 3, 4]
    assert not (tmp_path / "a.json.partial").exists()
    assert main(command("b.json")) == 0
    whole = json.loads((tmp_path / "b.json").read_text())
    assert json.loads((tmp_path / "a.json").read_text()) == whole
    assert set(whole["model"]) == {"what", "checkpoint", "checkpoint_sha256", "precision", "projection"}


def test_bits_of_a_single_image_have_no_standard_error(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_run), "--metrics", "bits-per-dim", "--terms", "2", "--count", "1"]) == 0
    assert "+-" not in capsys.readouterr().out


def test_an_interrupted_evaluation_continues_at_the_next_batch(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "png", digits[:60])
    other = write_folder(tmp_path / "other", digits[60:100])
    arguments = ["evaluate", str(folder), "--reference", str(other), "--metrics", "fid", "--features", "digits",
                 "--batch-size", "8", "--out", str(tmp_path / "a.json")]  # fmt: skip
    from quarterarc.evaluation.extractors import Extractor

    call, sizes = Extractor.__call__, list[int]()

    def interrupted(self: Extractor, images: Tensor) -> Any:
        sizes.append(len(images))
        if len(sizes) == 5:
            raise KeyboardInterrupt
        return call(self, images)

    monkeypatch.setattr(Extractor, "__call__", interrupted)
    assert main(arguments) == 130
    assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json.features").is_dir()
    assert main(arguments) == 0
    assert sum(sizes[5:]) == 60 - 4 * 8 + 40
    assert not (tmp_path / "a.json.features").exists()
    whole = evaluate(tmp_path / "b.json", folder, "--reference", other, "--metrics", "fid", "--batch-size", 8)
    assert json.loads((tmp_path / "a.json").read_text()) == whole


def test_every_error_is_one_line_and_leaves_no_file(
    tiny_run: Path, digits: Tensor, tmp_path: Path, fails: Fails
) -> None:
    folder = write_folder(tmp_path / "png", digits[:20])
    use = ["--features", "digits", "--out", tmp_path / "deep" / "out.json"]
    to = [folder, "--reference", "digits", *use]
    assert "did you mean 'fid'" in fails(*to, "--metrics", "fiid")
    assert "--metrics names no metric" in fails(*to, "--metrics", ",")
    assert "give a reference" in fails(folder, *use)
    assert "'sfid' needs spatial" in fails(*to, "--metrics", "sfid")
    assert "did you mean 'pixels'" in fails(folder, "--reference", "digits", "--features", "pixel")
    assert "no such data" in fails(folder, "--reference", tmp_path / "none", *use)
    assert "no such data" in fails(tmp_path / "none", "--reference", "digits", *use)
    (tmp_path / "empty").mkdir()
    assert "no images under" in fails(folder, "--reference", tmp_path / "empty", *use)
    assert "no images under" in fails(tmp_path / "empty", "--reference", "digits", *use)
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps([1]))
    assert "never loaded" in fails(folder, "--reference", tmp_path / "stats.pkl", *use)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "computes 64" in fails(folder, "--reference", tmp_path / "wide.npz", "--metrics", "fid", *use)
    assert "at least 4" in fails(*to, "--metrics", "precision", "--count", 3)
    assert "count must be at least 1" in fails(*to, "--count", 0)
    assert "batch_size (--batch-size) is a whole number of images, at least 1" in fails(*to, "--batch-size", 0)
    assert "neighbours must be at least 1" in fails(*to, "--neighbours", 0)
    assert "is not a run" in fails(*to, "--steps", 5)
    assert "is not a run" in fails(folder, "--metrics", "bits-per-dim", *use)
    assert "two evaluations" in fails(tiny_run, "--metrics", "bits-per-dim,fid", *use)
    assert "needs --save-reference" in fails(*to, "--with-features")
    assert "one of these endings" in fails(folder, "--save-reference", tmp_path / "ref.pkl", "--features", "digits")
    assert "take no weights" in fails(*to, "--weights", "a.pth")
    assert "unknown device 'warp'" in fails(*to, "--device", "warp")
    assert "is a folder" in fails(folder, "--reference", "digits", "--features", "digits", "--out", tmp_path)
    assert "cannot write" in fails(folder, "--reference", "digits", "--features", "digits",
                                   "--out", tmp_path / "stats.pkl" / "a.json")  # fmt: skip
    of_run = [tiny_run, "--reference", "digits", *use]
    assert "not both" in fails(*of_run, "--seeds", "0-9", "--count", 5)
    for metrics, words, message in (
        ("fid", ["--variance", "large"], "variance has no effect on fid: it belongs to bits-per-dim; leave it out"),
        ("fid", ["--terms", 2], "terms has no effect on fid"),
        ("fid,kid", ["--neighbours", 3], "neighbours has no effect on fid, kid: it belongs to precision, recall"),
        ("fid", ["--splits", 10], "splits has no effect on fid"),
        ("fid", ["--inception-score", "adm"], "inception_score has no effect on fid"),
    ):
        assert message in fails(*of_run, "--metrics", metrics, *words)
    likelihood = [tiny_run, "--out", tmp_path / "deep" / "out.json", "--metrics"]
    assert "neighbours has no effect on bits-per-dim" in fails(*likelihood, "bits-per-dim", "--neighbours", 7)
    assert "terms has no effect on flow-bits-per-dim" in fails(*likelihood, "flow-bits-per-dim", "--terms", 7)
    assert "features has no effect on bits-per-dim" in fails(*likelihood, "bits-per-dim", "--features", "pixels")
    assert "weights has no effect on bits-per-dim" in fails(*likelihood, "bits-per-dim", "--weights", "a.pth")
    saved = [folder, "--features", "digits", "--save-reference", tmp_path / "deep" / "ref.npz"]
    assert "neighbours has no effect on statistics" in fails(*saved, "--neighbours", 7)
    assert "did you mean 'heun'" in fails(*of_run, "--sampler", "huen")
    assert "without labels" in fails(*of_run, "--labels", 3)
    assert "--guidance needs --labels" in fails(*of_run, "--guidance", 2)
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "no complete checkpoint" in fails(tmp_path / "begun", "--reference", "digits", *use)
    (tmp_path / "begun" / "recipe.yaml").write_text("data: 3")
    assert "does not describe the training data" in fails(folder, "--reference", tmp_path / "begun", *use)
    np.savez(tmp_path / "negative.npz", mu=np.zeros(64), sigma=-np.eye(64))
    assert "no negative eigenvalue" in fails(folder, "--reference", tmp_path / "negative.npz", "--metrics", "fid", *use)
    one = write_folder(tmp_path / "one", digits[:1])
    assert "at least 2 images" in fails(one, "--features", "digits", "--save-reference", tmp_path / "deep" / "a.npz")
    (tmp_path / "no.pth").write_bytes(pickle.dumps([1]))
    assert "tensors only" in fails(
        folder, "--reference", "digits", "--features", "inception", "--weights", tmp_path / "no.pth"
    )
    assert not (tmp_path / "deep").exists()


def test_bits_of_a_model_that_needs_labels_name_the_function_that_takes_them(
    tiny: tuple[str, ...], tmp_path: Path, fails: Fails
) -> None:
    fields = (*tiny, "data.labels=true", "training.drop_labels=0", "training.steps=1")
    train(read_recipe("digits", fields), tmp_path / "run", progress=False)
    for metric, function in (("bits-per-dim", "bits_per_dim"), ("flow-bits-per-dim", "log_likelihood")):
        message = fails(tmp_path / "run", "--metrics", metric)
        assert f"one of the labels 0..9 for every image, and {metric} is evaluated here without labels" in message
        assert f"quarterarc.{function}(denoise, images, labels=labels)" in message


def test_a_full_disk_is_one_line_and_leaves_no_file(
    digits: Tensor, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    folder = write_folder(tmp_path / "png", digits[:20])
    use = ["--features", "digits", "--reference", "digits", "--metrics", "fid"]
    assert "No space left" in fails(folder, *use, "--out", tmp_path / "deep" / "a.json")
    assert "No space left" in fails(folder, "--features", "digits", "--save-reference", tmp_path / "deep" / "a.npz")
    assert not (tmp_path / "deep").exists()


def test_images_that_cannot_be_used_are_named(digits: Tensor, tmp_path: Path, fails: Fails) -> None:
    folder = write_folder(tmp_path / "png", digits[:20])
    use = ["--reference", "digits", "--features", "digits"]
    (folder / "0004.png").write_bytes(b"this is no image")
    assert "0004.png" in fails(folder, *use)
    write_png(folder / "0004.png", torch.zeros(1, 16, 16, dtype=torch.uint8))
    assert "0004.png is 16x16 gray" in fails(folder, *use)
    colour = write_folder(tmp_path / "colour", digits[:20].expand(-1, 3, -1, -1))
    assert "3 channels" in fails(colour, *use)
    large = write_folder(tmp_path / "large", digits[:20].repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert "never resized" in fails(large, *use)
    (large / "samples.json").write_text(json.dumps({"complete": False}))
    assert "not complete" in fails(large, *use)


def test_a_cache_of_features_is_used_only_for_the_same_kinds(digits: Tensor, tmp_path: Path) -> None:
    """The file of a cache is named by its kinds of features, so that a metric never reads those of another."""
    from quarterarc.evaluation.extractors import extractor
    from quarterarc.evaluation.sets import TensorSet

    images, take = TensorSet(digits[:20]), extractor("digits")
    collect(images, take, ["pool"], cache=tmp_path / "cache", progress=False)
    result = collect(images, take, [], ["logits"], cache=tmp_path / "cache", progress=False)
    assert result.vectors["logits"].shape == (20, 10)
