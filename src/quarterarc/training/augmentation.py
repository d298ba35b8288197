"""Augmentation that does not leak into samples, for small sets of images (Karras et al. 2020 and 2022, appendix F).

A training image is moved at random: mirrored vertically, scaled, rotated, stretched and shifted, each with the
probability `data.augment`. The parameters of the movement are a condition of the network, which thus learns what moved
images look like. Sampling leaves the condition out, which is that of an image that was not moved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.devices import send
from ..common.streams import Streams

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["LARGEST_SET", "PARAMETERS", "augment", "augmentation_share", "draw_parameters"]

PARAMETERS = 8
"""Numbers per image: vertical mirror (1), scale (1), rotation (2), stretch (2), shift (2); all are 0 for an image that
is not moved."""
LARGEST_SET = 5000
"""The largest number of images for which `auto` augments."""
_SHARE = 0.15  # EDM's for photographs
_SCALE, _STRETCH, _SHIFT = 0.2, 0.2, 0.125  # standard deviations: octaves, octaves, sides of the image


def augmentation_share(recipe: Recipe, count: int | None) -> float:
    """The probability of each movement for a data set of `count` images (None: a stream): 0 for no augmentation."""
    setting = recipe.data.augment
    if setting != "auto":
        return setting
    possible = recipe.network.name == "unet" and recipe.teacher is None and not recipe.is_map
    return _SHARE if possible and count is not None and count <= LARGEST_SET else 0.0


def draw_parameters(drawn: Streams, share: float) -> Tensor:
    """Random parameters, one row per stream: float64, shape (B, 8), on the CPU.

    Args:
        drawn: one stream per image.
        share: the probability of each of the five movements.
    """
    numbers, normal = drawn.uniform(8), drawn.normal((4,), torch.float64)
    mirror, scale, rotation, stretch, shift = (numbers[:, :5] < share).double().unbind(1)
    upside_down, turn, direction = numbers[:, 5:].unbind(1)
    angle, direction = (2 * turn - 1) * math.pi, (2 * direction - 1) * math.pi
    return torch.stack(
        [
            mirror * (upside_down < 0.5),
            scale * normal[:, 0],
            rotation * (angle.cos() - 1),
            rotation * angle.sin(),
            stretch * normal[:, 1] * direction.cos(),
            stretch * normal[:, 1] * direction.sin(),
            shift * normal[:, 2],
            shift * normal[:, 3],
        ],
        dim=1,
    )


def augment(images: Tensor, parameters: Tensor) -> Tensor:
    """Move images by their parameters; the content continues by reflection beyond the border.

    Args:
        images: shape (B, C, H, W), in [-1, 1].
        parameters: from `draw_parameters`, shape (B, 8), on the CPU.
    """
    moved = send(parameters.any(1), images.device)[:, None, None, None]
    matrices = send(_matrices(parameters, images.shape), images.device, images.dtype)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where(moved, warped.clamp(-1, 1), images)


def _matrices(parameters: Tensor, shape: torch.Size) -> Tensor:
    """The positions from which the pixels come: float64 (B, 2, 3), in units of half a width and half a height."""
    mirror, scale, cosine, sine, along, across, right, down = parameters.unbind(1)
    ones, zeros = torch.ones_like(mirror), torch.zeros_like(mirror)
    flip = _matrix(ones, zeros, zeros, 1 - 2 * mirror)
    rotation = _matrix(cosine + 1, -sine, sine, cosine + 1)
    strength, direction = torch.hypot(along, across), torch.atan2(across, along)
    turned = _matrix(direction.cos(), -direction.sin(), direction.sin(), direction.cos())
    longer, shorter = torch.exp2(-_STRETCH * strength), torch.exp2(_STRETCH * strength)
    stretch = turned @ _matrix(longer, zeros, zeros, shorter) @ turned.mT
    matrix = flip @ rotation @ stretch * torch.exp2(-_SCALE * scale)[:, None, None]
    sides = torch.tensor([shape[3], shape[2]], dtype=torch.float64)
    matrix = matrix * (sides[None] / sides[:, None])  # from pixels to halves of width and height
    return torch.cat([matrix, (2 * _SHIFT * torch.stack([right, down], 1))[..., None]], dim=2)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Matrices [[a, b], [c, d]] of numbers (B,)."""
    return torch.stack([torch.stack([a, b], 1), torch.stack([c, d], 1)], 1)
