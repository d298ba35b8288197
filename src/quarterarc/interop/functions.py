"""Models of other families as denoisers on the arc: bare callables in, `(x, angle) -> Estimate` out.

Every Gaussian process x' = p image + q noise is the arc after scaling, x = x' / sqrt(p^2 + q^2), at the angle
arctan(q / p). What the model estimates then gives image and noise by solving two linear equations:

| adapter        | x'                          | the model says    | image                | noise                |
|----------------|-----------------------------|-------------------|----------------------|----------------------|
| `EDM`          | image + sigma noise         | D, the image      | D                    | (x' - D)/sigma       |
| `ScoreVE`      | image + sigma noise         | s = -noise/sigma  | x' + sigma^2 s       | -sigma s             |
| `ScoreVP`      | cos image + sin noise       | s = -noise/sin    | from the noise       | -sin s               |
| `FlowMatching` | (1 - t) image + t noise     | u = noise - image | x' - t u             | x' + (1 - t) u       |
| `TrigFlow`     | cos t image + d sin t noise | F = (dx'/dt)/d    | cos t x' - d sin t F | sin t x'/d + cos t F |

A model is called as `model(x', level)`, or `model(x', level, labels)` where there are labels, with one level an image,
shape (B,), in the dtype of x'; a network's parameters decide the dtype if it has any. What it wants beyond that, such
as one-hot labels or t in 0..1000, is a lambda around it. Labels are classes, int64, shape (B,). For classifier-free
guidance (`quarterarc.Guided`) say how many `classes` there are: the label `classes` itself then means "no label".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arc import NOISE_END, Angle, cos_sin, float64, rotate, spread
from ..common.errors import InputError
from ..denoiser import Traits, check_angle
from ..estimate import Estimate

__all__ = ["EDM", "FlowMatching", "Model", "ScoreVE", "ScoreVP", "TrigFlow"]

Model = Callable[..., Tensor]
"""`(x', level) -> Tensor`, or `(x', level, labels) -> Tensor`; what it puts out has the shape of x'."""


@dataclass(frozen=True, eq=False)
class _Adapter:
    """A model with what is needed to call it.

    Attributes:
        model: see the module.
        shape: (C, H, W) of the images it was trained on, where known.
        classes: how many labels it knows; the label `classes` itself then means "no label".
    """

    model: Model
    shape: tuple[int, int, int] | None = None
    classes: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is; the CPU for a bare function."""
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
        """What samplers and likelihoods need to know about the model."""
        return Traits(
            smallest_angle=self.smallest_angle,
            largest_angle=self.largest_angle,
            shape=self.shape,
            classes=self.classes,
            device=self.device,
        )

    def _weight(self) -> Tensor | None:
        return next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None

    def _ask(self, x: Tensor, level: Tensor, labels: Tensor | None) -> Tensor:
        weight = self._weight()
        dtype = x.dtype if weight is None else weight.dtype
        given = [x.to(dtype), level.to(x.device, dtype).expand(len(x))]
        output = self.model(*given) if labels is None else self.model(*given, labels)
        if output.shape != x.shape:
            raise InputError(
                f"the model put out shape {tuple(output.shape)} for images of shape {tuple(x.shape)}: "
                f"{type(self).__name__} takes one that estimates as many channels as it is given"
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
                f"sigma runs from above 0 to below infinity, got {self.smallest_sigma!r}..{self.largest_sigma!r}: "
                "give the range that the model was trained on"
            )

    @property
    def largest_angle(self) -> float:
        """The angle of the largest sigma."""
        return math.atan(self.largest_sigma)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..`largest_angle`.

        Raises:
            InputError: if the angle lies outside, or the model's output has another shape than x.
        """
        check_angle(angle, (0.0, self.largest_angle), f"{type(self).__name__} up to sigma {self.largest_sigma:g}")
        sigma = float64(angle).tan()
        asked = sigma.clamp(min=self.smallest_sigma)
        exploded = x / cos_sin(angle, x)[0]
        image, noise = self._read(self._ask(exploded, asked, labels), exploded, spread(asked, x))
        # nothing is added but below the smallest sigma: there the noise stays, and the image tends to x
        return Estimate(image + spread(asked - sigma, x) * noise, noise)

    def _read(self, output: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class EDM(_VarianceExploding):
    """A denoiser D(x + sigma noise, sigma) -> image (Karras et al. 2022, Eq. 2 and 3): EDM, k-diffusion.

    The preconditioning and its sigma_data are the model's own affair. Below `smallest_sigma` D is not asked: there the
    noise estimate is that of `smallest_sigma`, and the image estimate reaches x at angle 0. Samplers keep away from
    there, because (x' - D)/sigma divides the error of D by sigma.

    Attributes:
        model: `D(x', sigma)`, x' of shape (B, C, H, W), sigma of shape (B,).
        shape, classes: see the module.
        largest_sigma, smallest_sigma: the range it was trained on (EDM's, Table 1).

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

    By Tweedie's formula image = x' + sigma^2 s. Below `smallest_sigma` s is not asked: there the noise estimate is that
    of `smallest_sigma`, and the image estimate reaches x at angle 0.

    Attributes:
        model: `s(x', sigma)`, x' of shape (B, C, H, W), sigma of shape (B,).
        shape, classes: see the module.
        largest_sigma, smallest_sigma: the range it was trained on; the paper's largest depends on the data.

    Raises:
        InputError: unless 0 < smallest_sigma < largest_sigma < inf.
    """

    def _read(self, output: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x + sigma**2 * output, -sigma * output


@dataclass(frozen=True, eq=False)
class ScoreVP(_Adapter):
    """A score s(x, alpha_bar) = grad log p(x; alpha_bar) of the arc's own x (Song et al. 2021, VP).

    noise = -sin s, and image = (x - sin noise)/cos, which is not defined at pi/2: the largest angle is that of
    `smallest_alpha_bar`. Above `largest_alpha_bar`, where s is not asked, the noise estimate is that of
    `largest_alpha_bar`; the image estimate reaches x at angle 0.

    Attributes:
        model: `s(x, alpha_bar)`, x of shape (B, C, H, W), alpha_bar of shape (B,).
        shape, classes: see the module.
        smallest_alpha_bar, largest_alpha_bar: the range it was trained on (DDPM's linear schedule, Ho et al. 2020).

    Raises:
        InputError: unless 0 < smallest_alpha_bar < largest_alpha_bar < 1.
    """

    smallest_alpha_bar: float = 4.03e-5
    largest_alpha_bar: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest_alpha_bar < self.largest_alpha_bar < 1.0:
            raise InputError(
                f"alpha_bar runs from above 0 to below 1, got {self.smallest_alpha_bar!r}..{self.largest_alpha_bar!r}: "
                "give the range that the model was trained on"
            )

    @property
    def largest_angle(self) -> float:
        """The angle of the smallest alpha_bar."""
        return math.acos(math.sqrt(self.smallest_alpha_bar))

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..`largest_angle`.

        Raises:
            InputError: if the angle lies outside, or the model's output has another shape than x.
        """
        check_angle(angle, (0.0, self.largest_angle), f"ScoreVP down to alpha_bar {self.smallest_alpha_bar:g}")
        asked = float64(angle).clamp(min=math.asin(math.sqrt(1.0 - self.largest_alpha_bar)))
        noise = -spread(asked.sin(), x) * self._ask(x, asked.cos() ** 2, labels)
        c, s = cos_sin(angle, x)
        return Estimate((x - s * noise) / c, noise)


@dataclass(frozen=True, eq=False)
class FlowMatching(_Adapter):
    """A velocity field u(x', t) along straight lines, x' = (1 - t) image + t noise, u = noise - image.

    Flow matching (Lipman et al. 2023) and rectified flow (Liu et al. 2023). Exact at both ends.

    Attributes:
        model: `u(x', t)`, x' of shape (B, C, H, W), t of shape (B,) in [0, 1].
        shape, classes: see the module.
        noise_at: the t of pure noise. With 0 the convention is the reversed one, x' = t image + (1 - t) noise and
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
            InputError: if the model's output has another shape than x.
        """
        angle = float64(angle)
        c, s = angle.cos(), angle.sin()
        t, straight = s / (c + s), x / spread(c + s, x)
        if self.noise_at == 1:
            u = self._ask(straight, t, labels)
        else:
            u = -self._ask(straight, c / (c + s), labels)
        return Estimate(straight - spread(t, x) * u, straight + spread(c / (c + s), x) * u)


@dataclass(frozen=True, eq=False)
class TrigFlow(_Adapter):
    """A network F(x' / d, t) with dx'/dt = d F along x' = cos t image + sin t d noise (Lu & Song 2024, section 3).

    With d = 1 this is the arc and its velocity. Exact at both ends.

    Attributes:
        model: `F(x' / d, t)`, x' / d of shape (B, C, H, W), t of shape (B,) in [0, pi/2].
        shape, classes: see the module.
        sigma_data: d, the deviation of images in [-1, 1] that the network was built with, above 0.

    Raises:
        InputError: unless sigma_data is above 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data is a deviation above 0, got {self.sigma_data!r}")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise at x, shape (B, C, H, W), and `angle` in 0..pi/2.

        Raises:
            InputError: if the model's output has another shape than x.
        """
        angle = float64(angle)
        t = torch.atan2(angle.sin(), self.sigma_data * angle.cos())  # tan angle = d tan t
        scaled = x * spread(torch.hypot(t.cos(), self.sigma_data * t.sin()) / self.sigma_data, x)
        image, noise = rotate(scaled, self._ask(scaled, t, labels), -t)
        return Estimate(self.sigma_data * image, noise)
