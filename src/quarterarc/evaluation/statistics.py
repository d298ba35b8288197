"""Mean and covariance of features in float64: accumulated from batches, merged from shards, or read from a file.

A batch is centred on its own mean, so that a large offset costs no precision. Two parts merge by

    scatter = scatter_a + scatter_b + n_a n_b / (n_a + n_b) (mean_b - mean_a)(mean_b - mean_a)^T

(Chan, Golub & LeVeque 1983, Eq. 2.1, for matrices).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from .arrays import Features, as_features

__all__ = ["MeanCovariance", "Statistics"]

_ROWS = 512
_PANEL = 512


@dataclass(frozen=True, eq=False)
class MeanCovariance:
    """Mean and covariance of features, as a file of statistics holds them.

    Attributes:
        mean: shape (D,), converted to float64.
        covariance: shape (D, D), symmetric; converted to float64 and made exactly symmetric.
        count: number of images; None if unknown.

    Raises:
        InputError: for wrong shapes, NaN or infinity, or a matrix that is not symmetric to 1e-6.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        mean = as_features(self.mean[None], "the mean")[0].double()
        covariance = as_features(self.covariance, "the covariance").double().to(mean.device)
        if covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(covariance.shape)} and ({len(mean)},)"
            raise InputError(f"covariance and mean must have shapes (D, D) and (D,), got {shapes}")
        if (covariance - covariance.T).abs().max() > 1e-6 * covariance.abs().max():
            raise InputError("the covariance is not symmetric: give statistics of features")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", (covariance + covariance.T) / 2)


class Statistics:
    """Mean and covariance of a stream of features; statistics of shards merge into those of the whole.

    The scatter matrix takes 32 MiB for 2048 dimensions, for any number of images.

    Attributes:
        count: number of images so far.
        mean: their mean, float64, shape (D,).
        scatter: the sum of (x - mean)(x - mean)^T, float64, shape (D, D); only the upper triangle is valid.
    """

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Features, what: str = "features") -> Statistics:
        """The statistics of one array of features, shape (N, D)."""
        tensor = as_features(features, what)
        statistics = cls(tensor.shape[1], tensor.device)
        statistics._add_all(tensor)
        return statistics

    def update(self, batch: Features) -> Statistics:
        """Add a batch of features, shape (B, D); returns itself.

        Raises:
            InputError: for other dimensions, or NaN or infinity (the row number counts from the start of the stream).
        """
        tensor = as_features(batch, "features", start=self.count)
        self._check_dimensions(tensor.shape[1])
        self._add_all(tensor)
        return self

    def merge(self, other: Statistics) -> Statistics:
        """Add the images of other statistics, which stay unchanged; returns itself.

        Raises:
            InputError: for features of other dimensions.
        """
        self._check_dimensions(len(other.mean))
        if other.count > 0:
            shift, weight = self._advance(other.mean.to(self.mean.device), other.count)
            self.scatter += other.scatter.to(self.scatter.device)
            self.scatter.addr_(shift, shift, alpha=weight)
        return self

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (divisor count - 1), float64, shape (D, D), exactly symmetric.

        Raises:
            InputError: for fewer than 2 images.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, got {self.count}: give more images")
        upper = self.scatter.triu() / (self.count - 1)
        return upper + upper.triu(1).T

    def _check_dimensions(self, dimensions: int) -> None:
        if dimensions != len(self.mean):
            sizes = f"{dimensions} dimensions where those before have {len(self.mean)}"
            raise InputError(f"features have {sizes}: take all from the same extractor")

    def _add_all(self, features: Tensor) -> None:
        for rows in features.split(_ROWS):
            self._add(rows.to(self.mean.device, torch.float64))

    def _add(self, batch: Tensor) -> None:
        mean = batch.mean(0)
        shift, weight = self._advance(mean, len(batch))
        # the shift of the means is one more centred row, so that a single product does everything
        rows = torch.empty(len(batch) + 1, len(mean), dtype=torch.float64, device=mean.device)
        torch.sub(batch, mean, out=rows[:-1])
        torch.mul(shift, math.sqrt(weight), out=rows[-1])
        for start in range(
            0, len(mean), _PANEL
        ):  # blocks on and above the diagonal: 5/8 of the full product at 2048 dimensions
            panel = slice(start, start + _PANEL)
            self.scatter[panel, start:].addmm_(rows[:, panel].T, rows[:, start:])

    def _advance(self, mean: Tensor, count: int) -> tuple[Tensor, float]:
        """Add `count` images with this mean to count and mean; the shift of the means and its weight in the scatter."""
        before, self.count = self.count, self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / self.count)
        return shift, before * count / self.count
