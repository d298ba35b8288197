"""The forms of the probability flow: one ODE in three coordinates, d(x / scale) = estimate d(clock).

| form     | scale     | clock     | estimate | not defined at |
|----------|-----------|-----------|----------|----------------|
| velocity | 1         | angle     | velocity | -              |
| noise    | cos angle | tan angle | noise    | pi/2           |
| image    | sin angle | cot angle | image    | 0              |

A solver takes the estimate as constant, or as a polynomial in the clock, so the form decides what it is exact for. The
noise form is that of DDIM and EDM (clock sigma, x / cos the variance-exploding state; Karras et al. 2022, Eq. 1 with
s = 1), the image form that of data-prediction solvers (DPM-Solver++, Lu et al. 2022b), the velocity form that of the
arc itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..estimate import Estimate

__all__ = ["FORMS", "IMAGE", "NOISE", "VELOCITY", "Form"]


@dataclass(frozen=True)
class Form:
    """One row of the table.

    Attributes:
        name: the name of the row.
        read: selects the integrated estimate, `(estimate, angle) -> tensor`.
        scale, clock: functions of the angle.
        angle: the inverse of `clock`.
        weight: scale(a) (clock(a) - clock(b)), the weight of a constant estimate in the step from b to a, without
            cancellation and finite wherever the step is; x itself has the weight scale(a) / scale(b).
        at_noise: whether the form is defined at pi/2.
        at_image: whether its estimate is evaluated at 0.
    """

    name: str
    read: Callable[[Estimate, float], Tensor]
    scale: Callable[[float], float]
    clock: Callable[[float], float]
    angle: Callable[[float], float]
    weight: Callable[[float, float], float]
    at_noise: bool = True
    at_image: bool = True


VELOCITY = Form(
    "velocity",
    lambda estimate, angle: estimate.velocity(angle),
    lambda angle: 1.0,
    lambda angle: angle,
    lambda clock: clock,
    lambda b, a: a - b,
)
NOISE = Form(
    "noise",
    lambda estimate, angle: estimate.noise,
    math.cos,
    math.tan,
    math.atan,
    lambda b, a: math.sin(a - b) / math.cos(b),
    at_noise=False,
    at_image=False,  # the form is defined at 0, but the noise estimate carries no information on a clean image
)
IMAGE = Form(
    "image",
    lambda estimate, angle: estimate.image,
    math.sin,
    lambda angle: math.cos(angle) / math.sin(angle),
    lambda clock: math.atan2(1.0, clock),
    lambda b, a: math.sin(b - a) / math.sin(b),
    at_image=False,
)

FORMS: dict[str, Form] = {form.name: form for form in (VELOCITY, NOISE, IMAGE)}
"""The forms by name. `Multistep` has one more, `both`, which integrates the two estimates by themselves."""
