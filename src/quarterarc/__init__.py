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
    from .common.errors import InputError
    from .data.loading import open_data
    from .data.pixels import to_float, to_uint8
    from .data.spec import DataSpec
    from .denoiser import Denoiser, Traits
    from .estimate import Estimate
    from .evaluation.measure import evaluate
    from .flow_map import SolvedMap
    from .grids import grid
    from .heads import head
    from .interop.opening import load
    from .likelihood.flow import log_likelihood
    from .likelihood.inversion import decode, encode
    from .likelihood.variational import bits_per_dim, rate_distortion
    from .mean_image import MeanImage
    from .objectives import objective
    from .samplers import sampler
    from .sampling.generation import generate, noise
    from .sampling.mean_images import with_mean_image
    from .sampling.plans import Sampling
    from .sampling.trajectories import Result, sample, trajectory
    from .sampling.tuning import tune
    from .schedules import Schedule, schedule
    from .sharing.exporting import export
    from .sharing.hub import push
    from .storage.checkpoints import save
    from .training.api import train
    from .training.distilling import distill
    from .training.recipe import Recipe
    from .wrappers import Clipped, Guided, Projected

_HOME = {
    "arc": ("mix", "rotate", "velocity"),
    "closed_form": ("GaussianData", "MixtureData"),
    "flow_map": ("SolvedMap",),
    "common.errors": ("InputError",),
    "data.loading": ("open_data",),
    "data.pixels": ("to_float", "to_uint8"),
    "data.spec": ("DataSpec",),
    "denoiser": ("Denoiser", "Traits"),
    "estimate": ("Estimate",),
    "evaluation.measure": ("evaluate",),
    "grids": ("grid",),
    "heads": ("head",),
    "interop.opening": ("load",),
    "likelihood.flow": ("log_likelihood",),
    "likelihood.inversion": ("decode", "encode"),
    "likelihood.variational": ("bits_per_dim", "rate_distortion"),
    "mean_image": ("MeanImage",),
    "objectives": ("objective",),
    "samplers": ("sampler",),
    "sampling.generation": ("generate", "noise"),
    "sampling.mean_images": ("with_mean_image",),
    "sampling.plans": ("Sampling",),
    "sampling.trajectories": ("Result", "sample", "trajectory"),
    "sampling.tuning": ("tune",),
    "schedules": ("Schedule", "schedule"),
    "storage.checkpoints": ("save",),
    "sharing.exporting": ("export",),
    "sharing.hub": ("push",),
    "training.api": ("train",),
    "training.distilling": ("distill",),
    "training.recipe": ("Recipe",),
    "wrappers": ("Clipped", "Guided", "Projected"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Clipped",
    "DataSpec",
    "Denoiser",
    "Estimate",
    "GaussianData",
    "Guided",
    "InputError",
    "MeanImage",
    "MixtureData",
    "Projected",
    "Recipe",
    "Result",
    "Sampling",
    "Schedule",
    "SolvedMap",
    "Traits",
    "bits_per_dim",
    "decode",
    "distill",
    "encode",
    "evaluate",
    "export",
    "generate",
    "grid",
    "head",
    "load",
    "log_likelihood",
    "mix",
    "noise",
    "objective",
    "open_data",
    "push",
    "rate_distortion",
    "rotate",
    "sample",
    "sampler",
    "save",
    "schedule",
    "to_float",
    "to_uint8",
    "train",
    "trajectory",
    "tune",
    "velocity",
    "with_mean_image",
]


_ROOMS = {*(module.partition(".")[0] for module in _HOME), "edit", "interop", "networks"}
"""The modules and packages that are attributes without an import of their own: `quarterarc.samplers.SAMPLERS`."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module 'quarterarc' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
