"""The layers that a U-Net spends its time in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Convolution", "GroupNorm", "attend", "drop"]


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """X of shape (B, inputs, H, W); shift of shape (B, outputs) or (1, outputs) takes the place of the bias."""
        if shift is None:
            return F.conv2d(x, self.weight, self.bias, padding=1)
        if len(shift) == 1:
            return F.conv2d(x, self.weight, shift[0], padding=1)
        return F.conv2d(x, self.weight, padding=1).add_(shift[:, :, None, None])


class GroupNorm(nn.GroupNorm):
    """A group norm (Wu & He 2018), by default followed by SiLU."""

    def __init__(self, groups: int, channels: int, epsilon: float, activate: bool = True) -> None:
        super().__init__(groups, channels, epsilon)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (B, channels, H, W); returns the same shape."""
        x = super().forward(x)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.activate else x


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention of tokens whose queries, keys and values lie side by side: (B, N, 3C) to (B, N, C)."""
    b, n, c = qkv.shape
    q, k, v = (each.transpose(1, 2) for each in qkv.view(b, n, 3, heads, -1).unbind(2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c // 3)


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout."""
    return F.dropout(x, probability, training)
