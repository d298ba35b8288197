"""Diffusion models of images on the quarter arc between image and noise.

    x(angle) = cos(angle) image + sin(angle) noise,     angle in [0, pi/2]

The names below are the public surface. They are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .arc import mix, rotate, velocity
    from .closed_form import GaussianData, MixtureData
    from .data.pixels import to_float, to_uint8
    from .denoiser import Clipped, Denoiser, Guided, Projected
    from .errors import InputError
    from .estimate import Estimate
    from .flow import decode, encode, log_likelihood
    from .generation import generate, noise
    from .grids import grid
    from .heads import head
    from .likelihood import bits_per_dim, rate_distortion
    from .runs import load
    from .samplers import sampler
    from .sampling import Result, sample, trajectory
    from .schedules import Schedule, schedule
    from .tuning import tune

_HOME = {
    "arc": ("mix", "rotate", "velocity"),
    "closed_form": ("GaussianData", "MixtureData"),
    "data.pixels": ("to_float", "to_uint8"),
    "denoiser": ("Clipped", "Denoiser", "Guided", "Projected"),
    "errors": ("InputError",),
    "estimate": ("Estimate",),
    "flow": ("decode", "encode", "log_likelihood"),
    "generation": ("generate", "noise"),
    "grids": ("grid",),
    "heads": ("head",),
    "likelihood": ("bits_per_dim", "rate_distortion"),
    "runs": ("load",),
    "samplers": ("sampler",),
    "sampling": ("Result", "sample", "trajectory"),
    "schedules": ("Schedule", "schedule"),
    "tuning": ("tune",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Clipped",
    "Denoiser",
    "Estimate",
    "GaussianData",
    "Guided",
    "InputError",
    "MixtureData",
    "Projected",
    "Result",
    "Schedule",
    "bits_per_dim",
    "decode",
    "encode",
    "generate",
    "grid",
    "head",
    "load",
    "log_likelihood",
    "mix",
    "noise",
    "rate_distortion",
    "rotate",
    "sample",
    "sampler",
    "schedule",
    "to_float",
    "to_uint8",
    "trajectory",
    "tune",
    "velocity",
]


def __getattr__(name: str) -> Any:
    if name in _HOME and "." not in name:  # a module whose names are here too
        return import_module(f".{name}", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module 'quarterarc' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
