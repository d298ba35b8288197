"""Conversion of U-Net weights from and to diffusers' `UNet2DModel`.

Both networks compute the same function. They differ in the names of weights and in three arrangements of `UNet`:

- the residual blocks' projections of the time embedding are one matrix for the whole network,
- the bias of a block's first convolution is part of the bias of that projection,
- queries, keys and values are one matrix.

Reading needs a state dict and a configuration, not diffusers itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import InputError
from ..common.optional import need
from ..networks import UNet
from ..networks.blocks import Attention, ResidualBlock

if TYPE_CHECKING:
    from diffusers import UNet2DModel

__all__ = ["diffusers_config", "from_diffusers", "to_diffusers", "unet_config"]

# Fields of UNet2DModel's configuration that `UNet` has too, with UNet2DModel's defaults.
_READ: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "num_class_embeds": None,
}

# Fields with a fixed set of convertible values; the first is the default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}

# Fields that do not change the function, or whose value is checked against others.
_CHECKED = {"sample_size", "num_train_timesteps", "attn_norm_num_groups", "time_embedding_dim"}

# Fields that diffusers' `EMAModel` adds to the configuration of a network: settings of the average.
_OF_AVERAGES = {
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip

# Regular expressions that map names of `UNet` to those of `UNet2DModel`, applied in this order.
_NAMES = {
    r"^time\.0": "time_embedding.linear_1",
    r"^time\.2": "time_embedding.linear_2",
    r"^labels": "class_embedding",
    r"^input": "conv_in",
    r"^norm": "conv_norm_out",
    r"^output": "conv_out",
    r"^down(\.\d+)\.resample": r"down\1.downsamplers.0",
    r"^up(\.\d+)\.resample": r"up\1.upsamplers.0",
    r"^(down|up)\.": r"\1_blocks.",
    r"^middle": "mid_block",
    r"\.blocks\.": ".resnets.",
    r"\.shortcut": ".conv_shortcut",
    r"(\.attentions\.\d+)\.norm": r"\1.group_norm",
    r"(\.attentions\.\d+)\.out": r"\1.to_out.0",
}
_QKV = ("to_q", "to_k", "to_v")

# Names of attention layers in checkpoints of diffusers before 0.12.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_diffusers(
    model: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    classes: int | None = None,
) -> UNet:
    """A `UNet` with the weights of a `UNet2DModel`; outputs agree to rounding.

    `UNet2DModel` counts DDPM's steps from 0: its timestep n is time n + 1 of this library. Both networks take n.

    Args:
        model: a `UNet2DModel`, or its state dict (with the old or new names of attention layers).
        config: its configuration, as in `config.json`; required with a state dict.
        classes: number of class embeddings of a class-conditional model. All by default; the label "no label", which
            the model does not have, then gets an embedding of zeros. One less than all if the model's last embedding is
            the one for "no label".

    Returns:
        The network in evaluation mode, in the dtype and on the device of the weights.

    Raises:
        InputError: for a field of the configuration that `UNet` cannot represent, or weights that do not fit it.
    """
    if isinstance(model, nn.Module):
        config = dict(model.config) if config is None else config  # type: ignore[arg-type]
        model = model.state_dict()
    if config is None:
        raise InputError("a state dict alone does not determine its network: give its config too")
    arguments = unet_config(config, classes=classes)
    theirs = {_modern(name): tensor.detach() for name, tensor in model.items()}
    try:
        unet = UNet(**arguments).to(theirs["conv_in.weight"])
        ours = _to_ours(unet, theirs)
    except KeyError as missing:
        raise InputError(f"the state dict has no {missing}: it does not fit its config") from None
    if theirs:
        raise InputError(f"the state dict has '{min(theirs)}', which its config does not have: they do not fit")
    if unet.labels is not None and classes is None:
        ours["labels.weight"] = F.pad(ours["labels.weight"], (0, 0, 0, 1))
    for name, tensor in unet.state_dict().items():
        if tensor.shape != ours[name].shape:
            raise InputError(
                f"the state dict does not fit its config: '{name}' would have shape {tuple(ours[name].shape)} "
                f"instead of {tuple(tensor.shape)}"
            )
    unet.load_state_dict(ours)
    return unet.eval()


def to_diffusers(unet: UNet) -> UNet2DModel:
    """A diffusers `UNet2DModel` with the weights of a `UNet`; outputs agree to rounding.

    Its timestep n is time n + 1 of this library. All embeddings of a class-conditional network are kept: the last one,
    `num_class_embeds - 1`, is the one for "no label".

    Returns:
        The model in evaluation mode, in the dtype and on the device of the weights.

    Raises:
        InputError: if diffusers is not installed, or the network takes spans, which diffusers' does not.
    """
    diffusers = need("diffusers", "diffusers", "a diffusers model")
    if unet.span is not None:
        raise InputError("diffusers' UNet2DModel takes one time, and the network of a flow map also takes a span")
    model: UNet2DModel = diffusers.UNet2DModel(**diffusers_config(unet)).to(unet.input.weight)
    model.load_state_dict(_to_theirs(unet))
    return model.eval()


def unet_config(config: Mapping[str, Any], *, classes: int | None = None) -> dict[str, Any]:
    """The arguments of the `UNet` that corresponds to a `UNet2DModel` configuration.

    Raises:
        InputError: for a field that `UNet` cannot represent, with its name.
    """
    for name, allowed in _FIXED.items():
        _require(name, config.get(name, allowed[0]), allowed)
    for name in config.keys() - _READ.keys() - _FIXED.keys() - _CHECKED - _OF_AVERAGES:
        if not name.startswith("_"):
            _require(name, config[name], (None, False))
    read = {name: config.get(name, default) for name, default in _READ.items()}
    widths = [int(width) for width in read["block_out_channels"]]
    groups, embeddings = read["norm_num_groups"], read["num_class_embeds"]
    _require("attn_norm_num_groups", config.get("attn_norm_num_groups"), (None, groups))
    _require("time_embedding_dim", config.get("time_embedding_dim"), (None, 4 * widths[0]))
    _require("downsample_padding", read["downsample_padding"], (0, 1))
    if classes not in (None, embeddings, embeddings and embeddings - 1):
        raise InputError(f"classes={classes} of a model with num_class_embeds {embeddings}: give that, or one less")
    return {
        "in_channels": read["in_channels"],
        "out_channels": read["out_channels"],
        "channels": widths[0],
        "multipliers": [_quotient(width, widths[0]) for width in widths],
        "blocks": read["layers_per_block"],
        "attention": _attention(read["down_block_types"], read["up_block_types"], len(widths)),
        "head_channels": read["attention_head_dim"],
        "dropout": read["dropout"],
        "classes": embeddings if classes is None else classes,
        "groups": groups,
        "epsilon": read["norm_eps"],
        "symmetric": read["downsample_padding"] == 1,
        "frequency_shift": read["freq_shift"],
        "cosine_first": read["flip_sin_to_cos"],
    }


def diffusers_config(unet: UNet) -> dict[str, Any]:
    """The arguments of the `UNet2DModel` that corresponds to a `UNet`.

    Raises:
        InputError: if the first multiplier is not 1, which `UNet2DModel` cannot represent.
    """
    config = unet.config
    if config["multipliers"][0] != 1:
        raise InputError(f"a UNet2DModel's first multiplier is 1, this network's is {config['multipliers'][0]}")
    attends = [level in config["attention"] for level in range(len(config["multipliers"]))]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(int(config["channels"] * multiplier) for multiplier in config["multipliers"]),
        "down_block_types": tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
        "layers_per_block": config["blocks"],
        "downsample_padding": int(config["symmetric"]),
        "dropout": config["dropout"],
        "attention_head_dim": config["head_channels"],
        "norm_num_groups": unet.norm.num_groups,
        "norm_eps": config["epsilon"],
        "freq_shift": config["frequency_shift"],
        "flip_sin_to_cos": config["cosine_first"],
        "num_class_embeds": None if unet.labels is None else unet.labels.num_embeddings,
    }


def _require(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        known = " or ".join(repr(option) for option in dict.fromkeys(allowed))
        raise InputError(f"the field '{field}' of the UNet2DModel config is {value!r}: only {known} can be converted")


def _quotient(width: int, channels: int) -> float:
    return width // channels if width % channels == 0 else width / channels


def _attention(down: Sequence[str], up: Sequence[str], levels: int) -> list[int]:
    """The levels with attention, which must be the same in both lists."""
    for field, types, kinds in (
        ("down_block_types", down, ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", up, ("UpBlock2D", "AttnUpBlock2D")),
    ):
        if len(types) != levels:
            raise InputError(
                f"the field '{field}' of the UNet2DModel config has {len(types)} entries for {levels} levels"
            )
        for kind in types:
            _require(field, kind, kinds)
    attends = [kind.startswith("Attn") for kind in down]
    if attends != [kind.startswith("Attn") for kind in reversed(up)]:
        raise InputError(
            "the field 'up_block_types' of the UNet2DModel config has attention at other levels than "
            "'down_block_types': only the same can be converted"
        )
    return [level for level, attention in enumerate(attends) if attention]


def _modern(name: str) -> str:
    """The name of a weight in diffusers since 0.12, which renamed attention layers."""
    *path, layer, kind = name.split(".") if name.count(".") > 1 else ("", name, "")
    if "attentions" in path and layer in _OLD_ATTENTION:
        return ".".join([*path, _OLD_ATTENTION[layer], kind])
    return name


def _their_name(name: str) -> str:
    """The name in `UNet2DModel` of a module of `UNet`."""
    for ours, theirs in _NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def _modules(unet: UNet, kind: type[nn.Module]) -> list[tuple[str, str]]:
    """The names in `UNet` and `UNet2DModel` of all modules of a kind, in the order of evaluation."""
    return [(name, _their_name(name)) for name, module in unet.named_modules() if isinstance(module, kind)]


def _same(unet: UNet) -> Iterator[tuple[str, str]]:
    """The names in `UNet` and `UNet2DModel` of the weights that are the same in both."""
    names = unet.state_dict().keys()
    changed = {"project.weight", "project.bias"}
    unused = {"augmentation.weight"}  # of training: without an augmentation it adds nothing
    for name in names - changed - unused:
        if ".qkv." not in name:
            yield name, _their_name(name)


def _to_ours(unet: UNet, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `UNet` from that of `UNet2DModel`, from which the used weights are removed."""
    ours = {our: theirs.pop(their) for our, their in _same(unet)}
    for our, their in _modules(unet, Attention):
        for kind in ("weight", "bias"):
            ours[f"{our}.qkv.{kind}"] = torch.cat([theirs.pop(f"{their}.{layer}.{kind}") for layer in _QKV])
    blocks = [their for _, their in _modules(unet, ResidualBlock)]
    ours["project.weight"] = torch.cat([theirs.pop(f"{block}.time_emb_proj.weight") for block in blocks])
    ours["project.bias"] = torch.cat(
        [theirs.pop(f"{block}.time_emb_proj.bias") + theirs.pop(f"{block}.conv1.bias") for block in blocks]
    )
    return ours


def _to_theirs(unet: UNet) -> dict[str, Tensor]:
    """The state dict of `UNet2DModel` from that of `UNet`."""
    ours = unet.state_dict()
    theirs = {their: ours[our] for our, their in _same(unet)}
    for our, their in _modules(unet, Attention):
        for kind in ("weight", "bias"):
            for layer, part in zip(_QKV, ours[f"{our}.qkv.{kind}"].chunk(3), strict=True):
                theirs[f"{their}.{layer}.{kind}"] = part
    weights, biases = (ours[f"project.{kind}"].split(unet.shifts) for kind in ("weight", "bias"))
    for (_, block), weight, bias in zip(_modules(unet, ResidualBlock), weights, biases, strict=True):
        theirs[f"{block}.time_emb_proj.weight"] = weight
        theirs[f"{block}.time_emb_proj.bias"] = bias
        theirs[f"{block}.conv1.bias"] = torch.zeros_like(bias)
    return theirs
