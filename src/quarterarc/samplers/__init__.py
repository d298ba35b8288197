"""Samplers: rules that move a state from one angle to the next. One file per family, one registry.

`multistep` has two more files: `step_weights`, the integrals of its steps, and `widths`, the width of the data around
each image. `options` reads the options of a sampler from its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..common.errors import InputError
from ..common.registry import Registry
from ..common.renames import rename_keys
from .adaptive import Adaptive
from .base import Draw, LinearSampler, Sampler, State, Weights
from .cold import Cold, ColdImproved, ColdNaive
from .ddim import DDIM
from .ddpm import DDPM
from .forms import FORMS
from .gradient import EULER, HEUN, MIDPOINT, RK4, Gradient, Tableau
from .jump import Jump
from .multistep import Multistep
from .options import Option, describe, is_plain, options_of, renames_of
from .rotation import Rotation

__all__ = [
    "DDIM",
    "DDPM",
    "EULER",
    "FORMS",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "SAMPLERS",
    "Adaptive",
    "Cold",
    "ColdImproved",
    "ColdNaive",
    "Draw",
    "Gradient",
    "Jump",
    "LinearSampler",
    "Multistep",
    "Option",
    "Rotation",
    "Sampler",
    "State",
    "Tableau",
    "Weights",
    "current_options",
    "described",
    "is_plain",
    "sampler",
    "sampler_options",
]


def _check(entry: Any, name: str) -> None:
    if isinstance(entry, Sampler):
        raise InputError(f"the sampler '{name}' is an instance of {type(entry).__name__}: give the class")
    if isinstance(entry, type) and not issubclass(entry, Sampler):
        raise InputError(f"the sampler '{name}' is not a subclass of quarterarc.samplers.Sampler")


def _runge_kutta(tableau: Tableau, description: str) -> Callable[..., Sampler]:
    """`Gradient` with a fixed tableau; its docstring is the description."""
    entry = partial(Gradient, tableau)
    entry.__doc__ = description
    return entry


SAMPLERS: Registry[Callable[..., Sampler]] = Registry(
    "sampler",
    {
        "ddpm": DDPM,
        "ddim": DDIM,
        "cold": Cold,
        "cold-naive": ColdNaive,
        "cold-improved": ColdImproved,
        "euler": _runge_kutta(
            EULER, "Euler's method on the probability flow, the gradient update of Zhang et al. (2023, Eq. 13)."
        ),
        "midpoint": _runge_kutta(
            MIDPOINT, "The midpoint method on the probability flow: order 2, 2 evaluations per step."
        ),
        "heun": _runge_kutta(
            HEUN, "Heun's method on the probability flow: order 2, 2 evaluations per step (Karras et al. 2022)."
        ),
        "rk4": _runge_kutta(
            RK4, "The classical Runge-Kutta method on the probability flow: order 4, 4 evaluations per step."
        ),
        "rotation": Rotation,
        "multistep": Multistep,
        "jump": Jump,
        "adaptive": Adaptive,
    },
    _check,
)
"""Every sampler by name: a subclass of `Sampler`, or a factory that makes a sampler from keyword options."""


def sampler(name: str, **options: Any) -> Sampler:
    """A sampler by name: `sampler("ddim", eta=0.5)`.

    Args:
        name: a name in `SAMPLERS`, or an import path, `package.module:Class`.
        options: the options of the sampler; `sampler_options(name)` lists them.

    Raises:
        InputError: for an unknown name, an unknown option (the known ones are listed), or an invalid value.
    """
    entry = SAMPLERS.lookup(name)
    options = current_options(name, options)
    known = options_of(entry)
    for key in options:
        if known is not None and key not in [option.name for option in known]:
            listed = f"known: {', '.join(option.name for option in known)}" if known else "it has none"
            raise InputError(f"the sampler '{name}' has no option '{key}' ({listed})")
    for option in known or ():
        if option.name in options:
            option.check(name, options[option.name])
    try:
        made = entry(**options)
    except TypeError as error:  # such as a comparison of a number with a string
        raise InputError(f"the sampler '{name}' cannot use the options {options}: {error}") from None
    if not isinstance(made, Sampler):
        raise InputError(
            f"the sampler '{name}' returned a {type(made).__name__}: a quarterarc.samplers.Sampler is expected"
        )
    return made


def sampler_options(name: str) -> tuple[Option, ...]:
    """Name, type, default and one line of documentation of each option of a sampler.

    Args:
        name: a name in `SAMPLERS`, or an import path. Empty for a factory that accepts any option.

    Raises:
        InputError: for an unknown name.
    """
    return options_of(SAMPLERS.lookup(name)) or ()


def described(sampler: Sampler) -> tuple[str, dict[str, Any], bool]:
    """Name and options of a sampler that was given as an object, and whether these determine it; see `describe`."""
    return describe(sampler, SAMPLERS)


def current_options(name: str, options: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """Options under their current names; old names are accepted for one version.

    Args:
        name: a name in `SAMPLERS`, or an import path.
        options: the options by name.
        warn: whether to log a warning for an old name; False for options read from a file.

    Raises:
        InputError: for an unknown sampler, or if both the old and the new name are given.
    """
    return rename_keys(options, renames_of(SAMPLERS.lookup(name)), f"the sampler '{name}'" if warn else None)
