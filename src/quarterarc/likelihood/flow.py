"""Log likelihood under the probability flow between images and noise, dx/dangle = v(x, angle).

    log p(image) = log N(x(end); 0, I) + integral_0^end  div v(x, angle) dangle,      x(0) = image

along the flow from the image to its end, at most pi/2 (Chen et al. 2018, Eq. 8; Song et al. 2021, Eq. 39). The
divergence is the exact trace, or Hutchinson's estimate z^T (dv/dx) z with random signs z. One z per image serves the
whole path, so that the mean over z is the exact log likelihood. The solver chooses the steps of each image separately.

8-bit images become points by uniform dequantisation: level k becomes (k + u) / 128 - 1 with u uniform in [0, 1). A
level is 1/128 wide, and -log2 p / D + 7 is, on average over u, at least -log2 of the level's mass per dimension
(Theis et al. 2016).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.limits import check_batch_size
from ..common.streams import Purpose, stream
from ..data.pixels import to_uint8
from ..denoiser import Denoise
from ..samplers.adaptive import check_tolerance, integrate
from ..sampling.plans import label_tensor
from .inputs import Images, batch_ranges, check_finite, check_images, read_batch, read_levels
from .moments import Moments
from .probability_flow import TOLERANCE, ProbabilityFlow, flow_end

__all__ = ["FlowLikelihood", "dequantise", "flow_bits_per_dim", "log_likelihood"]


@dataclass(frozen=True)
class FlowLikelihood:
    """Log densities of images under the flow, one per image.

    Attributes:
        log_density: nats, shape (N,), float64: the mean over probes.
        probe_error: its standard error over probes, nats, shape (N,): 0 for the exact divergence, NaN for one probe.
        nfe: function evaluations per image, shape (N,).
        dimensions: C H W.
        probes: number of probes of the divergence; None if it is exact.
        tolerance: error tolerance of the solver.
        seed: seed of all random draws.
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
        """-log2 p / D + 7, shape (N,): bits per dimension of 8-bit images, if the points are dequantised ones."""
        return -self.log_density / (self.dimensions * math.log(2.0)) + 7.0

    def __add__(self, other: FlowLikelihood) -> FlowLikelihood:
        """The likelihoods of both sets of images, in this order; for parts that different processes computed.

        Raises:
            InputError: if the settings of the two differ.
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
        """JSON types: bits per dimension, the standard error over images (with dequantisation and probes), settings."""
        mean = Moments.of(self.bits_per_dim).describe()
        return {
            "bits_per_dim": mean["mean"],
            "standard_error": mean["standard_error"],
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
    labels: Tensor | Sequence[int | str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> FlowLikelihood:
    """The log density of points under the probability flow.

    Args:
        denoise: a denoiser, differentiable by autograd.
        images: points, floating point, any finite values, shape (N, C, H, W); see `flow_bits_per_dim` for 8-bit images.
        probes: number of probes per image that estimate the divergence, each one backward pass per evaluation. None
            for the exact divergence: D = C H W backward passes per evaluation, for small images.
        tolerance: error tolerance of the solver, in (0, 1). The path is float64; the denoiser sees the images' dtype.
        seed: seed of the probes.
        numbers: number of each image in the whole set, from which its random stream follows; 0, 1, ... by default.
        labels: classes by number or name, shape (N,), for a denoiser with classes.
        batch_size: images per batch.
        progress: whether to show progress: a bar, or lines in a log file.

    Raises:
        InputError: if images have a wrong shape or are not finite, a number or a label is out of range, the velocity is
            not finite somewhere on the path, or autograd finds no dependence of the velocity on x.
    """

    def read(first: int, last: int) -> Tensor:
        points = read_batch(images, first, last)
        if not points.is_floating_point():
            raise InputError(
                f"log densities take floating-point images, got {points.dtype}: use flow_bits_per_dim for 8-bit images"
            )
        check_finite(points, first)
        return points

    classes = label_tensor(denoise, labels)
    check_images(images, classes, numbers)
    numbers = range(len(images)) if numbers is None else numbers
    return _log_likelihood(denoise, read, probes, tolerance, seed, numbers, classes, batch_size, progress)


def flow_bits_per_dim(
    denoise: Denoise,
    images: Images,
    *,
    probes: int | None = 1,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    labels: Tensor | Sequence[int | str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> FlowLikelihood:
    """Bits per dimension of 8-bit images under the flow (`FlowLikelihood.bits_per_dim`), by uniform dequantisation.

    Args:
        images: uint8, or floating-point levels k / 127.5 - 1, shape (N, C, H, W).
        seed: seed of the probes and of the dequantisation.

    The other arguments and errors are those of `log_likelihood`.
    """
    classes = label_tensor(denoise, labels)
    check_images(images, classes, numbers)
    order = range(len(images)) if numbers is None else numbers

    def read(first: int, last: int) -> Tensor:
        return dequantise(read_levels(images, first, last), seed, order[first:last])

    return _log_likelihood(denoise, read, probes, tolerance, seed, order, classes, batch_size, progress)


def dequantise(images: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
    """Uniform dequantisation: levels k in [-1, 1] become (k + u) / 128 - 1, u uniform in [0, 1).

    Args:
        images: 8-bit levels in [-1, 1], floating point, shape (B, C, H, W).
        seed: seed of the random streams.
        numbers: one per image; the draws of an image depend on its number alone.
    """
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
    check_tolerance(tolerance)
    check_batch_size(batch_size)
    if probes is not None and probes < 1:
        raise InputError(f"probes must be at least 1, or None for the exact divergence, got {probes}")
    parts = []
    for first, last in batch_ranges(len(numbers), batch_size, "flow likelihood", progress):
        flow = ProbabilityFlow(denoise, read(first, last), None if labels is None else labels[first:last])
        parts.append(_densities(flow, flow_end(denoise), probes, tolerance, seed, numbers[first:last]))
    return reduce(operator.add, parts)


def _densities(
    flow: ProbabilityFlow, end: float, probes: int | None, tolerance: float, seed: int, numbers: Sequence[int]
) -> FlowLikelihood:
    """The log densities of one batch."""
    columns, d = probes or 1, flow.dimensions
    signs = None if probes is None else _signs(flow, probes, seed, numbers)
    # The state is the point and, for each probe, the integral of the divergence over sqrt(D). In the root mean square
    # over the state, the integral's error per dimension then weighs as much as the error of one pixel.
    root = math.sqrt(d)

    def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        v, divergence = flow.velocity_and_divergence(state[:, :d], angle, rows, None if signs is None else signs[rows])
        return torch.cat([v, divergence / root], 1)

    start = torch.cat([flow.start, flow.start.new_zeros(len(numbers), columns)], 1)
    state, nfe, _ = integrate(slope, start, 0.0, end, tolerance)
    normal = -0.5 * ((state[:, :d] ** 2).sum(1) + d * math.log(2.0 * math.pi))
    integral = (state[:, d:] * root).cpu().double().numpy()
    probe_error = np.zeros(len(numbers)) if probes is None else Moments.of(integral.T).standard_error
    log_density = normal.cpu().double().numpy() + integral.mean(1)
    return FlowLikelihood(log_density, probe_error, nfe.cpu().numpy(), d, probes, tolerance, seed)


def _signs(flow: ProbabilityFlow, probes: int, seed: int, numbers: Sequence[int]) -> Tensor:
    """Random signs, shape (B, probes, C, H, W)."""
    draws = [
        [stream(seed, Purpose.PROBE, number, probe).integers(2, size=flow.shape) for probe in range(probes)]
        for number in numbers
    ]
    return torch.from_numpy(2.0 * np.array(draws) - 1.0).to(flow.device, flow.dtype)
