"""Models by path: runs, checkpoints, pipelines, variants and networks alone, in Python and on the command line."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

import quarterarc as qa
from conftest import Cli
from quarterarc import InputError
from quarterarc.interop import load_pipeline
from quarterarc.interop.opening import hash_of, identity, is_model
from quarterarc.networks import UNet
from test_interop_pipelines import tiny

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of 8x8 images."""
    folder = tmp_path_factory.mktemp("pipeline") / "pipe"
    diffusers.DDPMPipeline(tiny(), diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(folder)
    return folder


def estimate(denoise: qa.Denoiser) -> torch.Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return denoise(x, 0.7).image


def test_load_reads_a_pipeline_as_load_pipeline_does(pipeline: Path) -> None:
    denoise = qa.load(pipeline)
    assert denoise.shape == (1, 8, 8)
    assert denoise.checkpoint == pipeline
    assert torch.equal(estimate(denoise), estimate(load_pipeline(pipeline)))


def test_a_variant_in_half_precision_is_read(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(pipeline, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").half()
    network.save_pretrained(folder / "unet", variant="fp16")
    expected = estimate(qa.load(pipeline))
    assert torch.allclose(estimate(qa.load(folder)), expected, rtol=2e-2, atol=2e-2)  # weights of 11 bits
    assert hash_of(folder) != hash_of(pipeline)


def test_a_network_in_a_pipeline_has_its_scheduler(pipeline: Path) -> None:
    denoise = qa.load(pipeline / "unet")
    assert denoise.schedule.steps == 100
    assert torch.equal(estimate(denoise), estimate(qa.load(pipeline)))
    assert identity(pipeline / "unet") == identity(pipeline)


def test_a_network_alone_has_the_scheduler_of_ddpm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from diffusers.training_utils import EMAModel

    network = tiny()
    average = EMAModel(network.parameters(), model_cls=diffusers.UNet2DModel, model_config=network.config)
    average.save_pretrained(tmp_path / "checkpoint-5" / "unet_ema")
    with caplog.at_level(logging.INFO):
        denoise = qa.load(tmp_path / "checkpoint-5" / "unet_ema")
    assert "DDPM's is used" in caplog.text
    assert "will be ignored" not in caplog.text  # the settings of the average in its config.json
    assert isinstance(denoise.network.inner, UNet)  # type: ignore[attr-defined]
    expected = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    expected.save_pretrained(tmp_path / "pipe")
    assert torch.equal(estimate(denoise), estimate(qa.load(tmp_path / "pipe")))


def test_the_commands_take_a_pipeline(pipeline: Path, cli: Cli, tmp_path: Path) -> None:
    made = cli("sample", pipeline, "--out", "made.npz", "--seeds", "0-3", "--steps", "2")
    assert made.returncode == 0, made.stderr
    tuned = cli("tune", pipeline, "--nfe", "2", "--images", "8")
    assert tuned.returncode == 0, tuned.stderr
    again = cli("sample", pipeline, "--out", "tuned.npz", "--seeds", "0-3", "--grid", "tuned", "--steps", "2")
    assert again.returncode == 0, again.stderr
    words = ("--reference", "digits", "--features", "pixels", "--metrics", "fid", "--count", "16", "--steps", "2")
    measured = cli("evaluate", pipeline, *words, "--out", "result.json")
    assert measured.returncode == 0, measured.stderr
    assert hash_of(pipeline) in (tmp_path / "result.json").read_text()


def test_grids_tuned_for_other_weights_are_not_used(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    shutil.copytree(pipeline, folder)
    qa.tune(folder, nfe=2, images=8, progress=False)
    qa.generate(qa.load(folder), [0], grid="tuned", steps=2)
    tiny(seed=1).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match="tuned for another network"):
        qa.generate(qa.load(folder), [0], grid="tuned", steps=2)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, pipeline: Path) -> None:
    assert not is_model(tmp_path)
    with pytest.raises(InputError, match="contains no complete checkpoint"):
        qa.load(pipeline / "scheduler")
