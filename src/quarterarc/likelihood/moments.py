"""Count, mean and scatter of samples of numbers, which merge exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of a sample, float64; samples merge exactly by `+`.

    Attributes:
        count: size of the sample.
        mean: shape (*).
        scatter: sum of squared deviations from the mean, shape (*).
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, sample: np.ndarray) -> Moments:
        """The moments of a sample, shape (count, *)."""
        mean = sample.mean(0, dtype=np.float64)
        return cls(len(sample), mean, ((sample - mean) ** 2).sum(0))

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the mean, shape (*); NaN for a sample of one."""
        if self.count < 2:
            return np.full_like(self.mean, math.nan)
        return np.sqrt(self.scatter / (self.count - 1) / self.count)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both samples together (Chan, Golub & LeVeque 1983, Eq. 2.1)."""
        count, step = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + step**2 * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    def describe(self) -> dict[str, Any]:
        """Mean and standard error as JSON types, with None for NaN."""
        return {"mean": _json(self.mean), "standard_error": _json(self.standard_error)}


def _json(values: np.ndarray) -> Any:
    return [_json(value) for value in values] if values.ndim else None if math.isnan(values) else float(values)
