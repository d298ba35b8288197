"""Closed-form denoisers: data distributions whose optimal estimates are known exactly.

They need no training and are defined on the whole arc; tests use them as oracles, and the shortest examples too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .arc import Angle, cos_sin, float64, spread
from .common.errors import InputError
from .denoiser import Traits
from .estimate import Estimate
from .mean_image import MeanImage

__all__ = ["GaussianData", "MixtureData"]


@dataclass(frozen=True, eq=False)
class GaussianData:
    """The exact denoiser of images from N(mean, covariance); probability flow, bound and moments are closed form.

        E[image | x] = m + cos S (cos^2 S + sin^2)^-1 (x - cos m)
        E[noise | x] = sin (cos^2 S + sin^2)^-1 (x - cos m)

    Attributes:
        mean: m, shape (C, H, W).
        covariance: S, either variances of independent pixels, shape (C, H, W) or a number, or a full covariance
            matrix, shape (D, D) with D = C H W, symmetric and positive semi-definite.

    Raises:
        InputError: for a covariance of another shape, that is not symmetric, or with a negative eigenvalue.
    """

    mean: Tensor
    covariance: Tensor | float

    def __post_init__(self) -> None:
        d = self.mean.numel()
        s = torch.as_tensor(self.covariance)
        if s.shape not in ((), self.mean.shape, (d, d)):
            raise InputError(
                f"the covariance has shape {tuple(s.shape)}: give a number, {tuple(self.mean.shape)} or {(d, d)}"
            )
        if s.shape == (d, d) and d > 1 and not torch.allclose(s, s.T):
            raise InputError("the covariance matrix is not symmetric")
        values = self._decomposed[0]
        if float(values.min()) < -1e-9 * float(values.abs().max()):
            raise InputError(f"the covariance has a negative eigenvalue, {float(values.min()):.3g}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return tuple(self.mean.shape)

    @cached_property
    def traits(self) -> Traits:
        """The whole arc, the shape of the images, and their mean."""
        return _traits(self.mean)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor | None]:
        """The decomposition, with negative eigenvalues (rounding errors) clamped at 0."""
        values, vectors = self._decomposed
        return values.clamp(min=0.0), vectors

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues of S, shape (D,), and eigenvectors as columns, None for a diagonal S; float64."""
        s = torch.as_tensor(self.covariance, dtype=torch.float64, device=self.mean.device)
        d = self.mean.numel()
        if s.shape == (d, d) and d > 1:
            values, vectors = torch.linalg.eigh(s)
            return values, vectors
        return s.expand(self.mean.shape).flatten() if s.ndim < 2 or s.shape == self.mean.shape else s.flatten(), None

    def _apply(self, by_eigenvalue: Tensor, x: Tensor) -> Tensor:
        """The product of x, shape (B, C, H, W), and a function of S, given by its eigenvalues, shape (D,) or (B, D)."""
        _, vectors = self._spectrum
        by_eigenvalue, flat = by_eigenvalue.to(x), x.flatten(1)
        if vectors is None:
            return (flat * by_eigenvalue).reshape(x.shape)
        vectors = vectors.to(x)
        return (flat @ vectors * by_eigenvalue @ vectors.T).reshape(x.shape)

    def _variances(self, angle: Angle) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin and the eigenvalues of cos^2 S + sin^2, each broadcasting over (B, D)."""
        angle = float64(angle)
        angle = angle[:, None] if angle.ndim else angle
        c, s = angle.cos(), angle.sin()
        return c, s, c**2 * self._spectrum[0].to(angle.device) + s**2

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """The exact estimate at x, shape (B, C, H, W); the labels are not used."""
        c, s, q = self._variances(angle)
        mean = self.mean.to(x)
        centred = x - cos_sin(angle, x)[0] * mean
        # q = 0 only at angle 0 along directions of variance 0: the image is the mean, x does not determine the noise
        q = q.where(q > 0.0, 1.0)
        image = mean + self._apply(c * self._spectrum[0].to(c.device) / q, centred)
        return Estimate(image, self._apply(s / q, centred))

    def flow(self, x: Tensor, b: Angle, a: Angle) -> Tensor:
        """The exact probability flow of x from angle b to angle a, which samplers approximate."""
        mean = self.mean.to(x)
        q_b, q_a = self._variances(b)[2], self._variances(a)[2]
        centred = x - cos_sin(b, x)[0] * mean
        return cos_sin(a, x)[0] * mean + self._apply((q_a / q_b).sqrt(), centred)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random images of this distribution, shape (count, C, H, W)."""
        z = torch.randn(count, *self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + self._apply(self._spectrum[0].sqrt(), z)


@dataclass(frozen=True, eq=False)
class MixtureData:
    """The exact denoiser of images from an equal mixture of N(mu_i, h^2 I), such as a kernel density of real images.

        w_i ~ exp(-|x - cos mu_i|^2 / 2q),  q = h^2 cos^2 + sin^2,  m = sum_i w_i mu_i
        E[image | x] = m + (cos h^2 / q)(x - cos m)
        E[noise | x] = (sin / q)(x - cos m)

    Attributes:
        means: the mu_i, shape (K, C, H, W).
        h: standard deviation of the components, above 0.

    Raises:
        InputError: for h that is not above 0, or no means.
    """

    means: Tensor
    h: float

    def __post_init__(self) -> None:
        if self.means.ndim < 2 or not len(self.means):
            raise InputError(f"a mixture needs means of shape (K, C, H, W), got {tuple(self.means.shape)}")
        if not self.h > 0.0 or not math.isfinite(self.h):
            raise InputError(f"a mixture's width h is above 0, got {self.h!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return tuple(self.means.shape[1:])

    @cached_property
    def traits(self) -> Traits:
        """The whole arc, the shape of the images, and their mean."""
        return _traits(self.means.mean(0))

    def weights(self, x: Tensor, angle: Angle) -> Tensor:
        """The posterior probability of every component given x, shape (B, K)."""
        c, q = self._scales(angle, x)
        mu = self.means.to(x).flatten(1)
        # |x - c mu|^2 without |x|^2, which is constant over i
        distances = c**2 * (mu**2).sum(1) - 2.0 * c * (x.flatten(1) @ mu.T)
        return (-distances / (2.0 * q)).softmax(1)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """The exact estimate at x, shape (B, C, H, W); the labels are not used."""
        c, s = cos_sin(angle, x)
        _, q = self._scales(angle, x)
        q = q.reshape(-1, *[1] * (x.ndim - 1)) if q.ndim else q
        mean = (self.weights(x, angle) @ self.means.to(x).flatten(1)).reshape(x.shape)
        centred = x - c * mean
        return Estimate(mean + c * self.h**2 / q * centred, s / q * centred)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random images of this distribution, shape (count, C, H, W)."""
        which = torch.randint(len(self.means), (count,), generator=generator)
        z = torch.randn(count, *self.shape, generator=generator, dtype=self.means.dtype)
        return self.means[which.to(self.means.device)] + self.h * z.to(self.means.device)

    def _scales(self, angle: Angle, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and q, both 0-dimensional or of shape (B, 1)."""
        angle = float64(angle)
        c, q = angle.cos(), self.h**2 * angle.cos() ** 2 + angle.sin() ** 2
        if angle.ndim == 0:
            return c, q
        return spread(c, x).reshape(-1, 1), spread(q, x).reshape(-1, 1)


def _traits(mean: Tensor) -> Traits:
    """The traits of a closed form, of its mean; an image has three dimensions."""
    if mean.ndim != 3:
        return Traits()
    channels, height, width = mean.shape
    return Traits(shape=(channels, height, width), mean_image=MeanImage.of(mean[None]))
