"""Exports and model cards: other programs compute what this library does, and nothing is left half written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import quarterarc as qa
from conftest import Cli
from quarterarc.denoiser import Denoiser
from quarterarc.networks import UNet
from quarterarc.sharing.card import about_run, model_card
from quarterarc.storage.checksums import read_sealed, write_sealed
from quarterarc.storage.pictures import read_png
from quarterarc.storage.runs import checkpoints

PLACE = "/home/somebody/secret"


def untrained(name: str = "both", **options: Any) -> Denoiser:
    torch.manual_seed(3)
    table = qa.schedule("arc", 1000)
    reads = qa.head(name, table)
    classes, names = options.pop("classes", None), options.pop("names", ())
    network = UNet(1, reads.channels(1), 8, (1, 2), 1, (1,), classes=classes, **options)
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    maps = options.get("spans", False)
    return Denoiser(network.eval(), table, reads, (1, 8, 8), classes, class_names=names, maps=maps)


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on private images, with one result for its newest checkpoint, and one for another."""
    run = tmp_path_factory.mktemp("shared") / "flowers"
    shutil.copytree(tiny_run, run)
    config = checkpoints(run)[-1] / "config.json"
    about = read_sealed(config)
    about["recipe"]["data"]["source"] = f"{PLACE}/photos"
    about.pop("checksum", None)
    write_sealed(config, about)
    images = torch.randint(0, 255, (32, 1, 8, 8), dtype=torch.uint8)
    qa.evaluate(
        run, images, ["fid", "precision"], count=32, features="pixels", steps=2, device="cpu", out=run / "a.json"
    )
    other = json.loads((run / "a.json").read_text())
    other["metrics"]["fid"] = 123456.0
    other["images"]["sampling"]["checkpoint_sha256"] = "0" * 64
    (run / "b.json").write_text(json.dumps(other))
    return run


# --- formats --------------------------------------------------------------------------------------------------------


def test_safetensors_are_loaded_with_equal_images(evaluated: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("export", evaluated, "out", "--format", "safetensors", "--samples", 4, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "exported: out (model card: README.md)\n"
    names = {path.name for path in Path("out").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "mean.safetensors",
        "model.safetensors",
        "quarterarc.json",
        "samples.png",
    }
    one, other = (qa.generate(qa.load(place), range(2), steps=3, progress=False) for place in (evaluated, "out"))
    assert torch.equal(one, other)
    everything = "".join(path.read_text() for path in Path("out").rglob("*") if path.suffix in (".md", ".json"))
    assert PLACE not in everything


@pytest.mark.parametrize("name", ["both", "velocity"])
def test_diffusers_folders_are_loaded_with_equal_estimates(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What diffusers itself computes with them is tested in test_interop_pipelines."""
    pytest.importorskip("diffusers")
    denoise = untrained(name)
    out = qa.export(qa.save(denoise, tmp_path / "model"), tmp_path / "out", samples=0, device="cpu")
    assert (out / "pipeline.py").is_file() == (name == "both")
    assert len({path.stat().st_mode for path in out.rglob("*") if path.is_file()}) == 1  # readable by whoever reads one
    assert not (out / "samples.png").exists()
    back, x = qa.load(out, projection=None), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(back(x, 0.7).image, denoise(x, 0.7).image, atol=1e-4)
    if name == "velocity":
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec((out / "README.md").read_text().partition("```python\n")[2].partition("```")[0], names)
        assert names["images"][3].size == (8, 8)


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"spans": True}])
def test_onnx_computes_what_the_network_does_for_any_batch(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    denoise = untrained(**options)
    out = qa.export(qa.save(denoise, tmp_path / "model"), tmp_path / "out", format="onnx", samples=0, device="cpu")
    session = runtime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x, time = torch.randn(batch, 1, 8, 8), 1000.0 * torch.rand(batch)
        given = {"x": x, "time": time}
        if "classes" in options:
            given["labels"] = torch.arange(batch) % 4  # with "no label"
        if "spans" in options:
            given["span"] = time / 2
        (output,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            expected = denoise.network(**given)
        # sums of float32 in another order
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    described = json.loads((out / "quarterarc.json").read_text())
    assert described["denoiser"]["head"] == "both"
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(compile(code.replace('"out/', f'"{out}/'), "README.md", "exec"), {})


# --- folders --------------------------------------------------------------------------------------------------------


def test_an_export_is_complete_or_absent_and_written_again_only_for_the_same_model(tmp_path: Path, cli: Cli) -> None:
    model = qa.save(untrained(), tmp_path / "model")
    words: tuple[object, ...] = ("export", model, "out", "--format", "safetensors", "--samples", 1, "--device", "cpu")
    assert cli(*words).returncode == 0
    weights = Path("out/model.safetensors").stat().st_mtime_ns
    Path("out/README.md").unlink()
    assert cli(*words).returncode == 0
    assert Path("out/README.md").is_file()
    assert Path("out/model.safetensors").stat().st_mtime_ns == weights
    other = qa.save(untrained("velocity"), tmp_path / "other")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    for words in (
        ("export", other, "out", "--format", "safetensors"), ("export", model, "out", "--format", "onnx"),
        ("export", model, "mine"),
    ):  # fmt: skip
        wrong = cli(*words, "--device", "cpu")
        assert wrong.returncode == 2
        assert "already exists, and is not an export of" in wrong.stderr
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "format", "message"),
    [
        ({}, "tensorflow", "unknown format 'tensorflow'"),
        ({"spans": True}, "diffusers", "takes one time, and the network of a flow map also takes a span"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    options: dict[str, Any], format: str, message: str, tmp_path: Path, cli: Cli
) -> None:
    model = qa.save(untrained(**options), tmp_path / "model")
    wrong = cli("export", model, "out", "--format", format, "--device", "cpu", "--samples", "0")
    assert wrong.returncode == 2
    assert message in wrong.stderr
    assert wrong.stderr.startswith("quarterarc: error: ")
    assert wrong.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = qa.save(untrained(), tmp_path / "model")
    with pytest.raises(qa.InputError, match=r"pip install 'quarterarc\[onnx\]'"):
        qa.export(model, tmp_path / "out", format="onnx", samples=0, device="cpu")
    assert not (tmp_path / "out").exists()


# --- cards ----------------------------------------------------------------------------------------------------------


def test_a_card_has_the_runs_own_results_recipe_and_samples(evaluated: Path, tmp_path: Path) -> None:
    out = qa.export(evaluated, tmp_path / "out", format="safetensors", samples=4, device="cpu")
    text = (out / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["library_name"] == "quarterarc"
    (result,) = about["model-index"][0]["results"]
    values = json.loads((evaluated / "a.json").read_text())["metrics"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        name: pytest.approx(values[name], rel=1e-5) for name in ("fid", "precision")
    }
    assert "123456" not in text  # of another checkpoint
    assert PLACE not in text
    assert "source: photos" in body
    assert "# flowers" in body
    assert "after 6 optimiser steps, with a training loss of" in body
    assert "![Samples of flowers](samples.png)" in body
    assert read_png(out / "samples.png").shape == (1, 134, 134)  # two rows of two
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(out / "README.md")
    assert {entry.metric_type for entry in card.data.eval_results} == {"fid", "precision"}


def test_the_code_of_a_card_runs(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of diffusers for a folder with a pipeline of its own, in test_interop_pipelines."""
    monkeypatch.chdir(tmp_path)
    qa.export(evaluated, "out", format="safetensors", samples=0, device="cpu")
    names: dict[str, Any] = {}
    exec(Path("out/README.md").read_text().partition("```python\n")[2].partition("```")[0], names)
    assert names["images"].shape == (4, 1, 8, 8)


def test_classes_are_named_in_card_and_code(tmp_path: Path) -> None:
    denoise = untrained("velocity", classes=2, names=("cat", "dog"))
    about = about_run(tmp_path, qa.save(denoise, tmp_path / "model"), denoise)
    card = model_card(about, "diffusers", "out", picture=False)
    assert "It has 2 classes: 0 cat, 1 dog." in card
    assert "class_labels=0" in card
    assert "custom_pipeline" in card
    assert "samples.png" not in card
