"""Imported checkpoints: each published layout computes what an independent write-up of its network computes."""

from __future__ import annotations

import math
import pickle
import re
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import quarterarc as qa
from conftest import Cli
from published_networks import Weights, adm, ddim, edm_denoised
from quarterarc import Denoiser, InputError
from quarterarc.interop import EDM, import_checkpoint

# float32 sums of some hundred terms through twenty layers, relative to outputs of order one
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-4}
SMALL: dict[str, Any] = {"ch": 32, "mult": (1, 2), "blocks": 1}
CIFAR: dict[str, Any] = {"ch": 8, "mult": (1, 2), "blocks": 1, "attends": {4}}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def output(denoise: Denoiser, x: Tensor, numbers: Tensor, labels: Tensor | None = None) -> Tensor:
    """The network's output at step numbers from 0 of 1000, by its denoiser: those are the times 1..1000."""
    with torch.no_grad():
        angle = denoise.schedule.angle(numbers.double() + 1.0)
        estimate = denoise(x, angle, labels) if labels is not None else denoise(x, angle)
    fraction = estimate.variance_fraction
    return estimate.noise if fraction is None else torch.cat([estimate.noise, 2.0 * fraction - 1.0], 1)


STEPS = torch.tensor([0, 417, 999])


@pytest.fixture
def ddim_weights(x: Tensor) -> Weights:
    weights = Weights()
    ddim(weights, x, STEPS, **SMALL, attends={1})
    return weights


def test_ddim_and_its_conversion_compute_what_their_network_computes(
    x: Tensor, ddim_weights: Weights, tmp_path: Path
) -> None:
    expected = ddim(ddim_weights, x, STEPS, **SMALL, attends={1})
    torch.save(OrderedDict(ddim_weights), tmp_path / "ema_diffusion_cifar10_model-790000.ckpt")
    denoise = qa.load(import_checkpoint(tmp_path / "ema_diffusion_cifar10_model-790000.ckpt", tmp_path / "out"))
    torch.testing.assert_close(output(denoise, x, STEPS), expected, **CLOSE)
    assert denoise.shape == (3, 32, 32)  # attention at 16 pixels, on the second level
    assert denoise.head.name == "noise"
    assert np.array_equal(denoise.schedule.angles, qa.schedule("linear", 1000).angles)


def test_the_average_of_a_training_checkpoint_of_ddim_is_taken(
    x: Tensor, ddim_weights: Weights, tmp_path: Path
) -> None:
    """DDIM's own: model with the prefix of DataParallel, optimiser, epoch, step, average; in the format before zip."""
    raw = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in ddim_weights.items()}
    optimiser = {"state": {0: {"step": 5, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    value = [raw, optimiser, 10, 5000, dict(ddim_weights)]
    torch.save(value, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=False)
    denoise = qa.load(import_checkpoint(tmp_path / "ckpt.pth", tmp_path / "out", size=8))
    expected = ddim(ddim_weights, x, STEPS, **SMALL, attends={1})
    torch.testing.assert_close(output(denoise, x, STEPS), expected, **CLOSE)
    assert denoise.shape == (3, 8, 8)


ADM_KINDS: dict[str, dict[str, Any]] = {
    "guided": {"heads": 2, "outputs": 6, "classes": 5},
    "new-order": {"heads": 4, "outputs": 3, "new_order": True},
    "improved": {"heads": 4, "outputs": 6, "updown": False},
    "added": {"heads": 1, "outputs": 3, "updown": False, "scale_shift": False},
}


@pytest.mark.parametrize("kind", ADM_KINDS)
def test_adm_computes_what_its_network_computes(x: Tensor, tmp_path: Path, kind: str) -> None:
    settings = {**SMALL, "attends": {1}, **ADM_KINDS[kind]}
    weights = Weights()
    labels = torch.tensor([0, 4, 2]) if "classes" in settings else None
    expected = adm(weights, x, STEPS, labels, **settings)
    torch.save(dict(weights), tmp_path / "ema.pt")
    order = "new" if settings.get("new_order") else "legacy"
    folder = import_checkpoint(
        tmp_path / "ema.pt", tmp_path / "out", size=8, heads=settings["heads"], order=order, schedule="cosine"
    )
    denoise = qa.load(folder)
    torch.testing.assert_close(output(denoise, x, STEPS, labels), expected, **CLOSE)
    assert denoise.head.name == ("noise+variance" if settings["outputs"] == 6 else "noise")
    assert denoise.classes == settings.get("classes")
    assert denoise.unlabelled == (labels is None)


@pytest.mark.parametrize(("updown", "heads"), [(True, 2), (False, 4)])
def test_adm_has_the_usual_heads_of_its_code(x: Tensor, tmp_path: Path, updown: bool, heads: int) -> None:
    """64 channels per head with resampling blocks (guided-diffusion), 4 heads without (improved-diffusion)."""
    settings: dict[str, Any] = {"ch": 32, "mult": (1, 4), "blocks": 1, "attends": {1}, "outputs": 3, "updown": updown}
    weights = Weights()
    expected = adm(weights, x, STEPS, None, **settings, heads=heads)
    torch.save(dict(weights), tmp_path / "ema.pt")
    denoise = qa.load(import_checkpoint(tmp_path / "ema.pt", tmp_path / "out", size=8))
    torch.testing.assert_close(output(denoise, x, STEPS), expected, **CLOSE)
    other = adm(weights, x, STEPS, None, **settings, heads=6 - heads)
    assert (other - expected).abs().max() > 1e-2  # the number of heads matters


def test_settings_of_an_import_are_checked(tmp_path: Path, cli: Cli, ddim_weights: Weights) -> None:
    torch.save(dict(ddim_weights), tmp_path / "a.pt")
    assert "size must be at least 1, got -8" in failed(cli, "a.pt", "out", "--size", "-8")
    assert "heads must be at least 1, got 0" in failed(cli, "a.pt", "out", "--heads", "0")
    both = failed(cli, "a.pt", "out", "--heads", "2", "--head-channels", "32")
    assert "2 heads and 32 channels per head: give one of the two" in both
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_edm_is_its_preconditioned_denoiser_on_the_arc(x: Tensor, tmp_path: Path, classes: int, form: str) -> None:
    weights, sigma = Weights(), torch.tensor([0.01, 0.7, 60.0])
    labels = torch.tensor([0, 3, 1]) if classes else None
    network = {**CIFAR, "classes": classes}
    noisy = x * (1.0 + sigma**2).sqrt()[:, None, None, None]
    expected = edm_denoised(weights, noisy, sigma, labels, **network)
    weights["model.map_augment.weight"] = torch.zeros(8, 9)
    file = tmp_path / f"edm.{form}"
    save_file(dict(weights), file) if form == "safetensors" else torch.save(dict(weights), file)
    denoise = qa.load(import_checkpoint(file, tmp_path / "out"))
    angle = sigma.double().atan()
    estimate = denoise(x, angle, labels) if classes else denoise(x, angle)
    torch.testing.assert_close(estimate.image, expected, **CLOSE)
    # the adapter of this library for the same model
    adapter = EDM(lambda x, sigma, *labels: edm_denoised(weights, x, sigma, labels[0] if labels else None, **network))
    other = adapter(x, angle, labels) if classes else adapter(x, angle)
    torch.testing.assert_close(estimate.image, other.image, **CLOSE)
    # of noise, which the adapter divides by sigma: ten rounding errors of x at sigma 0.01
    torch.testing.assert_close(estimate.noise, other.noise, rtol=1e-3, atol=1e-3)
    assert denoise.shape == (3, 8, 8)
    assert denoise.largest_angle == pytest.approx(math.atan(80.0))
    assert denoise.classes == (classes or None)


def test_an_imported_checkpoint_is_sampled_tuned_and_evaluated(tmp_path: Path, cli: Cli, x: Tensor) -> None:
    weights = Weights()
    edm_denoised(weights, x, torch.ones(3), None, **CIFAR)
    save_file(dict(weights), tmp_path / "edm.safetensors")
    done = cli("import", "edm.safetensors", "imported")
    assert done.returncode == 0, done.stderr
    assert "the layout is 'edm'" in done.stderr
    for words in (
        ("tune", "imported", "--nfe", "2", "--images", "8"),
        ("sample", "imported", "--out", "made.npz", "--seeds", "0-3", "--steps", "2", "--grid", "tuned"),
        ("sample", "imported", "--out", "heun.npz", "--seeds", "0-1", "--steps", "2", "--sampler", "heun"),
    ):
        done = cli(*words)
        assert done.returncode == 0, done.stderr


def failed(cli: Cli, *words: object) -> str:
    done = cli("import", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w')",)


def test_pickles_of_objects_are_one_line_and_run_nothing(tmp_path: Path, cli: Cli) -> None:
    torch.save({"ema": Command()}, tmp_path / "hostile.pt")
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": Command()}))
    (tmp_path / "noise.ckpt").write_bytes(bytes(range(256)) * 4)
    for name in ("hostile.pt", "network.pkl", "noise.ckpt"):
        assert "without running code in it" in failed(cli, name, "out")
    assert "no file of weights" in failed(cli, "missing.pt", "out")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named_in_one_line(
    tmp_path: Path, cli: Cli, ddim_weights: Weights, x: Tensor
) -> None:
    edm = Weights()
    edm_denoised(edm, x, torch.ones(3), None, **CIFAR)
    other = Weights()
    adm(other, x, STEPS, None, **SMALL, attends={1}, heads=2, outputs=3)
    for weights, name, words in (
        (ddim_weights, "mid.block_1.conv1.weight", "mid_block.resnets.0.conv1.weight"),
        (edm, "model.dec.4x4_in0.qkv.bias", "lack 1 tensor of 'edm', 'dec.4x4_in0.qkv.bias'"),
        (other, "out.2.bias", "lack 1 tensor of 'adm', 'out_conv.bias'"),
    ):
        torch.save({key: tensor for key, tensor in weights.items() if key != name}, tmp_path / "a.pt")
        assert words in failed(cli, "a.pt", "out", "--size", "8")
        torch.save({**weights, "more.weight": torch.zeros(2)}, tmp_path / "a.pt")
        assert "more" in failed(cli, "a.pt", "out", "--size", "8")
        torch.save({**weights, name: torch.zeros(7)}, tmp_path / "a.pt")
        assert "shape" in failed(cli, "a.pt", "out", "--size", "8")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pt")
    assert "layout of these weights is not known" in failed(cli, "a.pt", "out")
    torch.save({"weight": torch.zeros(1).expand(10**12)}, tmp_path / "a.pt")
    assert "more than what is stored" in failed(cli, "a.pt", "out")
    torch.save([1, "two"], tmp_path / "a.pt")
    assert "holds no weights" in failed(cli, "a.pt", "out")
    assert not (tmp_path / "out").exists()


def test_a_file_larger_than_the_memory_is_not_read(
    tmp_path: Path, ddim_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dict(ddim_weights), tmp_path / "a.pt")
    monkeypatch.setattr("quarterarc.common.memory.memory_of", lambda device: 1000)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(InputError, match="out of memory"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out")


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        import_checkpoint(tmp_path / "a.pt", tmp_path)


def test_every_command_of_the_page_runs(tmp_path: Path, cli: Cli, ddim_weights: Weights, x: Tensor) -> None:
    """With small networks in the files of these names, and few images."""
    diffusers = pytest.importorskip("diffusers")
    from test_interop_pipelines import tiny

    diffusers.DDPMPipeline(tiny(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "PIPELINE")
    improved, edm = Weights(), Weights()
    adm(improved, x, STEPS, None, **SMALL, attends={1}, heads=4, outputs=6, updown=False)
    edm_denoised(edm, x, torch.ones(3), None, **CIFAR)
    torch.save(dict(ddim_weights), tmp_path / "ema_diffusion_cifar10_model-790000.ckpt")
    torch.save(dict(improved), tmp_path / "cifar10_uncond_50M_500K.pt")
    save_file(dict(edm), tmp_path / "edm-cifar10-32x32-uncond-vp.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(tmp_path / "photos" / f"{number}.png")
    page = (Path(__file__).parent.parent / "docs" / "other-models.md").read_text(encoding="utf-8")
    sections = [text for text in page.split("\n## ") if not text.startswith(("Fine-tuning", "Sharing"))]
    assert len(sections) == page.count("\n## ") - 1  # the commands of those two run in tests/test_docs.py
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", "\n".join(sections), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) == 7
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "quarterarc"
        small = {"tune": ["--images", "8", "--nfe", "10"]}.get(words[0], [])
        done = cli(*["0-3" if word == "0-63" else word for word in words], *small)
        assert done.returncode == 0, done.stderr
