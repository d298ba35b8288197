"""The variational bound in bits per dimension, by terms, and its rate-distortion curve.

    bits/dim = (L_T + sum_{t=2}^{T} L_{t-1} + L_0) / ln 2     the terms of `quarterarc.objectives.bound`, per dimension
    rate at t       = L_T + the terms above t, in bits per dimension: the information that x_t carries
    distortion at t = 127.5 sqrt(|image - image_hat(x_t)|^2 / D)      RMSE on the scale 0..255

Ho, Jain & Abbeel 2020, sections 2, 3.3 and 4.3, Figure 5; Nichol & Dhariwal 2021, section 3. The expectation over x_t
is estimated by one draw per image and time. The noise of image k at time t has a random stream of its own, so that no
number depends on the batch size, on how images are split over processes, or on which other times are evaluated.

A denoiser that is not defined at the schedule's end, such as a noise head on `arc` at pi/2, gives a chain that ends at
the last time at which it is defined: the sum stops there and L_T is taken at that angle. That is a valid bound too, for
a sampler that starts there. `Bound.steps` is that time.
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

from ..arc import ROUNDING, float64, mix
from ..common.errors import InputError, unknown_name
from ..common.limits import check_batch_size
from ..common.progress import Bar, progress_bar
from ..common.streams import Purpose, normal, stream
from ..denoiser import Denoise, angle_range, call, traits
from ..estimate import Estimate
from ..objectives.bound import VARIANCES, prior_term, step_term
from ..sampling.plans import label_tensor
from ..schedules import Schedule
from .inputs import Images, check_images, read_levels
from .moments import Moments

__all__ = ["Bound", "RateDistortion", "bits_per_dim", "chain_of", "rate_distortion", "strata"]


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of a set of images, in bits per dimension, by image and by stratum of times.

    Attributes:
        prior: L_T, shape (N,), float64.
        middle: the sum of L_{t-1} for t = 2..steps, shape (N,).
        decoder: L_0, shape (N,).
        low, high: the times of each stratum, t = low..high, shape (K,). Stratum 0 is t = 1, whose term is L_0.
        terms: moments over images of each stratum's share of the bound, shape (K,).
        error: moments over images of the mean square of image_hat - image at the stratum's times, shape (K,).
        schedule: name of the schedule.
        steps: t of L_T: the schedule's T, or the last time at which the denoiser is defined.
        variance: the variance of a step, "small", "large" or "learned".
        dimensions: C H W.
        seed: seed of all random draws.
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
        """The bound of both sets of images, in this order; for parts that different processes computed.

        Raises:
            InputError: if the settings of the two differ.
        """
        for name in ("schedule", "steps", "variance", "dimensions", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise InputError(
                    f"bounds of different {name} do not add: {getattr(self, name)!r} and {getattr(other, name)!r}"
                )
        if not (np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)):
            raise InputError(f"bounds of {len(self.low)} and {len(other.low)} strata do not add: use the same terms")
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
        """JSON types: means over images with standard errors, and the settings."""
        parts = {"total": self.total, "prior": self.prior, "middle": self.middle, "decoder": self.decoder}
        means = {name: Moments.of(values).describe() for name, values in parts.items()}
        curve = self.rate_distortion()
        return {
            "bits_per_dim": means["total"]["mean"],
            "standard_error": means["total"]["standard_error"],
            "images": len(self.prior),
            "dimensions": self.dimensions,
            "schedule": self.schedule,
            "steps": self.steps,
            "variance": self.variance,
            "seed": self.seed,
            "prior": means["prior"],
            "middle": means["middle"],
            "decoder": means["decoder"],
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
    """The rate-distortion curve; noise increases from the first to the last row (Ho et al. 2020, Figure 5).

    Attributes:
        low, high: the times of each row, t = low..high, shape (K,); equal if all terms were evaluated.
        rate: bits per dimension that encode x_t at t = high, shape (K,): L_T and the terms above.
        distortion: root mean square error of the image estimate at those times, on the scale 0..255, shape (K,).
        total: the bound in bits per dimension, `rate[0]` + L_0.
    """

    low: np.ndarray
    high: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    total: float


def strata(steps: int, terms: int | None = None) -> np.ndarray:
    """The times 1..steps in `terms` strata: the first time of each, and steps + 1, shape (terms + 1,).

    The first stratum is t = 1 alone, for L_0. The others widen geometrically, because a term decreases about as 1/t.
    Every stratum holds one time if `terms` is None or equals `steps`.

    Raises:
        InputError: unless terms is an integer in min(2, steps)..steps.
    """
    terms = steps if terms is None else terms
    if isinstance(terms, bool) or not isinstance(terms, int | np.integer) or not min(2, steps) <= terms <= steps:
        raise InputError(f"terms must be in {min(2, steps)}..{steps} for the bound of {steps} steps, got {terms!r}")
    if terms == 1:
        return np.array([1, 2])
    # rounded, and at least 1 apart: where the geometric curve exceeds the line, it is steeper than the line
    geometric = np.floor(np.geomspace(2.0, steps + 1.0, int(terms)) + 0.5).astype(np.int64)
    return np.concatenate([[1], np.maximum(geometric, np.arange(2, terms + 2))])


def bits_per_dim(
    denoise: Denoise,
    images: Images,
    variance: str | None = None,
    *,
    schedule: Schedule | None = None,
    terms: int | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    labels: Tensor | Sequence[int | str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Bound:
    """The variational bound on -log2 p(image) per dimension, for each image.

    Args:
        denoise: a denoiser; the mean of a step follows from its image estimate, for any head.
        images: uint8, or floating-point levels k / 127.5 - 1, shape (N, C, H, W).
        variance: variance of a step, "small", "large" or "learned"; by default the learned one if there is one, else
            "small".
        schedule: schedule whose steps define the bound; the denoiser's own by default.
        terms: number of times per image at which the bound is evaluated; all by default. Otherwise every image draws
            one time from each of `terms` strata, weighted by the stratum's size: an unbiased estimate of its bound.
        seed: seed of all random draws.
        numbers: number of each image in the whole set, from which its random streams follow; 0, 1, ... by default.
        labels: classes by number or name, shape (N,), for a denoiser with classes.
        batch_size: points (image and time) per batch.
        progress: whether to show progress: a bar, or lines in a log file.

    Raises:
        InputError: if images are not 8-bit, have a wrong shape or are not finite, a name, number or label is invalid,
            there is no schedule, its first step lies outside the denoiser's angles, or an estimate is not finite.
    """
    classes = label_tensor(denoise, labels)
    check_images(images, classes, numbers)
    if variance is not None and variance not in VARIANCES:
        raise unknown_name("variance", variance, VARIANCES)
    check_batch_size(batch_size)
    chain = chain_of(denoise, schedule)
    edges = strata(chain.steps, terms)
    numbers = range(len(images)) if numbers is None else numbers
    total = len(images) * (len(edges) - 1)
    with progress_bar(total, "point", "bits/dim", progress) as bar:
        parts = []
        for first in range(0, len(images), batch_size):
            last = min(first + batch_size, len(images))
            levels = read_levels(images, first, last)
            part = None if classes is None else classes[first:last]
            block = _Block(denoise, levels, part, numbers[first:last], chain, edges, variance, seed)
            parts.append(block.bound(batch_size, bar))
    return reduce(operator.add, parts)


def chain_of(denoise: Denoise, schedule: Schedule | None = None) -> Schedule:
    """The schedule up to the last step at which the denoiser is defined.

    Raises:
        InputError: if there is no schedule, or the denoiser is not defined at its first step.
    """
    schedule = schedule or traits(denoise).schedule
    if schedule is None:
        raise InputError("this denoiser has no schedule, whose steps define the bound: give schedule=")
    smallest, largest = angle_range(denoise)
    steps = int(np.searchsorted(schedule.angles, largest + ROUNDING, side="right")) - 1
    if steps < 1 or schedule.angles[1] < smallest - ROUNDING:
        raise InputError(
            f"the denoiser is defined at angles {smallest:.6g}..{largest:.6g}, which excludes the first step of the "
            f"schedule '{schedule.name}', at {schedule.angles[1]:.6g}: use a schedule with fewer steps"
        )
    return Schedule(schedule.name, schedule.angles[: steps + 1])


@dataclass(frozen=True)
class _Block:
    """A batch of images and the settings of their bound."""

    denoise: Denoise
    images: Tensor
    labels: Tensor | None
    numbers: Sequence[int]
    chain: Schedule
    edges: np.ndarray
    variance: str | None
    seed: int

    @torch.no_grad()
    def bound(self, batch_size: int, bar: Bar) -> Bound:
        """The bound of these images, with at most `batch_size` points in a batch."""
        times = self._times()
        device = traits(self.denoise).device or self.images.device
        size = np.diff(self.edges)
        terms, error = np.empty(times.shape), np.empty(times.shape)
        kind = self.variance
        for columns in self._columns(times.shape[1], batch_size):
            kind, *values = self._terms(times[:, columns], device)
            terms[:, columns], error[:, columns] = (
                value.cpu().double().numpy().reshape(-1, len(columns)) for value in values
            )
            bar.update(len(columns) * len(times))
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
        """One time per image and stratum, shape (B, K)."""
        low, size = self.edges[:-1], np.diff(self.edges)
        if (size == 1).all():
            return np.broadcast_to(low, (len(self.images), len(low)))
        draws = [stream(self.seed, Purpose.BOUND_TIMES, number).random(len(low)) for number in self.numbers]
        return low + (np.stack(draws) * size).astype(np.int64)

    def _columns(self, count: int, batch_size: int) -> Iterator[range]:
        """Ranges of strata, such that images times strata fill a batch."""
        width = max(1, batch_size // len(self.images))
        for first in range(0, count, width):
            yield range(first, min(first + width, count))

    def _terms(self, times: np.ndarray, device: torch.device | str) -> tuple[str, Tensor, Tensor]:
        """The kind of variance; term in nats per dimension and mean square error, shape (B K,), at times (B, K)."""
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
        kind = self.variance or ("learned" if estimate.learned_variance else "small")
        # the bound is the result: its arithmetic is float64, whatever the network's precision
        learned = (estimate.variance_fraction, estimate.log_variance)
        variances = (None if variance is None else float64(variance) for variance in learned)
        wide = Estimate(float64(estimate.image), float64(estimate.noise), *variances)
        image, x = float64(image), float64(x)
        error = ((wide.image - image) ** 2).flatten(1).mean(1)
        term = step_term(wide, image, x, b, a, self.chain, kind)
        bad = (~term.isfinite()).nonzero().flatten()
        if len(bad):
            row, column = divmod(int(bad[0]), copies)
            raise InputError(
                f"the bound of image {self.numbers[row]} at t = {times[row, column]} is not finite: "
                "the denoiser's estimate is NaN, infinite or overflows: check its weights"
            )
        return kind, term, error


def rate_distortion(denoise: Denoise, images: Images, variance: str | None = None, **options: Any) -> RateDistortion:
    """The rate-distortion curve (Ho et al. 2020, Figure 5); arguments and errors as for `bits_per_dim`.

    With a subset of the terms, a row is a stratum: its distortion is averaged over the stratum's times, and its rate is
    that of all strata above.
    """
    return bits_per_dim(denoise, images, variance, **options).rate_distortion()
