"""The Frechet distance between two Gaussians (Dowson & Landau 1982, Eq. 4), which on Inception features is FID.

    |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^{1/2}             (Heusel et al. 2017, Eq. 6)

With S_i = F_i^T F_i the last trace is the sum of the singular values of F_1 F_2^T: F_1 S_2 F_1^T has their squares as
its eigenvalues, and S_1 S_2 the same ones besides zeros. No root is taken of a number that rounding has touched: an
eigenvalue of S_1 S_2 that should be 0 comes out at 1e-16 of the largest, its root at 1e-8, and thousands of these are
the error of the ways through eigenvalues or roots of S_1 S_2. F_i is the centred features themselves where they are
fewer than the dimensions.

Singular values take several times as long as the eigenvalues of F_1 F_2^T (F_1 F_2^T)^T, their squares. Where both F_i
are triangular these are used if they prove right: their product must be that of the squared diagonals, a determinant
that is exact to rounding, and each relative error of an eigenvalue, however small it is, shows in it in full.
"""

from __future__ import annotations

import math
import warnings
from typing import TypeAlias

import torch
from torch import Tensor

from ..common.errors import InputError
from .arrays import Features, as_features
from .statistics import Moments, Statistics

__all__ = ["Gaussian", "frechet_distance"]

Gaussian: TypeAlias = Features | Statistics | Moments
"""What has a mean and a covariance: features of shape (N, D), accumulated statistics, or saved ones."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared 2-Wasserstein distance between the Gaussians that have the means and covariances of a and b.

    Computed in float64. Rounding is about 1e-15 of the traces, 1e-12 at the most, also where covariances have no full
    rank, and a result that it takes below 0 is 0. An estimate from few images is biased upwards, so compare only equal
    counts; with fewer than twice as many images as dimensions a warning says so.

    Args:
        a, b: features of shape (N, D) with N >= 2, `Statistics`, or `Moments`.

    Raises:
        InputError: on different dimensions, too few images, NaN or infinity, or a matrix that is no covariance.
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
        # a relative error that the eigenvalues hide below this moves their roots by less than 1e-12 of the traces
        if values[0] > 0.0 and (values.log().sum() - determinant).abs() < 1e-5:
            return values.sqrt().sum()
    return torch.linalg.svdvals(product).sum()


def _is_triangular(factor: Tensor) -> bool:
    """Whether it is Cholesky's: square, and nothing below the diagonal."""
    return factor.shape[0] == factor.shape[1] and not bool(factor.tril(-1).any())


def _factored(given: Gaussian, which: str) -> tuple[Tensor, Tensor, int | None]:
    """The mean (D,), an F of shape (rank, D) with F^T F the covariance, and the number of images."""
    if not isinstance(given, Statistics | Moments):
        features = as_features(given, f"{which} features", fewest=2)
        count, dimensions = features.shape
        if count <= dimensions:
            features = features.double()
            mean = features.mean(0)
            return mean, (features - mean) / math.sqrt(count - 1), count
        given = Statistics.of(features)
    return given.mean, _factor(given.covariance), given.count


def _factor(covariance: Tensor) -> Tensor:
    """An F with F^T F the covariance: Cholesky's, or from eigenvectors where that meets a pivot that is only rounding.

    Eigenvalues below D eps of the largest count as 0, because their roots would not.
    """
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and lower.diagonal().square().min() > rounding * covariance.diagonal().max():
        return lower.T
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-6 * values[-1].abs():
        ends = f"{values[0].item():.3g} beside a largest of {values[-1].item():.3g}"
        raise InputError(f"a covariance has no negative eigenvalue, got {ends}: these are no statistics of features")
    kept = values > rounding * values[-1]
    return (vectors[:, kept] * values[kept].sqrt()).T


def _warn_of_few(dimensions: int, counts: list[int]) -> None:
    if counts and min(counts) < 2 * dimensions:
        warnings.warn(
            f"Frechet distance of {dimensions}-dimensional features from {min(counts)} images, fewer than "
            f"2 x {dimensions} = {2 * dimensions}: it is biased upwards, so compare it only at equal counts",
            stacklevel=3,
        )
