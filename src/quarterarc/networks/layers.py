"""The layers that a U-Net spends its time in."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Convolution", "GroupNorm", "attend", "double", "drop"]

# On the CPU, below these the general way is as fast or faster.
_ENOUGH_PIXELS = 128
_FEW_TOKENS = 64


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


def _plain(*tensors: Tensor) -> bool:
    """Whether tensors can go through code of our own for the CPU: float32, and nothing but autograd looks on."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and torch.autograd.forward_ad.unpack_dual(x).tangent is None
        for x in tensors
    )


class GroupNorm(nn.GroupNorm):
    """A group norm (Wu & He 2018), by default followed by SiLU."""

    def __init__(self, groups: int, channels: int, epsilon: float, activate: bool = True) -> None:
        super().__init__(groups, channels, epsilon)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (B, channels, H, W); returns the same shape."""
        x = super().forward(x)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.activate else x


def double(x: Tensor, convolution: Convolution) -> Tensor:
    """Every pixel doubled in both directions, then the convolution: (B, C, H, W) to (B, outputs, 2H, 2W)."""
    weight, bias = convolution.weight, convolution.bias
    if _plain(x, weight) and len(x) * x.shape[2] * x.shape[3] >= _ENOUGH_PIXELS:
        # Both are linear, and together a transposed convolution by 4x4 weights: 4 multiplications a result, not 9.
        both = torch.kron(*2 * [_doubling(x.dtype)]) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        both = both.view(4, 4, *weight.transpose(0, 1).shape[:2]).permute(2, 3, 0, 1)
        return F.conv_transpose2d(x, both, bias, stride=2, padding=1)
    result: Tensor = convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return result


@cache
def _doubling(dtype: torch.dtype) -> Tensor:
    """The 4 weights along one direction of doubling and convolving by 3 weights, in the order of a transposed one."""
    with torch.inference_mode(False):
        return torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=dtype)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention of tokens whose queries, keys and values lie side by side: (B, N, 3C) to (B, N, C)."""
    b, n, c = qkv.shape
    if heads == 1 and n <= _FEW_TOKENS and _plain(qkv):
        q, k, v = qkv.chunk(3, dim=2)
        scores = (q @ k.transpose(1, 2)).mul_((c // 3) ** -0.5)
        return scores.softmax(dim=2) @ v
    q, k, v = (each.transpose(1, 2) for each in qkv.view(b, n, 3, heads, -1).unbind(2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c // 3)


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout: zeros with a probability, in 1/65536ths on the CPU, and the rest scaled to keep the mean."""
    if not training or probability == 0.0:
        return x
    if not _plain(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return F.dropout(x, probability)
    # One random integer for four values: the generator is what takes the time.
    below = min(round(probability * 65536), 65535)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = (bits[: x.numel()] >= below - 32768).to(x.dtype).mul_(65536 / (65536 - below))
    b, c, h, w = x.shape
    return x * mask.view(b, h, w, c).permute(0, 3, 1, 2)
