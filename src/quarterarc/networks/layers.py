"""The layers that take most of a U-Net's time, with faster forms for the CPU."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Convolution", "GroupNorm", "attend", "double", "drop", "nearest"]

# Sizes below which PyTorch's general form is as fast on the CPU, or faster.
_ENOUGH_PIXELS = 128
_FEW_TOKENS = 64


class Convolution(nn.Conv2d):
    """A 3x3 convolution with padding 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """X of shape (B, inputs, H, W); a shift of shape (B, outputs) or (1, outputs) replaces the bias."""
        if shift is None:
            return F.conv2d(x, self.weight, self.bias, padding=1)
        if len(shift) == 1:
            return F.conv2d(x, self.weight, shift[0], padding=1)
        return F.conv2d(x, self.weight, padding=1).add_(shift[:, :, None, None])


def _plain(*tensors: Tensor) -> bool:
    """Whether the forms for the CPU apply: float32, without compilation, autocast, functorch or forward mode."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 and not _transformed(x) for x in tensors)


def _transformed(x: Tensor) -> bool:
    """Whether x is differentiated in forward mode or by `torch.func`, which some kernels do not support."""
    if torch.compiler.is_compiling():
        return False
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return wrapped or torch.autograd.forward_ad.unpack_dual(x).tangent is not None


class GroupNorm(nn.GroupNorm):
    """A group norm (Wu & He 2018), by default followed by SiLU."""

    def __init__(self, groups: int, channels: int, epsilon: float, activate: bool = True) -> None:
        super().__init__(groups, channels, epsilon)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (B, channels, H, W); returns the same shape."""
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            x = self._in_any_layout(x)
        else:
            x = super().forward(x.contiguous() if _transformed(x) else x)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.activate else x

    def _in_any_layout(self, x: Tensor) -> Tensor:
        """The norm without a copy: that of PyTorch first brings a GPU's tensors to channels first.

        Compiled code read them in that order and wrote channels-last, at a fifth of the memory's speed, in a tenth of a
        forward pass (docs/benchmarks.md). In float32, as under autocast. PyTorch's gradient copies in any case.
        """
        b, c, h, w = x.shape
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        result: Tensor = torch.native_group_norm(x, self.weight, self.bias, b, c, h * w, self.num_groups, self.eps)[0]
        return result


def double(x: Tensor, convolution: Convolution) -> Tensor:
    """Nearest-neighbour upsampling by 2, then the convolution: (B, C, H, W) to (B, outputs, 2H, 2W)."""
    weight, bias = convolution.weight, convolution.bias
    if _plain(x, weight) and len(x) * x.shape[2] * x.shape[3] >= _ENOUGH_PIXELS:
        # Both are linear, together a transposed convolution with 4x4 weights: 4 multiplications per result, not 9.
        both = torch.kron(*2 * [_doubling(x.dtype)]) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        both = both.view(4, 4, *weight.transpose(0, 1).shape[:2]).permute(2, 3, 0, 1)
        return F.conv_transpose2d(x, both, bias, stride=2, padding=1)
    result: Tensor = convolution(nearest(x))
    return result


def nearest(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2: (B, C, H, W) to (B, C, 2H, 2W)."""
    if torch.compiler.is_compiling():
        # the gradient of compiled interpolation adds pixel by pixel in any order; that of this form is a sum of four
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None, :].expand(b, h, 2, w, 2, c)  # no copy if channels-last
        return pixels.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@cache
def _doubling(dtype: torch.dtype) -> Tensor:
    """The matrix from 3 weights to the 4 of the transposed convolution that also upsamples, along one direction."""
    with torch.inference_mode(False):
        return torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=dtype)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention of tokens, with queries, keys and values concatenated: (B, N, 3C) to (B, N, C)."""
    b, n, c = qkv.shape
    if heads == 1 and n <= _FEW_TOKENS and _plain(qkv):
        q, k, v = qkv.chunk(3, dim=2)
        scores = (q @ k.transpose(1, 2)).mul_((c // 3) ** -0.5)
        return scores.softmax(dim=2) @ v
    q, k, v = (part.transpose(1, 2) for part in qkv.view(b, n, 3, heads, -1).unbind(2))
    if _transformed(qkv):
        scores = (q @ k.transpose(2, 3)) * (c // (3 * heads)) ** -0.5
        return (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(b, n, c // 3)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c // 3)


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout with the remaining values scaled to keep the mean.

    The probability is rounded to 1/65536 on the CPU, and to 1/32768 in compiled code.
    """
    if not training or probability == 0.0:
        return x
    if torch.compiler.is_compiling() and x.shape[1] % _PER_DRAW == 0:
        return _drop_compiled(x, probability)
    if not _plain(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return F.dropout(x, probability)
    # One random integer for four values, since the generator takes most of the time.
    below = min(round(probability * 65536), 65535)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = (bits[: x.numel()] >= below - 32768).to(x.dtype).mul_(65536 / (65536 - below))
    b, c, h, w = x.shape
    return x * mask.view(b, h, w, c).permute(0, 3, 1, 2)


_PER_DRAW, _BITS = 4, 15
"""Values per random integer of compiled dropout, and bits of it per value."""


def _drop_compiled(x: Tensor, probability: float) -> Tensor:
    """Dropout with one random integer for four channels: compiled generators draw each number from a block of its own.

    With one number per value, drawing took a tenth of a training step on a GPU (docs/benchmarks.md).
    """
    b, c, h, w = x.shape
    below = min(round(probability * 2**_BITS), 2**_BITS - 1)
    drawn = torch.randint(2**63 - 1, (b, h, w, c // _PER_DRAW, 1), device=x.device)
    places = _BITS * torch.arange(_PER_DRAW, device=x.device)
    kept = ((drawn >> places) & (2**_BITS - 1)) >= below
    return torch.where(kept.view(b, h, w, c).permute(0, 3, 1, 2), x * (2**_BITS / (2**_BITS - below)), 0.0)
