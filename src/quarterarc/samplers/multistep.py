"""Multistep: the probability flow by polynomials through the last estimates, one evaluation a step.

The flow is one integral in four forms (`forms`). A step puts into it the polynomial through the latest estimates, in a
clock of its own, and integrates exactly:

| form     | x_a =                                            | in the clock angle, tan, log-SNR akin to      |
|----------|--------------------------------------------------|-----------------------------------------------|
| velocity | x_b + int v                                      | Adams-Bashforth on the arc                    |
| noise    | (cos a / cos b) x_b + cos a int noise d tan      | DEIS (Zhang & Chen 2023)                      |
| image    | (sin a / sin b) x_b + sin a int image d cot      | DPM-Solver++ (Lu et al. 2022b)                |
| both     | x_b + int (cos noise - sin image)                | -; exact for constant image and noise         |

The clock is `octave` by default (`quarterarc.arc.octave`): estimates change at an even pace in it and it is finite at
both ends of the arc, where log-SNR and tan are not.

With `corrector` a step is taken once more when the estimate at its end has come in, through that estimate too
(Adams-Moulton; it costs no evaluation, for that estimate is the next step's own): predict, evaluate, correct. The
estimate was asked for at the predicted point and is then moved with it (`Estimate.moved`).

Noise in the form `both` is not a polynomial but one times s_w, the size of the noise estimate of Gaussian data of width
w:

    s_w(angle) = sin / sqrt(sin^2 + w^2 cos^2)          1 far above w, sigma / w far below

Each image has a width of its own, read from how fast its noise estimate shrank over the last step (`widths`). The last
step, which has no node at its end, takes no polynomial: it is exact for Gaussian data (`gaussian_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..arc import NOISE_END
from ..common.errors import InputError, unknown_name
from ..denoiser import angle_range
from ..estimate import Estimate
from .base import Denoise, Draw, Sampler, State
from .forms import VELOCITY
from .gradient import EULER, HEUN, RK4, Tableau, runge_kutta
from .step_weights import CLOCKS, FORMS, StepWeights, fresh_noise, gaussian_weights, noise_weights, step_weights
from .widths import width_at_the_end, widths

__all__ = ["Multistep"]

STARTS = ("rising", "runge-kutta")
FINISHES = ("gaussian", "falling", "image", "level")

BEYOND = 4.0
"""How far beyond sqrt(D), the noise that drowns every picture, the clock `octave` counts on (docs/samplers.md)."""


@dataclass(frozen=True)
class Multistep(Sampler):
    """Adams' methods on the arc: each step through the last `order` estimates, one evaluation a step.

    Order of convergence: `order`, with `start="runge-kutta"` and `finish="level"`. The defaults are for few steps: a
    rising start spends nothing on its first steps, and the corrector repairs them.

    Attributes:
        order: 1 to 4, the number of estimates in a step; at most the number of steps. If not given 4 in the form
            `both` and 3 in the others, or as many as there are steps.
        form: what the polynomial goes through: `both` (image and noise each), `velocity`, `noise` or `image`. `both`
            if not given, and `image` with churn: what is said of the noise goes out of date when it is made anew.
        clock: what it is a polynomial of: `octave` or `angle`.
        corrector: whether a step is taken again with the estimate at its end. On if not given, but off with churn:
            a step that has been made noisy cannot be corrected by what was seen after.
        share: how much of a correction goes to the image estimate there, the rest going to the noise; None leaves
            both as they were said of the predicted point.
        width: of the data around their shapes in pixels of [-1, 1], for the form `both`; each image's own (`widths`)
            if not given. At 0 noise is a polynomial itself.
        start: `rising` order over the first steps, or `runge-kutta` of the full order (2, 2 or 4 evaluations a step
            for order - 1 steps at orders 2, 3, 4, the first of which is the step's own).
        finish: the last step, or steps. `gaussian`: one that is exact for Gaussian data of each image's width, from the
            last estimates alone. `image`: ends in the last image estimate, as DPM-Solver++ and UniPC do, which is not
            where the flow leads but leaves out what noise a network's flow leaves. `level`: of full order like all
            others. `falling`: of falling order over the last steps. All but `level` leave order 2 of convergence on
            grids whose last step is as long as the others. `gaussian`, which is for the form `both`, is what that form
            takes if not given; the others are falling.
        churn: how much of the noise is made anew on the way, 0 (none) to 1 (as much as DDPM): the reverse process with
            more or less noise, whose marginals are the same, its image estimate integrated exactly.
        offsets: added to the weights of each step, one a step; what `quarterarc.tuning` finds for one network.

    Raises:
        InputError: for a value not listed, an order that is more than the steps, offsets for another number of steps,
            churn with offsets, the corrector or another form than `image`, a Runge-Kutta start with churn or offsets,
            or a grid from pi/2 in the noise form.
    """

    order: int | None = None
    form: str | None = None
    clock: str = "octave"
    corrector: bool | None = None
    share: float | None = 0.15
    width: float | None = None
    start: str = "rising"
    finish: str | None = None
    churn: float = 0.0
    offsets: tuple[StepWeights, ...] = ()

    default_grid = "octave"

    def __post_init__(self) -> None:
        if self.order is not None and (type(self.order) is not int or self.order not in (1, 2, 3, 4)):
            raise InputError(f"the order of multistep is 1, 2, 3 or 4, got {self.order!r}")
        for kind, name, known in (
            ("form", "both" if self.form is None else self.form, FORMS),
            ("clock", self.clock, CLOCKS),
            ("start", self.start, STARTS),
            ("finish", "level" if self.finish is None else self.finish, FINISHES),
        ):
            if name not in known:
                raise unknown_name(kind, str(name), known)
        if self.corrector not in (None, True, False):
            raise InputError(f"corrector is true or false, got {self.corrector!r}")
        if self.share is not None and not 0.0 <= self.share <= 1.0:
            raise InputError(f"share is 0 (corrections leave the image) to 1 (the noise), got {self.share!r}")
        if self.width is not None and not 0.0 <= self.width < math.inf:
            raise InputError(f"width is a number of at least 0, in pixels of [-1, 1], got {self.width!r}")
        if not 0.0 <= self.churn <= 1.0:
            raise InputError(f"churn is 0 (no fresh noise) to 1 (as much as DDPM), got {self.churn!r}")
        if self.churn > 0.0 and self.offsets:
            raise InputError("tuned weights are for steps without fresh noise: use churn=0, or another grid")
        if self.start == "runge-kutta" and (self.churn > 0.0 or self.offsets):
            raise InputError("a Runge-Kutta start has neither fresh noise nor tuned weights: use start='rising'")
        if self.churn > 0.0 and self.form not in (None, "image"):
            raise InputError(f"churn needs form='image', got '{self.form}': other estimates go out of date")
        if self.finish == "gaussian" and (self.churn > 0.0 or self.form not in (None, "both")):
            raise InputError(
                "finish='gaussian' is for the form 'both' without churn: take 'image', 'falling' or 'level'"
            )
        if self.churn > 0.0 and self.corrector:
            raise InputError("the corrector cannot take a step again after fresh noise: use churn=0 or corrector=False")

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        """Raise an InputError for a grid that these options do not go with."""
        steps = len(angles) - 1
        if self.order is not None and self.order > steps:
            raise InputError(
                f"order {self.order} takes at least {self.order} steps, got {steps}: take more, or a lower order"
            )
        if self.offsets and len(self.offsets) != steps:
            raise InputError(f"the tuned weights are for {len(self.offsets)} steps, got {steps}")
        if self.form == "noise" and angles[0] >= NOISE_END:
            raise InputError("the noise form is not defined at pi/2: start below it, or use form='both'")

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """The states at every angle of the grid."""
        self.check(angles)
        steps = len(angles) - 1
        form = self.form or ("image" if self.churn else "both")
        order = min(4 if form == "both" else 3, steps) if self.order is None else self.order
        finish = self.finish or ("gaussian" if form == "both" else "falling")
        corrector = self.churn == 0.0 if self.corrector is None else self.corrector
        coarsest = BEYOND * math.sqrt(math.prod(x.shape[1:]))
        smallest, _ = angle_range(denoise)
        kept = max([order, *(len(offset.image) for offset in self.offsets)])
        estimates: list[Estimate] = []  # the last `kept`
        squared: Tensor | None = None  # the widths'
        earlier: Tensor | None = None  # and those read a step before
        before = x  # where the last step started from

        def step(x: Tensor, b: float, a: float, last: int, most: int, offset: StepWeights | None = None) -> Tensor:
            """From x at b to a, through at most so many estimates up to the node `last`."""
            if a == angles[-1] and finish == "image":
                weights = StepWeights(0.0, (math.cos(a),), (math.sin(a),))
            elif a == angles[-1] and finish == "gaussian":
                width = squared
                if width is None:
                    width = x.new_zeros(1, dtype=torch.promote_types(x.dtype, torch.float32))
                weights = gaussian_weights(b, a, width if earlier is None else width_at_the_end(width, earlier))
            else:
                nodes = tuple(angles[max(0, last + 1 - most) : last + 1])
                weights = step_weights(form, self.clock, b, a, nodes, coarsest, self.churn)
                if squared is not None:
                    weights = replace(weights, noise=noise_weights(self.clock, b, a, nodes, coarsest, squared))
            if offset is not None:
                weights = weights + offset
            return weights.apply(x, estimates[-len(weights.image) :])

        for k, (b, a) in enumerate(pairwise(angles)):
            estimate = denoise(x, b)
            yield State(x, b, estimate)
            if form == "both" and k > 0:
                earlier, squared = squared, self._widths(estimates[-1], estimate, angles[k - 1], b)
            estimates = [*estimates, estimate][-kept:]
            if corrector and k > 0 and self._free(k - 1, order):
                predicted, x = x, step(before, angles[k - 1], b, k, order)
                if self.share is not None:
                    # less where noise drowns every picture
                    share = self.share / (1.0 + (math.tan(b) / coarsest) ** 2)
                    estimates[-1] = estimate.moved(x - predicted, b, share)
            before = x
            if not self._free(k, order):
                x = runge_kutta(denoise, x, estimate, VELOCITY, _STARTER[order], b, a, smallest)
                continue
            most = min(order, steps - k) if finish == "falling" else order
            x = step(x, b, a, k, most, self.offsets[k] if self.offsets else None)
            if self.churn > 0.0 and a > 0.0:
                x = x + math.sin(a) * fresh_noise(b, a, self.churn)[1] * draw(x)
        yield State(x, angles[-1], None)

    def _widths(self, before: Estimate, after: Estimate, b: float, a: float) -> Tensor | None:
        """Squared widths of the images, shape (B,) or (1,); None where noise is a polynomial itself."""
        if self.width is None:
            return widths(before.noise, after.noise, b, a)
        like = torch.promote_types(after.noise.dtype, torch.float32)
        return after.noise.new_full((1,), self.width**2, dtype=like) if self.width > 0.0 else None

    def _free(self, k: int, order: int) -> bool:
        """Whether step k is the polynomial's own, and not the Runge-Kutta start's."""
        return self.start == "rising" or k >= order - 1


_STARTER: dict[int, Tableau] = {1: EULER, 2: HEUN, 3: HEUN, 4: RK4}
