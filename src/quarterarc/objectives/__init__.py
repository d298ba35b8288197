"""Training objectives: the loss of an estimate, given the true image and noise.

| name            | objective                                                                    | options          |
|-----------------|------------------------------------------------------------------------------|------------------|
| `noise`         | squared error of the noise (Ho et al. 2020, Eq. 14)                          | `norm`           |
| `image`         | squared error of the image (Zhang et al. 2023, Eq. 7)                        | `norm`           |
| `velocity`      | squared error of the velocity (Salimans & Ho 2022)                           | `norm`           |
| `both`          | squared errors of image and noise (Zhang et al. 2023, section 3.2)           | `norm`           |
| `both+gradient` | the same plus gamma times that of the velocity (Zhang et al. 2023, Eq. 12)   | `gamma`, `norm`  |
| `mean`          | squared error of the mean of one training step (Ho et al. 2020, Eq. 8)       | `norm`           |
| `vlb`           | T times one term of the variational bound, in bits per dimension             | `variance`       |
| `hybrid`        | noise + 0.001 vlb (Nichol & Dhariwal 2021, Eq. 16)                           | `variance`, `norm` |
| `flow-map`      | consistency of a flow map's jumps, from scratch (see `objectives.flow_map`)   | see `FlowMap`    |

An objective is a callable `(estimate, image, noise, x, times, schedule) -> Losses` (the protocol `Objective`);
`quarterarc.Denoiser.loss` calls it. `quarterarc.objectives.bound` has the terms of the variational bound.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import isclass, signature
from typing import Any

from ..common.errors import InputError
from ..common.registry import Registry, check_definition
from ..common.text import one_line
from .base import NORMS, Losses, Objective
from .bound import VLB, Hybrid
from .errors import WeightedErrors, both, both_and_gradient, image, noise, velocity
from .flow_map import FlowMap, MapObjective
from .mean import StepMean

__all__ = [
    "NORMS",
    "OBJECTIVES",
    "VLB",
    "FlowMap",
    "Hybrid",
    "Losses",
    "MapObjective",
    "Objective",
    "StepMean",
    "WeightedErrors",
    "objective",
    "options_of",
]


def _check(entry: Any, path: str) -> None:
    check_definition(entry, path, "objective")
    if isclass(entry) and not any("__call__" in base.__dict__ for base in entry.__mro__):
        raise InputError(f"the objective '{path}' has no method __call__: see quarterarc.objectives.Objective")


OBJECTIVES: Registry[Callable[..., Objective]] = Registry(
    "objective",
    {
        "noise": noise,
        "image": image,
        "velocity": velocity,
        "both": both,
        "both+gradient": both_and_gradient,
        "mean": StepMean,
        "vlb": VLB,
        "hybrid": Hybrid,
        "flow-map": FlowMap,
    },
    _check,
)
"""The objectives by name. An entry is called with the options, and returns an `Objective`: a class, or a function."""


def options_of(name: str) -> tuple[str, ...]:
    """The names of an objective's options.

    Raises:
        InputError: for an unknown name.
    """
    return tuple(signature(OBJECTIVES.lookup(name)).parameters)


def objective(name: str, **options: Any) -> Objective:
    """The objective of a name or import path: `objective("both+gradient", gamma=2.0)`.

    Args:
        name: a name of `OBJECTIVES`, or an import path `package.module:Objective`.
        options: the objective's own.

    Raises:
        InputError: for an unknown name, an option that the objective does not have, or a value outside its range.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"the objective '{name}' has no option '{option}' ({has})")
    try:
        built = OBJECTIVES.lookup(name)(**options)
    except InputError:
        raise
    except Exception as error:  # such as a comparison of a number with a string, or code from outside this package
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"the objective '{name}' cannot use the options {options}: {reason}") from error
    if not callable(built):
        raise InputError(f"the objective '{name}' is a {type(built).__name__}: a callable is expected")
    return built
