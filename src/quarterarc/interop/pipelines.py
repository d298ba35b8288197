"""diffusers' unconditional pipelines, read as a `Denoiser` and written from one.

diffusers numbers DDPM's steps 0..T-1 and passes that number to the network; in this library they are 1..T, and 0 is the
clean image. The three prediction types of diffusers are heads, with the same signs:

    epsilon         noise
    sample          image
    v_prediction    velocity, sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image      (Salimans & Ho 2022)

each with a learned variance if the network has twice the channels (Nichol & Dhariwal 2021). Between the numbered steps
a network with a sinusoidal time embedding is evaluated at fractional numbers, so that any grid can be used.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
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
from ..heads import Both, Gated, Head, Image, LearnedVariance, Mean, Noise, Velocity
from ..heads import head as named_head
from ..networks import UNet
from ..schedules import Schedule
from ..storage.files import make_folder, read_json, replace_folder, write_json
from .pipeline_folders import (
    CODE,
    INDEX,
    SCHEDULER,
    check_components,
    exported,
    is_pipeline,
    read_unet,
    scheduler_folder,
)
from .schedulers import component, config_of, pipeline_schedule
from .unet_weights import from_diffusers, to_diffusers

__all__ = [
    "load_pipeline",
    "needs_own_pipeline",
    "pipeline_denoiser",
    "save_pipeline",
    "with_own_network",
    "write_pipeline",
]

logger = logging.getLogger("quarterarc")

PREDICTIONS: dict[str, Head] = {"epsilon": Noise(), "sample": Image(), "v_prediction": Velocity()}
"""The heads of diffusers' prediction types."""

NETWORKS = ("own", "diffusers")
"""The library whose U-Net evaluates a checkpoint."""

DDPM_SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1000}
"""The scheduler of a network without one: DDPM's, with the defaults of diffusers' training script."""


def load_pipeline(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    *,
    null_label: int | None = None,
    network: str = "own",
) -> Denoiser:
    """The denoiser of a diffusers pipeline folder (`DDPMPipeline`, `DDIMPipeline` and the like; safetensors only).

    `quarterarc.load` reads these folders too, as it reads runs, with the defaults of this function. The sampler of the
    pipeline is not used. Two of its settings have equivalents: `clip_sample` is
    `quarterarc.Clipped(denoise, rederive=False)`, and its timesteps are `pipeline_grid`.

    Args:
        path: the folder of a pipeline, or of its network alone.
        device: device of the network.
        precision: dtype to autocast the network to, such as `torch.bfloat16`.
        null_label: the label that meant "no label" in training, for class-conditional networks that were trained with
            dropped labels; `quarterarc.Guided` needs it.
        network: "own" for the U-Net of this library if it can represent the checkpoint (faster, outputs equal to 1e-5),
            "diffusers" for the original network.

    Raises:
        InputError: for a missing folder, a text-conditioned or latent pipeline, pickled weights, or a scheduler without
            a beta table or with an unknown prediction type.
    """
    folder = Path(path)
    if (folder / INDEX).is_file() or not is_pipeline(folder):
        check_components(folder)
    scheduler = scheduler_folder(folder)
    config = DDPM_SCHEDULER if scheduler is None else config_of(read_json(scheduler / SCHEDULER))
    if scheduler is None:
        logger.info(
            "there is no scheduler beside %s: DDPM's is used, linear with 1000 steps and noise as output", folder
        )
    own = exported(folder)
    denoise = pipeline_denoiser(
        read_unet(component(folder, "unet")), config, head=own.get("head"), network=network,
        null_label=own.get("null_label") if null_label is None else null_label,
    )  # fmt: skip
    return replace(denoise, precision=precision, class_names=tuple(own.get("class_names") or ())).to(device)


def with_own_network(denoise: Denoiser) -> Denoiser:
    """The denoiser of a pipeline with the `UNet` that holds its weights, which can be trained; any other as it is.

    Raises:
        InputError: for a network that `UNet` cannot represent, or whose label "no label" is not the last one.
    """
    network = denoise.network
    if not isinstance(network, _Network):
        return denoise
    if not isinstance(network.inner, UNet):
        raise InputError(
            "the network of this pipeline is evaluated by diffusers, since quarterarc's UNet cannot hold its weights: "
            "it can be sampled, but neither trained nor distilled"
        )
    if network.null_label not in (None, network.classes):
        raise InputError(
            f"the label {network.null_label} of this pipeline means 'no label', which is the last one of a "
            "quarterarc UNet: load it without null_label"
        )
    return replace(denoise, network=network.inner)


def pipeline_denoiser(
    unet: Any, scheduler: Any, *, null_label: int | None = None, network: str = "own", head: str | None = None
) -> Denoiser:
    """The denoiser of a loaded `UNet2DModel` and scheduler.

    Args:
        unet: a diffusers `UNet2DModel`.
        scheduler: a diffusers scheduler with a beta table, or its configuration.
        null_label, network: as for `load_pipeline`.
        head: the name of the network's head; None for that of the scheduler's prediction type.

    Raises:
        InputError: as for `load_pipeline`.
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    config, shape = config_of(scheduler), unet.config
    _check_unet(shape, head is not None)
    channels, rows = shape["in_channels"], shape["num_class_embeds"]
    if null_label is not None and (rows is None or not 0 <= null_label < rows):
        known = "no labels" if rows is None else f"the labels 0..{rows - 1}"
        raise InputError(f"null_label is one of the network's labels, got {null_label}: the network has {known}")
    size = shape["sample_size"]
    size = (size, size) if isinstance(size, int) else size
    # if the null label is the last one, it is not a class
    classes = None if rows is None else rows - (null_label == rows - 1)
    schedule = pipeline_schedule(config)
    return Denoiser(
        _Network(_faster(unet, null_label) if network == "own" else _Unet(unet), rows, classes, null_label).eval(),
        schedule,
        _head(config, learned=shape["out_channels"] == 2 * channels) if head is None else named_head(head, schedule),
        shape=None if size is None else (channels, *size),
        classes=classes,
        unlabelled=rows is None or null_label is not None,
        time_shift=-1.0,
        time_scale=1.0,
    )


def save_pipeline(denoise: Denoiser, path: str | Path) -> Path:
    """Write a denoiser as a diffusers pipeline folder, which diffusers and `load_pipeline` read.

    The pipeline is a `DDIMPipeline` without clipping that starts at the last training step, or a `DDPMPipeline` for a
    learned variance. Settings that diffusers lacks are converted without changing the network's function: for times
    that are not DDPM's step numbers the first time layer is rotated and the schedule is tabulated again; for a noise
    head, which is undefined at pi/2, a step that ends there is dropped.

    diffusers' own pipelines take no labels, and no other heads. For those the folder contains a pipeline of its own,
    `pipeline.py` (`interop/diffusers_pipeline.py`), which needs diffusers alone.

    Args:
        denoise: a denoiser with any head of this library and its U-Net, or that of diffusers.
        path: the folder, which must not exist.

    Returns:
        The path.

    Raises:
        InputError: for another head, another network, a flow map, or an existing path.
    """
    folder = Path(path)
    if not isinstance(denoise, Denoiser):
        raise InputError(f"only a Denoiser can be saved, got a {type(denoise).__name__}: save its inner denoiser")
    if folder.exists():
        raise InputError(f"{folder} already exists: give a path that does not")
    _check_head(denoise)
    make_folder(folder.parent)
    with replace_folder(folder) as beside:
        write_pipeline(denoise, beside)
    return folder


def write_pipeline(denoise: Denoiser, folder: Path) -> None:
    """Write a denoiser as a pipeline into a folder that exists; errors as for `save_pipeline`."""
    need("diffusers", "diffusers", "a diffusers pipeline")
    pipeline = _pipeline(denoise)
    pipeline.save_pretrained(folder)
    with suppress(OSError):  # a file system without permissions
        for path in folder.glob("*/*.safetensors"):  # which safetensors makes the owner's alone
            path.chmod((folder / INDEX).stat().st_mode)
    if needs_own_pipeline(denoise):
        index = read_json(folder / INDEX)
        write_json(folder / INDEX, {**index, "_class_name": [CODE, index["_class_name"]]})
        shutil.copyfile(Path(__file__).with_name("diffusers_pipeline.py"), folder / f"{CODE}.py")


def needs_own_pipeline(denoise: Denoiser) -> bool:
    """Whether diffusers has no pipeline for a denoiser: for classes, and for heads other than its prediction types."""
    logarithmic = isinstance(denoise.head, LearnedVariance) and type(denoise.head) is not LearnedVariance
    return denoise.classes is not None or logarithmic or _prediction(denoise) is None


def _prediction(denoise: Denoiser) -> str | None:
    """The prediction type of a head without its variance; None if diffusers has none."""
    kind = type(_inner(denoise))
    return next((name for name, known in PREDICTIONS.items() if type(known) is kind), None)


def _inner(denoise: Denoiser) -> Head:
    return denoise.head.inner if isinstance(denoise.head, LearnedVariance) else denoise.head


def _check_head(denoise: Denoiser) -> None:
    """Raise an InputError for a head that a pipeline cannot have."""
    inner = _inner(denoise)
    if type(inner) not in (*map(type, PREDICTIONS.values()), Both, Gated, Mean):
        raise InputError(
            f"the head '{denoise.head.name}' is not known to diffusers, nor to the pipeline of an exported folder: "
            "export it as safetensors, or its network as onnx"
        )
    if isinstance(inner, Mean) and denoise.time_scale is None and denoise.schedule.steps != 1000:
        raise InputError(
            f"diffusers numbers 1000 steps for this network, and the head '{denoise.head.name}' belongs to one of "
            f"{denoise.schedule.steps}: export it as safetensors"
        )


def _pipeline(denoise: Denoiser) -> Any:
    """A pipeline with the network and the schedule of a denoiser."""
    import diffusers

    _check_head(denoise)
    own = needs_own_pipeline(denoise)
    unet, angles = _numbered(denoise)
    betas = Schedule("custom", angles).beta[1:]
    if angles[-1] == NOISE_END:
        betas[-1] = 1.0  # exactly, so that its angle is read back as pi/2
    settings = {
        "num_train_timesteps": len(angles) - 1,
        "trained_betas": betas.tolist(),
        "prediction_type": "v_prediction" if own else _prediction(denoise),
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    if own:
        from .diffusers_pipeline import QuarterarcPipeline

        names = {str(label): name for label, name in enumerate(denoise.class_names)}
        return QuarterarcPipeline(
            unet,
            diffusers.DDIMScheduler(**settings),
            denoise.head.name,
            _null_label(denoise),
            names or None,
        )
    if isinstance(denoise.head, LearnedVariance):
        scheduler = diffusers.DDPMScheduler(**settings, variance_type="learned_range")
        return diffusers.DDPMPipeline(unet, scheduler)
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**settings))


def _null_label(denoise: Denoiser) -> int | None:
    """The label that means "no label"; None without classes, or where none was trained."""
    if denoise.classes is None or not denoise.unlabelled:
        return None
    return denoise.network.null_label if isinstance(denoise.network, _Network) else denoise.classes


# --- reading -----------------------------------------------------------------------------------------------------


def _check_unet(config: Mapping[str, Any], named: bool) -> None:
    """Raise an InputError unless the network is called as `network(x, step number, labels)`."""
    if config["time_embedding_type"] == "fourier":
        raise InputError(
            "the network takes sigma instead of a step number (time_embedding_type 'fourier'): wrap it in "
            "quarterarc.interop.ScoreVE"
        )
    if config["class_embed_type"] is not None:
        raise InputError(
            f"the network has class_embed_type '{config['class_embed_type']}' instead of class labels: only networks "
            "with num_class_embeds, or without classes, can be read"
        )
    if not named and config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the network has {config['in_channels']} input and {config['out_channels']} output channels: it needs as "
            "many, or twice as many for a learned variance"
        )


def _head(config: Mapping[str, Any], learned: bool) -> Head:
    before_2022 = "epsilon" if config.get("predict_epsilon", True) else "sample"
    kind = config.get("prediction_type", before_2022)
    if kind not in PREDICTIONS:
        raise unknown_name("prediction_type", kind, PREDICTIONS)
    if learned and config.get("variance_type") == "learned":
        raise InputError(
            "the scheduler's variance_type is 'learned', an absolute variance: only 'learned_range' can be read "
            "(Nichol & Dhariwal 2021, Eq. 15)"
        )
    return LearnedVariance(PREDICTIONS[kind]) if learned else PREDICTIONS[kind]


# --- networks ----------------------------------------------------------------------------------------------------


class _Unet(nn.Module):
    """A `UNet2DModel` with the calling convention of this library."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.whole = unet.config["time_embedding_type"] == "learned"  # an embedding table has whole steps only

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.whole:
            time = time.round().long()
        return self.unet(x, time, class_labels=labels, return_dict=False)[0]


class _Network(nn.Module):
    """A network with or without labels; its null label stands for the label `classes`, and for missing labels."""

    def __init__(self, inner: nn.Module, rows: int | None, classes: int | None, null_label: int | None) -> None:
        super().__init__()
        self.inner, self.rows, self.classes, self.null_label = inner, rows, classes, null_label

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.rows is None or self.classes is None:
            if labels is not None:
                raise InputError("the network has no classes: call it without labels")
            return self.inner(x, time)
        if self.null_label is not None:
            labels = torch.full((len(x),), self.classes, device=x.device) if labels is None else labels
            return self.inner(x, time, torch.where(labels == self.classes, self.null_label, labels))
        if labels is None:
            raise InputError(f"the network is class-conditional: give one of the labels 0..{self.rows - 1} per image")
        # this waits for the device, but an index beyond the table would abort the process on it
        if int(labels.max()) >= self.rows:
            raise InputError(
                f"the network has the labels 0..{self.rows - 1} and none for 'no label': load it with "
                "null_label=... if it was trained with one, otherwise sample without guidance"
            )
        return self.inner(x, time, labels)


def _numbered(denoise: Denoiser) -> tuple[Any, np.ndarray]:
    """A `UNet2DModel` that takes step numbers, and the angles of its steps."""
    table = denoise.clock or denoise.schedule
    steps = table.steps
    scale = 1000.0 / steps if denoise.time_scale is None else denoise.time_scale
    # diffusers' numbers increase by 1: if the network's times do not, the schedule is tabulated at times that do
    times = np.minimum(np.arange(round(steps * scale) + 1) / scale, steps)
    angles = table.angle(times)
    angles = angles[angles <= denoise.largest_angle]
    unet = _shifted(_as_unet(denoise), 1.0 + denoise.time_shift)
    if denoise.shape is not None:
        unet.register_to_config(sample_size=denoise.shape[1:])
    return unet, angles


def _as_unet(denoise: Denoiser) -> Any:
    """The `UNet2DModel` of the network of a denoiser; without an embedding for "no label" that was not trained."""
    network = denoise.network
    if isinstance(network, _Network):
        network = network.inner
    if isinstance(network, _Unet):
        return network.unet
    if type(network) is UNet:  # a subclass computes something else
        unet = to_diffusers(network)
        if not denoise.unlabelled and denoise.classes is not None:
            unet.class_embedding = nn.Embedding.from_pretrained(unet.class_embedding.weight[: denoise.classes])
            unet.register_to_config(num_class_embeds=denoise.classes)
        return unet
    raise InputError(f"diffusers' UNet2DModel cannot hold a {type(network).__name__}")


def _shifted(unet: Any, by: float) -> Any:
    """The network whose output at time t is that of `unet` at t + by.

    sin w(t + by) and cos w(t + by) are a rotation of sin wt and cos wt, which the first time layer absorbs.
    """
    if by == 0.0:
        return unet
    if unet.config["time_embedding_type"] != "positional":
        raise InputError("only networks with a sinusoidal time embedding can be converted to step numbers")
    unet = deepcopy(unet)
    layer = unet.time_embedding.linear_1
    half = layer.in_features // 2
    turn = by * torch.exp(-math.log(10000.0) / (half - unet.config["freq_shift"]) * torch.arange(half).double())
    c, s = turn.cos(), turn.sin()
    weight = layer.weight.detach().double()
    first, second = weight[:, :half].clone(), weight[:, half : 2 * half].clone()  # of sines and cosines
    if unet.config["flip_sin_to_cos"]:
        s = -s  # cosines come first
    weight[:, :half], weight[:, half : 2 * half] = first * c - second * s, first * s + second * c
    layer.weight.data = weight.to(layer.weight.dtype)
    return unet


def _faster(unet: Any, null_label: int | None) -> nn.Module:
    """The weights in this library's U-Net; the original network if this U-Net cannot represent it."""
    rows = unet.config["num_class_embeds"]
    try:
        return from_diffusers(unet, classes=rows - 1 if rows is not None and null_label == rows - 1 else None)
    except InputError as error:
        logger.info("the network of diffusers is used: %s", error)
        return _Unet(unet)
