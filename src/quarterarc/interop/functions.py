"""Adapters for models of other families: they wrap a callable as a denoiser, `(x, angle) -> Estimate`.

Every Gaussian process x' = p image + q noise is the arc after scaling, x = x' / sqrt(p^2 + q^2), at the angle
arctan(q / p). The output of the model then determines image and noise by two linear equations:

| adapter        | x'                          | output            | image                | noise                |
|----------------|-----------------------------|-------------------|----------------------|----------------------|
| `EDM`          | image + sigma noise         | D, the image      | D                    | (x' - D)/sigma       |
| `ScoreVE`      | image + sigma noise         | s = -noise/sigma  | x' + sigma^2 s       | -sigma s             |
| `ScoreVP`      | cos image + sin noise       | s = -noise/sin    | from the noise       | -sin s               |
| `FlowMatching` | (1 - t) image + t noise     | u = noise - image | x' - t u             | x' + (1 - t) u       |
| `TrigFlow`     | cos t image + d sin t noise | F = (dx'/dt)/d    | cos t x' - d sin t F | sin t x'/d + cos t F |

A model is called as `model(x', level)`, or `model(x', level, labels)` if there are labels, with one level per image,
shape (B,), in the dtype of x', or in the dtype of the network's parameters if it has any. Wrap a model with other
arguments, such as one-hot labels or t in 0..1000, in a function. Labels are classes, int64, shape (B,). Classifier-free
guidance (`quarterarc.Guided`) needs the number of `classes`; the label `classes` itself then means "no label". A model
that does not have this label, because it was trained with a label for every image, is declared by `unlabelled=False`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..arc import NOISE_END, Angle, cos_sin, float64, rotate, spread
from ..common.errors import InputError
from ..denoiser import Traits, check_angle
from ..estimate import Estimate

__all__ = ["EDM", "FlowMatching", "Model", "ScoreVE", "ScoreVP", "TrigFlow"]

Model = Callable[..., Tensor]
"""`(x', level) -> Tensor`, or `(x', level, labels) -> Tensor`; the output has the shape of x'."""


@dataclass(frozen=True, eq=False)
class _Adapter:
    """A model together with the shape of its images and the number of its classes.

    Attributes:
        model: the callable, as in the documentation of the module.
        shape: (C, H, W) of the training images, if known.
        classes: number of labels; the label `classes` itself means "no label".
        unlabelled: whether the model has that label. By keyword only.
    """

    model: Model
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    unlabelled: bool = field(default=True, kw_only=True)

    @property
    def device(self) -> torch.device:
        """Device of the model; the CPU for a bare function."""
        weight = self._weight()
        return torch.device("cpu") if weight is None else weight.device

    @property
    def largest_angle(self) -> float:
        """The largest angle at which the model is defined."""
        return NOISE_END

    @property
    def smallest_angle(self) -> float:
        """The smallest angle at which both estimates are reliable."""
        return 0.0

    @property
    def traits(self) -> Traits:
        """Angles, image shape, classes and device of the model."""
        return Traits(
            smallest_angle=self.smallest_angle,
            largest_angle=self.largest_angle,
            shape=self.shape,
            classes=self.classes,
            unlabelled=self.unlabelled,
            device=self.device,
        )

    def _weight(self) -> Tensor | None:
        return next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None

    def _evaluate(self, x: Tensor, level: Tensor, labels: Tensor | None) -> Tensor:
        weight = self._weight()
        dtype = x.dtype if weight is None else weight.dtype
        arguments = [x.to(dtype), level.to(x.device, dtype).expand(len(x))]
        output = self.model(*arguments) if labels is None else self.model(*arguments, labels)
        if output.shape != x.shape:
            raise InputError(
                f"the model returned shape {tuple(output.shape)} for images of shape {tuple(x.shape)}: "
                f"{type(self).__name__} needs a model whose output has the shape of its input"
            )
        return output.to(x.dtype)


@dataclass(frozen=True, eq=False)
class _VarianceExploding(_Adapter):
    """A model of image + sigma noise, defined up to the angle arctan(largest_sigma)."""

    largest_sigma: float = 80.0
    smallest_sigma: float = 0.002

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest_sigma < self.largest_sigma < math.inf:
            raise InputError(
                f"0 < smallest_sigma < largest_sigma < inf, got {self.smallest_sigma!r} and {self.largest_sigma!r}: "
                "give the range in which the model was trained"
            )

    @property
    def largest_angle(self) -> float:
        """The angle of the largest sigma."""
        return math.atan(self.largest_sigma)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..`largest_angle`.

        Raises:
            InputError: for an angle outside the range, or a model whose output has another shape than x.
        """
        check_angle(angle, (0.0, self.largest_angle), f"{type(self).__name__} up to sigma {self.largest_sigma:g}")
        sigma = float64(angle).tan()
        level = sigma.clamp(min=self.smallest_sigma)
        exploded = x / cos_sin(angle, x)[0]
        image, noise = self._read(self._evaluate(exploded, level, labels), exploded, spread(level, x))
        # the correction is 0 except below the smallest sigma: there the noise is constant, and the image tends to x
        return Estimate(image + spread(level - sigma, x) * noise, noise)

    def _read(self, output: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class EDM(_VarianceExploding):
    """A denoiser D(x + sigma noise, sigma) -> image (Karras et al. 2022, Eq. 2 and 3): EDM, k-diffusion.

    Preconditioning and sigma_data are part of the model. Below `smallest_sigma` the model is evaluated at
    `smallest_sigma`: the noise estimate is constant there, and the image estimate tends to x at angle 0. Samplers do
    not evaluate there, because (x' - D)/sigma divides the error of D by sigma.

    Attributes:
        model: `D(x', sigma)`, x' of shape (B, C, H, W), sigma of shape (B,).
        shape, classes: (C, H, W) of the images, and number of labels.
        unlabelled: whether the label `classes` means "no label"; False for a model without this label.
        largest_sigma, smallest_sigma: the range of sigma in training (EDM's, Table 1).

    Raises:
        InputError: unless 0 < smallest_sigma < largest_sigma < inf.
    """

    @property
    def smallest_angle(self) -> float:
        """The angle of the smallest sigma."""
        return math.atan(self.smallest_sigma)

    def _read(self, output: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return output, (x - output) / sigma


@dataclass(frozen=True, eq=False)
class ScoreVE(_VarianceExploding):
    """A score s(x', sigma) = grad log p(x'; sigma) of x' = image + sigma noise (Song et al. 2021, VE).

    By Tweedie's formula image = x' + sigma^2 s. Below `smallest_sigma` the model is evaluated at `smallest_sigma`: the
    noise estimate is constant there, and the image estimate tends to x at angle 0.

    Attributes:
        model: `s(x', sigma)`, x' of shape (B, C, H, W), sigma of shape (B,).
        shape, classes: (C, H, W) of the images, and number of labels.
        unlabelled: whether the label `classes` means "no label"; False for a model without this label.
        largest_sigma, smallest_sigma: the range of sigma in training; the paper's largest depends on the data.

    Raises:
        InputError: unless 0 < smallest_sigma < largest_sigma < inf.
    """

    def _read(self, output: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x + sigma**2 * output, -sigma * output


@dataclass(frozen=True, eq=False)
class ScoreVP(_Adapter):
    """A score s(x, alpha_bar) = grad log p(x; alpha_bar) of x on the arc (Song et al. 2021, VP).

    noise = -sin s, and image = (x - sin noise)/cos, which is undefined at pi/2: the largest angle is that of
    `smallest_alpha_bar`. Above `largest_alpha_bar` the model is evaluated at `largest_alpha_bar`: the noise estimate is
    constant there, and the image estimate tends to x at angle 0.

    Attributes:
        model: `s(x, alpha_bar)`, x of shape (B, C, H, W), alpha_bar of shape (B,).
        shape, classes: (C, H, W) of the images, and number of labels.
        unlabelled: whether the label `classes` means "no label"; False for a model without this label.
        smallest_alpha_bar, largest_alpha_bar: the range in training (DDPM's linear schedule, Ho et al. 2020).

    Raises:
        InputError: unless 0 < smallest_alpha_bar < largest_alpha_bar < 1.
    """

    smallest_alpha_bar: float = 4.03e-5
    largest_alpha_bar: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest_alpha_bar < self.largest_alpha_bar < 1.0:
            raise InputError(
                f"0 < smallest_alpha_bar < largest_alpha_bar < 1, got {self.smallest_alpha_bar!r} and "
                f"{self.largest_alpha_bar!r}: give the range in which the model was trained"
            )

    @property
    def largest_angle(self) -> float:
        """The angle of the smallest alpha_bar."""
        return math.acos(math.sqrt(self.smallest_alpha_bar))

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..`largest_angle`.

        Raises:
            InputError: for an angle outside the range, or a model whose output has another shape than x.
        """
        check_angle(angle, (0.0, self.largest_angle), f"ScoreVP down to alpha_bar {self.smallest_alpha_bar:g}")
        clamped = float64(angle).clamp(min=math.asin(math.sqrt(1.0 - self.largest_alpha_bar)))
        noise = -spread(clamped.sin(), x) * self._evaluate(x, clamped.cos() ** 2, labels)
        c, s = cos_sin(angle, x)
        return Estimate((x - s * noise) / c, noise)


@dataclass(frozen=True, eq=False)
class FlowMatching(_Adapter):
    """A velocity field u(x', t) along straight lines, x' = (1 - t) image + t noise, u = noise - image.

    Flow matching (Lipman et al. 2023) and rectified flow (Liu et al. 2023). Exact at both ends.

    Attributes:
        model: `u(x', t)`, x' of shape (B, C, H, W), t of shape (B,) in [0, 1].
        shape, classes: (C, H, W) of the images, and number of labels.
        unlabelled: whether the label `classes` means "no label"; False for a model without this label.
        noise_at: the t of pure noise, 0 or 1. 0 is the reversed convention, x' = t image + (1 - t) noise and
            u = image - noise.

    Raises:
        InputError: unless noise_at is 0 or 1.
    """

    noise_at: int = 1

    def __post_init__(self) -> None:
        if self.noise_at not in (0, 1):
            raise InputError(f"noise_at is the t of pure noise, 0 or 1, got {self.noise_at!r}")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..pi/2.

        Raises:
            InputError: for a model whose output has another shape than x.
        """
        angle = float64(angle)
        c, s = angle.cos(), angle.sin()
        t, straight = s / (c + s), x / spread(c + s, x)
        if self.noise_at == 1:
            u = self._evaluate(straight, t, labels)
        else:
            u = -self._evaluate(straight, c / (c + s), labels)
        return Estimate(straight - spread(t, x) * u, straight + spread(c / (c + s), x) * u)


@dataclass(frozen=True, eq=False)
class TrigFlow(_Adapter):
    """A network F(x' / d, t) with dx'/dt = d F along x' = cos t image + sin t d noise (Lu & Song 2024, section 3).

    With d = 1 this is the arc and its velocity. Exact at both ends.

    Attributes:
        model: `F(x' / d, t)`, x' / d of shape (B, C, H, W), t of shape (B,) in [0, pi/2].
        shape, classes: (C, H, W) of the images, and number of labels.
        unlabelled: whether the label `classes` means "no label"; False for a model without this label.
        sigma_data: d, the standard deviation of the images in [-1, 1] in the network's definition, above 0.

    Raises:
        InputError: unless sigma_data is above 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data is a standard deviation above 0, got {self.sigma_data!r}")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..pi/2.

        Raises:
            InputError: for a model whose output has another shape than x.
        """
        angle = float64(angle)
        t = torch.atan2(angle.sin(), self.sigma_data * angle.cos())  # tan angle = d tan t
        scaled = x * spread(torch.hypot(t.cos(), self.sigma_data * t.sin()) / self.sigma_data, x)
        image, noise = rotate(scaled, self._evaluate(scaled, t, labels), -t)
        return Estimate(self.sigma_data * image, noise)
