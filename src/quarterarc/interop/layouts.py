"""Published layouts of weights: recognised by names and shapes, and converted to the networks of this library.

| layout | names                               | published by                                | network         |
|--------|-------------------------------------|---------------------------------------------|-----------------|
| `ddim` | `conv_in.weight`, `temb.dense.0...` | DDIM, the conversion pesser/pytorch_diffusion | `unet`        |
| `adm`  | `input_blocks.0.0.weight`           | improved-diffusion, guided-diffusion (ADM)  | `adm`           |
| `edm`  | `model.enc.32x32_conv.weight`       | EDM, saved as a state dict                  | `ddpm++`, `adm` |

The number of attention heads and the order of q, k and v are not in the weights: they are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common import limits
from ..common.errors import InputError, unknown_name
from ..common.text import counted
from ..networks import ADM, DDPMpp, UNet, build_network
from .unet_weights import from_diffusers

__all__ = ["LAYOUTS", "Converted", "Settings", "convert", "layout_of"]

LAYOUTS = {"ddim": "temb.dense.0.weight", "adm": "input_blocks.0.0.weight", "edm": "model.map_layer0.weight"}
"""The layouts, each with the name of a weight that no other layout has."""


@dataclass(frozen=True)
class Settings:
    """What weights do not determine; None for the usual value of the layout.

    Attributes:
        size: side of the images in pixels. By default (`ddim`, `adm`) the one at which attention is at 16 pixels or,
            with three levels of attention, begins at 32.
        heads: number of attention heads at every width (`adm`); 4 for networks with strided convolutions.
        head_channels: channels per attention head (`adm`); 64 for networks with resampling blocks.
        order: how channels of q, k and v are ordered (`adm`): "legacy", or "new" (`use_new_attention_order`).

    Raises:
        InputError: for a number below 1, or both `heads` and `head_channels`, which decide the same.
    """

    size: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    order: str = "legacy"

    def __post_init__(self) -> None:
        for name in ("size", "heads", "head_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.heads is not None and self.head_channels is not None:
            raise InputError(
                f"{counted(self.heads, 'head')} and {counted(self.head_channels, 'channel')} per head: give one of "
                "the two"
            )


@dataclass(frozen=True)
class Converted:
    """A converted network.

    Attributes:
        network: the network with the weights.
        description: from which `build_network` builds it, for `adm` and `edm`.
        size: side of the images in pixels.
        channels: channels of the images.
        classes: number of classes.
    """

    network: UNet | ADM | DDPMpp
    description: dict[str, Any]
    size: int
    channels: int
    classes: int | None


def layout_of(state: Mapping[str, Tensor]) -> str:
    """The layout of a state dict.

    Raises:
        InputError: for another one.
    """
    state = _with_prefix(state)
    for layout, mark in LAYOUTS.items():
        if mark in state:
            return layout
    raise InputError(
        f"the layout of these weights is not known: '{min(state)}' and {counted(len(state) - 1, 'other tensor')}; "
        f"known are {', '.join(f'{layout} (with {mark})' for layout, mark in LAYOUTS.items())}"
    )


def convert(layout: str, state: Mapping[str, Tensor], settings: Settings) -> Converted:
    """The network of a state dict.

    Raises:
        InputError: for a tensor that is missing, superfluous or of another shape, with its name.
    """
    try:
        return _CONVERTERS[layout](dict(_with_prefix(state)), settings)
    except KeyError as missing:
        raise InputError(f"the weights have no {missing}, which the layout '{layout}' has") from None
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the shapes of the weights are not those of the layout '{layout}': {error}") from None


def _with_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """EDM's names have the prefix `model.`; a state dict of the inner network does not."""
    if "map_layer0.weight" not in state:
        return state
    return {f"model.{name}": tensor for name, tensor in state.items()}


def _filled(description: dict[str, Any], weights: Mapping[str, Tensor], layout: str) -> ADM | DDPMpp:
    """The network of a description with these weights, all of them."""
    with torch.device("meta"):
        network = build_network(description)
    expected = network.state_dict()
    missing, superfluous = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    other = [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    for names, what in ((missing, "lack"), (superfluous, "have the unexpected"), (other, "have another shape of")):
        if names:
            name = min(names)
            about = ""
            if what == "have another shape of":
                about = f": {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            raise InputError(f"the weights {what} {counted(len(names), 'tensor')} of '{layout}', '{name}'{about}")
    assert isinstance(network, ADM | DDPMpp)
    network.to_empty(device="cpu").load_state_dict(dict(weights))
    return network.eval()


# --- DDIM ------------------------------------------------------------------------------------------------------------

_DDIM_NAMES = {
    r"^temb\.dense\.0": "time_embedding.linear_1",
    r"^temb\.dense\.1": "time_embedding.linear_2",
    r"^norm_out": "conv_norm_out",
    r"^mid\.block_1": "mid_block.resnets.0",
    r"^mid\.block_2": "mid_block.resnets.1",
    r"^mid\.attn_1": "mid_block.attentions.0",
    r"^(down|up)\.(\d+)\.block": r"\1_blocks.\2.resnets",
    r"^(down|up)\.(\d+)\.attn": r"\1_blocks.\2.attentions",
    r"^(down|up)\.(\d+)\.(down|up)sample": r"\1_blocks.\2.\3samplers.0",
    r"temb_proj": "time_emb_proj",
    r"nin_shortcut": "conv_shortcut",
    r"(attentions\.\d+)\.norm": r"\1.group_norm",
    r"(attentions\.\d+)\.(q|k|v)\.": r"\1.to_\2.",
    r"(attentions\.\d+)\.proj_out": r"\1.to_out.0",
}


def _ddim(state: dict[str, Tensor], settings: Settings) -> Converted:
    """DDIM's network is diffusers' `UNet2DModel` with other names, and 1x1 convolutions in its attention."""
    levels = 1 + max(_numbers(state, r"down\.(\d+)\.block"))
    blocks = 1 + max(_numbers(state, r"down\.0\.block\.(\d+)"))
    attention = sorted(set(_numbers(state, r"down\.(\d+)\.attn")))
    widths = [state[f"down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    channels, images = state["conv_in.weight"].shape[:2]
    if widths[0] != channels:
        raise InputError(f"'conv_in' has {channels} channels and the first level {widths[0]}: in DDIM's they are equal")
    kinds = ["AttnDownBlock2D" if level in attention else "DownBlock2D" for level in range(levels)]
    config = {
        "_class_name": "UNet2DModel", "in_channels": images, "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": widths, "layers_per_block": blocks, "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)], "downsample_padding": 0,
        "attention_head_dim": None, "norm_num_groups": 32, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False,
    }  # fmt: skip
    theirs = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "up":  # numbered from the full resolution down
            name = ".".join(["up", str(levels - 1 - int(parts[1])), *parts[2:]])
        for ours, their in _DDIM_NAMES.items():
            name = re.sub(ours, their, name)
        theirs[name] = tensor[:, :, 0, 0] if "attentions" in name and tensor.ndim == 4 else tensor
    network = from_diffusers(theirs, config)
    return Converted(network, network.config, settings.size or _size(levels, attention), images, None)


# --- ADM -------------------------------------------------------------------------------------------------------------

_ADM_BLOCK = {
    "in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1",
    "out_layers.3": "conv1", "skip_connection": "skip", "op": "conv",
    "norm": "norm2", "proj_out": "proj",
}  # fmt: skip
_ADM_ENDS = {
    "time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv",
}  # fmt: skip


def _adm(state: dict[str, Tensor], settings: Settings) -> Converted:
    channels, images = state["input_blocks.0.0.weight"].shape[:2]
    count = 1 + max(_numbers(state, r"input_blocks\.(\d+)\."))
    outputs = 1 + max(_numbers(state, r"output_blocks\.(\d+)\."))
    strided = any(f"input_blocks.{number}.0.op.weight" in state for number in range(count))
    levels = _levels(state, outputs)
    blocks = count // levels - 1
    if levels * (blocks + 1) != count or outputs != count or blocks < 1:
        raise InputError(f"{count} modules on the way down and {outputs} on the way up are not those of ADM's network")
    starts = [level * (blocks + 1) for level in range(levels)]
    widths = [state[f"input_blocks.{start + 1}.0.out_layers.3.weight"].shape[0] for start in starts]
    attention = [level for level, start in enumerate(starts) if f"input_blocks.{start + 1}.1.qkv.weight" in state]
    size = settings.size or _size(levels, attention)
    embedded, width = (state[f"middle_block.0.{name}.weight"].shape[0] for name in ("emb_layers.1", "out_layers.0"))
    heads, head_channels = settings.heads, settings.head_channels
    if heads is None and head_channels is None:
        heads, head_channels = (4, None) if strided else (None, 64)
    description: dict[str, Any] = {
        "name": "adm",
        "arguments": {
            "size": size, "in_channels": images, "out_channels": state["out.2.weight"].shape[0], "channels": channels,
            "multipliers": [_multiple(width, channels) for width in widths], "blocks": blocks,
            "attention": [size >> level for level in attention],
            "classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
            "head_channels": head_channels, "heads": heads or 1, "resample": "conv" if strided else "block",
            "scaled": embedded == 2 * width,
            "group": 1,  # 32 groups at any width
        },
    }  # fmt: skip
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place, _, kind = name.rpartition(".")
        if place == "label_emb":
            ours["map_label.weight"] = tensor.t()
        elif place in _ADM_ENDS:
            ours[f"{_ADM_ENDS[place]}.{kind}"] = tensor
        else:
            module, part = _adm_place(place, levels, blocks, size)
            if part in ("qkv", "proj") and tensor.ndim == 3:
                tensor = tensor[..., None]
            if part == "qkv":
                tensor = _reordered(tensor, heads or tensor.shape[0] // 3 // (head_channels or 1), settings.order)
            ours[f"{module}{'.' if part else ''}{part}.{kind}"] = tensor
    network = _filled(description, ours, "adm")
    return Converted(network, description, size, images, description["arguments"]["classes"])


def _levels(state: Mapping[str, Tensor], outputs: int) -> int:
    """The number of levels: of the modules on the way up those that also double, and one more."""
    marks = [f"{place}.{mark}" for place in (1, 2) for mark in ("conv.weight", "in_layers.0.weight")]
    return 1 + sum(any(f"output_blocks.{number}.{mark}" in state for mark in marks) for number in range(outputs))


def _adm_place(place: str, levels: int, blocks: int, size: int) -> tuple[str, str]:
    """The module and the part of it in `ADM`, for a name of guided-diffusion without its last word."""
    words = place.split(".")
    numbered = len(words) > 2 and all(word.isdigit() for word in words[1 : 2 if words[0] == "middle_block" else 3])
    if not numbered or words[0] not in ("input_blocks", "middle_block", "output_blocks"):
        raise InputError(f"the weights have the unexpected '{place}', which the layout 'adm' does not have")
    if words[0] == "middle_block":
        number, rest = int(words[1]), ".".join(words[2:])
        side = size >> (levels - 1)
        return f"dec.{side}x{side}_in{0 if number < 2 else 1}", _adm_part(rest)
    number, inner, rest = int(words[1]), int(words[2]), ".".join(words[3:])
    level, place_in_level = divmod(number, blocks + 1)
    if words[0] == "input_blocks":
        side = size >> level
        if number == 0:
            return f"enc.{side}x{side}_conv", ""
        if place_in_level == 0:
            return f"enc.{side}x{side}_down", _adm_part(rest)
        return f"enc.{side}x{side}_block{place_in_level - 1}", _adm_part(rest)
    side = size >> (levels - 1 - level)
    doubles = inner > 0 and not rest.startswith(("norm", "qkv", "proj_out"))
    if doubles:
        return f"dec.{2 * side}x{2 * side}_up", _adm_part(rest)
    return f"dec.{side}x{side}_block{place_in_level}", _adm_part(rest)


def _adm_part(rest: str) -> str:
    return _ADM_BLOCK.get(rest, rest)  # an unknown part is unexpected in the network, too


def _reordered(tensor: Tensor, heads: int, order: str) -> Tensor:
    """Channels of q, k and v in the order head, channel, q k v."""
    rest = tensor.shape[1:]
    if order == "legacy":  # head, q k v, channel
        return tensor.reshape(heads, 3, -1, *rest).transpose(1, 2).reshape(-1, *rest)
    if order == "new":  # q k v, head, channel
        return tensor.reshape(3, heads, -1, *rest).movedim(0, 2).reshape(-1, *rest)
    raise unknown_name("order of attention", order, ("legacy", "new"))


# --- EDM -------------------------------------------------------------------------------------------------------------


def _edm(state: dict[str, Tensor], settings: Settings) -> Converted:
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if not name.endswith("map_augment.weight")  # labels of augmentation, which sampling leaves out
    }
    if "map_noise.freqs" in weights:
        raise InputError("these are weights of EDM's network NCSN++ ('ve'): only DDPM++ ('vp') and ADM are read")
    for name in [name for name in weights if name.endswith("resample_filter")]:
        kernel = weights.pop(name)
        if kernel.shape[-2:] != (2, 2):
            raise InputError(f"'{name}' has shape {tuple(kernel.shape)}: only DDPM++ ('vp') and ADM, of 2x2, are read")
    size = max(_numbers(weights, r"enc\.(\d+)x\d+_conv"))
    levels = len(set(_numbers(weights, r"enc\.(\d+)x")))
    channels, images = weights[f"enc.{size}x{size}_conv.weight"].shape[:2]
    blocks = 1 + max(_numbers(weights, rf"enc\.{size}x{size}_block(\d+)\."))
    sides = [size >> level for level in range(levels)]
    widths = [weights[f"enc.{side}x{side}_block0.conv1.weight"].shape[0] for side in sides]
    adm = "out_conv.weight" in weights
    out = weights["out_conv.weight" if adm else f"dec.{size}x{size}_aux_conv.weight"].shape[0]
    classes = weights["map_label.weight"].shape[1] if "map_label.weight" in weights else None
    description = {
        "name": "adm" if adm else "ddpm++",
        "arguments": {
            "size": size, "in_channels": images, "out_channels": out, "channels": channels,
            "multipliers": [_multiple(width, channels) for width in widths], "blocks": blocks,
            "attention": [side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in weights],
            "classes": classes,
            **({"head_channels": settings.head_channels or 64} if adm else {}),
        },
    }  # fmt: skip
    network = _filled(description, weights, "edm")
    return Converted(network, description, size, images, classes)


_CONVERTERS = {"ddim": _ddim, "adm": _adm, "edm": _edm}


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers that a pattern finds in the names."""
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    if not found:
        name = pattern.replace(r"(\d+)", "N").replace(r"\d+", "N").replace("\\", "")
        raise InputError(f"the weights have no tensor whose name begins with '{name}', for a number N")
    if max(found) > limits.LARGEST_SIDE:
        raise InputError(f"the number {max(found)} in a name of these weights is too large for a layer")
    return found


def _multiple(width: int, channels: int) -> float:
    return width // channels if width % channels == 0 else width / channels


def _size(levels: int, attention: list[int]) -> int:
    """The side of the images from the levels with attention, as the papers choose them."""
    if not attention:
        raise InputError("the size of the images is not in these weights: give it (--size)")
    return int((32 if len(attention) > 2 else 16) * 2 ** attention[0])
