"""diffusers' schedulers with their documented settings, driven by a denoiser on the arc."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.samplers.ours import Settings
from quarterarc.denoiser import Denoise
from quarterarc.estimate import Estimate


@dataclass(frozen=True)
class Choice:
    """A scheduler with settings.

    Attributes:
        scheduler: the name of its class.
        settings: arguments of the class.
        prediction: the quantity that it receives: "v_prediction", "epsilon" or "sample".
    """

    scheduler: str
    settings: Settings
    prediction: str = "v_prediction"

    @property
    def label(self) -> str:
        """The settings that differ from the scheduler's own, in short."""
        words = [_word(name, value) for name, value in self.settings.items() if name not in _UNLABELLED]
        return " ".join([*filter(None, words), *([] if self.prediction == "v_prediction" else [self.prediction])])

    def make(self, nfe: int) -> Any:
        """The scheduler with its times set for this NFE; None if no number of steps gives exactly this NFE."""
        steps = _STEPS.get(self.scheduler, lambda nfe, settings: nfe)(nfe, self.settings)
        if steps < 1:
            return None
        common = {} if self.scheduler == "IPNDMScheduler" else {**_BETAS, "prediction_type": self.prediction}
        try:
            scheduler = getattr(diffusers, self.scheduler)(**(common | dict(self.settings)))
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ImportError):  # too few steps, or beta sigmas without scipy
            return None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # otherwise the first time is searched by value, which may occur twice
        return scheduler if len(scheduler.timesteps) == nfe else None


_BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
_UNLABELLED = ("clip_sample",)
_STEPS: dict[str, Callable[[int, Settings], int]] = {
    "HeunDiscreteScheduler": lambda nfe, settings: (nfe + 1) // 2,  # two evaluations per step, one in the last
    "PNDMScheduler": lambda nfe, settings: nfe - 1 if settings["skip_prk_steps"] else nfe - 9,  # its start-up
}


def _word(name: str, value: Any) -> str:
    """A setting as part of a label."""
    if name == "skip_prk_steps":
        return "plms" if value else "prk"
    if value is True:
        for prefix in ("use_", "set_"):
            name = name.removeprefix(prefix)
        for suffix in ("_sigmas", "_lambdas"):
            name = name.removesuffix(suffix)
        return name.replace("_", "-")
    if value is False:
        return ""
    if name == "solver_order":
        return f"order {value}"
    words = {"beta_schedule": {"squaredcos_cap_v2": "cosine"}.get(str(value), str(value)), "steps_offset": f"+{value}"}
    return words.get(name, f"clipped {value}" if name == "lambda_min_clipped" else str(value))


def _combinations(*axes: Sequence[Settings]) -> tuple[Settings, ...]:
    """Every combination of settings, one from each axis."""
    return tuple({name: value for part in parts for name, value in part.items()} for parts in product(*axes))


def _values(name: str, *values: Any) -> tuple[Settings, ...]:
    """An axis: one setting with several values."""
    return tuple({name: value} for value in values)


_FAMILIES = _values("beta_schedule", "linear", "squaredcos_cap_v2")
_SPACINGS = (
    *_values("timestep_spacing", "trailing", "linspace", "leading"),
    {"timestep_spacing": "leading", "steps_offset": 1},
)
_SIGMAS = tuple({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas"))
_LU = ({"use_lu_lambdas": True},)
_ALPHA = _values("set_alpha_to_one", True, False)
_CLIPPED = ({"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},)  # "critical" by its documentation


def _dpm(order: int, *ends: Settings) -> tuple[Settings, ...]:
    all_settings = (
        *_combinations(_FAMILIES, (*_SPACINGS, *_SIGMAS, *_LU), ends),
        *_combinations(_CLIPPED, _SPACINGS, ends),
    )
    return tuple({"solver_order": order, **settings} for settings in all_settings)


@dataclass(frozen=True)
class Peer:
    """A row of the table: all choices of one scheduler."""

    name: str
    choices: tuple[Choice, ...]

    @classmethod
    def of(
        cls, name: str, scheduler: str, settings: Iterable[Settings], predictions: Sequence[str] = ("v_prediction",)
    ) -> Peer:
        """The peer with every combination of settings and prediction."""
        pairs = product(predictions, settings)
        return cls(name, tuple(Choice(scheduler, options, prediction) for prediction, options in pairs))


PEERS = (
    Peer.of("DDIM", "DDIMScheduler", _combinations(_FAMILIES, _SPACINGS, _ALPHA, ({"clip_sample": False},))),
    Peer.of(
        "DPM-Solver++ 2M",
        "DPMSolverMultistepScheduler",
        _dpm(2, {}, {"euler_at_final": True}, {"solver_type": "heun"}),
    ),
    Peer.of("DPM-Solver++ 3M", "DPMSolverMultistepScheduler", _dpm(3, {}, {"euler_at_final": True})),
    Peer.of(
        "UniPC",
        "UniPCMultistepScheduler",
        _combinations(
            _FAMILIES, (*_SPACINGS, *_SIGMAS), _values("solver_type", "bh2", "bh1"), _values("solver_order", 2, 3)
        ),
    ),
    Peer.of(
        "DEIS",
        "DEISMultistepScheduler",
        _combinations(_FAMILIES, (*_SPACINGS, *_SIGMAS), _values("solver_order", 2, 3)),
    ),
    Peer.of("Heun", "HeunDiscreteScheduler", _combinations(_FAMILIES, (*_SPACINGS, *_SIGMAS))),
    Peer.of("iPNDM", "IPNDMScheduler", ({},)),
    Peer.of(
        "PNDM",
        "PNDMScheduler",
        _combinations(_FAMILIES, _SPACINGS, _ALPHA, _values("skip_prk_steps", True, False)),
        ("v_prediction", "epsilon"),
    ),
)
"""diffusers' deterministic schedulers, each with its documented settings."""
PREDICTIONS = {
    "IPNDMScheduler": ("v_prediction",),
    "PNDMScheduler": ("v_prediction", "epsilon"),
}
"""The predictions of schedulers that do not take all three; iPNDM's formula holds for the velocity alone."""


def angles_of(scheduler: Any) -> list[float]:
    """The angles at which a scheduler evaluates the network, in order."""
    count = len(scheduler.timesteps)
    if type(scheduler).__name__ == "IPNDMScheduler":
        return [math.asin(min(1.0, float(beta))) for beta in scheduler.betas[:count]]
    if hasattr(scheduler, "sigmas"):
        return [math.atan(float(sigma)) for sigma in scheduler.sigmas[:count]]
    signal = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    return [math.atan2(math.sqrt(1.0 - level), math.sqrt(level)) for level in signal]


def solve_by_peer(denoise: Denoise, noise: Tensor, scheduler: Any, prediction: str = "v_prediction") -> Tensor:
    """Sample with a diffusers scheduler and a denoiser on the arc.

    Args:
        denoise: the denoiser.
        noise: the state at the scheduler's first angle, shape (B, C, H, W).
        scheduler: a scheduler with its times set.
        prediction: the quantity that it was made for: "v_prediction", "epsilon" or "sample".

    Returns:
        The images, in the dtype of the noise.
    """
    exploding = type(scheduler).__name__ == "HeunDiscreteScheduler"  # its state is image + sigma noise
    angles = angles_of(scheduler)
    x = noise / math.cos(angles[0]) if exploding else noise
    with torch.no_grad():
        for angle, t in zip(angles, scheduler.timesteps, strict=True):
            estimate = denoise(x * math.cos(angle) if exploding else x, angle)
            x = scheduler.step(_predicted(estimate, angle, prediction), t, x).prev_sample
    return x


def _predicted(estimate: Estimate, angle: float, prediction: str) -> Tensor:
    if prediction == "v_prediction":
        return estimate.velocity(angle)
    return estimate.noise if prediction == "epsilon" else estimate.image
