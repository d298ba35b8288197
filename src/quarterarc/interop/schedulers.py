"""diffusers' schedulers: their beta tables as schedules, and their timesteps as grids.

diffusers numbers DDPM's steps 0..T-1; in this library they are 1..T, and 0 is the clean image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arc import NOISE_END
from ..common.errors import InputError, unknown_name
from ..schedules import LARGEST_BETA, Schedule
from ..schedules import schedule as named_schedule
from ..storage.files import read_json

__all__ = ["pipeline_grid", "pipeline_schedule"]


def pipeline_schedule(scheduler: Any) -> Schedule:
    """The angles of a diffusers scheduler's beta table, in float64.

    Args:
        scheduler: a scheduler, or its configuration: `beta_schedule` linear, scaled_linear, squaredcos_cap_v2, sigmoid,
            laplace or exp, or `trained_betas`; `rescale_betas_zero_snr` (Lin et al. 2024, Algorithm 1).

    Raises:
        InputError: for a scheduler without a beta table, or an invalid table.
    """
    config = config_of(scheduler)
    name, steps = str(config.get("beta_schedule", "")), config.get("num_train_timesteps", 1000)
    table = config.get("trained_betas")
    if config.get("use_flow_sigmas") or (not name and table is None):
        raise InputError(
            f"the scheduler {config.get('_class_name', '')} has no beta table: wrap the model in "
            "quarterarc.interop.FlowMatching, EDM or ScoreVE, according to its training"
        )
    if table is None and name not in _BETAS:
        raise unknown_name("beta_schedule", name, _BETAS)
    try:
        if table is None:
            table = _BETAS[name](steps, config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
        beta = np.asarray(table, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"the scheduler's settings give no beta table: {error}") from None
    if len(beta) != steps:
        raise InputError(
            f"the scheduler has {len(beta)} trained_betas for num_train_timesteps={steps}: give one per step"
        )
    # a last beta of 1 is pure noise; Schedule.from_beta has no angle for it
    noise_end = len(beta) > 1 and abs(beta[-1] - 1.0) <= 1e-12  # some tables have it up to rounding
    angles = Schedule.from_beta(beta[:-1] if noise_end else beta).angles
    if noise_end:
        angles = np.append(angles, NOISE_END)
    elif config.get("rescale_betas_zero_snr"):
        angles = _zero_snr(angles)
    return Schedule("custom", angles)


def pipeline_grid(scheduler: Any, steps: int) -> np.ndarray:
    """The angles of the timesteps of diffusers' DDIM and DDPM, for `sample(..., grid=...)`.

    Args:
        scheduler: a scheduler, its configuration, or a pipeline folder, with `timestep_spacing` (leading, trailing or
            linspace), `steps_offset` and `set_alpha_to_one`.
        steps: number of steps, 1..T.

    Returns:
        The grid, shape (steps + 1,). Without `set_alpha_to_one` it ends at the angle of the first training step instead
        of 0, with one step less if the last timestep is that step.

    Raises:
        InputError: for an unknown spacing, more than T steps, or an offset that leads beyond T.
    """
    config = scheduler_config(Path(scheduler)) if isinstance(scheduler, str | Path) else config_of(scheduler)
    schedule = pipeline_schedule(config)
    if not isinstance(steps, int) or not 1 <= steps <= schedule.steps:
        raise InputError(f"the scheduler has {schedule.steps} steps: take 1 to {schedule.steps} steps, got {steps!r}")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in _SPACINGS:
        raise unknown_name("timestep_spacing", spacing, _SPACINGS)
    offset = config.get("steps_offset", 0)
    numbers = _SPACINGS[spacing](schedule.steps, steps, offset)
    if numbers[0] > schedule.steps - 1:
        raise InputError(
            f"steps_offset={offset} puts the first of {steps} leading steps beyond the scheduler's {schedule.steps}: "
            "take fewer steps, or no offset"
        )
    angles = schedule.angle(numbers + 1.0)
    last = 0.0 if config.get("set_alpha_to_one", True) else schedule.angle(1.0)
    return np.append(angles, last) if last < angles[-1] else angles


def component(folder: Path, name: str) -> Path:
    """The folder with the files of a component: its own, or, in older pipelines, that of model_index.json."""
    return folder / name if (folder / name).is_dir() else folder


def scheduler_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of a pipeline folder's scheduler."""
    config = read_json(component(folder, "scheduler") / "scheduler_config.json")
    return config_of(config)


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """The configuration of a scheduler; a mapping is returned unchanged."""
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise InputError(f"a scheduler or its configuration is needed, got {type(scheduler).__name__}")
    return config


def _falling(alpha_bar: Callable[[float], float]) -> Callable[[int, float, float], np.ndarray]:
    """The beta table of alpha_bar(t/T), which is needed up to a factor only; clipped."""

    def table(steps: int, start: float, end: float) -> np.ndarray:
        values = np.array([alpha_bar(i / steps) for i in range(steps + 1)])
        return np.minimum(1.0 - values[1:] / values[:-1], LARGEST_BETA)

    return table


def _laplace(t: float) -> float:
    half_log_snr = -0.5 * math.copysign(1.0, 0.5 - t) * math.log(1.0 - 2.0 * abs(0.5 - t) + 1e-6)
    snr = math.exp(half_log_snr)
    return math.sqrt(snr / (1.0 + snr))


_BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": lambda steps, start, end: np.linspace(start, end, steps),
    "scaled_linear": lambda steps, start, end: np.linspace(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": lambda steps, start, end: named_schedule("cosine", steps).beta[1:],
    "sigmoid": lambda steps, start, end: start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))),
    "laplace": _falling(_laplace),
    "exp": _falling(lambda t: math.exp(-12.0 * t)),
}
"""diffusers' beta schedules by name: functions of T, beta_start and beta_end."""


def _zero_snr(angles: np.ndarray) -> np.ndarray:
    """The cosines shifted and scaled so that the last is 0 and the first keeps its value (Lin et al. 2024)."""
    cosines = np.cos(angles[1:])
    cosines = (cosines - cosines[-1]) * (cosines[0] / (cosines[0] - cosines[-1]))
    return np.concatenate([[0.0], np.arctan2(np.sqrt((1.0 - cosines) * (1.0 + cosines)), cosines)])


_SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": lambda T, steps, offset: np.arange(steps)[::-1] * (T // steps) + offset,
    "trailing": lambda T, steps, offset: np.round(np.arange(T, 0, -T / steps))[:steps] - 1.0,
    "linspace": lambda T, steps, offset: np.linspace(0.0, T - 1.0, steps).round()[::-1],
}
"""diffusers' timesteps by `timestep_spacing`: step numbers in 0..T-1, descending."""
