"""The Frechet distance between two Gaussians (Dowson & Landau 1982, Eq. 4); on Inception features it is FID.

    |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^{1/2}             (Heusel et al. 2017, Eq. 6)

With S_i = F_i^T F_i the last trace is the sum of the singular values of F_1 F_2^T: F_1 S_2 F_1^T has their squares as
its eigenvalues, and S_1 S_2 the same ones besides zeros. Methods that take roots of the eigenvalues of S_1 S_2 lose
half of the digits: an eigenvalue that should be 0 carries a rounding error of 1e-16 of the largest, its root one of
1e-8, and there may be thousands of them. Singular values avoid these roots. F_i is the matrix of centred features
itself if there are fewer images than dimensions.

Singular values take several times as long as the eigenvalues of F_1 F_2^T (F_1 F_2^T)^T, their squares. If both F_i are
triangular, the eigenvalues are computed first and used if they are accurate: their product must equal that of the
squared diagonals, a determinant that is exact to rounding and contains the relative error of every eigenvalue.
"""

from __future__ import annotations

import math
import warnings
from typing import TypeAlias

import torch
from torch import Tensor

from ..common.errors import InputError
from .arrays import Features, as_features
from .statistics import MeanCovariance, Statistics

__all__ = ["Gaussian", "frechet_distance"]

Gaussian: TypeAlias = Features | Statistics | MeanCovariance
"""Anything with a mean and a covariance: features of shape (N, D), accumulated statistics, or saved ones."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared 2-Wasserstein distance between the Gaussians that have the means and covariances of a and b.

    Computed in float64. The rounding error is about 1e-15 of the traces, at most 1e-12, also for covariances without
    full rank; a negative result is set to 0. An estimate from few images is biased upwards, so compare equal counts
    only; fewer than twice as many images as dimensions cause a warning.

    Args:
        a, b: features of shape (N, D) with N >= 2, `Statistics`, or `MeanCovariance`.

    Raises:
        InputError: for different dimensions, too few images, NaN or infinity, or a matrix that is not a covariance.
    """
    (mean_a, factor_a, count_a), (mean_b, factor_b, count_b) = _factored(a, "the first"), _factored(b, "the second")
    if len(mean_a) != len(mean_b):
        sizes = f"{len(mean_a)} and {len(mean_b)} dimensions"
        raise InputError(f"a Frechet distance needs equal dimensions, got {sizes}: take both from the same extractor")
    _warn_of_few(len(mean_a), [count for count in (count_a, count_b) if count is not None])
    mean_b, factor_b = mean_b.to(mean_a.device), factor_b.to(mean_a.device)
    squares = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum()
    return max(0.0, (squares - 2.0 * _root_trace(factor_a, factor_b)).item())


def _root_trace(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the singular values of a b^T, for a and b of shapes (rank, D)."""
    product = a @ b.T
    if _is_triangular(a) and _is_triangular(b):
        values = torch.linalg.eigvalsh(product @ product.T)
        determinant = 2.0 * (a.diagonal().log().sum() + b.diagonal().log().sum())
        # a relative error of the eigenvalues below this changes their roots by less than 1e-12 of the traces
        if values[0] > 0.0 and (values.log().sum() - determinant).abs() < 1e-5:
            return values.sqrt().sum()
    return torch.linalg.svdvals(product).sum()


def _is_triangular(factor: Tensor) -> bool:
    """Whether a factor comes from Cholesky's decomposition: square, with zeros below the diagonal."""
    return factor.shape[0] == factor.shape[1] and not bool(factor.tril(-1).any())


def _factored(given: Gaussian, which: str) -> tuple[Tensor, Tensor, int | None]:
    """The mean (D,), an F of shape (rank, D) with F^T F the covariance, and the number of images."""
    if not isinstance(given, Statistics | MeanCovariance):
        features = as_features(given, f"{which} features", fewest=2)
        count, dimensions = features.shape
        if count <= dimensions:
            features = features.double()
            mean = features.mean(0)
            return mean, (features - mean) / math.sqrt(count - 1), count
        given = Statistics.of(features)
    return given.mean, _factor(given.covariance), given.count


def _factor(covariance: Tensor) -> Tensor:
    """An F with F^T F the covariance: Cholesky's, or from eigenvectors if a pivot is no larger than rounding.

    Eigenvalues below D eps of the largest are set to 0: the root of a rounding error would not be negligible.
    """
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and lower.diagonal().square().min() > rounding * covariance.diagonal().max():
        return lower.T
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-6 * values[-1].abs():
        ends = f"{values[0].item():.3g} (the largest is {values[-1].item():.3g})"
        raise InputError(f"a covariance has no negative eigenvalue, got {ends}: give statistics of features")
    kept = values > rounding * values[-1]
    return (vectors[:, kept] * values[kept].sqrt()).T


def _warn_of_few(dimensions: int, counts: list[int]) -> None:
    if counts and min(counts) < 2 * dimensions:
        warnings.warn(
            f"Frechet distance of {dimensions}-dimensional features from {min(counts)} images, fewer than "
            f"2 x {dimensions} = {2 * dimensions}: it is biased upwards, so compare it only at equal counts",
            stacklevel=3,
        )
