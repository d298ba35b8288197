"""Samplers: rules that move a state from one angle to the next. One file a family, one table of names.

`multistep` has two more: `step_weights`, its integrals, and `widths`, what it reads of the data on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from ..common.errors import InputError, unknown_name
from .adaptive import Adaptive
from .base import Draw, LinearSampler, Sampler, State, Weights
from .cold import Cold, ColdImproved, ColdNaive
from .ddim import DDIM
from .ddpm import DDPM
from .forms import FORMS
from .gradient import EULER, HEUN, MIDPOINT, RK4, Gradient, Tableau
from .multistep import Multistep
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
    "LinearSampler",
    "Multistep",
    "Rotation",
    "Sampler",
    "State",
    "Tableau",
    "Weights",
    "sampler",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "cold": Cold,
    "cold-naive": ColdNaive,
    "cold-improved": ColdImproved,
    "euler": partial(Gradient, EULER),
    "midpoint": partial(Gradient, MIDPOINT),
    "heun": partial(Gradient, HEUN),
    "rk4": partial(Gradient, RK4),
    "rotation": Rotation,
    "multistep": Multistep,
    "adaptive": Adaptive,
}
"""Every sampler by name; the value makes one from its options."""


def sampler(name: str, **options: Any) -> Sampler:
    """A sampler by name: `sampler("ddim", churn=0.5)`.

    Raises:
        InputError: for an unknown name, an option the sampler does not have, or a value it refuses.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    known = [key for key in signature(SAMPLERS[name]).parameters if key not in ("tableau", "offsets")]
    for key in options:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"the sampler '{name}' has no option '{key}' ({has})")
    try:
        return SAMPLERS[name](**options)
    except TypeError as error:  # of a comparison of a number with a word, say
        raise InputError(f"the sampler '{name}' cannot use the options {options}: {error}") from None
