"""The probability flow between images and noise, dx/dangle = v(x, angle): likelihood, inversion and its inverse.

    log p(image) = log N(x(end); 0, I) + integral_0^end  div v(x, angle) dangle,      x(0) = image

along the flow from the image to the end of the arc, pi/2 (Chen et al. 2018, Eq. 8; Song et al. 2021, Eq. 39). The
divergence is the exact trace, or Hutchinson's estimate z^T (dv/dx) z with random signs z, one z an image for the whole
way, so that its mean over z is the likelihood itself. The solver's steps are each image's own.

The flow is that of a sampler that turns standard normal noise at the denoiser's largest angle into images: it begins
there where the denoiser is not defined at pi/2, and below the smallest angle at which it is defined it is asked at that
angle. So it is a model with a density of its own, and the number is that density's for any head and schedule.

8-bit images become points by uniform dequantisation: level k is (k + u) / 128 - 1 with u uniform in [0, 1), a level is
1/128 wide, and -log2 p / D + 7 is at least -log2 of the level's mass, on average over u (Theis et al. 2016).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..arc import NOISE_END, float64
from ..common.errors import InputError
from ..common.streams import Purpose, stream
from ..data.pixels import to_uint8
from ..denoiser import Denoise, angle_range, call, traits
from ..samplers.adaptive import check_tolerance, integrate
from .variational import Images, Moments, batch, check_images, read_levels, refuse_nonfinite

__all__ = [
    "FlowLikelihood",
    "dequantise",
    "evaluate_flow_bits_per_dim",
    "flow_bits_per_dim",
    "log_likelihood",
]

TOLERANCE = 1e-5
"""How far a step may miss, each pixel and the log density a dimension, absolutely and relative to the value."""


@dataclass(frozen=True)
class FlowLikelihood:
    """Log densities of some images under the flow, image by image.

    Attributes:
        log_density: nats, shape (N,), float64: the mean over probes.
        probe_error: its standard error over probes, nats, shape (N,): 0 where the divergence is exact, not a number for
            a single probe.
        nfe: how often the denoiser saw each image, shape (N,).
        dimensions: C H W.
        probes: how many probes of the divergence; None if it is exact.
        tolerance: of the solver.
        seed: of all random draws.
    """

    log_density: np.ndarray
    probe_error: np.ndarray
    nfe: np.ndarray
    dimensions: int
    probes: int | None
    tolerance: float
    seed: int

    @property
    def bits_per_dim(self) -> np.ndarray:
        """-log2 p / D + 7, shape (N,): of 8-bit images, where the densities are of dequantised ones."""
        return -self.log_density / (self.dimensions * math.log(2.0)) + 7.0

    def __add__(self, other: FlowLikelihood) -> FlowLikelihood:
        """Those of both sets of images, in this order; for parts computed by different processes.

        Raises:
            InputError: if they are not parts of one evaluation.
        """
        for name in ("dimensions", "probes", "tolerance", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise InputError(
                    f"likelihoods of different {name} do not add: {getattr(self, name)!r} and {getattr(other, name)!r}"
                )
        return replace(
            self,
            log_density=np.concatenate([self.log_density, other.log_density]),
            probe_error=np.concatenate([self.probe_error, other.probe_error]),
            nfe=np.concatenate([self.nfe, other.nfe]),
        )

    def describe(self) -> dict[str, Any]:
        """As JSON types: the mean over images, its standard error (images, dequantisation and probes), settings."""
        said = Moments.of(self.bits_per_dim).describe()
        return {
            "bits_per_dim": said["mean"],
            "standard_error": said["standard_error"],
            "images": len(self.nfe),
            "dimensions": self.dimensions,
            "divergence": "exact" if self.probes is None else "hutchinson",
            "probes": self.probes,
            "tolerance": self.tolerance,
            "seed": self.seed,
            "nfe": float(self.nfe.mean()),
        }


def log_likelihood(
    denoise: Denoise,
    images: Images,
    *,
    probes: int | None = 1,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    labels: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> FlowLikelihood:
    """The log density of points under the probability flow.

    Args:
        denoise: a denoiser, differentiable by autograd.
        images: any finite values, floating, shape (N, C, H, W); for 8-bit images see `flow_bits_per_dim`.
        probes: how many probes estimate the divergence, each a backward pass an evaluation. None for the exact
            divergence, which takes D = C H W of them: for small images.
        tolerance: of the solver, above 0; the path is computed in float64, the denoiser in the dtype of the images.
        seed: of the probes.
        numbers: which image of the whole set each is, 0, 1, ... if not given: with the seed they fix what is drawn.
        labels: classes, shape (N,), for a denoiser that takes any.
        batch_size: how many images at once.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: if the images are of another shape or not finite, a number is out of range, the denoiser's velocity
            is not finite somewhere on the way, or autograd does not see that it depends on x.
    """

    def read(first: int, last: int) -> Tensor:
        some = batch(images, first, last)
        if not some.is_floating_point():
            raise InputError(f"log densities are of floating images, got {some.dtype}: see flow_bits_per_dim")
        refuse_nonfinite(some, first)
        return some

    check_images(images, labels, numbers)
    numbers = range(len(images)) if numbers is None else numbers
    return _log_likelihood(denoise, read, probes, tolerance, seed, numbers, labels, batch_size, progress)


def flow_bits_per_dim(
    denoise: Denoise,
    images: Images,
    *,
    probes: int | None = 1,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    labels: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> FlowLikelihood:
    """The bits a dimension of 8-bit images under the flow, `FlowLikelihood.bits_per_dim`, by uniform dequantisation.

    Args:
        images: uint8, or floating levels k / 127.5 - 1, shape (N, C, H, W).
        seed: of the probes and of where in its level a pixel lies.

    The other arguments and errors are those of `log_likelihood`.
    """
    check_images(images, labels, numbers)
    order = range(len(images)) if numbers is None else numbers

    def read(first: int, last: int) -> Tensor:
        return dequantise(read_levels(images, first, last), seed, order[first:last])

    return _log_likelihood(denoise, read, probes, tolerance, seed, order, labels, batch_size, progress)


def evaluate_flow_bits_per_dim(denoise: Denoise, images: Images, **options: Any) -> dict[str, Any]:
    """Bits a dimension as JSON types, with standard error and settings; as `flow_bits_per_dim`, errors too."""
    return flow_bits_per_dim(denoise, images, **options).describe()


def dequantise(images: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
    """8-bit levels in [-1, 1], floating, to points of their level, (k + u) / 128 - 1 with u uniform in [0, 1)."""
    draws = [stream(seed, Purpose.DEQUANTISE, number).random(images.shape[1:]) for number in numbers]
    u = torch.from_numpy(np.stack(draws)).to(images.device)
    return ((to_uint8(images) + u) / 128.0 - 1.0).to(images.dtype)


def _log_likelihood(
    denoise: Denoise,
    read: Callable[[int, int], Tensor],
    probes: int | None,
    tolerance: float,
    seed: int,
    numbers: Sequence[int],
    labels: Tensor | None,
    batch_size: int,
    progress: bool,
) -> FlowLikelihood:
    end = _check(denoise, tolerance, batch_size)
    if probes is not None and probes < 1:
        raise InputError(f"probes is at least 1, or None for the exact divergence, got {probes}")
    parts = []
    for first, last in _batches(len(numbers), batch_size, "flow likelihood", progress):
        flow = _Flow(denoise, read(first, last), None if labels is None else labels[first:last])
        parts.append(_densities(flow, end, probes, tolerance, seed, numbers[first:last]))
    return reduce(operator.add, parts)


def _densities(
    flow: _Flow, end: float, probes: int | None, tolerance: float, seed: int, numbers: Sequence[int]
) -> FlowLikelihood:
    """The log densities of one batch."""
    columns, d = probes or 1, flow.dimensions
    signs = None if probes is None else _signs(flow, probes, seed, numbers)
    # the state is the point and, for each probe, the integral of the divergence over sqrt(D): its error then weighs in
    # the root mean square over the state as that of one pixel does, when it is taken a dimension
    root = math.sqrt(d)

    def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        v, divergence = flow.velocity_and_divergence(state[:, :d], angle, rows, None if signs is None else signs[rows])
        return torch.cat([v, divergence / root], 1)

    start = torch.cat([flow.start, flow.start.new_zeros(len(numbers), columns)], 1)
    state, nfe, _ = integrate(slope, start, 0.0, end, tolerance)
    normal = -0.5 * ((state[:, :d] ** 2).sum(1) + d * math.log(2.0 * math.pi))
    gained = (state[:, d:] * root).cpu().double().numpy()
    scatter = np.zeros(len(numbers)) if probes is None else Moments.of(gained.T).standard_error
    log_density = normal.cpu().double().numpy() + gained.mean(1)
    return FlowLikelihood(log_density, scatter, nfe.cpu().numpy(), d, probes, tolerance, seed)


def _signs(flow: _Flow, probes: int, seed: int, numbers: Sequence[int]) -> Tensor:
    """Random signs, shape (B, probes, C, H, W)."""
    draws = [
        [stream(seed, Purpose.PROBE, number, probe).integers(2, size=flow.shape) for probe in range(probes)]
        for number in numbers
    ]
    return torch.from_numpy(2.0 * np.array(draws) - 1.0).to(flow.device, flow.dtype)


class _Flow:
    """The probability flow of some images: flat points in float64 outside, the denoiser in the images' dtype inside."""

    def __init__(self, denoise: Denoise, images: Tensor, labels: Tensor | None) -> None:
        self.denoise = denoise
        self.device = traits(denoise).device or images.device
        self.dtype, self.shape = images.dtype, images.shape[1:]
        self.dimensions = images[0].numel()
        self.start = float64(images.to(self.device)).flatten(1)
        self.labels = None if labels is None else labels.to(self.device)
        self.smallest, self.largest = angle_range(denoise)

    def velocity(self, points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        """dx/dangle of the images with these row numbers, shape (B, D)."""
        x = points.to(self.dtype).reshape(-1, *self.shape)
        return float64(self._velocity(x, angle, rows)).flatten(1)

    def velocity_and_divergence(
        self, points: Tensor, angle: Tensor, rows: Tensor, signs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The velocity, shape (B, D), and its divergence by each probe, shape (B, probes); exact without signs."""
        x = points.detach().to(self.dtype).reshape(-1, *self.shape).requires_grad_()
        with torch.enable_grad():
            v = self._velocity(x, angle, rows)
            if not v.requires_grad:
                raise InputError("autograd sees no velocity that depends on x: do not detach in the denoiser")
            divergence = _trace(v, x) if signs is None else _probed(v, x, signs)
        return float64(v.detach()).flatten(1), divergence

    def _velocity(self, x: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        angle = angle.clamp(self.smallest, self.largest)
        labels = None if self.labels is None else self.labels[rows]
        v = call(self.denoise, x, angle, labels).velocity(angle)
        bad = (~v.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):  # no step is small enough for it
            raise InputError(f"the denoiser's velocity at angle {float(angle[int(bad[0])]):.6g} is not finite")
        return v


def _trace(v: Tensor, x: Tensor) -> Tensor:
    """The exact divergence of v, an image at a time: one backward pass for each of the D dimensions."""
    flat = v.flatten(1).sum(0)  # images do not see each other, so one pass serves the batch
    total = x.new_zeros(len(x), dtype=torch.float64)
    for i, each in enumerate(flat):
        (gradient,) = torch.autograd.grad(each, x, retain_graph=i + 1 < len(flat))
        total += gradient.flatten(1)[:, i]
    return total[:, None]


def _probed(v: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """Hutchinson's estimates z^T (dv/dx) z, shape (B, probes) (Hutchinson 1989; Grathwohl et al. 2019)."""
    estimates = []
    for i in range(signs.shape[1]):
        z = signs[:, i]
        (gradient,) = torch.autograd.grad(v, x, z, retain_graph=i + 1 < signs.shape[1])
        estimates.append(float64(gradient * z).flatten(1).sum(1))
    return torch.stack(estimates, 1)


def _check(denoise: Denoise, tolerance: float, batch_size: int) -> float:
    """The angle at which the flow ends."""
    check_tolerance(tolerance)
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    return min(angle_range(denoise)[1], NOISE_END)


def _batches(count: int, batch_size: int, what: str, progress: bool) -> Iterator[tuple[int, int]]:
    """First and last number of each batch, with a progress bar."""
    with tqdm(total=count, unit="image", desc=what, disable=None if progress else True) as bar:
        for first in range(0, count, batch_size):
            last = min(first + batch_size, count)
            yield first, last
            bar.update(last - first)
