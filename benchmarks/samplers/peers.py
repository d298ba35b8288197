"""Diffusers' schedulers: their documented settings, and how an arc's denoiser is put to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.samplers.ours import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from quarterarc.denoiser import Denoise
    from quarterarc.estimate import Estimate


@dataclass(frozen=True)
class Choice:
    """A diffusers scheduler and the settings it is made with; `prediction` is what the denoiser is asked for."""

    scheduler: str
    settings: Settings
    prediction: str = "v_prediction"

    @property
    def label(self) -> str:
        """The settings beside the scheduler's own, in short."""
        words = [_word(name, value) for name, value in self.settings.items() if name not in _UNSAID]
        return " ".join([*filter(None, words), *([] if self.prediction == "v_prediction" else [self.prediction])])

    def make(self, nfe: int) -> Any:
        """The scheduler, ready to be driven for this NFE; None where it cannot be: too few, or not so many exactly."""
        import diffusers

        steps = _STEPS.get(self.scheduler, lambda nfe, settings: nfe)(nfe, self.settings)
        if steps < 1:
            return None
        own = {} if self.scheduler == "IPNDMScheduler" else {**_BETAS, "prediction_type": self.prediction}
        try:
            scheduler = getattr(diffusers, self.scheduler)(**(own | dict(self.settings)))
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ImportError):  # fewer steps than it can take, or beta sigmas without scipy
            return None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it looks for the first time by value, which need not be there only once
        return scheduler if len(scheduler.timesteps) == nfe else None


_BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
_UNSAID = ("clip_sample",)
_STEPS: dict[str, Callable[[int, Settings], int]] = {
    "HeunDiscreteScheduler": lambda nfe, settings: (nfe + 1) // 2,  # two a step, but one for the last
    "PNDMScheduler": lambda nfe, settings: nfe - 1 if settings["skip_prk_steps"] else nfe - 9,  # its start
}


def _word(name: str, value: Any) -> str:
    """A setting as the table says it."""
    if name == "skip_prk_steps":
        return "plms" if value else "prk"
    if value is True:
        return (
            name.removeprefix("use_")
            .removesuffix("_sigmas")
            .removesuffix("_lambdas")
            .removeprefix("set_")
            .replace("_", "-")
        )
    if value is False:
        return ""
    if name == "solver_order":
        return f"order {value}"
    words = {"beta_schedule": {"squaredcos_cap_v2": "cosine"}.get(str(value), str(value)), "steps_offset": f"+{value}"}
    return words.get(name, f"clipped {value}" if name == "lambda_min_clipped" else str(value))


def _all(*axes: Sequence[Settings]) -> tuple[Settings, ...]:
    """Every combination of settings, one of each axis."""
    return tuple({name: value for part in parts for name, value in part.items()} for parts in product(*axes))


def _each(name: str, *values: Any) -> tuple[Settings, ...]:
    return tuple({name: value} for value in values)


_FAMILIES = _each("beta_schedule", "linear", "squaredcos_cap_v2")
_SPACINGS = (
    *_each("timestep_spacing", "trailing", "linspace", "leading"),
    {"timestep_spacing": "leading", "steps_offset": 1},
)
_SIGMAS = tuple({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas"))
_LU = ({"use_lu_lambdas": True},)
_ALPHA = _each("set_alpha_to_one", True, False)
_CLIPPED = ({"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},)  # "critical" there, its docs say


def _dpm(order: int, *ends: Settings) -> tuple[Settings, ...]:
    made = _all(_FAMILIES, (*_SPACINGS, *_SIGMAS, *_LU), ends), _all(_CLIPPED, _SPACINGS, ends)
    return tuple({"solver_order": order, **settings} for part in made for settings in part)


@dataclass(frozen=True)
class Peer:
    """What is known by one name in the table: all choices of one scheduler."""

    name: str
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, name: str, scheduler: str, settings: Iterable[Settings], *predictions: str) -> Peer:
        """Every setting with every prediction."""
        asked = predictions or ("v_prediction",)
        return cls(name, tuple(Choice(scheduler, each, prediction) for prediction in asked for each in settings))


PEERS = (
    Peer.of("DDIM", "DDIMScheduler", _all(_FAMILIES, _SPACINGS, _ALPHA, ({"clip_sample": False},))),
    Peer.of(
        "DPM-Solver++ 2M",
        "DPMSolverMultistepScheduler",
        _dpm(2, {}, {"euler_at_final": True}, {"solver_type": "heun"}),
    ),
    Peer.of("DPM-Solver++ 3M", "DPMSolverMultistepScheduler", _dpm(3, {}, {"euler_at_final": True})),
    Peer.of(
        "UniPC",
        "UniPCMultistepScheduler",
        _all(_FAMILIES, (*_SPACINGS, *_SIGMAS), _each("solver_type", "bh2", "bh1"), _each("solver_order", 2, 3)),
    ),
    Peer.of("DEIS", "DEISMultistepScheduler", _all(_FAMILIES, (*_SPACINGS, *_SIGMAS), _each("solver_order", 2, 3))),
    Peer.of("Heun", "HeunDiscreteScheduler", _all(_FAMILIES, (*_SPACINGS, *_SIGMAS))),
    Peer.of("iPNDM", "IPNDMScheduler", ({},)),
    Peer.of(
        "PNDM",
        "PNDMScheduler",
        _all(_FAMILIES, _SPACINGS, _ALPHA, _each("skip_prk_steps", True, False)),
        "v_prediction",
        "epsilon",
    ),
)
"""diffusers' deterministic schedulers, each with the settings it is documented with."""
NO_IMAGE = ("PNDMScheduler", "IPNDMScheduler")
"""Schedulers that take no image estimate; iPNDM's formula wants the velocity and nothing else."""


def angles_of(scheduler: Any) -> list[float]:
    """The angles at which a scheduler asks its denoiser, in order."""
    count = len(scheduler.timesteps)
    if type(scheduler).__name__ == "IPNDMScheduler":
        return [math.asin(min(1.0, float(beta))) for beta in scheduler.betas[:count]]
    if hasattr(scheduler, "sigmas"):
        return [math.atan(float(sigma)) for sigma in scheduler.sigmas[:count]]
    signal = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    return [math.atan2(math.sqrt(1.0 - level), math.sqrt(level)) for level in signal]


def solve_by_peer(denoise: Denoise, noise: Tensor, scheduler: Any, prediction: str = "v_prediction") -> Tensor:
    """Drive a diffusers scheduler (its times set) with a denoiser on the arc.

    Args:
        denoise: the denoiser.
        noise: where the way begins, at the scheduler's first angle; shape (B, C, H, W).
        scheduler: one of `PEERS`'.
        prediction: what it is made to be told: `v_prediction`, `epsilon` or `sample`.

    Returns:
        The images, in the dtype of the noise.
    """
    import torch

    exploding = type(scheduler).__name__ == "HeunDiscreteScheduler"  # its state is image + sigma noise
    angles = angles_of(scheduler)
    x = noise / math.cos(angles[0]) if exploding else noise
    with torch.no_grad():
        for angle, t in zip(angles, scheduler.timesteps, strict=True):
            estimate = denoise(x * math.cos(angle) if exploding else x, angle)
            x = scheduler.step(_told(estimate, angle, prediction), t, x).prev_sample
    return x


def _told(estimate: Estimate, angle: float, prediction: str) -> Tensor:
    if prediction == "v_prediction":
        return estimate.velocity(angle)
    return estimate.noise if prediction == "epsilon" else estimate.image
