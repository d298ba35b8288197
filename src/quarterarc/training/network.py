"""The network of a recipe: built with the arguments that its data and head determine, checked, and as a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from ..common.streams import Purpose, torch_seed
from ..common.text import one_line
from ..data import ImageData
from ..denoiser import Denoiser
from ..heads import Head
from ..heads import head as named_head
from ..networks import ADM, DDPMpp, UNet, attention_levels, build_network, fill_arguments
from ..schedules import Schedule
from ..schedules import schedule as named_schedule
from .recipe import Recipe

__all__ = ["check_network", "network_fields", "new_denoiser", "parameters", "recipe_network"]


def parameters(recipe: Recipe, head: str) -> int:
    """The number of parameters of a recipe's network with the channels of a head; nothing is allocated."""
    channels = recipe.data.channels
    outputs = named_head(head, named_schedule(recipe.schedule.name, recipe.schedule.steps)).channels(channels)
    with torch.device("meta"):
        network = recipe_network(recipe, channels, outputs, None)
    return sum(weights.numel() for weights in network.parameters())


def network_fields(network: UNet, height: int) -> dict[str, Any]:
    """The section `network` of a recipe whose U-Net has the weights of another one.

    Args:
        network: the other U-Net.
        height: the height of the recipe's images; attention is at the same levels, and so at other resolutions where
            the images have another size.
    """
    config = network.config
    levels, multipliers = config["attention"], config["multipliers"]
    sizes = [-(-height // 2**level) for level in range(len(multipliers))]
    resolutions = [sizes[level] for level in levels]
    further = ("groups", "epsilon", "symmetric", "frequency_shift", "cosine_first")
    arguments = {name: config[name] for name in further}
    if [level for level, size in enumerate(sizes) if size in resolutions] != levels:  # of levels of one pixel
        arguments["attention"] = levels
    if any(multiplier != int(multiplier) for multiplier in multipliers):
        arguments["multipliers"] = multipliers
    return {
        **{name: config[name] for name in ("channels", "blocks", "dropout", "head_channels")},
        "multipliers": [max(1, round(multiplier)) for multiplier in multipliers],
        "attention": resolutions,
        "arguments": arguments,
    }


def recipe_network(
    recipe: Recipe, in_channels: int, out_channels: int, classes: int | None, augmentations: int = 0
) -> nn.Module:
    """The network of a recipe with new weights, on the CPU.

    Args:
        recipe: its section `network`, and the size of the images.
        in_channels: channels of the images.
        out_channels: channels that the head needs.
        classes: number of labels; None without labels.
        augmentations: for the U-Net, the number of parameters of an augmentation; 0 without augmentation.

    Raises:
        InputError: if the network cannot be found or built, or does not follow the interface of
            `quarterarc.networks`.
    """
    recipe = recipe.resolved()
    chosen, height, width = recipe.network, recipe.data.height, recipe.data.width
    if chosen.name == "unet":
        assert chosen.attention != "auto"
        attention = attention_levels(height, chosen.attention, len(chosen.multipliers))
        description = {
            "in_channels": in_channels, "out_channels": out_channels, "channels": chosen.channels,
            "multipliers": chosen.multipliers, "blocks": chosen.blocks, "attention": attention,
            "dropout": chosen.dropout, "head_channels": chosen.head_channels, "classes": classes,
            "spans": recipe.is_map, "augmentations": augmentations,
        }  # fmt: skip
        arguments = {**description, **chosen.arguments}
        network = build_network({"name": "unet", "arguments": arguments})
        assert isinstance(network, UNet)
        network.recompute = recipe.training.recompute
        return network
    known = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "size": height if height == width else [height, width],
        "classes": classes,
    }
    arguments = fill_arguments(chosen.name, chosen.arguments, known)
    network = build_network({"name": chosen.name, "arguments": arguments})
    if isinstance(network, ADM | DDPMpp):
        network.recompute = recipe.training.recompute
    unlabelled = recipe.training.drop_labels > 0
    check_network(network, chosen.name, (in_channels, height, width), out_channels, classes, unlabelled)
    return network


def new_denoiser(recipe: Recipe, data: ImageData, table: Schedule, head: Head, augmentations: int) -> Denoiser:
    """A denoiser with a recipe's new network, on the CPU; its weights are decided by the recipe's seed.

    Args:
        recipe: the recipe.
        data: the training images, which decide shape and classes.
        table: the schedule.
        head: the head.
        augmentations: as for `recipe_network`.
    """
    classes, names = (data.classes, tuple(data.class_names)) if recipe.data.labels else (None, ())
    torch.manual_seed(torch_seed(recipe.training.seed, Purpose.WEIGHTS))
    network = recipe_network(recipe, data.channels, head.channels(data.channels), classes, augmentations)
    precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
    shape = (data.channels, data.height, data.width)
    unlabelled = recipe.training.drop_labels > 0
    return Denoiser(
        network, table, head, shape, classes, precision, unlabelled=unlabelled, class_names=names, maps=recipe.is_map
    )


def check_network(
    network: nn.Module,
    name: str,
    shape: tuple[int, int, int],
    out_channels: int,
    classes: int | None,
    unlabelled: bool = True,
) -> None:
    """Call a network once as training does and once as sampling does, on two images of zeros.

    Args:
        network: the network.
        name: its name, for messages.
        shape: (C, H, W) of the images.
        out_channels: expected channels of the output.
        classes: number of labels; None without labels.
        unlabelled: whether the network is also called without labels.

    Raises:
        InputError: if a call fails, the output has another shape, or there is no weight to train.
    """
    if type(network) is UNet:
        return
    weight = next((weight for weight in network.parameters() if weight.requires_grad), None)
    if weight is None:
        raise InputError(f"the network '{name}' has no weights to train")
    x = torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device)
    last = classes if unlabelled else (classes or 1) - 1
    labels = None if classes is None else torch.tensor([0, last], device=weight.device)
    times = torch.tensor([500.0, 1000.0], device=weight.device)
    was_training = network.training
    network.eval()
    try:
        for time, given in ((times, labels), (times[0], None if unlabelled else labels)):
            _check_call(network, name, x, time, given, out_channels)
    finally:
        network.train(was_training)


@torch.no_grad()
def _check_call(
    network: nn.Module, name: str, x: Tensor, time: Tensor, labels: Tensor | None, out_channels: int
) -> None:
    about = (
        f"x of shape {tuple(x.shape)}, time of shape {tuple(time.shape)}, labels "
        f"{'None' if labels is None else f'of shape {tuple(labels.shape)}'}"
    )
    try:
        output = network(x, time, labels)
    except Exception as error:  # code of the network may raise anything
        raise InputError(
            f"the network '{name}' fails when called as network(x, time, labels) with {about}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    expected = (len(x), out_channels, *x.shape[2:])
    if not isinstance(output, Tensor):
        raise InputError(f"the network '{name}' returns a {type(output).__name__}: a tensor is expected")
    if tuple(output.shape) != expected:
        raise InputError(
            f"the network '{name}' returns shape {tuple(output.shape)} for {about}: the head needs {expected} "
            "(a constructor's parameter out_channels is filled in)"
        )
