"""A lower bound of the memory that training takes: settings that cannot fit raise an error before any work."""

from __future__ import annotations

import torch

from ..common.memory import require_memory
from ..networks.unet import fewest_weights
from .recipe import Recipe

__all__ = ["check_memory", "fewest_bytes", "what_to_lower"]


def check_memory(recipe: Recipe, part: int, device: torch.device) -> None:
    """Raise an InputError if a device cannot hold the weights and one part of a batch.

    Args:
        recipe: the recipe.
        part: images per forward pass.
        device: the device that trains.
    """
    require_memory(fewest_bytes(recipe, part), device, lambda: what_to_lower(recipe, part, device))


def what_to_lower(recipe: Recipe, part: int, device: torch.device) -> str:
    """The sizes that decide the memory of training, and which to lower; for messages."""
    settings, network, data = recipe.training, recipe.network, recipe.data
    unet = network.name == "unet"
    width = f" (network.channels={network.channels})" if unet else ""
    recompute = " or set training.recompute=true" if unet and not settings.recompute else ""
    return (
        f"training.batch={settings.batch} in parts of {part:,} images of {data.height}x{data.width} pixels, with the "
        f"network '{network.name}'{width}, on {device}: lower training.batch, raise training.accumulate{recompute} "
        "(which a resumed run may change), or choose a smaller network.channels or data.size"
    )


def fewest_bytes(recipe: Recipe, part: int) -> int:
    """A lower bound of the bytes of a training step, for `part` images per forward pass.

    Weights, their average, gradients and Adam's moments; images and noise; what the U-Net keeps for its gradient.
    """
    network, height, width = recipe.network, recipe.data.height, recipe.data.width
    images = 4 * part * recipe.data.channels * height * width
    if network.name != "unet":
        return 4 * images
    weights = 4 * fewest_weights(network.channels, network.multipliers, network.blocks)
    kept = 1 if recipe.training.recompute else 2  # per residual block: its input, or those of its two convolutions
    numbers = sum(
        -(-height // 2**level) * -(-width // 2**level) * network.channels * multiplier * kept * (2 * network.blocks + 1)
        for level, multiplier in enumerate(network.multipliers)
    )
    bytes_per_number = 2 if recipe.training.precision == "bf16" else 4
    return 5 * weights + 4 * images + part * numbers * bytes_per_number
