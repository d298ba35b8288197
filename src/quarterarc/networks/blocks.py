"""The blocks of the U-Net: residual blocks, attention and resampling, the stages of a level, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import Convolution, GroupNorm, attend, double, drop, nearest

__all__ = [
    "Attention",
    "Down",
    "Downsample",
    "ResidualBlock",
    "Run",
    "Stage",
    "Up",
    "Upsample",
    "directly",
    "recomputed",
]

Run: TypeAlias = Callable[..., Tensor]
"""Calls a function of tensors: `run(function, *arguments)`."""


def directly(function: Run, *arguments: Any) -> Tensor:
    """The function's result."""
    return function(*arguments)


def recomputed(function: Run, *arguments: Any) -> Tensor:
    """The function's result; the backward pass keeps the arguments alone, and computes the rest again."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return result


def _attended(block: nn.Module, attention: nn.Module, shift: Tensor, *inputs: Tensor) -> Tensor:
    """A residual block of the inputs' channels together, then attention or nothing."""
    x: Tensor = attention(block(inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1), shift))
    return x


class Stage(nn.Module):
    """The residual blocks of a level, each followed by attention or nothing, and the resampling to the next level."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample


class Down(Stage):
    """A stage on the way down, or in the middle."""

    def forward(self, x: Tensor, shifts: Iterator[Tensor], run: Run) -> list[Tensor]:
        """The outputs of all blocks, then the input of the next level."""
        outputs = []
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = run(_attended, block, attention, next(shifts), x)
            outputs.append(x)
        if self.resample is not None:
            outputs.append(run(self.resample, x))
        return outputs


class Up(Stage):
    """A stage on the way up: the input of a block includes the last unused output of the way down (skip connection)."""

    def forward(self, x: Tensor, shifts: Iterator[Tensor], skips: list[Tensor], run: Run) -> Tensor:
        """The input of the next level; removes outputs from the end of `skips`."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = run(_attended, block, attention, next(shifts), x, skips.pop())
        return x if self.resample is None else run(self.resample, x, skips[-1].shape[-2:])


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + shift)))), with a 1x1 convolution of x where widths differ.

    The first convolution has no bias: the shift, a projection of the time embedding, has one.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, epsilon: float, dropout: float) -> None:
        super().__init__()
        self.out_channels = outputs
        self.dropout = dropout
        self.norm1 = GroupNorm(groups, inputs, epsilon)
        self.conv1 = Convolution(inputs, outputs, bias=False)
        self.norm2 = GroupNorm(groups, outputs, epsilon)
        self.conv2 = Convolution(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """X of shape (B, inputs, H, W), shift (B, outputs) or (1, outputs); returns (B, outputs, H, W)."""
        h = self.conv1(self.norm1(x), shift)
        h = drop(self.norm2(h), self.dropout, self.training)
        return self.conv2(h).add_(self.shortcut(x))


class Attention(nn.Module):
    """x + self-attention between the pixels of norm(x)."""

    def __init__(self, channels: int, head_channels: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = GroupNorm(groups, channels, epsilon, activate=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (B, channels, H, W); returns the same shape."""
        b, c, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)  # a view of channels-last memory
        tokens = self.out(attend(self.qkv(tokens), self.heads))
        return tokens.view(b, h, w, c).permute(0, 3, 1, 2).add_(x)


class Downsample(nn.Module):
    """A 3x3 convolution at every second pixel; n pixels become n/2, rounded up."""

    def __init__(self, channels: int, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (B, channels, H, W); returns (B, channels, ceil(H/2), ceil(W/2))."""
        before = [int(self.symmetric or n % 2) for n in x.shape[-2:]]
        return self.conv(F.pad(x, (before[1], 1, before[0], 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, cropped to a size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """X of shape (B, channels, ceil(H/2), ceil(W/2)), size (H, W); returns (B, channels, H, W)."""
        if [2 * n for n in x.shape[-2:]] == list(size):
            return double(x, self.conv)
        return self.conv(nearest(x)[:, :, : size[0], : size[1]])
