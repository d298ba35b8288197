"""diffusers' pipeline folders: the numbers of diffusers' schedulers, and folders read and written."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quarterarc as qa
from quarterarc import Denoiser, InputError, Schedule
from quarterarc.arc import NOISE_END
from quarterarc.denoiser import Denoise
from quarterarc.heads import Head, Noise, head
from quarterarc.interop import load_pipeline, pipeline_denoiser, pipeline_grid, pipeline_schedule, save_pipeline
from quarterarc.networks import UNet
from scheduler_tables import TABLES

diffusers = pytest.importorskip("diffusers")

Hand = Callable[[list[Tensor]], list[Tensor]]
BATCH = 3
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
# diffusers' tables and steps are float32: alpha_bar is a product of up to 1000 rounded factors
CLOSE = 1e-5
# tables and arithmetic are float64 on both sides, and outputs of random networks reach 1e3
EXACT = 1e-12


def tiny(**config: Any) -> Any:
    """A random UNet2DModel of 8x8 images."""
    torch.manual_seed(config.pop("seed", 0))
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**{**settings, **config}).eval()


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(7)).to(dtype)


def fresh(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The noise of `count` steps, equal for both sides."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(BATCH, 1, 8, 8, generator=generator).to(dtype) for _ in range(count)]


def ours(denoise: Denoiser, sampler: Any, grid: Iterable[float], noises: Iterable[Tensor] = ()) -> Tensor:
    """The result of a sampler of this library with explicit noise for every step."""
    given = iter(noises)
    x = start(next(module(denoise).parameters()).dtype)
    with torch.no_grad():
        for state in sampler(denoise, x, [float(angle) for angle in grid], lambda like: next(given)):
            x = state.x
    return x


def theirs(
    unet: Any, scheduler: Any, steps: int, noises: Iterable[Tensor] = (), labels: Tensor | None = None, **options: Any
) -> Tensor:
    """The result of diffusers' loop, in the precision of the network."""
    scheduler.set_timesteps(steps)
    x, given = start(unet.dtype), iter(noises)
    with torch.no_grad():
        for t in scheduler.timesteps:
            if "eta" in options:
                options["variance_noise"] = next(given)
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, **options).prev_sample
    return x


def module(denoise: Denoiser) -> nn.Module:
    assert isinstance(denoise.network, nn.Module)
    return denoise.network


def in_float64(unet: Any, scheduler: Any) -> tuple[Any, Any]:
    """Network and scheduler in float64, so that remaining differences come from the formulas."""
    scheduler.alphas_cumprod = torch.tensor(pipeline_schedule(scheduler).alpha_bar[1:])
    return unet.double(), scheduler


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest value: outputs of random networks are not near 1."""
    assert torch.isfinite(one).all()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


# --- estimates and samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["own", "diffusers"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps_trained", [1000, 100])
def test_the_network_is_called_with_the_step_number(prediction: str, network: str, steps_trained: int) -> None:
    unet = tiny()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=steps_trained, prediction_type=prediction)
    denoise = pipeline_denoiser(unet, scheduler, network=network)
    x = start()
    for number in (0, 1, steps_trained // 2, steps_trained - 1):
        angle = denoise.schedule.angle(number + 1.0)
        with torch.no_grad():
            output = unet(x, number).sample
            estimate = denoise(x, angle)
        expected = denoise.head.read(output, x, angle)
        assert apart(estimate.image, expected.image) < CLOSE
        assert apart(estimate.noise, expected.noise) < CLOSE


def test_between_the_steps_the_network_is_called_with_fractional_numbers() -> None:
    unet = tiny()
    denoise = pipeline_denoiser(unet, diffusers.DDPMScheduler(num_train_timesteps=100), network="diffusers")
    angle = denoise.schedule.angle(40.25)
    with torch.no_grad():
        expected = unet(start(), torch.tensor(39.25)).sample
        assert apart(denoise(start(), angle).noise, expected) < CLOSE
        # the clean image has no step number: the network is called with that of the first step
        assert apart(denoise(start(), 0.0).noise, unet(start(), 0).sample) < CLOSE


def test_predict_epsilon_of_early_configurations_selects_the_head() -> None:
    config = {"beta_schedule": "linear", "num_train_timesteps": 100}
    assert pipeline_denoiser(tiny(), config).head.name == "noise"
    assert pipeline_denoiser(tiny(), {**config, "predict_epsilon": False}).head.name == "image"


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_equals_diffusers_ddim(prediction: str, spacing: str) -> None:
    unet = tiny()
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, timestep_spacing=spacing, clip_sample=False)
    made = ours(pipeline_denoiser(unet, scheduler), qa.sampler("ddim"), pipeline_grid(scheduler, 10))
    assert apart(made, theirs(unet, scheduler, 10)) < CLOSE


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_equals_diffusers_ddim_in_float64(prediction: str, eta: float, spacing: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, timestep_spacing=spacing, clip_sample=False)
    unet, scheduler = in_float64(tiny(), scheduler)
    denoise = pipeline_denoiser(unet, scheduler, network="diffusers")
    noises = fresh(8, torch.float64)
    made = ours(denoise, qa.sampler("ddim", eta=eta), pipeline_grid(scheduler, 8), noises)
    assert apart(made, theirs(unet, scheduler, 8, noises, eta=eta)) < EXACT


@pytest.mark.parametrize("config", TABLES, ids=lambda config: "-".join(str(v)[:12] for v in config.values()))
def test_ddim_equals_diffusers_ddim_for_every_beta_table(config: dict[str, Any]) -> None:
    unet = tiny()
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, **config, **options}
    # diffusers' DDIM lacks some tables of its DDPM, but accepts them as trained_betas
    beta = diffusers.DDPMScheduler(**config).betas.tolist()
    scheduler = diffusers.DDIMScheduler(trained_betas=beta, num_train_timesteps=len(beta), clip_sample=False, **options)
    expected = theirs(unet, scheduler, 10)
    made = qa.sample(pipeline_denoiser(unet, config), start(), "ddim", grid=pipeline_grid(config, 10)).images
    assert apart(made, expected) < CLOSE


def test_the_grid_time_equals_trailing_timesteps() -> None:
    unet = tiny()
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    expected = theirs(unet, scheduler, 20)
    made = qa.sample(pipeline_denoiser(unet, scheduler), start(), "ddim", 20, "time").images
    assert apart(made, expected) < CLOSE


def test_without_set_alpha_to_one_the_grid_ends_at_the_first_training_step() -> None:
    unet = tiny()
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    grid = pipeline_grid(scheduler, 10)
    assert grid[-1] == pipeline_schedule(scheduler).angle(1.0)
    expected = theirs(unet, scheduler, 10)
    assert apart(qa.sample(pipeline_denoiser(unet, scheduler), start(), "ddim", grid=grid).images, expected) < CLOSE


def test_clipped_equals_clip_sample_of_diffusers() -> None:
    unet, scheduler = in_float64(tiny(), diffusers.DDIMScheduler(clip_sample=True))
    denoise, grid = pipeline_denoiser(unet, scheduler, network="diffusers"), pipeline_grid(scheduler, 10)
    plain, rederived = theirs(unet, scheduler, 10), theirs(unet, scheduler, 10, use_clipped_model_output=True)
    assert apart(ours_through(qa.Clipped(denoise, rederive=False), grid), plain) < EXACT
    assert apart(ours_through(qa.Clipped(denoise), grid), rederived) < EXACT
    assert apart(plain, rederived) > 1e-3  # the two variants differ


def ours_through(denoise: Denoise, grid: np.ndarray) -> Tensor:
    return qa.sample(denoise, start(torch.float64), "ddim", grid=grid).images


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """A function that replaces the random noise of diffusers' DDPM by explicit tensors."""

    def hand(noises: list[Tensor]) -> list[Tensor]:
        given = iter(noises)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *arguments, **options: next(given)
        )
        return noises

    return hand


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("variance", "type_"), [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")]
)
def test_ddpm_equals_diffusers_ddpm_in_float64(
    prediction: str, variance: str, type_: str, steps: int, handed: Hand
) -> None:
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=20,
        beta_start=0.005,
        beta_end=0.9,
        prediction_type=prediction,
        variance_type=type_,
        clip_sample=False,
    )
    unet, scheduler = in_float64(tiny(out_channels=2 if variance == "learned" else 1), scheduler)
    denoise, grid = pipeline_denoiser(unet, scheduler, network="diffusers"), pipeline_grid(scheduler, steps)
    expected = theirs(unet, scheduler, steps, handed(fresh(steps, torch.float64)))
    made = ours(denoise, qa.sampler("ddpm", variance=variance), grid, fresh(steps, torch.float64))
    assert apart(made, expected) < EXACT


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_equals_diffusers_ddpm_on_its_float32_tables(variance: str, handed: Hand) -> None:
    type_ = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    unet = tiny(out_channels=2 if variance == "learned" else 1)
    scheduler = diffusers.DDPMScheduler(variance_type=type_, clip_sample=False)
    denoise, grid = pipeline_denoiser(unet, scheduler), pipeline_grid(scheduler, 10)
    expected = theirs(unet, scheduler, 10, handed(fresh(10)))
    assert apart(ours(denoise, qa.sampler("ddpm", variance=variance), grid, fresh(10)), expected) < CLOSE


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["own", "diffusers"])
@pytest.mark.parametrize("null_label", [None, 0, 2, 4])
def test_labels_and_null_labels_are_passed_to_the_network(null_label: int | None, network: str) -> None:
    unet = tiny(num_class_embeds=5)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    denoise = pipeline_denoiser(unet, scheduler, null_label=null_label, network=network)
    labels = torch.tensor([1, 3, 1])
    expected = theirs(unet, scheduler, 5, labels=labels)
    made = qa.sample(denoise, start(), "ddim", grid=pipeline_grid(scheduler, 5), labels=labels).images
    assert apart(made, expected) < CLOSE
    assert denoise.unlabelled == (null_label is not None)
    if null_label is None:
        with pytest.raises(InputError, match=r"one of the labels 0\.\.4 for every image: give labels"):
            denoise(start(), 0.5)
        with pytest.raises(InputError, match="null_label="):
            qa.Guided(denoise, scale=3.0)
        with pytest.raises(InputError, match="null_label="):
            denoise(start(), 0.5, torch.full_like(labels, 5))
        return
    guided = qa.Guided(denoise, scale=3.0)
    angle = denoise.schedule.angle(400.0)
    with torch.no_grad():
        conditional = unet(start(), 399, class_labels=labels).sample
        none = unet(start(), 399, class_labels=torch.full_like(labels, null_label)).sample
        estimate = guided(start(), angle, labels)
        without = denoise(start(), angle)
    assert apart(estimate.noise, none + 3.0 * (conditional - none)) < CLOSE
    assert apart(without.noise, none) < CLOSE
    assert denoise.classes == (4 if null_label == 4 else 5)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_an_exported_network_has_an_embedding_for_no_label_only_if_it_was_trained(
    unlabelled: bool, tmp_path: Path
) -> None:
    network, schedule = UNet(1, 1, 32, (1,), 1, (), classes=3).eval(), qa.schedule("linear")
    assert network.labels is not None
    torch.nn.init.normal_(network.labels.weight)
    denoise = Denoiser(network, schedule, Noise(), shape=(1, 8, 8), classes=3, unlabelled=unlabelled)
    save_pipeline(denoise, tmp_path / "pipeline")
    again = load_pipeline(tmp_path / "pipeline")
    assert (again.classes, again.unlabelled) == (3, unlabelled)
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert apart(again(x, 0.7, labels).image, denoise(x, 0.7, labels).image) < CLOSE


@pytest.mark.parametrize("null_label", [None, 0, 3])
def test_a_class_conditional_pipeline_has_mean_images_of_the_labels_that_it_has(null_label: int | None) -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    denoise = pipeline_denoiser(tiny(num_class_embeds=4), scheduler, null_label=null_label)
    mean = qa.with_mean_image(denoise).traits.mean_image
    assert mean is not None
    assert len(mean.images) == {None: 4, 0: 5, 3: 4}[null_label]
    assert qa.tune(denoise, 2, images=8, weights=False, progress=False).steps == 2


def test_labels_that_the_network_does_not_have_raise() -> None:
    denoise = pipeline_denoiser(tiny(), diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="no classes"):
        denoise(start(), 0.5, torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="the network has no labels"):
        pipeline_denoiser(tiny(), diffusers.DDIMScheduler(), null_label=3)
    with pytest.raises(InputError, match=r"the labels 0\.\.4"):
        pipeline_denoiser(tiny(num_class_embeds=5), diffusers.DDIMScheduler(), null_label=5)


# --- networks ----------------------------------------------------------------------------------------------------


def runs_ours(denoise: Denoiser) -> bool:
    return isinstance(module(denoise).inner, UNet)


def test_networks_that_unet_cannot_represent_run_in_diffusers() -> None:
    assert runs_ours(pipeline_denoiser(tiny(), diffusers.DDIMScheduler()))
    assert not runs_ours(pipeline_denoiser(tiny(), diffusers.DDIMScheduler(), network="diffusers"))
    odd = tiny(resnet_time_scale_shift="scale_shift")
    denoise = pipeline_denoiser(odd, diffusers.DDIMScheduler())
    assert not runs_ours(denoise)
    with torch.no_grad():
        assert apart(denoise(start(), denoise.schedule.angle(10.0)).noise, odd(start(), 9).sample) < CLOSE


def test_a_learned_time_embedding_is_called_with_whole_steps() -> None:
    unet = tiny(time_embedding_type="learned", num_train_timesteps=100)
    denoise = pipeline_denoiser(unet, diffusers.DDPMScheduler(num_train_timesteps=100))
    with torch.no_grad():
        for time, number in ((30.0, 29), (30.3, 29), (0.0, 0), (100.0, 99)):
            made = denoise(start(), denoise.schedule.angle(time)).noise
            assert apart(made, unet(start(), number).sample) < CLOSE


def test_a_noise_network_on_a_table_that_ends_at_pi_over_2_starts_one_step_below() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    denoise = pipeline_denoiser(tiny(), scheduler)
    assert denoise.schedule.end == NOISE_END
    assert denoise.largest_angle == denoise.schedule.angle(999.0)
    assert torch.isfinite(qa.sample(denoise, start(), "ddim", 5).images).all()


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline"
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_start=0.001, beta_end=0.2)
    diffusers.DDPMPipeline(tiny(), scheduler).save_pretrained(path)
    return path


def weights(denoise: Denoiser) -> dict[str, Tensor]:
    return module(denoise).state_dict()


def test_load_pipeline_equals_the_pipeline_of_diffusers(folder: Path) -> None:
    denoise = load_pipeline(folder)
    assert denoise.shape == (1, 8, 8)
    assert denoise.classes is None
    assert denoise.head.name == "noise"
    assert not any(layer.training for layer in module(denoise).modules())
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.scheduler.register_to_config(clip_sample=False)
    expected = theirs(pipeline.unet, pipeline.scheduler, 10)
    assert apart(qa.sample(denoise, start(), "ddim", grid=pipeline_grid(folder, 10)).images, expected) < CLOSE
    assert load_pipeline(folder, precision=torch.bfloat16).precision == torch.bfloat16


def test_half_precision_weights_are_loaded_in_float32(folder: Path) -> None:
    diffusers.UNet2DModel.from_pretrained(folder / "unet").half().save_pretrained(folder / "unet")
    denoise = load_pipeline(folder)
    assert {weight.dtype for weight in weights(denoise).values()} == {torch.float32}


def test_the_only_variant_of_the_weights_is_read_in_float32(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`save_pretrained(variant="fp16")` writes no file without the variant's name; of two variants none is chosen."""
    unet = folder / "unet"
    network = diffusers.UNet2DModel.from_pretrained(unet).half()
    expected = {name: weight.float() for name, weight in network.state_dict().items()}
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(unet, variant="fp16")
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with caplog.at_level("INFO", logger="quarterarc"):
        denoise = load_pipeline(folder, network="diffusers")
    assert "variant 'fp16'" in caplog.text
    for name, weight in weights(denoise).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name.partition("unet.")[2]])
    (unet / "diffusion_pytorch_model.bin").unlink()
    network.save_pretrained(unet, variant="bf16")
    with pytest.raises(InputError, match=r"only the variants bf16, fp16: copy the pipeline with one of them"):
        load_pipeline(folder)


def test_older_folders_with_all_files_in_one_place_are_read(folder: Path, tmp_path: Path) -> None:
    # like the first public DDPM checkpoints
    for name in ("unet", "scheduler"):
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    unet = diffusers.DDPMPipeline.from_pretrained(folder).unet
    denoise = load_pipeline(folder)
    with torch.no_grad():
        assert apart(denoise(start(), denoise.schedule.angle(50.0)).noise, unet(start(), 49).sample) < CLOSE


def edit(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text())
    settings.update(changes)
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "-"}))


def test_unreadable_folders_raise_in_one_line(folder: Path, tmp_path: Path) -> None:
    def check(message: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load_pipeline(folder, **options)
        assert "\n" not in str(caught.value)

    index, scheduler = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    original = {path: path.read_text() for path in (index, scheduler, folder / "unet" / "config.json")}

    def restore() -> None:
        for path, text in original.items():
            path.write_text(text)

    edit(index, text_encoder=["transformers", "CLIPTextModel"], vae=["diffusers", "AutoencoderKL"])
    check("text-conditioned pipeline .its component 'text_encoder' is a CLIPTextModel")
    restore()
    edit(index, unet=["diffusers", "UNet2DConditionModel"])
    check("text-conditioned pipeline .its component 'unet' is a UNet2DConditionModel")
    restore()
    edit(index, vqvae=["diffusers", "VQModel"])
    check("latent pipeline .its component 'vqvae' is a VQModel")
    restore()
    edit(index, unet="-", prior=["diffusers", "UNet1DModel"])
    check("component 'prior', a UNet1DModel")
    restore()
    edit(index, scheduler="-")
    check("has no component 'scheduler'")
    restore()
    edit(index, safety_checker=[None, None])
    load_pipeline(folder)  # a component that is None is ignored
    restore()

    edit(scheduler, prediction_type="flow")
    check("unknown prediction_type 'flow'")
    restore()
    edit(scheduler, beta_schedule="linaer")
    check("unknown beta_schedule 'linaer'; did you mean 'linear'")
    restore()
    edit(scheduler, beta_schedule="-", _class_name="FlowMatchEulerDiscreteScheduler")
    check("FlowMatchEulerDiscreteScheduler has no beta table")
    restore()
    edit(scheduler, trained_betas=[0.1, 0.2])
    check("2 trained_betas for num_train_timesteps=100")
    restore()
    edit(scheduler, beta_end="much")
    check("settings give no beta table")
    restore()
    edit(scheduler, beta_end=1.5)
    check(r"every value in \(0, 1\)")
    restore()
    scheduler.write_text("{")
    check("is not JSON")
    restore()
    scheduler.write_text("[]")
    check("a scheduler or its configuration is needed, got list")
    restore()
    index.write_text("[]")
    check("has no component 'unet'")
    restore()

    check("unknown network 'theirs'", network="theirs")
    config = folder / "unet" / "config.json"
    edit(config, block_out_channels=[8, 24])
    check("diffusers cannot read the network")
    restore()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    check("diffusers cannot read the network")
    weights.unlink()
    check("no diffusion_pytorch_model.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    check("is a pickle.*use_safetensors=False")
    index.unlink()
    check("it has no model_index.json")
    with pytest.raises(InputError, match=r"no folder at .*hf download"):
        load_pipeline("somebody/checkpoint")


def test_the_code_in_the_error_for_pickles_converts_them(folder: Path) -> None:
    unet = folder / "unet"
    diffusers.UNet2DModel.from_pretrained(unet).save_pretrained(unet, safe_serialization=False)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        load_pipeline(folder)
    line = str(caught.value).split("convert it with ")[1]
    exec(line, {"diffusers": diffusers})
    load_pipeline(folder)


def test_networks_with_other_inputs_or_outputs_raise() -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="learned")
    for network, message in (
        (tiny(time_embedding_type="fourier"), "ScoreVE"),
        (tiny(class_embed_type="timestep"), "class_embed_type 'timestep'"),
        (tiny(in_channels=3), "3 input and 1 output channels"),
        (tiny(out_channels=2), "only 'learned_range'"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline_denoiser(network, scheduler)
    with pytest.raises(InputError, match="a scheduler or its configuration"):
        pipeline_denoiser(tiny(), 3)


# --- writing ---------------------------------------------------------------------------------------------------


def ours_untrained(name: str, schedule: Schedule, classes: int | None = None, **options: Any) -> Denoiser:
    torch.manual_seed(3)
    network = UNet(1, head(name, schedule).channels(1), 16, (1, 2), 1, (1,), classes=classes, **options)
    for weight in network.parameters():  # the initial output layer is 0
        weight.data.add_(0.05 * torch.randn_like(weight))
    return qa.Denoiser(network.eval(), schedule, head(name, schedule), shape=(1, 8, 8), classes=classes)


@pytest.mark.parametrize(
    ("table", "steps"), [("arc", 1000), ("arc", 250), ("linear", 1000), ("linear", 250), ("jsd", 500)]
)
@pytest.mark.parametrize("name", ["noise", "image", "velocity", "noise+variance", "velocity+variance"])
def test_a_saved_pipeline_is_loaded_with_equal_estimates(name: str, table: str, steps: int, tmp_path: Path) -> None:
    denoise = ours_untrained(name, qa.schedule(table, steps))
    path = save_pipeline(denoise, tmp_path / "out")
    back = load_pipeline(path)
    assert back.head.name == name
    assert back.shape == (1, 8, 8)
    # a schedule of another length is tabulated again, without steps at which a noise head is undefined
    assert back.schedule.steps == (1000 if denoise.largest_angle == denoise.schedule.end else 1000 - 1000 // steps)
    assert back.largest_angle == pytest.approx(denoise.largest_angle, abs=1e-6)  # by way of a beta table
    x = start()
    with torch.no_grad():
        for time in (4.0, 37.0, 400.0, 990.0):
            angle = back.schedule.angle(time)
            assert angle == pytest.approx(denoise.schedule.angle(time * steps / 1000), abs=1e-6)
            before, after = denoise(x, angle), back(x, angle)
            assert apart(after.image, before.image) < CLOSE
            assert apart(after.noise, before.noise) < CLOSE
            if name.endswith("variance"):
                assert before.variance_fraction is not None
                assert after.variance_fraction is not None
                assert apart(after.variance_fraction, before.variance_fraction) < CLOSE


@pytest.mark.parametrize("options", [{"cosine_first": True}, {"cosine_first": True, "frequency_shift": 0.0}])
def test_times_are_converted_for_every_kind_of_time_embedding(options: dict[str, Any], tmp_path: Path) -> None:
    denoise = ours_untrained("velocity", qa.schedule("linear", 1000), **options)
    back = load_pipeline(save_pipeline(denoise, tmp_path / "out"))
    with torch.no_grad():
        for time in (1.0, 500.0, 1000.0):
            angle = denoise.schedule.angle(time)
            assert apart(back(start(), back.schedule.angle(time)).image, denoise(start(), angle).image) < CLOSE


def test_diffusers_samples_a_saved_pipeline_with_equal_results(tmp_path: Path) -> None:
    denoise = ours_untrained("velocity", qa.schedule("arc", 1000))
    pipeline = diffusers.DDIMPipeline.from_pretrained(save_pipeline(denoise, tmp_path / "out"))
    expected = qa.sample(denoise, start(), "ddim", 10, "time").images
    assert apart(theirs(pipeline.unet, pipeline.scheduler, 10), expected) < CLOSE
    # the pipeline runs without further settings
    assert pipeline(2, num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 1)


def test_diffusers_samples_a_saved_learned_variance_with_equal_results(tmp_path: Path, handed: Hand) -> None:
    denoise = ours_untrained("noise+variance", qa.schedule("linear", 1000))
    pipeline = diffusers.DDPMPipeline.from_pretrained(save_pipeline(denoise, tmp_path / "out"))
    pipeline.scheduler.register_to_config(timestep_spacing="leading")
    grid = pipeline_grid(pipeline.scheduler, 10)
    expected = ours(denoise, qa.sampler("ddpm", variance="learned"), grid, fresh(10))
    assert apart(theirs(pipeline.unet, pipeline.scheduler, 10, handed(fresh(10))), expected) < CLOSE


def test_a_loaded_pipeline_is_saved_with_equal_weights_and_schedule(folder: Path, tmp_path: Path) -> None:
    denoise = load_pipeline(folder, network="diffusers")
    again = load_pipeline(save_pipeline(denoise, tmp_path / "again"), network="diffusers")
    assert again.schedule.steps == 100
    np.testing.assert_allclose(again.schedule.angles, denoise.schedule.angles, rtol=1e-12)
    assert all(torch.equal(weights(again)[name], weight) for name, weight in weights(denoise).items())


def test_classes_are_saved_with_the_null_label_last(tmp_path: Path) -> None:
    denoise = ours_untrained("velocity", qa.schedule("arc", 1000), classes=4)
    back = load_pipeline(save_pipeline(denoise, tmp_path / "out"), null_label=4)
    assert back.classes == 4
    labels = torch.tensor([0, 3, 2])
    with torch.no_grad():
        before = qa.Guided(denoise, 2.0)(start(), 0.8, labels)
        after = qa.Guided(back, 2.0)(start(), 0.8, labels)
    assert apart(after.image, before.image) < CLOSE


class Custom(Head):
    """A head that only this test knows."""

    def read(self, output: Tensor, x: Tensor, angle: Any) -> Any:
        raise NotImplementedError


ALONE = """
import json, sys
sys.modules["quarterarc"] = None  # its import fails
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for job in json.load(open(sys.argv[1])):
    further = {"custom_pipeline": job["folder"]} if job["named"] else {}
    pipeline = DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=True, **further)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.load(sys.argv[2], weights_only=True)
    images = pipeline(3, 10, latents=start, output_type="pt", **job["options"]).images
    torch.save(images, job["folder"] + "/images.pt")
    assert pipeline(3, 2, **job["options"]).images[0].size == (8, 8)
"""


def test_diffusers_alone_samples_every_head_with_equal_pixels(tmp_path: Path) -> None:
    """In a new process that cannot import this library."""
    jobs, expected = [], []
    for name in ("both", "gated", "mean", "both+variance", "image+log-variance"):
        denoise = replace(
            ours_untrained(name, qa.schedule("arc" if name == "both" else "linear")), projection="velocity"
        )
        folder = save_pipeline(denoise, tmp_path / name)
        jobs.append({"folder": str(folder), "options": {}, "named": name == "both"})
        expected.append(qa.sample(denoise, start(), "ddim", 10, "time").images)
        back = replace(load_pipeline(folder), projection="velocity")
        assert back.head.name == name
        with torch.no_grad():
            angle = denoise.schedule.angle(500.0)
            assert apart(back(start(), angle).image, denoise(start(), angle).image) < CLOSE
    labelled = ours_untrained("noise", qa.schedule("linear"), classes=2)
    labelled = replace(labelled, class_names=("cat", "dog"))
    folder = save_pipeline(labelled, tmp_path / "labelled")
    assert load_pipeline(folder).class_names == ("cat", "dog")
    assert load_pipeline(folder).classes == 2
    jobs.append(
        {
            "folder": str(folder),
            "options": {"class_labels": ["dog", "cat", "dog"], "guidance_scale": 2.0},
            "named": False,
        }
    )
    labels = torch.tensor([1, 0, 1])
    expected.append(qa.sample(qa.Guided(labelled, 2.0), start(), "ddim", 10, "time", labels=labels).images)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    torch.save(start(), tmp_path / "start.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    words = [sys.executable, "-c", ALONE, "jobs.json", "start.pt"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for job, images in zip(jobs, expected, strict=True):
        theirs = torch.load(Path(job["folder"]) / "images.pt", weights_only=True)  # type: ignore[arg-type]
        assert apart(theirs, images) < CLOSE, job


def test_denoisers_without_a_counterpart_in_diffusers_raise(tmp_path: Path) -> None:
    schedule = qa.schedule("arc", 1000)
    other = ours_untrained("velocity", schedule)
    with pytest.raises(InputError, match="the head 'custom' is not known to diffusers"):
        save_pipeline(replace(other, head=Custom(schedule)), tmp_path / "out")
    with pytest.raises(InputError, match="belongs to one of 500: export it as safetensors"):
        save_pipeline(ours_untrained("mean", qa.schedule("arc", 500)), tmp_path / "out")
    with pytest.raises(InputError, match="cannot hold a function"):
        save_pipeline(qa.Denoiser(lambda x, t, labels: x, schedule, Noise()), tmp_path / "out")
    with pytest.raises(InputError, match="only a Denoiser can be saved, got a Clipped"):
        save_pipeline(qa.Clipped(ours_untrained("noise", schedule)), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="already exists"):
        save_pipeline(ours_untrained("noise", schedule), tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_error_while_saving_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(diffusers.DDIMPipeline, "save_pretrained", fail)
    with pytest.raises(RuntimeError):
        save_pipeline(ours_untrained("noise", qa.schedule("linear", 1000)), tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("name", ["adapt_functions", "adapt_pipeline"])
def test_the_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "examples" / f"{name}.py"
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
