"""Schedules: maps from a training step t in 0..T to an angle; t = 0 is the clean image.

A schedule is a table of T + 1 angles, float64, ascending from 0. Between whole steps the angle is linear in t, so that
`angle` and `time` are exact inverses of each other for every schedule. The beta and alpha_bar of the papers are derived
from the angles, never the other way round:

    alpha_bar_t = cos^2 angle_t
    beta_t      = 1 - alpha_bar_t / alpha_bar_{t-1}
                = sin(angle_t - angle_{t-1}) sin(angle_t + angle_{t-1}) / cos^2 angle_{t-1}     (no cancellation)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from .arc import NOISE_END, ROUNDING, alpha_bar_to_angle, float64
from .common.errors import InputError
from .common.registry import Registry, check_definition
from .common.text import one_line

__all__ = ["SCHEDULES", "Schedule", "schedule"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of angles by training step.

    Attributes:
        name: the name or import path by which `schedule` finds it, or "custom".
        angles: float64, shape (T + 1,): 0 first, strictly ascending, at most pi/2.

    Raises:
        InputError: for fewer than two angles, angles that do not ascend strictly from 0, or angles above pi/2.
    """

    name: str
    angles: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        angles = np.array(self.angles, dtype=np.float64)
        if angles.ndim != 1 or len(angles) < 2:
            raise InputError(f"a schedule needs a list of at least two angles, got shape {angles.shape}")
        if angles[0] != 0.0 or not np.all(np.diff(angles) > 0.0) or angles[-1] > NOISE_END:
            raise InputError(
                f"a schedule's angles ascend strictly from 0 to at most pi/2, got {angles[0]:.6g} ... {angles[-1]:.6g}"
            )
        angles.setflags(write=False)
        object.__setattr__(self, "angles", angles)

    @classmethod
    def from_beta(cls, beta: Sequence[float] | np.ndarray, name: str = "custom") -> Schedule:
        """The schedule of a table beta_1..beta_T, values in (0, 1); alpha_bar is accumulated in log space.

        Raises:
            InputError: for a table that is not one-dimensional, is empty, or has a value outside (0, 1).
        """
        table = np.asarray(beta, dtype=np.float64)
        if table.ndim != 1 or not len(table) or not np.all((table > 0.0) & (table < 1.0)):
            raise InputError("a beta table is one-dimensional with every value in (0, 1)")
        log_alpha_bar = np.cumsum(np.log1p(-table))
        # arctan2 of both roots keeps the angle's full precision where alpha_bar is close to 0 and to 1
        angles = np.arctan2(np.sqrt(-np.expm1(log_alpha_bar)), np.exp(0.5 * log_alpha_bar))
        return cls(name, np.concatenate([[0.0], angles]))

    @property
    def steps(self) -> int:
        """T, the number of training steps."""
        return len(self.angles) - 1

    @property
    def end(self) -> float:
        """The largest angle, at t = T; exactly pi/2 for schedules that end in pure noise."""
        return float(self.angles[-1])

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """alpha_bar_t for t = 0..T, shape (T + 1,); alpha_bar_0 = 1."""
        return np.cos(self.angles) ** 2

    @cached_property
    def beta(self) -> np.ndarray:
        """beta_t for t = 0..T, shape (T + 1,); beta_0 = 0, since there is no step 0."""
        a, b = self.angles[:-1], self.angles[1:]
        return np.concatenate([[0.0], np.sin(b - a) * np.sin(b + a) / np.cos(a) ** 2])

    @overload
    def angle(self, t: float) -> float: ...
    @overload
    def angle(self, t: Tensor) -> Tensor: ...
    @overload
    def angle(self, t: np.ndarray | Sequence[float]) -> np.ndarray: ...
    def angle(self, t: Any) -> Any:
        """The angle at time t in [0, T], float64; a number, array or tensor, as t is.

        Raises:
            InputError: if a time lies outside [0, T].
        """
        return self._interpolate(t, np.arange(self.steps + 1.0), self.angles, f"times lie in 0..{self.steps}")

    @overload
    def time(self, angle: float) -> float: ...
    @overload
    def time(self, angle: Tensor) -> Tensor: ...
    @overload
    def time(self, angle: np.ndarray | Sequence[float]) -> np.ndarray: ...
    def time(self, angle: Any) -> Any:
        """The time t of an angle, float64: the inverse of `angle`.

        Raises:
            InputError: if an angle lies outside [0, `end`].
        """
        return self._interpolate(
            angle, self.angles, np.arange(self.steps + 1.0), f"the angles of '{self.name}' lie in 0..{self.end:.9g}"
        )

    def _interpolate(self, at: Any, xs: np.ndarray, ys: np.ndarray, domain: str) -> Any:
        points = at.detach().cpu().double().numpy() if isinstance(at, Tensor) else np.asarray(at, dtype=np.float64)
        slack = ROUNDING * xs[-1]
        if not np.all((points >= -slack) & (points <= xs[-1] + slack)):
            raise InputError(f"{domain}, got {points if points.ndim == 0 else f'{points.min()}..{points.max()}'}")
        values = np.interp(points, xs, ys)
        if isinstance(at, Tensor):
            return torch.as_tensor(values, dtype=float64(at).dtype, device=at.device)
        return float(values) if points.ndim == 0 else values


LARGEST_BETA = 0.999
"""Upper bound of beta in schedules given by beta (Nichol & Dhariwal 2021); it keeps the last angle below pi/2."""

SCHEDULES: Registry[Callable[[int], np.ndarray | Schedule]] = Registry(
    "schedule", check=partial(check_definition, kind="schedule")
)
"""The schedules by name. An entry is called with T, and returns T + 1 angles or a `Schedule` of T steps."""


def schedule(name: str = "arc", steps: int = 1000) -> Schedule:
    """The schedule of a name or import path.

    Args:
        name: `arc` (Eq. 9), `jsd`, `beta-star`, `linear` (Ho et al. 2020), `quadratic`, `cosine` (Nichol & Dhariwal
            2021), `sigmoid`, another name of `SCHEDULES`, or an import path `package.module:function`. `arc` and
            `jsd` end at exactly pi/2, the other built-in schedules just below it.
        steps: T, the number of training steps, at least 1. `linear` scales beta by 1000/T; `quadratic` and `sigmoid`
            are defined for T near 1000 and keep their beta whatever T is.

    Returns:
        The schedule, with `name` as its name.

    Raises:
        InputError: for an unknown name, fewer than one step, or a function that does not return T + 1 ascending angles.
    """
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"a schedule needs a whole number of steps, at least 1, got {steps!r}")
    function = SCHEDULES.lookup(name)
    try:
        table = function(int(steps))
    except InputError:
        raise
    except Exception as error:  # code from outside this package
        raise InputError(
            f"the schedule '{name}' fails for T = {steps}: {type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        table = Schedule(name, table.angles if isinstance(table, Schedule) else table)
    except (TypeError, ValueError) as error:
        raise InputError(f"the schedule '{name}' does not return the angles of a schedule: {one_line(error)}") from None
    if table.steps != steps:
        raise InputError(f"the schedule '{name}' returns {table.steps + 1} angles for T = {steps}, not {steps + 1}")
    return table


@SCHEDULES.register("arc")
def _arc(steps: int) -> np.ndarray:
    """Uniform in the angle, from 0 to pi/2 (Zhang et al. 2023, Eq. 9)."""
    return np.append(np.arange(steps) / steps * NOISE_END, NOISE_END)


@SCHEDULES.register("jsd")
def _jsd(steps: int) -> np.ndarray:
    """alpha_bar_t = 1 - t/T, that is beta_t = 1/(T - t + 1) (Sohl-Dickstein et al. 2015); ends at pi/2."""
    # the paper prints the list in reverse order
    t = np.arange(steps + 1) / steps
    return np.append(alpha_bar_to_angle(1.0 - t)[:-1], NOISE_END)


def _clipped(beta: np.ndarray) -> Schedule:
    return Schedule.from_beta(np.minimum(beta, LARGEST_BETA))


@SCHEDULES.register("beta-star")
def _beta_star(steps: int) -> Schedule:
    """The beta of `arc`, clipped to 0.999 (the "DDIM + beta*" of Zhang et al. 2023)."""
    return _clipped(Schedule("arc", _arc(steps)).beta[1:])


@SCHEDULES.register("linear")
def _linear(steps: int) -> Schedule:
    """Beta is linear: 1e-4 to 0.02, times 1000/T (Ho et al. 2020)."""
    # the factor keeps the continuous process of T = 1000
    return _clipped(np.linspace(1e-4, 0.02, steps) * (1000.0 / steps))


@SCHEDULES.register("quadratic")
def _quadratic(steps: int) -> Schedule:
    """The root of beta is linear: beta from 1e-4 to 0.02, whatever T is (meant for T near 1000)."""
    return _clipped(np.linspace(1e-4**0.5, 0.02**0.5, steps) ** 2)


@SCHEDULES.register("cosine")
def _cosine(steps: int) -> Schedule:
    """alpha_bar is a squared cosine with an offset of 0.008 (Nichol & Dhariwal 2021, Eq. 17)."""
    # a ratio of squared cosines is again a product of sines (no cancellation)
    u = (np.arange(steps + 1) / steps + 0.008) / 1.008 * NOISE_END
    return _clipped(np.sin(u[1:] - u[:-1]) * np.sin(u[1:] + u[:-1]) / np.cos(u[:-1]) ** 2)


@SCHEDULES.register("sigmoid")
def _sigmoid(steps: int) -> Schedule:
    """Beta is a sigmoid from 1e-4 to 0.02, whatever T is (meant for T near 1000)."""
    return _clipped(1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))) * (0.02 - 1e-4) + 1e-4)
