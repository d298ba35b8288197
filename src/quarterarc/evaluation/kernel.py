"""The kernel distance, an unbiased squared maximum mean discrepancy; on Inception features it is KID.

    k(x, y) = (x . y / D + 1)^3                                          (Binkowski et al. 2018, section 4)
    distance = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

It is unbiased, so that for equal distributions it is negative about as often as positive. All sums are float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from .arrays import Features, MeanStd, as_pair

__all__ = ["full_kernel_distance", "kernel_distance"]

_BLOCK = 256
_NAMES = ("the first features", "the second features")


def kernel_distance(a: Features, b: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> MeanStd:
    """The mean over random subsets of the unbiased kernel distance, and its standard deviation over them.

    The subsets are those of torch-fidelity: `RandomState(seed)` chooses without replacement, from a and from b in turn.

    Args:
        a, b: features, shapes (N, D) and (M, D).
        subsets: number of subsets, at least 1.
        subset_size: images per subset, from 2 to the smaller of N and M.
        seed: seed of the random choice.

    Raises:
        InputError: for different dimensions, fewer images than `subset_size`, or NaN or infinity.
    """
    if subsets < 1 or subset_size < 2:
        raise InputError(f"give at least 1 subset of at least 2 images, got {subsets} of {subset_size}")
    x, y = as_pair(a, b, _NAMES, fewest=2)
    if min(len(x), len(y)) < subset_size:
        counts = f"{len(x)} and {len(y)} images"
        raise InputError(
            f"{counts} are fewer than subset_size = {subset_size}: give more images or a smaller subset_size"
        )
    random = np.random.RandomState(seed)
    distances = [_distance(_choice(random, x, subset_size), _choice(random, y, subset_size)) for _ in range(subsets)]
    return MeanStd(float(np.mean(distances)), float(np.std(distances)))


def full_kernel_distance(a: Features, b: Features) -> float:
    """The unbiased kernel distance over all pairs of images, which the mean over subsets estimates.

    Memory: one block of pairs. Time: proportional to (N + M)^2 D.

    Args:
        a, b: features, shapes (N, D) and (M, D), N and M at least 2.

    Raises:
        InputError: for different dimensions, fewer than 2 images, or NaN or infinity.
    """
    return _distance(*as_pair(a, b, _NAMES, fewest=2))


def _choice(random: np.random.RandomState, features: Tensor, size: int) -> Tensor:
    return features[torch.from_numpy(random.choice(len(features), size, replace=False)).to(features.device)].double()


def _distance(x: Tensor, y: Tensor) -> float:
    between = sum(_kernel(a, b).sum() for a in x.split(_BLOCK) for b in y.split(_BLOCK))
    return float(_mean_within(x) + _mean_within(y) - 2.0 * between / (len(x) * len(y)))


def _mean_within(x: Tensor) -> Tensor:
    """The mean of k over pairs of different images; a block above the diagonal counts twice, for its mirror image."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    blocks = x.split(_BLOCK)
    for i, a in enumerate(blocks):
        own = _kernel(a, a)
        total += own.sum() - own.diagonal().sum()
        for b in blocks[i + 1 :]:
            total += 2.0 * _kernel(a, b).sum()
    return total / (len(x) * (len(x) - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().T).div_(a.shape[1]).add_(1.0).pow_(3)
