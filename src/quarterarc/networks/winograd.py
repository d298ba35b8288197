"""3x3 convolution on the CPU with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016).

The image is cut into tiles of 4x4 results, each of which needs 6x6 pixels. With three small matrices

    results = S [(K w K') * (P x P')] S'        x: 6x6 pixels, w: 3x3 weights, *: elementwise

so a result costs 36/16 = 2.25 multiplications a pair of channels instead of 9, and these are 36 plain matrix
products (tiles x inputs)(inputs x outputs). The matrices come from interpolating polynomials at five points and
infinity. The usual points 0, +-1, +-2 lose a digit; 0, +-3/4, +-3/2 leave errors as small as those of a direct
convolution in channels-last order, so nothing is traded for the speed (Barabasz et al. 2020 study such points).

Work goes through the cache in pieces, in memory that is used again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .scratch import scratch

__all__ = ["convolve", "pays"]

_TILE, _POINTS = 4, (0.0, 0.75, -0.75, 1.5, -1.5)
_PIXELS = _TILE + 2  # a tile's results need so many pixels
_PIECE = 1 << 15  # tiles times channels worked on at once: what stays in a core's cache
_LARGEST = 1 << 17  # tiles times channels of one image, to bound the memory that is kept


def pays(x: Tensor, weight: Tensor) -> bool:
    import os
    if os.environ.get("NOWINO"): return False
    if os.environ.get("WINOFWD") and torch.is_grad_enabled(): return False
    """Whether this is faster than a direct convolution of x, shape (B, C, H, W).

    Time a tile and pair of channels, in multiplications as the direct convolution does them: 144 direct; here 52 for
    the products, 2160 a channel for transforming tiles, 1550 a tile for transforming weights. Fitted to measurements,
    with a margin of an eighth.
    """
    outputs, inputs = weight.shape[:2]
    b, _, h, w = x.shape
    rows, columns = _tiles(h), _tiles(w)
    if b == 0 or rows * columns * max(inputs, outputs) > _LARGEST:
        return False
    used = h * w / (rows * columns * _TILE**2)
    return 52 + 2160 * (1 / inputs + 1 / outputs) + 1550 / (b * rows * columns) < 126 * used


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x with 3x3 weights, same size, zeros outside the image.

    Args:
        x: shape (B, inputs, H, W), on the CPU.
        weight: shape (outputs, inputs, 3, 3).
        bias: shape (outputs,), (1, outputs) or (B, outputs).

    Returns:
        Shape (B, outputs, H, W), channels last in memory.
    """
    if torch.is_grad_enabled():
        result: Tensor = _Convolve.apply(x, weight, bias)
        return result
    return _forward(x, weight, bias)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_shape = None if bias is None else bias.shape
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = _backward(gradient, x, weight, ctx.needs_input_grad[1])
        for_bias = None
        if ctx.bias_shape is not None:
            for_bias = gradient.sum((2, 3)).sum_to_size(ctx.bias_shape)
        return for_x, for_weight, for_bias


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (b, inputs, h, w), outputs = x.shape, len(weight)
    rows, columns = _tiles(h), _tiles(w)
    result = _empty(x, outputs)
    with torch.autocast("cpu", enabled=False):
        of_results, _, of_pixels = _matrices(x.dtype)
        kernels = _kernels(weight).transpose(1, 2)
        for piece in _pieces(b, rows * columns * max(inputs, outputs)):
            pixels = _transform("pixels", of_pixels, _overlapping("pixels", x[piece], rows, columns))
            products = _multiply("products", pixels, kernels)
            tiles = _transform("products", of_results, products).view(_TILE, _TILE, -1, rows, columns, outputs)
            part = tiles.permute(2, 3, 0, 4, 1, 5)  # image, tile row, row, tile column, column, channel
            into = result[piece].permute(0, 2, 3, 1)
            if h % _TILE or w % _TILE:
                part = part.reshape(-1, rows * _TILE, columns * _TILE, outputs)[:, :h, :w]
            else:
                into = into.view(part.shape)
            if bias is None:
                into.copy_(part)
            else:
                shift = bias[piece] if bias.ndim == 2 and len(bias) > 1 else bias
                torch.add(part, shift.view(-1, *[1] * (part.ndim - 2), outputs), out=into)
    return result


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, of_weight: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients for x and weight: the same steps transposed, in reverse."""
    (b, inputs, h, w), outputs = x.shape, len(weight)
    rows, columns = _tiles(h), _tiles(w)
    for_x = _empty(x, inputs)
    for_weight = None
    with torch.autocast("cpu", enabled=False):
        of_results, of_weights, of_pixels = _matrices(x.dtype)
        kernels = _kernels(weight)
        for_kernels = scratch("for_kernels", kernels.shape, x.dtype).zero_()
        for piece in _pieces(b, rows * columns * max(inputs, outputs)):
            products = _transform("products", of_results.t(), _beside("products", gradient[piece], rows, columns))
            if of_weight:
                pixels = _transform("pixels", of_pixels, _overlapping("pixels", x[piece], rows, columns))
                for_kernels.baddbmm_(products.transpose(1, 2), pixels)
            pixels = _transform("pixels", of_pixels.t(), _multiply("pixels", products, kernels))
            total = _add_up(pixels.view(6, 6, -1, rows, columns, inputs))
            for_x[piece].permute(0, 2, 3, 1).copy_(total[:, 1 : h + 1, 1 : w + 1])
        if of_weight:
            both = torch.kron(of_weights, of_weights)
            for_weight = (both.t() @ for_kernels.view(36, -1)).view(3, 3, outputs, inputs).permute(2, 3, 0, 1)
    return for_x, for_weight


def _empty(x: Tensor, channels: int) -> Tensor:
    """Like x with other channels, channels last; of its own memory, not a view, so that it may be changed in place."""
    return torch.empty((len(x), channels, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """S of shape (4, 6), K of shape (6, 3) and P of shape (6, 6); the last point is infinity."""
    results, weights, pixels = [], [], []
    for point in _POINTS:
        others = [other for other in _POINTS if other != point]
        scale = math.prod(point - other for other in others)
        results.append([point**k for k in range(_TILE)])
        weights.append([point**k / scale for k in range(3)])
        pixels.append([*_polynomial(others), 0.0])
    results.append([0.0] * (_TILE - 1) + [1.0])
    weights.append([0.0, 0.0, 1.0])
    pixels.append(_polynomial(_POINTS))
    with torch.inference_mode(False):
        s, k, p = (torch.tensor(rows, dtype=torch.float64).to(dtype) for rows in (results, weights, pixels))
        return s.t().contiguous(), k, p


def _polynomial(roots: Sequence[float]) -> list[float]:
    """The coefficients of the product of (z - root), the constant first."""
    coefficients = [1.0]
    for root in roots:
        higher, lower = [0.0, *coefficients], [*coefficients, 0.0]
        coefficients = [a - root * b for a, b in zip(higher, lower, strict=True)]
    return coefficients


def _tiles(pixels: int) -> int:
    return -(-pixels // _TILE)


def _pieces(images: int, size: int) -> Iterator[slice]:
    """Slices of a batch, of about _PIECE and alike, where an image counts `size`."""
    pieces = -(-images // max(1, _PIECE // size))
    step = -(-images // pieces)
    for start in range(0, images, step):
        yield slice(start, start + step)


def _kernels(weight: Tensor) -> Tensor:
    """Weights of shape (outputs, inputs, 3, 3) at the points: shape (36, outputs, inputs)."""
    of_weights = _matrices(weight.dtype)[1]
    last = scratch("weight", (3, 3, *weight.shape[:2]), weight.dtype).copy_(weight.permute(2, 3, 0, 1))
    into = scratch("kernels", (36, last[0, 0].numel()), weight.dtype)
    torch.mm(torch.kron(of_weights, of_weights), last.view(9, -1), out=into)
    return into.view(36, *weight.shape[:2])


def _transform(name: str, matrix: Tensor, tiles: Tensor) -> Tensor:
    """A matrix of shape (m, n) on both sides of tiles, shape (n, n, ..., channels) or (n n, ..., channels).

    Returns:
        Shape (m m, tiles, channels), in scratch memory of that name, where the tiles may have been.
    """
    m, n = matrix.shape
    size = tiles.numel() // (n * n)
    half = scratch("half", (m, n * size), tiles.dtype)
    torch.mm(matrix, tiles.view(n, n * size), out=half)
    whole = scratch(name, (m, m, size), tiles.dtype)
    torch.bmm(matrix.expand(m, m, n), half.view(m, n, size), out=whole)
    return whole.view(m * m, -1, tiles.shape[-1])


def _multiply(name: str, left: Tensor, right: Tensor) -> Tensor:
    """The 36 matrix products, in scratch memory."""
    into = scratch(name, (*left.shape[:2], right.shape[2]), left.dtype)
    return torch.bmm(left, right, out=into)


def _overlapping(name: str, x: Tensor, rows: int, columns: int) -> Tensor:
    """The pixels that each tile's results need, zeros outside the image: shape (6, 6, B, rows, columns, C)."""
    b, c, h, w = x.shape
    height, width = rows * _TILE + 2, columns * _TILE + 2
    padded = scratch("padded", (b, height, width, c), x.dtype).zero_()
    padded[:, 1 : h + 1, 1 : w + 1] = x.permute(0, 2, 3, 1)
    row = width * c
    strides = (row, c, height * row, _TILE * row, _TILE * c, 1)
    shape = (_PIXELS, _PIXELS, b, rows, columns, c)
    return scratch(name, shape, x.dtype).copy_(padded.as_strided(shape, strides))


def _beside(name: str, x: Tensor, rows: int, columns: int) -> Tensor:
    """The pixels of each tile, zeros outside the image: shape (4, 4, B, rows, columns, C)."""
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1)
    if h % _TILE or w % _TILE:
        x = F.pad(x, (0, 0, 0, columns * _TILE - w, 0, rows * _TILE - h))
    tiles = x.reshape(b, rows, _TILE, columns, _TILE, c).permute(2, 4, 0, 1, 3, 5)
    return scratch(name, tiles.shape, x.dtype).copy_(tiles)


def _add_up(tiles: Tensor) -> Tensor:
    """Tiles of shape (6, 6, B, rows, columns, C) summed where they overlap: shape (B, 4 rows + 4, 4 columns + 4, C)."""
    _, _, b, rows, columns, c = tiles.shape
    total = scratch("padded", (b, rows + 1, _TILE, columns + 1, _TILE, c), tiles.dtype).zero_()
    own = total.permute(2, 4, 0, 1, 3, 5)
    own[:, :, :, :-1, :-1] = tiles[:4, :4]
    own[:, :2, :, :-1, 1:] += tiles[:4, 4:]
    own[:2, :, :, 1:, :-1] += tiles[4:, :4]
    own[:2, :2, :, 1:, 1:] += tiles[4:, 4:]
    return total.view(b, (rows + 1) * _TILE, (columns + 1) * _TILE, c)
