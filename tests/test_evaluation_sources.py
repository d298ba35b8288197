"""`evaluate` in Python: every form of a source gives the same numbers, and wrong arguments raise in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from quarterarc.app.server import training_of
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data, to_uint8
from quarterarc.estimate import Estimate
from quarterarc.evaluation import EXTRACTORS, FeatureNetwork, Settings, evaluate, extractor
from quarterarc.evaluation.references import open_reference
from quarterarc.likelihood import LikelihoodSettings
from quarterarc.sampling import Sampling, noise, sample
from quarterarc.sharing.card import about_run
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints, run_of


@pytest.fixture(scope="module")
def digits() -> Tensor:
    data = open_data(DataSpec(source="digits", size=8, channels=1), progress=False)
    return data.batch(range(100)).images


def measure(source: object, reference: object = "digits", metrics: Any = "fid", **arguments: Any) -> dict[str, Any]:
    features = "auto" if metrics == "bits-per-dim" else "digits"
    return evaluate(source, reference, metrics, features=features, progress=False, **arguments)


def test_a_run_is_sampled_as_by_the_command_line(tiny_run: Path, tmp_path: Path) -> None:
    result = measure(tiny_run, count=20, sampler="ddim", steps=2, options={"eta": 0.5}, out=tmp_path / "python.json")
    command = ["evaluate", str(tiny_run), "--reference", "digits", "--metrics", "fid", "--features", "digits",
               "--count", "20", "--sampler", "ddim", "--steps", "2", "--option", "eta=0.5",
               "--out", str(tmp_path / "command.json")]  # fmt: skip
    assert main(command) == 0
    assert json.loads((tmp_path / "command.json").read_text()) == result
    assert json.loads((tmp_path / "python.json").read_text()) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["command.json", "python.json"]


def test_a_checkpoint_as_the_reference_stands_for_the_training_images_of_its_run(tiny_run: Path) -> None:
    """`train` returns a checkpoint."""
    run, checkpoint = (open_reference(place) for place in (tiny_run, checkpoints(tiny_run)[-1]))
    assert checkpoint.fingerprint == run.fingerprint


def test_the_run_of_a_checkpoint_is_found_from_every_folder(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A short relative path has no parents in its text."""
    newest = checkpoints(tiny_run)[-1]
    for folder, path in ((newest.parent, newest.name), (newest, "."), (tiny_run, f"checkpoints/{newest.name}")):
        monkeypatch.chdir(folder)
        assert open_reference(path).fingerprint == open_reference(tiny_run).fingerprint
        shown = training_of(path, (1, 8, 8))
        assert shown is not None
        assert about_run(Path(path), Path(path), load(path)).name == tiny_run.name
    assert run_of(tiny_run) == tiny_run
    # an exported model beside a recipe of something else
    shutil.copytree(newest, tmp_path / "models" / "short")
    (tmp_path / "recipe.yaml").write_text("data: {source: digits, size: 8, channels: 1}")
    for folder, path in ((tmp_path / "models", "short"), (tmp_path, "models/short"), (tmp_path / "models/short", ".")):
        monkeypatch.chdir(folder)
        assert run_of(path) is None
        assert training_of(path, (1, 8, 8)) is None
        for arguments in (("digits", path, "fid"), (path, None, "bits-per-dim"), (path, path, "fid")):
            with pytest.raises(InputError, match="is a model without a recipe, so that its training images"):
                measure(*arguments)


def test_a_denoiser_gives_the_numbers_of_its_run(tiny_run: Path) -> None:
    run, denoiser = (measure(source, count=20, steps=2) for source in (tiny_run, load(tiny_run)))
    assert denoiser["metrics"] == run["metrics"]
    assert denoiser["images"]["sampling"]["weights_sha256"]


def test_images_in_any_form_give_the_same_numbers(digits: Tensor) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image[0].numpy()) for image in digits]
    features = datasets.Features({"image": datasets.Image()})
    forms: list[object] = [
        digits.numpy(),
        pictures,
        datasets.Dataset.from_dict({"image": pictures}, features=features),
        digits.split(17),
        (batch.numpy() for batch in digits.split(17)),
    ]
    expected = measure(digits[:80])["metrics"]
    for form in forms:
        result = measure(form, count=80)
        assert result["metrics"] == expected, type(form).__name__
        assert result["images"]["count"] == 80


def test_likelihood_metrics_evaluate_the_reference(tiny_run: Path, digits: Tensor) -> None:
    settings = LikelihoodSettings(terms=2)
    run, denoiser = (
        measure(source, digits[:3], "bits-per-dim", settings=settings) for source in (tiny_run, load(tiny_run))
    )
    assert run["metrics"] == denoiser["metrics"]
    assert run["metrics"]["bits-per-dim"]["images"] == 3
    training = measure(tiny_run, None, "bits-per-dim", settings=settings, count=2)
    assert training["data"]["count"] == 2


def test_likelihoods_of_a_denoiser_have_the_projection_of_the_call(tiny_run: Path, digits: Tensor) -> None:
    settings = LikelihoodSettings(terms=2)

    def bits(source: object, **arguments: Any) -> float:
        result = measure(source, digits[:2], "bits-per-dim", settings=settings, **arguments)
        return float(result["metrics"]["bits-per-dim"]["bits_per_dim"])

    image = bits(load(tiny_run), projection="image")
    assert image == bits(tiny_run, projection="image")
    assert image != bits(load(tiny_run))


def test_a_request_stands_in_place_of_the_sampler(tiny_run: Path) -> None:
    expected = measure(tiny_run, count=20, sampler="ddim", steps=2, options={"eta": 0.5}, projection="image")
    request = Sampling("ddim", 2, options={"eta": 0.5}, projection="image")
    assert measure(tiny_run, count=20, sampler=request) == expected


def test_statistics_alone_need_no_metrics(digits: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    assert measure(digits, None, (), save_to=path, save_features=True)["metrics"] == {}
    result = measure(digits, path, ["fid", "recall"])
    assert result["metrics"] == {"fid": pytest.approx(0.0, abs=1e-9), "recall": 1.0}


@pytest.mark.parametrize(
    ("change", "call"),
    [
        (lambda images: images.float() / 127.5 - 1, "quarterarc.to_uint8(images)"),
        (lambda images: images.permute(0, 2, 3, 1), "images.permute(0, 3, 1, 2)"),
        (lambda images: images[0], "images[None]"),
    ],
)
def test_an_error_about_images_contains_the_call_that_converts_them(
    digits: Tensor, change: Callable[[Tensor], Tensor], call: str
) -> None:
    with pytest.raises(InputError) as caught:
        measure(change(digits))
    assert call in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_that_do_not_apply_raise(tiny_run: Path, digits: Tensor) -> None:
    def fails(*positional: Any, **arguments: Any) -> str:
        with pytest.raises(InputError) as caught:
            measure(*positional, **arguments)
        return str(caught.value)

    assert "steps applies to sampled images" in fails(digits, steps=3)
    assert "steps has no effect on bits-per-dim" in fails(tiny_run, None, "bits-per-dim", steps=3)
    assert "features has no effect on bits-per-dim" in fails(tiny_run, None, ["bits-per-dim"])
    assert "variance has no effect on fid: it belongs to bits-per-dim" in fails(digits, settings={"variance": "large"})
    assert "no features to save" in fails(tiny_run, None, "bits-per-dim", save_to="statistics.npz")
    assert "digits is not a run or a denoiser" in fails("digits", "digits", "bits-per-dim")
    assert "a denoiser has no training images" in fails(load(tiny_run), None, "bits-per-dim")
    assert "settings of type Settings, got LikelihoodSettings" in fails(digits, settings=LikelihoodSettings())
    assert "projection applies to sampled images" in fails(digits, projection="image")
    assert "precision applies to sampled images" in fails(digits, precision=torch.bfloat16)
    assert "unknown projection" in fails(load(tiny_run), digits, "bits-per-dim", projection="imag")
    assert "a Sampling holds steps" in fails(tiny_run, sampler=Sampling("ddim"), steps=3)
    assert "seeds or a count, not both" in fails(tiny_run, seeds=range(3), count=3)
    assert "guidance needs labels" in fails(tiny_run, guidance=2.0)
    assert "precision applies to a run" in fails(load(tiny_run), precision=torch.bfloat16)
    assert "does not declare the shape" in fails(lambda x, angle: Estimate(x, x))
    assert "got int" in fails(7)
    assert "got dict" in fails([{"image": 3}])
    assert "statistics (save_to)" in fails(digits, save_features=True)


def test_a_registered_extractor_is_found_by_name(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXTRACTORS, "_entries", dict(EXTRACTORS))

    @EXTRACTORS.register("brightness")
    class Brightness(FeatureNetwork):
        resize = "none"

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).double().mean(1, keepdim=True)

    assert extractor("brightness").describe()["resize"] == "none"
    assert evaluate(digits[::2], digits[1::2], "fid", features="brightness", progress=False)["metrics"]["fid"] >= 0.0
    with pytest.raises(InputError, match="take no weights"):
        extractor("brightness", weights="a.pth")


def test_settings_are_accepted_as_a_mapping_and_misspelt_ones_raise() -> None:
    real, fake = (torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8) for _ in range(2))
    common: dict[str, Any] = {"features": "pixels", "progress": False}
    by_mapping = evaluate(fake, real, ["precision"], settings={"neighbours": 5}, **common)
    by_object = evaluate(fake, real, ["precision"], settings=Settings(neighbours=5), **common)
    assert by_mapping["metrics"] == by_object["metrics"]
    assert by_mapping["settings"] == {"neighbours": 5}
    with pytest.raises(InputError, match="unknown setting 'neighbors'; did you mean 'neighbours'"):
        evaluate(fake, real, ["precision"], settings={"neighbors": 5}, **common)


def test_data_and_results_of_this_package_are_images(tiny_run: Path, digits: Tensor) -> None:
    spec = DataSpec(source="digits", size=8, channels=1, limit=70)
    values = {"metrics": ["fid"], "features": "pixels", "progress": False}
    expected = evaluate(open_data(spec).batch(range(70)).images, digits, **values)["metrics"]["fid"]  # type: ignore[arg-type]
    for source in (spec, open_data(spec), open_data(spec.model_copy(update={"memory": "stream"}))):
        result = evaluate(source, digits, **values)  # type: ignore[arg-type]
        assert result["images"]["count"] == 70
        assert result["metrics"]["fid"] == pytest.approx(expected, rel=1e-12)
    made = sample(load(tiny_run), noise(range(4), (1, 8, 8)))
    values |= {"batch_size": 4}
    assert evaluate(made, digits, **values)["metrics"] == evaluate(to_uint8(made.images), digits, **values)["metrics"]  # type: ignore[arg-type]


def test_lists_of_single_images_name_the_call_that_would(digits: Tensor) -> None:
    for images, call in (
        (list(digits[:4]), "call torch.stack(images)"),
        ([image.numpy() for image in digits[:4]], "call torch.from_numpy(np.stack(images))"),
        (list(digits[:4] / 255.0), "call quarterarc.to_uint8(torch.stack(images))"),
    ):
        with pytest.raises(InputError, match=re.escape(call)):
            evaluate(images, digits, ["fid"], features="pixels")
