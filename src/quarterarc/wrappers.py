"""Wrappers: denoisers that change or observe the estimates of another denoiser.

`Clipped`, `Projected`, `Guided` and `Known` change the flow, and their traits declare it. `Evaluator` and `Replayed`
leave the estimates unchanged: they fill in labels, count evaluations, and cache them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from .arc import Angle, cos_sin
from .common.devices import send
from .common.errors import InputError, unknown_name
from .denoiser import DEFAULT_PROJECTION, Denoise, Denoiser, Traits, call, traits
from .estimate import PROJECTIONS, Estimate
from .mean_image import MeanImage

__all__ = ["Clipped", "Evaluator", "Guided", "Known", "Projected", "Replayed", "project"]


@dataclass(frozen=True)
class Clipped:
    """A denoiser whose image estimate is clipped to a range, as in DDPM's sampler.

    Attributes:
        inner: the denoiser.
        low, high: the range.
        rederive: whether to replace the noise estimate by the one that agrees with the clipped image,
            (x - cos image)/sin. If not, the two estimates disagree wherever the image was clipped. At angle 0, where x
            does not determine the noise, the inner noise estimate is kept.
    """

    inner: Denoise
    low: float = -1.0
    high: float = 1.0
    rederive: bool = True

    @property
    def traits(self) -> Traits:
        """The traits of the inner denoiser, with an altered flow."""
        kept = "" if self.rederive else " without its noise"
        return _altered(traits(self.inner), f"clipped to {self.low!r}..{self.high!r}{kept}")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        estimate = call(self.inner, x, angle, labels, to)
        image = estimate.image.clamp(self.low, self.high)
        if not self.rederive:
            return replace(estimate, image=image)
        c, s = cos_sin(angle, x)
        if not isinstance(s, Tensor):
            return replace(estimate, image=image, noise=estimate.noise if s == 0.0 else (x - c * image) / s)
        at_image = send(s == 0.0, x.device)
        return replace(estimate, image=image, noise=torch.where(at_image, estimate.noise, (x - c * image) / s))


@dataclass(frozen=True)
class Projected:
    """A denoiser whose estimates are projected to agree on x (`Estimate.projected`).

    For denoisers other than `Denoiser`, which has the attribute `projection`.

    Attributes:
        inner: the denoiser.
        keep: `velocity`, `image` or `noise`.
    """

    inner: Denoise
    keep: str = "velocity"

    @property
    def traits(self) -> Traits:
        """The traits of the inner denoiser, with an altered flow; at pi/2 all projections keep the image estimate."""
        inner = traits(self.inner)
        return replace(_altered(inner, f"projected by '{self.keep}'"), mean_image=inner.mean_image)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        return call(self.inner, x, angle, labels, to).projected(x, angle, self.keep)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022): unconditional + scale (conditional - unconditional).

    Attributes:
        inner: a denoiser with classes, trained with some labels dropped.
        scale: 1 gives the conditional estimate; larger values strengthen the condition.

    Raises:
        InputError: for a denoiser that was trained with a label for every image, a scale that is not finite, or a call
            without labels.
    """

    inner: Denoise
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"the guidance scale is a finite number, got {self.scale}")
        if not traits(self.inner).unlabelled:
            raise InputError(
                "guidance needs a denoiser that was trained with dropped labels (training.drop_labels), or a diffusers "
                "pipeline that is loaded with null_label=..., if it was trained with one"
            )

    @cached_property
    def traits(self) -> Traits:
        """The traits of the inner denoiser, with an altered flow, its mean image, and twice the evaluations."""
        inner = traits(self.inner)
        altered = _altered(replace(inner, evaluations=2 * inner.evaluations), f"guided by {self.scale!r}")
        return replace(altered, mean_image=inner.mean_image and inner.mean_image.guided(self.scale))

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        classes = traits(self.inner).classes
        if labels is None or classes is None:
            raise InputError("guidance needs labels and a denoiser that was trained with classes")
        both = torch.cat([labels, torch.full_like(labels, classes)])
        estimate = call(self.inner, torch.cat([x, x]), _twice(angle), both, None if to is None else _twice(to))
        variances = (estimate.variance_fraction, estimate.log_variance)
        return Estimate(
            self._combine(estimate.image),
            self._combine(estimate.noise),
            *(None if learned is None else learned[: len(x)] for learned in variances),
        )

    def _combine(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


@dataclass(frozen=True, eq=False)
class Known:
    """A denoiser of images some of whose pixels are known: there, the estimate is the known image.

    The noise estimate of a known pixel is the one that agrees with x, (x - cos image)/sin. The probability flow of a
    known pixel is therefore the arc through its value and the noise from which it starts, whatever the network.

    Attributes:
        inner: the denoiser.
        image: the known pixels, shape (B, C, H, W), or (1, C, H, W) for all images of a batch.
        unknown: true where a pixel is not known, bool, shape (B, 1, H, W) or (1, 1, H, W).
    """

    inner: Denoise
    image: Tensor
    unknown: Tensor

    @property
    def traits(self) -> Traits:
        """The traits of the inner denoiser, with an altered flow."""
        return _altered(traits(self.inner), "with known pixels")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        return self.filled(call(self.inner, x, angle, labels, to), x, angle)

    def filled(self, estimate: Estimate, x: Tensor, angle: Angle) -> Estimate:
        """An estimate at x with the known pixels in their place."""
        c, s = cos_sin(angle, x)
        # at angle 0, where x does not determine the noise, the inner estimate is kept
        at_image = s == 0.0
        noise = (x - c * self.image) / (s + at_image)
        inside = self.unknown | (send(at_image, x.device) if isinstance(at_image, Tensor) else at_image)
        return replace(
            estimate,
            image=torch.where(self.unknown, estimate.image, self.image),
            noise=torch.where(inside, estimate.noise, noise),
        )

    def of_rows(self, rows: Tensor) -> Denoise:
        """The denoiser of a part of the batch, given by row numbers."""
        inner = self.inner.of_rows(rows) if isinstance(self.inner, Evaluator) else self.inner
        image, unknown = (
            kept if len(kept) == 1 else kept[send(rows, kept.device)] for kept in (self.image, self.unknown)
        )
        return replace(self, inner=inner, image=image, unknown=unknown)


def _twice(angle: Angle) -> Angle:
    """Angles of a batch that is concatenated with itself."""
    return torch.cat([angle, angle]) if isinstance(angle, Tensor) and angle.numel() > 1 else angle


def _altered(inner: Traits, change: str) -> Traits:
    """The traits of a denoiser with one more change of its flow, which may change the mean image too."""
    altered = change if inner.altered is None else f"{inner.altered}, {change}"
    return replace(inner, altered=altered, mean_image=None)


def project(denoise: Denoise, keep: str) -> Denoise:
    """A denoiser with another projection of estimates that disagree.

    Args:
        denoise: the denoiser.
        keep: `velocity`, `image` or `noise`, as for `Estimate.projected`; `none` leaves the estimates unchanged.

    Raises:
        InputError: for another name, or for `none` with a denoiser that is wrapped in `Projected`.
    """
    if keep not in (*PROJECTIONS, "none"):
        raise unknown_name("projection", keep, (*PROJECTIONS, "none"))
    if isinstance(denoise, Denoiser):
        same = denoise.head.agrees or keep == DEFAULT_PROJECTION
        altered = None if same else f"projected by '{keep}'"
        return replace(denoise, projection=None if keep == "none" else keep, altered=altered)
    if isinstance(denoise, Guided):
        return replace(denoise, inner=project(denoise.inner, keep))
    if keep == "none":
        if isinstance(denoise, Projected):
            raise InputError("the denoiser is wrapped in Projected: give its inner denoiser for projection='none'")
        return denoise
    return Projected(denoise, keep)


class Evaluator:
    """The denoiser that a sampler is given: it fills in the labels and counts network evaluations.

    Args:
        inner: the denoiser.
        labels: classes, int64, one per image, shape (B,); None without labels.
    """

    def __init__(self, inner: Denoise, labels: Tensor | None = None) -> None:
        self.inner, self.labels = inner, labels
        self.traits = traits(inner)
        self._evaluated = self._images = 0

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        rows = x.shape[0]  # `len` of a tensor is slow
        self._images = max(self._images, rows)
        self._evaluated += rows * self.traits.evaluations
        return call(self.inner, x, angle, self.labels if labels is None else labels, to)

    def of_rows(self, rows: Tensor) -> Denoise:
        """The denoiser of a part of the batch, given by row numbers; its evaluations are counted here too."""
        if self.labels is None:
            return self
        return partial(self, labels=self.labels[send(rows, self.labels.device)])

    @property
    def nfe(self) -> float:
        """Network evaluations per image, averaged over the batch; an int where the average is whole."""
        mean = self._evaluated / max(self._images, 1)
        return int(mean) if mean.is_integer() else mean


def known_estimate(denoise: Denoise, mean: MeanImage, x: Tensor, angle: float) -> Estimate:
    """The estimate by the mean image, without an evaluation, of the denoiser that a sampler is given.

    Args:
        denoise: the denoiser, which holds the labels and the known pixels.
        mean: its mean image.
        x: points, shape (B, C, H, W).
        angle: their angle, above 0.
    """
    if isinstance(denoise, Known):
        return denoise.filled(known_estimate(denoise.inner, mean, x, angle), x, angle)
    return mean.estimate(x, angle, denoise.labels if isinstance(denoise, Evaluator) else None)


class Replayed:
    """A cache of the evaluations of the first run; later runs read it as long as they evaluate at the same points.

    All runs must have the same labels.
    """

    def __init__(self, inner: Denoise) -> None:
        self.inner = inner
        self.traits = traits(inner)
        self._run: list[tuple[Tensor, tuple[Angle, Angle | None], Estimate]] = []
        self._first, self._call = True, 0

    def rewind(self) -> None:
        """Start another run."""
        self._first, self._call = False, 0

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
        if self._first:
            self._run.append((x, (angle, to), call(self.inner, x, angle, labels, to)))
            return self._run[-1][2]
        if self._call < len(self._run):
            point, at, estimate = self._run[self._call]
            if at == (angle, to) and (point is x or torch.equal(point, x)):  # which waits for the device
                self._call += 1
                return estimate
            self._call = len(self._run)  # the runs differ from this point on
        return call(self.inner, x, angle, labels, to)
