"""The variational bound as numbers: bits a dimension by terms, and what it says of rate and distortion.

    bits/dim = (L_T + sum_{t=2}^{T} L_{t-1} + L_0) / ln 2        the terms of `quarterarc.bound`, a dimension each
    rate at t       = L_T + the terms above t, in bits a dimension: what is known once x_t is
    distortion at t = 127.5 sqrt(|image - image_hat(x_t)|^2 / D)      RMSE on the scale 0..255

Ho, Jain & Abbeel 2020, sections 2, 3.3 and 4.3, Figure 5; Nichol & Dhariwal 2021, section 3. An expectation over x_t is
one draw an image and time; the noise of image k at time t is a stream of its own, so that no number depends on the
batch size, on how the images are split over processes, or on which other times are asked.

A denoiser that is not defined at the schedule's end, such as a noise head on `arc` at pi/2, is a chain that ends at the
last time below it: the sum stops there and L_T is taken at that angle, which is a bound just as well (that of a sampler
that starts there). `Bound.steps` says where.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..arc import ROUNDING, float64, mix
from ..common.errors import InputError, unknown_name
from ..common.streams import Purpose, normal, stream
from ..data.pixels import to_float
from ..denoiser import Denoise, angle_range, call, traits
from ..estimate import Estimate
from ..objectives.bound import VARIANCES, prior_term, step_term
from ..schedules import Schedule

__all__ = [
    "Bound",
    "Moments",
    "RateDistortion",
    "bits_per_dim",
    "check_images",
    "evaluate_bits_per_dim",
    "rate_distortion",
    "strata",
]

Images = Tensor | np.ndarray
"""Images as a tensor, or an array (memory-mapped, say) that is read a batch at a time; shape (N, C, H, W)."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of a sample, float64; those of several samples merge exactly.

    Attributes:
        count: how many.
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
        """Of the mean, shape (*); not a number for a sample of one."""
        if self.count < 2:
            return np.full_like(self.mean, math.nan)
        return np.sqrt(self.scatter / (self.count - 1) / self.count)

    def __add__(self, other: Moments) -> Moments:
        """Both samples together (Chan, Golub & LeVeque 1983)."""
        count, step = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + step**2 * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    def describe(self) -> dict[str, Any]:
        """Mean and standard error as JSON types; a standard error that a sample of one does not give is None."""
        return {"mean": _json(self.mean), "standard_error": _json(self.standard_error)}


def _json(values: np.ndarray) -> Any:
    return [_json(each) for each in values] if values.ndim else None if math.isnan(values) else float(values)


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of some images, in bits a dimension, image by image and stratum by stratum.

    Attributes:
        prior: L_T, shape (N,), float64.
        middle: the sum of L_{t-1} for t = 2..steps, shape (N,).
        decoder: L_0, shape (N,).
        low, high: the times of each stratum, t = low..high, shape (K,). Stratum 0 is t = 1, whose term is L_0.
        terms: over images: a stratum's share of the bound, shape (K,).
        error: over images: the mean square of image_hat - image at the stratum's times, shape (K,).
        schedule: the name of the schedule.
        steps: t of L_T: the schedule's T, or the last time at which the denoiser is defined.
        variance: the variance of a step, "small", "large" or "learned".
        dimensions: C H W.
        seed: of the noise.
    """

    prior: np.ndarray
    middle: np.ndarray
    decoder: np.ndarray
    low: np.ndarray
    high: np.ndarray
    terms: Moments
    error: Moments
    schedule: str
    steps: int
    variance: str
    dimensions: int
    seed: int

    @property
    def total(self) -> np.ndarray:
        """The bound of each image, shape (N,)."""
        return self.prior + self.middle + self.decoder

    def __add__(self, other: Bound) -> Bound:
        """The bound of both sets of images, in this order; for parts computed by different processes.

        Raises:
            InputError: if they are not parts of one evaluation.
        """
        for name in ("schedule", "steps", "variance", "dimensions", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise InputError(
                    f"bounds of different {name} do not add: {getattr(self, name)!r} and {getattr(other, name)!r}"
                )
        if not (np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)):
            raise InputError(f"bounds of {len(self.low)} and {len(other.low)} strata do not add: take the same terms")
        return replace(
            self,
            prior=np.concatenate([self.prior, other.prior]),
            middle=np.concatenate([self.middle, other.middle]),
            decoder=np.concatenate([self.decoder, other.decoder]),
            terms=self.terms + other.terms,
            error=self.error + other.error,
        )

    def rate_distortion(self) -> RateDistortion:
        """Rate and distortion at every stratum."""
        above = np.cumsum(self.terms.mean[::-1])[::-1] - self.terms.mean
        return RateDistortion(
            self.low, self.high, self.prior.mean() + above, 127.5 * np.sqrt(self.error.mean), float(self.total.mean())
        )

    def describe(self) -> dict[str, Any]:
        """As JSON types: means over images with standard errors, and the settings."""
        parts = {"total": self.total, "prior": self.prior, "middle": self.middle, "decoder": self.decoder}
        said = {name: Moments.of(values).describe() for name, values in parts.items()}
        curve = self.rate_distortion()
        return {
            "bits_per_dim": said["total"]["mean"],
            "standard_error": said["total"]["standard_error"],
            "images": len(self.prior),
            "dimensions": self.dimensions,
            "schedule": self.schedule,
            "steps": self.steps,
            "variance": self.variance,
            "seed": self.seed,
            "prior": said["prior"],
            "middle": said["middle"],
            "decoder": said["decoder"],
            "by_time": {
                "low": self.low.tolist(),
                "high": self.high.tolist(),
                **self.terms.describe(),
                "rate": curve.rate.tolist(),
                "distortion": curve.distortion.tolist(),
            },
        }


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Rate against distortion, by falling noise from the last to the first row (Ho et al. 2020, Figure 5).

    Attributes:
        low, high: the times of each row, shape (K,): one time where all of them were taken.
        rate: bits a dimension that tell x_t at t = high, shape (K,): L_T and the terms above.
        distortion: root mean square error of the image estimate at those times, on the scale 0..255, shape (K,).
        total: the bound in bits a dimension; `rate[0]` and L_0 make it.
    """

    low: np.ndarray
    high: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    total: float


def strata(steps: int, terms: int | None = None) -> np.ndarray:
    """The times 1..steps in `terms` strata: where each begins, and steps + 1, shape (terms + 1,).

    The first stratum is t = 1 alone, for L_0; the others widen geometrically, since a term falls about as 1/t. All
    strata hold one time if `terms` is `steps` or not given.

    Raises:
        InputError: unless terms is a whole number in 1..steps, and at least 2 if steps is.
    """
    terms = steps if terms is None else terms
    if isinstance(terms, bool) or not isinstance(terms, int | np.integer) or not min(2, steps) <= terms <= steps:
        raise InputError(f"the bound of {steps} steps takes {min(2, steps)}..{steps} terms, got {terms!r}")
    if terms == 1:
        return np.array([1, 2])
    # rounded, and at least one apart: once a geometric curve passes the line it is steeper than the line
    geometric = np.floor(np.geomspace(2.0, steps + 1.0, int(terms)) + 0.5).astype(np.int64)
    return np.concatenate([[1], np.maximum(geometric, np.arange(2, terms + 2))])


def check_images(images: Images, labels: Tensor | None = None, numbers: Sequence[int] | None = None) -> None:
    """Raise an InputError unless images have shape (N, C, H, W) and labels and numbers are one an image."""
    if images.ndim != 4 or not all(images.shape):
        raise InputError(f"a likelihood takes images of shape (N, C, H, W), at least one, got {tuple(images.shape)}")
    for what, values in (("labels", labels), ("numbers", numbers)):
        if values is not None and len(values) != len(images):
            raise InputError(f"there are {len(images)} images but {len(values)} {what}: give one an image")


def read_levels(images: Images, first: int, last: int) -> Tensor:
    """Images first..last of 8-bit levels in [-1, 1], floating; uint8 ones become float32.

    Raises:
        InputError: if a value is not finite, or is not one of the 256 levels.
    """
    some = batch(images, first, last)
    if some.dtype == torch.uint8:
        return to_float(some)
    if not some.is_floating_point():
        raise InputError(f"images are uint8, or floating in [-1, 1], got {some.dtype}")
    refuse_nonfinite(some, first)
    level = (some.double() + 1.0) * 127.5
    # a hundredth of a level: float32 rounds at 1e-5 of one
    if bool(((level - level.round()).abs() > 0.01).any()) or float(level.min()) < -0.5 or float(level.max()) > 255.5:
        raise InputError(
            f"bits a dimension are of 8-bit images: give uint8, or levels k / 127.5 - 1 in [-1, 1]; images "
            f"{first}..{last - 1} have other values, {float(some.min()):.4g}..{float(some.max()):.4g}"
        )
    return some


def batch(images: Images, first: int, last: int) -> Tensor:
    """Some of the images as a tensor; those of an array are copied, since one on disk cannot be written to."""
    some = images[first:last]
    return some if isinstance(some, Tensor) else torch.from_numpy(np.array(some))


def refuse_nonfinite(some: Tensor, first: int) -> None:
    """Raise an InputError if a value of these images, the first of which has this number, is not finite."""
    bad = (~some.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        raise InputError(
            f"images hold values that are not finite: {len(bad)} of images {first}..{first + len(some) - 1}, "
            f"first number {first + int(bad[0])}"
        )


def bits_per_dim(
    denoise: Denoise,
    images: Images,
    variance: str | None = None,
    *,
    schedule: Schedule | None = None,
    terms: int | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    labels: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Bound:
    """The variational bound on -log2 p(image), a dimension, of each image.

    Args:
        denoise: a denoiser; the mean of a step is that of its image estimate, whatever the head.
        images: uint8, or floating levels k / 127.5 - 1, shape (N, C, H, W).
        variance: of a step: "small", "large" or "learned"; learned where the head learned it, else small.
        schedule: whose steps make the bound; the denoiser's own if not given.
        terms: how many times to ask an image. All of them if not given. Otherwise each image draws one time at random
            from each of as many strata, weighted by their size: its bound is then an estimate without bias.
        seed: of all random draws.
        numbers: which image of the whole set each is, 0, 1, ... if not given: with the seed they fix what is drawn.
        labels: classes, shape (N,), for a denoiser that takes any.
        batch_size: how many points the denoiser sees at once.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: if images are not 8-bit, of another shape or not finite, a name or number is unknown, no schedule is
            known or its first step lies outside the denoiser's angles, or an estimate is not finite.
    """
    check_images(images, labels, numbers)
    if variance is not None and variance not in VARIANCES:
        raise unknown_name("variance", variance, VARIANCES)
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    chain = chain_of(denoise, schedule)
    edges = strata(chain.steps, terms)
    numbers = range(len(images)) if numbers is None else numbers
    total = len(images) * (len(edges) - 1)
    with tqdm(total=total, unit="point", desc="bits/dim", disable=None if progress else True) as bar:
        parts = []
        for first in range(0, len(images), batch_size):
            last = min(first + batch_size, len(images))
            some = read_levels(images, first, last)
            classes = None if labels is None else labels[first:last]
            block = _Block(denoise, some, classes, numbers[first:last], chain, edges, variance, seed)
            parts.append(block.bound(batch_size, bar))
    return reduce(operator.add, parts)


def chain_of(denoise: Denoise, schedule: Schedule | None = None) -> Schedule:
    """The schedule's steps up to the last at which the denoiser is defined.

    Raises:
        InputError: if there is no schedule, or the denoiser is not defined at its first step.
    """
    schedule = schedule or traits(denoise).schedule
    if schedule is None:
        raise InputError("this denoiser has no schedule, whose steps make the bound: give schedule=")
    smallest, largest = angle_range(denoise)
    steps = int(np.searchsorted(schedule.angles, largest + ROUNDING, side="right")) - 1
    if steps < 1 or schedule.angles[1] < smallest - ROUNDING:
        raise InputError(
            f"the denoiser is defined at angles {smallest:.6g}..{largest:.6g}, which leaves out the first step of the "
            f"schedule '{schedule.name}', at {schedule.angles[1]:.6g}: take a schedule with fewer steps"
        )
    return Schedule(schedule.name, schedule.angles[: steps + 1])


@dataclass(frozen=True)
class _Block:
    """Some images and what it takes to compute their bound."""

    denoise: Denoise
    images: Tensor
    labels: Tensor | None
    numbers: Sequence[int]
    chain: Schedule
    edges: np.ndarray
    variance: str | None
    seed: int

    @torch.no_grad()
    def bound(self, batch_size: int, bar: tqdm) -> Bound:
        """The bound of these images; never more than `batch_size` points at once."""
        times = self._times()
        device = traits(self.denoise).device or self.images.device
        size = np.diff(self.edges)
        terms, error = np.empty(times.shape), np.empty(times.shape)
        kind = self.variance
        for some in self._columns(times.shape[1], batch_size):
            kind, *values = self._terms(times[:, some], device)
            terms[:, some], error[:, some] = (each.cpu().double().numpy().reshape(-1, len(some)) for each in values)
            bar.update(len(some) * len(times))
        terms *= size / math.log(2.0)
        prior = prior_term(self.images.cpu().double(), self.chain).numpy() / math.log(2.0)
        assert kind is not None
        return Bound(
            prior=prior,
            middle=terms[:, 1:].sum(1),
            decoder=terms[:, 0].copy(),
            low=self.edges[:-1],
            high=self.edges[1:] - 1,
            terms=Moments.of(terms),
            error=Moments.of(error),
            schedule=self.chain.name,
            steps=self.chain.steps,
            variance=kind,
            dimensions=self.images[0].numel(),
            seed=self.seed,
        )

    def _times(self) -> np.ndarray:
        """One time for each image and stratum, shape (B, K)."""
        low, size = self.edges[:-1], np.diff(self.edges)
        if (size == 1).all():
            return np.broadcast_to(low, (len(self.images), len(low)))
        draws = [stream(self.seed, Purpose.BOUND_TIMES, number).random(len(low)) for number in self.numbers]
        return low + (np.stack(draws) * size).astype(np.int64)

    def _columns(self, count: int, batch_size: int) -> Iterator[range]:
        """The strata in runs that fill a batch together with these images."""
        width = max(1, batch_size // len(self.images))
        for first in range(0, count, width):
            yield range(first, min(first + width, count))

    def _terms(self, times: np.ndarray, device: torch.device | str) -> tuple[str, Tensor, Tensor]:
        """The kind of variance, and term (nats a dimension) and mean square error at times of shape (B, K), flat."""
        copies = times.shape[1]
        image = self.images.to(device).repeat_interleave(copies, 0)
        labels = None if self.labels is None else self.labels.to(device).repeat_interleave(copies, 0)
        streams = [
            stream(self.seed, Purpose.BOUND_NOISE, number, int(t))
            for number, row in zip(self.numbers, times, strict=True)
            for t in row
        ]
        noise = normal(streams, self.images.shape[1:], self.images.dtype).to(device)
        t = torch.from_numpy(times.flatten().astype(np.float64))
        b, a = self.chain.angle(t), self.chain.angle(t - 1.0)
        x = mix(image, noise, b)
        estimate = call(self.denoise, x, b, labels)
        kind = self.variance or ("small" if estimate.variance_fraction is None else "learned")
        # the bound is what is reported: its own arithmetic is double, whatever the network's
        fraction = None if estimate.variance_fraction is None else float64(estimate.variance_fraction)
        wide = Estimate(float64(estimate.image), float64(estimate.noise), fraction)
        image, x = float64(image), float64(x)
        error = ((wide.image - image) ** 2).flatten(1).mean(1)
        term = step_term(wide, image, x, b, a, self.chain, kind)
        bad = (~term.isfinite()).nonzero().flatten()
        if len(bad):
            row, column = divmod(int(bad[0]), copies)
            raise InputError(
                f"the bound of image {self.numbers[row]} at t = {times[row, column]} is not finite: "
                "the denoiser's estimate there is not, or is beyond all bounds"
            )
        return kind, term, error


def rate_distortion(denoise: Denoise, images: Images, variance: str | None = None, **options: Any) -> RateDistortion:
    """Rate and distortion by time (Ho et al. 2020, Figure 5); arguments and errors as for `bits_per_dim`.

    With a subset of the terms a row is a stratum: its distortion is over the stratum's times, its rate is that of all
    strata above.
    """
    return bits_per_dim(denoise, images, variance, **options).rate_distortion()


def evaluate_bits_per_dim(
    denoise: Denoise, images: Images, variance: str | None = None, **options: Any
) -> dict[str, Any]:
    """The bound as JSON types, with standard errors and settings; arguments and errors as for `bits_per_dim`."""
    return bits_per_dim(denoise, images, variance, **options).describe()
