"""Grids: the angles at which a sampler evaluates, float64, descending strictly to 0.

A grid of n steps has n + 1 angles. The names state the coordinate in which the angles are evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .arc import NOISE_END, ROUNDING, log_snr, log_snr_to_angle, octave, octave_to_angle, sigma, sigma_to_angle
from .common.errors import InputError
from .common.registry import Registry
from .common.text import counted, one_line
from .schedules import Schedule
from .schedules import schedule as named_schedule

__all__ = ["GRIDS", "GridRequest", "explicit", "grid"]

# Where log-SNR and sigma are infinite, spacing in them stops short: EDM's range (Karras et al. 2022, Table 1).
LARGEST_SIGMA, SMALLEST_SIGMA = 80.0, 0.002
RHO = 7.0

MOST_STEPS = 100_000
"""Upper limit on the number of steps; it keeps a mistyped number from filling the memory."""

PUBLISHED = ("uniform", "quad")
"""The grids of DDIM's published code. They start at the given angle or below it, and their number of steps may differ
from the requested one."""

OCTAVE_POWER = 1.3
"""Exponent of the grid `octave`; above 1, steps near the image are smaller. Measured (docs/samplers.md)."""
DIMENSIONS = 3 * 32 * 32
"""C H W of the images where it is not known."""


@dataclass(frozen=True)
class GridRequest:
    """The arguments of an entry of `GRIDS`.

    Attributes:
        steps: number of steps, from 1 to 100,000.
        start: the first angle, in (0, pi/2].
        smallest: the smallest angle above 0 at which the denoiser is defined; 0 if it is defined on the whole arc.
        schedule: the training schedule, or `arc` with 1000 steps.
        dimensions: C H W of the images.
    """

    steps: int
    start: float
    smallest: float
    schedule: Schedule
    dimensions: int

    @property
    def falling(self) -> np.ndarray:
        """Evenly spaced fractions from 1 to 0, shape (steps + 1,)."""
        return 1.0 - np.arange(self.steps + 1) / self.steps


GRIDS: Registry[Callable[[GridRequest], np.ndarray]] = Registry("grid")
"""The grids by name. An entry is called with a `GridRequest`, and returns steps + 1 angles from its start to 0; those
of `PUBLISHED` have starts and numbers of steps of their own."""


def grid(
    name: str,
    steps: int,
    start: float = NOISE_END,
    schedule: Schedule | None = None,
    smallest: float = 0.0,
    dimensions: int = DIMENSIONS,
) -> np.ndarray:
    """The angles of a grid, descending strictly from `start` to exactly 0, shape (steps + 1,) except for `PUBLISHED`.

    Args:
        name: `angle` (uniform in the angle), `time` (uniform in the schedule's t, rounded to whole training steps),
            `quadratic` (t falls as a square, so that steps are finer near the image), `uniform` and `quad` (the two
            grids of DDIM's published code; Song et al. 2021), `log-snr` (uniform in log-SNR; Lu et al. 2022), `rho`
            (uniform in sigma^(1/7); Karras et al. 2022), `octave`
            (`quarterarc.arc.octave` falls as a power, 1.3), another name of `GRIDS`, or an import path
            `package.module:function`. `log-snr` and `rho` place their angles where sigma is within 0.002..80, and
            add `start` and 0.
        steps: number of steps, at least 1.
        start: the first angle, in (0, pi/2].
        schedule: the schedule of `time`, `quadratic`, `uniform` and `quad`; `arc` with 1000 steps if None.
        smallest: lower bound of the angles above 0 for `log-snr`, `rho` and `octave`: the smallest angle at which the
            denoiser is defined.
        dimensions: C H W of the images, the scale at which `octave` starts.

    Raises:
        InputError: for an unknown name, fewer than one step or more than 100,000, more steps than the schedule has,
            dimensions below 1, a start outside (0, pi/2], or a function that does not return such angles.
    """
    function = GRIDS.lookup(name)
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"sampling takes a whole number of steps, at least 1, got {steps!r}")
    if steps > MOST_STEPS:
        raise InputError(f"a grid has at most {MOST_STEPS:,} steps, got {steps:,}")
    if dimensions < 1:
        raise InputError(f"images have at least one pixel value, got dimensions={dimensions!r}")
    if not 0.0 < start <= NOISE_END:
        raise InputError(f"a grid starts in (0, pi/2], got {start!r}")
    start = float(start)
    request = GridRequest(int(steps), start, float(smallest), schedule or named_schedule(), dimensions)
    try:
        angles = function(request)
    except TypeError as error:  # such as that of a function with other arguments
        raise InputError(
            f"the grid '{name}' cannot be called with a quarterarc.grids.GridRequest: {one_line(error)}"
        ) from None
    return explicit(angles) if name in PUBLISHED else _checked(angles, name, int(steps), start)


def _checked(angles: np.ndarray, name: str, steps: int, start: float) -> np.ndarray:
    """The angles that the function of a grid returned, with exact ends; an InputError for unusable angles."""
    try:
        table = np.array(angles, dtype=np.float64)
        if table.shape != (steps + 1,):
            raise InputError(f"{counted(steps, 'step')} take {steps + 1} angles, got shape {table.shape}")
        if not (abs(table[0] - start) <= ROUNDING and abs(table[-1]) <= ROUNDING):
            raise InputError(f"it goes from {start:.7g} to 0, got {table[0]:.7g}..{table[-1]:.7g}")
        table[0], table[-1] = start, 0.0
        return explicit(table)
    except (TypeError, ValueError) as error:
        raise InputError(f"the grid '{name}' does not return the angles of a grid: {one_line(error)}") from None


def explicit(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """A copy of explicit angles, float64, checked.

    Raises:
        InputError: for fewer than two angles, angles that do not descend strictly, or angles outside [0, pi/2].
    """
    table = np.array(angles, dtype=np.float64)
    if table.ndim != 1 or len(table) < 2:
        raise InputError(f"a grid is a list of at least two angles, got shape {table.shape}")
    if not np.all(np.diff(table) < 0.0):
        at = int(np.argmin(np.diff(table) < 0.0))
        raise InputError(
            f"a grid descends strictly from noise to image, got {table[at]:.6g} before {table[at + 1]:.6g} (place {at})"
        )
    if table[0] > NOISE_END + ROUNDING or table[-1] < 0.0:
        raise InputError(f"a grid stays within 0..pi/2 (1.570796), got {table[0]:.7g}..{table[-1]:.7g}")
    table[0] = min(table[0], NOISE_END)
    return table


@GRIDS.register("angle")
def _angle(request: GridRequest) -> np.ndarray:
    """Uniform in the angle."""
    return request.start * request.falling


@GRIDS.register("time")
def _time(request: GridRequest) -> np.ndarray:
    """Uniform in the schedule's t, rounded to whole training steps."""
    return _at_times(request.falling, request)


@GRIDS.register("quadratic")
def _quadratic(request: GridRequest) -> np.ndarray:
    """The schedule's t falls as a square from the start: finer steps near the image."""
    return _at_times(request.falling**2, request)


def _at_times(fractions: np.ndarray, request: GridRequest) -> np.ndarray:
    """The schedule's angles at whole times that fall as the fractions do, from the time of the start to 0."""
    schedule, start, steps = request.schedule, request.start, request.steps
    if start > schedule.end:
        raise InputError(
            f"the schedule '{schedule.name}' ends at angle {schedule.end:.6g}, before the start {start:.6g}"
        )
    first = schedule.time(start)
    if steps > np.ceil(first):
        raise InputError(
            f"{steps} steps on a schedule that has {int(np.ceil(first))}: take at most that many, or another grid"
        )
    # Rounding half up keeps times at least one apart distinct. Where the quadratic's times are closer together, which
    # is only near the image, the lower bound takes consecutive whole times.
    times = np.maximum(np.floor(fractions * first + 0.5), np.arange(steps, -1, -1))
    times[0] = first
    return schedule.angle(times)


@GRIDS.register("uniform")
def _uniform(request: GridRequest) -> np.ndarray:
    """DDIM's published code: t = 1, 1 + k, ... with k = T // steps; 16 steps of T = 1000 are 17, from t = 993."""
    _check_published(request)
    length = request.schedule.steps
    return _published(np.arange(0, length, length // request.steps), request)


@GRIDS.register("quad")
def _quad(request: GridRequest) -> np.ndarray:
    """DDIM's published code for CIFAR-10: t is a square from 0.8 T, rounded down; several steps at one t are one."""
    _check_published(request)
    roots = np.linspace(0, np.sqrt(request.schedule.steps * 0.8), request.steps)
    return _published(np.unique((roots**2).astype(int)), request)


def _published(numbers: np.ndarray, request: GridRequest) -> np.ndarray:
    """The angles of the steps of DDIM's code, which numbers the times from 0, and 0.

    Where the denoiser is undefined at the first angle, that angle is moved to the largest defined one.
    """
    angles = np.minimum(request.schedule.angle(numbers + 1.0), request.start)
    return np.append(np.unique(angles)[::-1], 0.0)


def _check_published(request: GridRequest) -> None:
    if request.steps > request.schedule.steps:
        raise InputError(
            f"{request.steps} steps on a schedule that has {request.schedule.steps}: take at most that many, or "
            "another grid"
        )


@GRIDS.register("log-snr")
def _log_snr(request: GridRequest) -> np.ndarray:
    """Uniform in log-SNR where sigma is within 0.002..80 (Lu et al. 2022)."""
    noisiest = log_snr(min(request.start, sigma_to_angle(LARGEST_SIGMA)))
    cleanest = log_snr(max(request.smallest, sigma_to_angle(SMALLEST_SIGMA)))
    return _with_ends(log_snr_to_angle(np.linspace(noisiest, cleanest, request.steps)), request)


@GRIDS.register("rho")
def _rho(request: GridRequest) -> np.ndarray:
    """Uniform in sigma^(1/7) where sigma is within 0.002..80 (Karras et al. 2022)."""
    noisiest = min(float(sigma(request.start)), LARGEST_SIGMA) if request.start < NOISE_END else LARGEST_SIGMA
    cleanest = max(float(sigma(request.smallest)), SMALLEST_SIGMA)
    roots = np.linspace(noisiest ** (1 / RHO), cleanest ** (1 / RHO), request.steps)
    return _with_ends(sigma_to_angle(roots**RHO), request)


def _with_ends(angles: np.ndarray, request: GridRequest) -> np.ndarray:
    """The angles of the steps with the start in place of the first, followed by 0."""
    return np.concatenate([[request.start], angles[1:], [0.0]])


@GRIDS.register("octave")
def _octave(request: GridRequest) -> np.ndarray:
    """`quarterarc.arc.octave`, the noise level in octaves, falls as a power, 1.3: finer steps near the image."""
    coarsest = math.sqrt(request.dimensions)

    def down_to(end: float, fractions: np.ndarray) -> np.ndarray:
        first, last = octave(request.start, coarsest), octave(end, coarsest)
        return octave_to_angle(last + (first - last) * fractions**OCTAVE_POWER, coarsest)

    angles = down_to(0.0, request.falling)
    if angles[-2] < request.smallest:
        angles = np.append(down_to(request.smallest, replace(request, steps=request.steps - 1).falling), 0.0)
    return np.concatenate([[request.start], angles[1:-1], [0.0]])
