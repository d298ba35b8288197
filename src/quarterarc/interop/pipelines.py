"""diffusers' unconditional pipeline folders: in as a `Denoiser`, and ours out as one.

    FOLDER/model_index.json                 which classes the components are of
    FOLDER/unet/config.json                 UNet2DModel, and its weights as diffusion_pytorch_model.safetensors
    FOLDER/scheduler/scheduler_config.json  the beta table, and what the network estimates

Older folders hold the components' files beside model_index.json; they are read too.

diffusers numbers DDPM's steps 0..T-1 and gives its network that number; here they are 1..T, and 0 is the clean image.
Its three prediction types are three of our heads, with the same signs:

    epsilon         noise
    sample          image
    v_prediction    velocity, sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image      (Salimans & Ho 2022)

each with a learned variance on top where the network has twice the channels (Nichol & Dhariwal 2021). Between the
numbered steps a network with a sinusoidal time embedding is asked at fractions, so that every grid will do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arc import NOISE_END
from ..common.errors import InputError, unknown_name
from ..common.optional import need
from ..denoiser import Denoiser
from ..heads import Head, Image, LearnedVariance, Noise, Velocity
from ..networks import UNet
from ..schedules import Schedule
from ..storage.files import make_folder, read_json, replace_folder
from .schedulers import component, config_of, pipeline_schedule, scheduler_config
from .unet_weights import from_diffusers, to_diffusers

__all__ = ["load_pipeline", "pipeline_denoiser", "save_pipeline"]

logger = logging.getLogger("quarterarc")

PREDICTIONS: dict[str, Head] = {"epsilon": Noise(), "sample": Image(), "v_prediction": Velocity()}
"""What diffusers' prediction types are here."""

NETWORKS = ("own", "diffusers")
"""Whose U-Net runs a checkpoint."""

WEIGHTS = "diffusion_pytorch_model"


def load_pipeline(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    *,
    null_label: int | None = None,
    network: str = "own",
) -> Denoiser:
    """The denoiser of a diffusers pipeline folder (`DDPMPipeline`, `DDIMPipeline` and the like; safetensors only).

    The pipeline's sampler is left behind. Two of its habits are not part of the denoiser: `clip_sample` is
    `quarterarc.Clipped(denoise, rederive=False)`, and the steps it would visit are `pipeline_grid`.

    Args:
        path: the folder.
        device: where to put the network.
        precision: dtype to autocast the network to, such as `torch.bfloat16`.
        null_label: for class-conditional networks that were trained with some labels dropped, the label that stood for
            none; `quarterarc.Guided` then works. diffusers' networks have no such label unless trained so.
        network: "own" for this library's U-Net wherever it can represent the checkpoint's (faster, outputs equal to
            1e-5), "diffusers" for diffusers' itself.

    Raises:
        InputError: if there is no such folder, it is text-conditioned or latent, its weights are a pickle, or its
            scheduler is not a beta table with a known prediction type.
    """
    folder = Path(path)
    _check_components(folder)
    config = scheduler_config(folder)
    denoise = pipeline_denoiser(_read_unet(component(folder, "unet")), config, null_label=null_label, network=network)
    return replace(denoise, precision=precision).to(device)


def pipeline_denoiser(unet: Any, scheduler: Any, *, null_label: int | None = None, network: str = "own") -> Denoiser:
    """The denoiser of a `UNet2DModel` and a scheduler that are loaded already.

    Args:
        unet: a diffusers `UNet2DModel`.
        scheduler: a diffusers scheduler with a beta table, or its configuration.
        null_label, network: as for `load_pipeline`.

    Raises:
        InputError: as `load_pipeline` does.
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    config, shape = config_of(scheduler), unet.config
    _check_unet(shape)
    channels, rows = shape["in_channels"], shape["num_class_embeds"]
    if null_label is not None and (rows is None or not 0 <= null_label < rows):
        knows = "no labels" if rows is None else f"the labels 0..{rows - 1}"
        raise InputError(f"null_label is one of the network's own labels, got {null_label}: it knows {knows}")
    size = shape["sample_size"]
    size = (size, size) if isinstance(size, int) else size
    # a null label that comes last leaves as many labels as come before it
    classes = None if rows is None else rows - (null_label == rows - 1)
    return Denoiser(
        _Network(_faster(unet, null_label) if network == "own" else _Unet(unet), rows, classes, null_label).eval(),
        pipeline_schedule(config),
        _head(config, learned=shape["out_channels"] == 2 * channels),
        shape=None if size is None else (channels, *size),
        classes=classes,
        time_shift=-1.0,
        time_scale=1.0,
    )


def save_pipeline(denoise: Denoiser, path: str | Path) -> Path:
    """Write a denoiser as a diffusers pipeline folder, which diffusers and `load_pipeline` read.

    The pipeline is a `DDIMPipeline` that does not clip, spaced so that it starts at the last step; a `DDPMPipeline`
    where the variance is learned. What diffusers has no place for is made to fit without changing what the network
    says: times that are not DDPM's step numbers turn the network's first time layer and tabulate the schedule anew,
    and a noise estimate that cannot start at pi/2 loses the step that ends there. diffusers' own pipelines give no
    labels: a class-conditional network is for its own loops, and for `load_pipeline`.

    Args:
        denoise: with a noise, image or velocity head, a learned variance on top or not. Two estimates at once (`both`,
            `gated`) and `mean` have no counterpart there.
        path: the folder, which must not exist.

    Returns:
        The path.

    Raises:
        InputError: for another head, a network that is neither this library's U-Net nor diffusers', or a path taken.
    """
    diffusers, folder = need("diffusers", "diffusers", "a diffusers pipeline"), Path(path)
    if not isinstance(denoise, Denoiser):
        raise InputError(f"a pipeline is made of a Denoiser, got {type(denoise).__name__}: give the one inside")
    if folder.exists():
        raise InputError(f"{folder} exists already: give a folder that does not")
    learned = isinstance(denoise.head, LearnedVariance)
    inner = denoise.head.inner if isinstance(denoise.head, LearnedVariance) else denoise.head
    kind = next((name for name, known in PREDICTIONS.items() if type(known) is type(inner)), None)
    if kind is None:
        raise InputError(
            f"diffusers' pipelines have no counterpart of the head '{denoise.head.name}': "
            "they take 'noise', 'image' or 'velocity', with or without '+variance'"
        )
    unet, angles = _numbered(denoise)
    betas = Schedule("custom", angles).beta[1:]
    if angles[-1] == NOISE_END:
        betas[-1] = 1.0  # without the rounding by which its angle would come back short of pi/2
    settings = {
        "num_train_timesteps": len(angles) - 1,
        "trained_betas": betas.tolist(),
        "prediction_type": kind,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    if learned:
        made = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(**settings, variance_type="learned_range"))
    else:
        made = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**settings))
    make_folder(folder.parent)
    with replace_folder(folder) as beside:
        made.save_pretrained(beside)
    return folder


# --- reading -----------------------------------------------------------------------------------------------------


def _check_components(folder: Path) -> None:
    """Refuse what is not an unconditional pipeline in pixels, naming the component that makes it another."""
    if not folder.is_dir():
        raise InputError(
            f"no folder at {folder}: give a pipeline's, downloaded first (`hf download NAME --local-dir DIR`)"
        )
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers pipeline folder: there is no model_index.json in it")
    index = read_json(folder / "model_index.json")
    components = index.items() if isinstance(index, dict) else ()
    found = {name: spec[1] for name, spec in components if isinstance(spec, list) and len(spec) == 2 and spec[1]}
    for kind, marks in _OTHER_PIPELINES.items():
        for name, of in found.items():
            if any(mark in name for mark in marks) or (of == "UNet2DConditionModel" and "condition" in marks):
                raise InputError(
                    f"{folder} holds a {kind} pipeline (its component '{name}' is a {of}): only unconditional and "
                    "class-conditional pipelines in pixels are read, with a UNet2DModel and a scheduler"
                )
    for name, of in found.items():
        if name not in ("unet", "scheduler") or (name == "unet" and of != "UNet2DModel"):
            raise InputError(
                f"{folder} holds a pipeline with the component '{name}', a {of}: only those with a UNet2DModel and a "
                "scheduler are read"
            )
    for name in ("unet", "scheduler"):
        if name not in found:
            raise InputError(f"{folder / 'model_index.json'} names no '{name}': a pipeline has one")


_OTHER_PIPELINES = {
    "text-conditioned": ("text_encoder", "tokenizer", "bert", "condition"),
    "latent": ("vae", "vqvae", "movq"),
}


def _read_unet(folder: Path) -> Any:
    """The `UNet2DModel` of a folder, from safetensors only."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not any(name in names for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json")):
        pickled = next((name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))), None)
        if pickled:
            raise InputError(
                f"{folder / pickled} is a pickle, which runs code when it is read, so it is not read: where you trust "
                f"it, convert it with diffusers.UNet2DModel.from_pretrained('{folder}', use_safetensors=False)"
                f".save_pretrained('{folder}')"
            )
        raise InputError(f"there is no {WEIGHTS}.safetensors in {folder}")
    from safetensors import SafetensorError

    try:
        unet, found = need("diffusers", "diffusers", "a diffusers pipeline").UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"diffusers cannot read the network in {folder}: {' '.join(str(error).split())}") from None
    if found["missing_keys"]:
        raise InputError(
            f"the weights in {folder} lack {len(found['missing_keys'])} of the network's tensors, "
            f"first '{sorted(found['missing_keys'])[0]}'"
        )
    return unet


def _check_unet(config: Mapping[str, Any]) -> None:
    """Refuse networks that are not asked as `network(x, step number, labels)`."""
    if config["time_embedding_type"] == "fourier":
        raise InputError(
            "the network takes sigma and not the number of a step (time_embedding_type 'fourier'): give the network "
            "itself to quarterarc.interop.ScoreVE"
        )
    if config["class_embed_type"] is not None:
        raise InputError(
            f"the network takes class_embed_type '{config['class_embed_type']}' and no class labels: only networks "
            "with num_class_embeds, or without classes, are read"
        )
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the network turns {config['in_channels']} channels into {config['out_channels']}: an unconditional "
            "network puts out as many as it takes, or twice as many if it learned the variance"
        )


def _head(config: Mapping[str, Any], learned: bool) -> Head:
    before_2022 = "epsilon" if config.get("predict_epsilon", True) else "sample"
    kind = config.get("prediction_type", before_2022)
    if kind not in PREDICTIONS:
        raise unknown_name("prediction_type", kind, PREDICTIONS)
    if learned and config.get("variance_type") == "learned":
        raise InputError(
            "the scheduler's variance_type is 'learned', a variance and not a place between the two: only "
            "'learned_range' is read (Nichol & Dhariwal 2021, Eq. 15)"
        )
    return LearnedVariance(PREDICTIONS[kind]) if learned else PREDICTIONS[kind]


# --- networks ----------------------------------------------------------------------------------------------------


class _Unet(nn.Module):
    """A `UNet2DModel` called as this library calls its networks."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.whole = unet.config["time_embedding_type"] == "learned"  # a table has no rows between the steps

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.whole:
            time = time.round().long()
        return self.unet(x, time, class_labels=labels, return_dict=False)[0]


class _Network(nn.Module):
    """A network that gets labels if and only if it knows any, and its own null label for the label `classes`."""

    def __init__(self, inner: nn.Module, rows: int | None, classes: int | None, null_label: int | None) -> None:
        super().__init__()
        self.inner, self.rows, self.classes, self.null_label = inner, rows, classes, null_label

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.rows is None or self.classes is None:
            if labels is not None:
                raise InputError("the network knows no classes: call it without labels")
            return self.inner(x, time)
        if labels is None:
            raise InputError(f"the network is class-conditional: give labels, one of 0..{self.rows - 1} an image")
        if self.null_label is None:
            # costs a device a moment, but a label beyond the last row would end it
            if int(labels.max()) >= self.rows:
                raise InputError(
                    f"the network knows the labels 0..{self.rows - 1} and none that means 'no label': load it with "
                    "null_label=... if it was trained with one, otherwise use it without guidance"
                )
        else:
            labels = torch.where(labels == self.classes, self.null_label, labels)
        return self.inner(x, time, labels)


def _numbered(denoise: Denoiser) -> tuple[Any, np.ndarray]:
    """A `UNet2DModel` that is asked by the number of a step, and the angles of the steps that it then has."""
    steps = denoise.schedule.steps
    scale = 1000.0 / steps if denoise.time_scale is None else denoise.time_scale
    # diffusers' numbers go up by one: where times do not, the schedule is tabulated at the times that do
    times = np.minimum(np.arange(round(steps * scale) + 1) / scale, steps)
    angles = denoise.schedule.angle(times)
    angles = angles[angles <= denoise.largest_angle]
    unet = _shifted(_as_unet(denoise.network), 1.0 + denoise.time_shift)
    if denoise.shape is not None:
        unet.register_to_config(sample_size=denoise.shape[1:])
    return unet, angles


def _as_unet(network: Any) -> Any:
    """The `UNet2DModel` that does what a network does."""
    if isinstance(network, _Network):
        network = network.inner
    if isinstance(network, _Unet):
        return network.unet
    if isinstance(network, UNet):
        return to_diffusers(network)
    raise InputError(f"diffusers' UNet2DModel cannot hold a {type(network).__name__}")


def _shifted(unet: Any, by: float) -> Any:
    """The network that at time t does what this one does at t + by.

    sin w(t + by) and cos w(t + by) are a rotation of sin wt and cos wt, which the first time layer takes in.
    """
    if by == 0.0:
        return unet
    if unet.config["time_embedding_type"] != "positional":
        raise InputError("only networks with a sinusoidal time embedding can be asked by the number of a step")
    unet = deepcopy(unet)
    layer = unet.time_embedding.linear_1
    half = layer.in_features // 2
    turn = by * torch.exp(-math.log(10000.0) / (half - unet.config["freq_shift"]) * torch.arange(half).double())
    c, s = turn.cos(), turn.sin()
    weight = layer.weight.detach().double()
    one, two = weight[:, :half].clone(), weight[:, half : 2 * half].clone()  # of the sines, then of the cosines
    if unet.config["flip_sin_to_cos"]:
        s = -s  # the other way round
    weight[:, :half], weight[:, half : 2 * half] = one * c - two * s, one * s + two * c
    layer.weight.data = weight.to(layer.weight.dtype)
    return unet


def _faster(unet: Any, null_label: int | None) -> nn.Module:
    """The same weights in this library's U-Net, or the network as it is where that cannot represent it."""
    rows = unet.config["num_class_embeds"]
    try:
        return from_diffusers(unet, classes=rows - 1 if rows is not None and null_label == rows - 1 else None)
    except InputError as error:
        logger.info("diffusers' own network is used: %s", error)
        return _Unet(unet)
