"""Grids: the angles that a sampler visits, float64, descending from where it starts to 0.

`steps` steps visit `steps + 1` angles. The names say in which coordinate the angles are evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .arc import NOISE_END, ROUNDING, log_snr, log_snr_to_angle, octave, octave_to_angle, sigma, sigma_to_angle
from .common.errors import InputError, unknown_name
from .schedules import Schedule
from .schedules import schedule as named_schedule

__all__ = ["GRIDS", "explicit", "grid"]

# Where log-SNR and sigma are infinite, spacing in them stops short: EDM's range (Karras et al. 2022, Table 1).
LARGEST_SIGMA, SMALLEST_SIGMA = 80.0, 0.002
RHO = 7.0

MOST_STEPS = 100_000
"""More angles than any sampler has use for; a mistyped number should not fill the memory."""

OCTAVE_POWER = 1.3
"""How much finer than evenly the grid `octave` steps near the image; measured (docs/samplers.md)."""
DIMENSIONS = 3 * 32 * 32
"""Pixel values of an image where nobody says how many there are."""


def grid(
    name: str,
    steps: int,
    start: float = NOISE_END,
    schedule: Schedule | None = None,
    smallest: float = 0.0,
    dimensions: int = DIMENSIONS,
) -> np.ndarray:
    """The angles of a grid, shape (steps + 1,), strictly descending from `start` to exactly 0.

    Args:
        name: `angle` (uniform in angle), `time` (uniform in the schedule's t, rounded to the times it was trained at),
            `quadratic` (t falls as a square, so that steps are fine near the image; Song et al. 2021), `log-snr`
            (uniform in log-SNR, Lu et al. 2022), `rho` (uniform in sigma^(1/7), Karras et al. 2022), `octave`
            (`quarterarc.arc.octave` falls as a power, 1.3, from the size of the images down). `log-snr` and `rho`
            place their angles where sigma is within 0.002..80, and add `start` and 0.
        steps: how many steps, at least 1.
        start: the first angle, in (0, pi/2].
        schedule: what `time` and `quadratic` are uniform in; `arc` with 1000 steps if not given.
        smallest: where `log-snr`, `rho` and `octave` stop before 0, for a denoiser that is defined from there.
        dimensions: C H W of the images, which `octave` starts from.

    Raises:
        InputError: for an unknown name, fewer than one step or more than 100,000, more steps than the schedule has
            times, dimensions below 1, or a start outside (0, pi/2].
    """
    if name not in GRIDS:
        raise unknown_name("grid", name, GRIDS)
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"sampling takes a whole number of steps, at least 1, got {steps!r}")
    if steps > MOST_STEPS:
        raise InputError(f"{steps} steps are more than a grid has room for: take at most {MOST_STEPS}")
    if dimensions < 1:
        raise InputError(f"images have at least one pixel value, got dimensions={dimensions!r}")
    if not 0.0 < start <= NOISE_END:
        raise InputError(f"a grid starts in (0, pi/2], got {start!r}")
    if name == "octave":
        angles = _octave(int(steps), float(start), math.sqrt(dimensions), float(smallest))
    else:
        angles = _GRIDS[name](int(steps), float(start), float(smallest), schedule or named_schedule())
    angles[0], angles[-1] = start, 0.0
    return explicit(angles)


def explicit(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Angles given one by one, checked.

    Raises:
        InputError: unless there are at least two, descending strictly, within [0, pi/2].
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


def _falling(steps: int) -> np.ndarray:
    return 1.0 - np.arange(steps + 1) / steps


def _angle(steps: int, start: float, smallest: float, schedule: Schedule) -> np.ndarray:
    return start * _falling(steps)


def _time(steps: int, start: float, smallest: float, schedule: Schedule) -> np.ndarray:
    return _at_times(_falling(steps), start, schedule)


def _quadratic(steps: int, start: float, smallest: float, schedule: Schedule) -> np.ndarray:
    return _at_times(_falling(steps) ** 2, start, schedule)


def _at_times(fractions: np.ndarray, start: float, schedule: Schedule) -> np.ndarray:
    """The schedule's angles at whole times that fall as the fractions do, from the time of `start` to 0."""
    if start > schedule.end:
        raise InputError(
            f"the schedule '{schedule.name}' ends at angle {schedule.end:.6g}, before the start {start:.6g}"
        )
    first = schedule.time(start)
    steps = len(fractions) - 1
    if steps > np.ceil(first):
        raise InputError(
            f"{steps} steps on a schedule that has {int(np.ceil(first))}: take at most that many, or another grid"
        )
    # Rounded half up, so that times at least one apart stay apart; where the quadratic's are closer than that,
    # which is only near the image, whole times are taken one by one.
    times = np.maximum(np.floor(fractions * first + 0.5), np.arange(steps, -1, -1))
    times[0] = first
    return schedule.angle(times)


def _log_snr(steps: int, start: float, smallest: float, schedule: Schedule) -> np.ndarray:
    noisiest = log_snr(min(start, sigma_to_angle(LARGEST_SIGMA)))
    cleanest = log_snr(max(smallest, sigma_to_angle(SMALLEST_SIGMA)))
    return np.append(log_snr_to_angle(np.linspace(noisiest, cleanest, steps)), 0.0)


def _rho(steps: int, start: float, smallest: float, schedule: Schedule) -> np.ndarray:
    noisiest = min(float(sigma(start)), LARGEST_SIGMA) if start < NOISE_END else LARGEST_SIGMA
    cleanest = max(float(sigma(smallest)), SMALLEST_SIGMA)
    roots = np.linspace(noisiest ** (1 / RHO), cleanest ** (1 / RHO), steps)
    return np.append(sigma_to_angle(roots**RHO), 0.0)


def _octave(steps: int, start: float, coarsest: float, smallest: float) -> np.ndarray:
    def down_to(end: float, steps: int) -> np.ndarray:
        first, last = octave(start, coarsest), octave(end, coarsest)
        return octave_to_angle(last + (first - last) * _falling(steps) ** OCTAVE_POWER, coarsest)

    angles = down_to(0.0, steps)
    return angles if angles[-2] >= smallest else np.append(down_to(smallest, steps - 1), 0.0)


_GRIDS: dict[str, Callable[[int, float, float, Schedule], np.ndarray]] = {
    "angle": _angle,
    "time": _time,
    "quadratic": _quadratic,
    "log-snr": _log_snr,
    "rho": _rho,
}
GRIDS: tuple[str, ...] = (*_GRIDS, "octave")
"""The names that `grid` knows."""
