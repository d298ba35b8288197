"""Multistep: the probability flow integrated by polynomials through the last estimates, one evaluation per step.

The flow is one integral in four forms (`forms`). A step replaces the estimate in it by the polynomial through the
latest estimates, in a clock, and integrates exactly:

| form     | x_a =                                            | in the clock angle, tan, log-SNR similar to   |
|----------|--------------------------------------------------|-----------------------------------------------|
| velocity | x_b + int v                                      | Adams-Bashforth on the arc                    |
| noise    | (cos a / cos b) x_b + cos a int noise d tan      | DEIS (Zhang & Chen 2023)                      |
| image    | (sin a / sin b) x_b + sin a int image d cot      | DPM-Solver++ (Lu et al. 2022b)                |
| both     | x_b + int (cos noise - sin image)                | -; exact for constant image and noise         |

The default clock is `octave` (`quarterarc.arc.octave`): estimates change at an even pace in it, and it is finite at
both ends of the arc, unlike log-SNR and tan.

At pi/2 x is pure noise, and the image estimate is the mean of the data. Where the denoiser declares it, N evaluations
make N + 1 steps (`free_start`).

A step has three parts. Prediction (Adams-Bashforth) uses the estimates up to its start. Correction (Adams-Moulton)
repeats the step after the evaluation at its end, through that estimate too; it costs no evaluation, because the next
step needs that estimate anyway. The estimate was evaluated at the predicted point and is then moved with it
(`Estimate.moved`). The finish is the prediction of the last step, which has no later estimate.

In the form `both` the noise is not a polynomial but a polynomial times s_w, the size of the noise estimate of Gaussian
data of width w:

    s_w(angle) = sin / sqrt(sin^2 + w^2 cos^2)          1 far above w, sigma / w far below

Each image has its own width, estimated from the decrease of its noise estimate over the last step (`widths`). The last
step is exact for Gaussian data of that width (`gaussian_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..arc import NOISE_END
from ..common.errors import InputError, unknown_name
from ..denoiser import angle_range
from ..estimate import Estimate
from ..mean_image import MeanImage
from ..wrappers import known_estimate
from .base import Denoise, Draw, Sampler, State
from .forms import FORMS, VELOCITY
from .gradient import EULER, HEUN, RK4, Tableau, runge_kutta
from .step_weights import CLOCKS, NoiseWeights, Step, StepWeights, fresh_noise, gaussian_weights, step_weights
from .widths import width_at_the_end, widths

__all__ = ["Multistep"]

BOTH = "both"
STARTS = ("rising", "runge-kutta")
FINISHES = ("gaussian", "falling", "image", "level")

BEYOND = 4.0
"""The coarsest noise level of the clock `octave`, relative to sqrt(D) for D pixel values (docs/samplers.md)."""


@dataclass(frozen=True)
class Multistep(Sampler):
    """Adams' methods on the arc: each step through the last `order` estimates, one evaluation per step.

    The order of convergence is `order` with `start="runge-kutta"` and `finish="level"`. The defaults are for few steps:
    a rising start spends no extra evaluations on the first steps, and the corrector repairs them.

    Attributes:
        order: number of estimates per step, 1 to 4, at most the number of steps, a free first one included. None for 4
            in the form `both` and 3 in the others, or the number of steps if smaller.
        form: integrand of the polynomial: `both` (image and noise separately), `velocity`, `noise` or `image`. None for
            `both`, or `image` with fresh noise, which makes earlier noise estimates invalid.
        clock: variable of the polynomial: `octave` or `angle`.
        corrector: whether to repeat each step through the estimate at its end. None for true, or false with fresh
            noise, which the estimate at the end depends on.
        share: fraction of a correction that moves the image estimate, 0 to 1; the rest moves the noise estimate. None
            leaves both estimates unchanged.
        width: width of the data around their shapes in pixels of [-1, 1], for the form `both`. None to estimate the
            width of each image (`widths`); 0 makes the noise a polynomial.
        start: `rising` order over the first steps, or `runge-kutta` of the full order. Runge-Kutta takes 2, 2 or 4
            evaluations per step for the first order - 1 steps at orders 2, 3, 4.
        finish: rule of the last step: `gaussian`, `image`, `level` or `falling`. `gaussian` is exact for Gaussian data
            of the width of each image, in the form `both` only. `image` ends in the last image estimate, as
            DPM-Solver++ and UniPC do, which leaves out the noise that the flow of a network leaves in images. `level`
            keeps the full order. `falling` lowers the order over the last steps. All but `level` have order of
            convergence 2 on grids whose last step is as long as the others. None for `gaussian` in the form `both`, and
            `falling` in the others.
        eta: amount of fresh noise, 0 (none) to 1 (as much as DDPM). The reverse process with other noise has the same
            marginals; its image estimate is integrated exactly.
        free_start: whether the first step, from pi/2, takes the mean of the data in place of an evaluation, so that N
            evaluations make N + 1 steps. None for true where the denoiser declares its mean image and the grid is
            given by name, without fresh noise and a Runge-Kutta start.
        offsets: weights added to those of each step, one per step, fitted to a network by `quarterarc.tune`.
        first: the image estimate at the denoiser's largest angle, in place of an evaluation; None to evaluate there
            too. It is set for a free start, and by tuned grids.

    Raises:
        InputError: for a value not listed, an order above the number of steps, offsets for another number of steps, eta
            with offsets, `first`, the corrector or another form than `image`, a Runge-Kutta start with eta, offsets or
            `first`, a free start with eta, a Runge-Kutta start or a denoiser without a mean image, or a grid from pi/2
            in the noise form.
    """

    order: int | None = None
    form: str | None = None
    clock: str = "octave"
    corrector: bool | None = None
    share: float | None = 0.15
    width: float | None = None
    start: str = "rising"
    finish: str | None = None
    eta: float = 0.0
    free_start: bool | None = None
    offsets: tuple[StepWeights, ...] = ()
    first: MeanImage | None = None

    default_grid: ClassVar[str] = "octave"
    renamed: ClassVar[Mapping[str, str]] = {"churn": "eta"}
    internal: ClassVar[tuple[str, ...]] = ("offsets", "first")

    def __post_init__(self) -> None:
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        if self.order is not None and (type(self.order) is not int or self.order not in (1, 2, 3, 4)):
            raise InputError(f"the order of multistep is 1, 2, 3 or 4, got {self.order!r}")
        for kind, name, known in (
            ("form", BOTH if self.form is None else self.form, (BOTH, *FORMS)),
            ("clock", self.clock, CLOCKS),
            ("start", self.start, STARTS),
            ("finish", "level" if self.finish is None else self.finish, FINISHES),
        ):
            if name not in known:
                raise unknown_name(kind, str(name), known)
        if self.corrector not in (None, True, False):
            raise InputError(f"corrector is true or false, got {self.corrector!r}")
        if self.free_start not in (None, True, False):
            raise InputError(f"free_start is true or false, got {self.free_start!r}")
        if self.share is not None and not 0.0 <= self.share <= 1.0:
            raise InputError(f"share is 0 (corrections move the noise) to 1 (they move the image), got {self.share!r}")
        if self.width is not None and not 0.0 <= self.width < math.inf:
            raise InputError(f"width is a number of at least 0, in pixels of [-1, 1], got {self.width!r}")
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta is 0 (no fresh noise) to 1 (as much as DDPM), got {self.eta!r}")

    def _check_combinations(self) -> None:
        fresh, tuned = self.eta > 0.0, bool(self.offsets) or self.first is not None
        if fresh and tuned:
            raise InputError("tuned weights are for steps without fresh noise: use eta=0, or another grid")
        if self.start == "runge-kutta" and (fresh or tuned):
            raise InputError("a Runge-Kutta start has neither fresh noise nor tuned weights: use start='rising'")
        if self.free_start and (fresh or self.start == "runge-kutta"):
            raise InputError("a free start has neither fresh noise nor a Runge-Kutta start: use free_start=false")
        if fresh and self.form not in (None, "image"):
            raise InputError(f"eta above 0 needs form='image', got '{self.form}': leave out form, or use eta=0")
        if self.finish == "gaussian" and (fresh or self.form not in (None, BOTH)):
            raise InputError("finish='gaussian' needs form='both' and eta=0: use 'image', 'falling' or 'level'")
        if fresh and self.corrector:
            raise InputError("the corrector cannot repeat a step after fresh noise: use eta=0 or corrector=False")

    @property
    def free(self) -> int:
        return int(self.first is not None)

    def with_free_start(self, mean: MeanImage | None, named: bool) -> Multistep:
        """The sampler whose first estimate is the mean image, if it has a free start; arguments as for `Sampler`.

        Raises:
            InputError: for `free_start=True` without a mean image.
        """
        free = self.free_start
        if free and self.first is None and mean is None:
            raise InputError(
                "free_start=true takes the mean of the data in place of the evaluation at pi/2: this denoiser does not "
                "declare its mean image, or the grid begins below pi/2 or has no room for another step, or the images "
                "have another shape than the mean; leave free_start out"
            )
        if free is None:
            free = named and self.eta == 0.0 and self.start == "rising" and not self.offsets
        return replace(self, first=mean) if free and self.first is None and mean is not None else self

    def check(self, angles: Sequence[float] | np.ndarray) -> None:
        """Raise an InputError for a grid that does not fit the options."""
        steps = len(angles) - 1
        if self.free and steps < 2:
            raise InputError("a free start takes at least one more step, with an evaluation: give a longer grid")
        if self.order is not None and self.order > steps:
            least, given = self.order - self.free, steps - self.free
            raise InputError(
                f"order {self.order} takes at least {least} steps, got {given}: take more, or a lower order"
            )
        if self.offsets and len(self.offsets) != steps:
            raise InputError(f"the tuned weights are for {len(self.offsets)} steps, got {steps}")
        if self.form == "noise" and angles[0] >= NOISE_END:
            raise InputError("the noise form is not defined at pi/2: start below it, or use form='both'")

    def __call__(self, denoise: Denoise, x: Tensor, angles: Sequence[float], draw: Draw) -> Iterator[State]:
        """Yield the state at every angle of the grid."""
        self.check(angles)
        run = _Settings.resolve(self, x, angles)
        smallest, _ = angle_range(denoise)
        history = _History(x, run.kept)
        for k, (b, a) in enumerate(pairwise(angles)):
            estimate = denoise(history.x, b) if k or self.first is None else known_estimate(denoise, self.first, x, b)
            yield State(history.x, b, estimate)
            history.widths = run.next_widths(history, k, estimate)
            history.add(estimate)
            if run.corrector and k > run.starting:
                run.correct(history, k)
            history.before = history.x
            if k < run.starting:
                history.x = runge_kutta(denoise, history.x, estimate, VELOCITY, _STARTER[run.order], b, a, smallest)
            else:
                history.x = run.predict(history, k, draw)
        yield State(history.x, angles[-1], None)


_STARTER: dict[int, Tableau] = {1: EULER, 2: HEUN, 3: HEUN, 4: RK4}


@dataclass
class _History:
    """The mutable state of a run.

    Attributes:
        x: the current points, shape (B, C, H, W).
        kept: the number of estimates to keep.
        estimates: the last estimates, oldest first.
        before: the points at the start of the last step.
        widths: squared widths of the images over the step before the last and the last step, shape (B,) or (1,); None
            where none is estimated yet, or the noise is a polynomial.
    """

    x: Tensor
    kept: int
    estimates: list[Estimate] = field(default_factory=list)
    before: Tensor | None = None
    widths: tuple[Tensor | None, Tensor | None] = (None, None)

    def add(self, estimate: Estimate) -> None:
        """Append an estimate and drop those that no step needs any more."""
        self.estimates = [*self.estimates, estimate][-self.kept :]


@dataclass(frozen=True)
class _Settings:
    """The options of `Multistep` for one grid and image shape, with all defaults filled in.

    Attributes:
        angles: the grid.
        coarsest: the argument of `quarterarc.arc.octave`.
        starting: number of Runge-Kutta steps at the start.
        order, form, clock, corrector, share, width, finish, eta, offsets: as for `Multistep`.
        noise_weights: the weights of the noise estimates for widths; None where the noise is a polynomial.
    """

    angles: tuple[float, ...]
    coarsest: float
    starting: int
    order: int
    form: str
    clock: str
    corrector: bool
    share: float | None
    width: float | None
    finish: str
    eta: float
    offsets: tuple[StepWeights, ...]
    noise_weights: NoiseWeights | None = None

    @classmethod
    def resolve(cls, rule: Multistep, x: Tensor, angles: Sequence[float]) -> _Settings:
        """Fill in the defaults for points x, shape (B, C, H, W), and a grid."""
        form = rule.form or ("image" if rule.eta else BOTH)
        order = min(4 if form == BOTH else 3, len(angles) - 1) if rule.order is None else rule.order
        settings = cls(
            angles=tuple(angles),
            coarsest=BEYOND * math.sqrt(math.prod(x.shape[1:])),
            starting=order - 1 if rule.start == "runge-kutta" else 0,
            order=order,
            form=form,
            clock=rule.clock,
            corrector=rule.eta == 0.0 if rule.corrector is None else rule.corrector,
            share=rule.share,
            width=rule.width,
            finish=rule.finish or ("gaussian" if form == BOTH else "falling"),
            eta=rule.eta,
            offsets=rule.offsets,
        )
        if form != BOTH or rule.width == 0.0:
            return settings
        dtype = torch.promote_types(x.dtype, torch.float32)
        steps = settings._steps_with_widths()
        weights = NoiseWeights(settings.clock, settings.coarsest, steps, dtype, x.device) if steps else None
        return replace(settings, noise_weights=weights)

    def _steps_with_widths(self) -> list[Step]:
        """The predictions and corrections by polynomials after the first step, which is when widths are known."""
        last = self.steps - (self.finish in ("gaussian", "image"))
        predicted = [self._step(k, k + 1, k, self._order(k)) for k in range(max(1, self.starting), last)]
        corrected = [self._step(k - 1, k, k, self.order) for k in range(self.starting + 1, self.steps)]
        return predicted + (corrected if self.corrector else [])

    def _step(self, first: int, end: int, last: int, order: int) -> Step:
        """The step between the angles `first` and `end`, through up to `order` estimates, the latest at node `last`."""
        return self.angles[first], self.angles[end], self.angles[max(0, last + 1 - order) : last + 1]

    def _order(self, k: int) -> int:
        """Number of estimates of the prediction in step k."""
        return min(self.order, self.steps - k) if self.finish == "falling" else self.order

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.angles) - 1

    @property
    def kept(self) -> int:
        """Number of estimates that a step may need."""
        return max([self.order, *(len(offset.image) for offset in self.offsets)])

    def next_widths(self, history: _History, k: int, after: Estimate) -> tuple[Tensor | None, Tensor | None]:
        """The squared widths before step k, given the estimate at its start."""
        if self.form != BOTH or k == 0:
            return history.widths
        _, last = history.widths
        if self.width is None:
            noise = history.estimates[-1].noise
            return last, widths(noise, after.noise, self.angles[k - 1], self.angles[k])
        if self.width == 0.0:
            return last, None
        dtype = torch.promote_types(after.noise.dtype, torch.float32)
        return last, after.noise.new_full((1,), self.width**2, dtype=dtype)

    def predict(self, history: _History, k: int, draw: Draw) -> Tensor:
        """The points at the end of step k, from those at its start."""
        b, a, x = self.angles[k], self.angles[k + 1], history.x
        if k == self.steps - 1 and self.finish in ("gaussian", "image"):
            weights = self._finish(history, b, a)
        else:
            weights = self._polynomial(history, self._step(k, k + 1, k, self._order(k)))
        if self.offsets:
            weights = weights + self.offsets[k]
        x = weights.apply(x, history.estimates[-len(weights.image) :])
        if self.eta > 0.0 and a > 0.0:
            x = x + math.sin(a) * fresh_noise(b, a, self.eta)[1] * draw(x)
        return x

    def correct(self, history: _History, k: int) -> None:
        """Repeat step k - 1 through the estimate at its end, and move that estimate to the corrected points."""
        assert history.before is not None
        b, predicted, estimate = self.angles[k], history.x, history.estimates[-1]
        weights = self._polynomial(history, self._step(k - 1, k, k, self.order))
        history.x = weights.apply(history.before, history.estimates[-len(weights.image) :])
        if self.share is not None:
            # a smaller share at noise levels that hide every picture
            share = self.share / (1.0 + (math.tan(b) / self.coarsest) ** 2)
            history.estimates[-1] = estimate.moved(history.x - predicted, b, share)

    def _finish(self, history: _History, b: float, a: float) -> StepWeights:
        """The weights of the last step, by the last estimates alone."""
        if self.finish == "image":
            return StepWeights(0.0, (math.cos(a),), (math.sin(a),))
        earlier, width = history.widths
        if width is None:
            width = history.x.new_zeros(1, dtype=torch.promote_types(history.x.dtype, torch.float32))
        return gaussian_weights(b, a, width if earlier is None else width_at_the_end(width, earlier))

    def _polynomial(self, history: _History, step: Step) -> StepWeights:
        """The weights of a step by polynomials through the last estimates."""
        weights = step_weights(self.form, self.clock, *step, self.coarsest, self.eta)
        _, width = history.widths
        if width is None or self.noise_weights is None:
            return weights
        return replace(weights, noise=self.noise_weights(step, width))
