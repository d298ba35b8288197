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
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from ..arc import FINEST, NOISE_END, octave, octave_to_angle, spread
from ..denoiser import angle_range
from ..errors import InputError, unknown_name
from ..estimate import Estimate
from .base import Denoise, Draw, State
from .forms import VELOCITY
from .gradient import EULER, HEUN, RK4, Tableau, runge_kutta

__all__ = [
    "CLOCKS",
    "Multistep",
    "StepWeights",
    "gaussian_weights",
    "noise_weights",
    "step_weights",
    "width_at_the_end",
    "widths",
]

FORMS = ("both", "velocity", "noise", "image")
CLOCKS = ("octave", "angle")
STARTS = ("rising", "runge-kutta")
FINISHES = ("gaussian", "falling", "image", "level")

BEYOND = 2.0
"""How far beyond sqrt(D), the noise that drowns every picture, the clock `octave` counts on (docs/samplers.md)."""
WIDEST = 100.0
"""The largest width that is believed, over the sigmas that it was read from: beyond it all noise is the data's."""

_POINTS, _SHARES = leggauss(48)  # relative 1e-14 on steps as long as the whole arc


@dataclass(frozen=True)
class StepWeights:
    """A step as weights: x_a = x x_b + sum_j image_j image_hat_j + noise_j noise_hat_j.

    Attributes:
        x: of the point the step starts from, float64.
        image, noise: of the estimates at the nodes, float64; noise may be one weight an image, shape (B,).
    """

    x: float
    image: tuple[float, ...]
    noise: tuple[float | Tensor, ...]

    def apply(self, x: Tensor, estimates: Sequence[Estimate]) -> Tensor:
        """The step itself, from x with the estimates at the nodes."""
        moved = x if self.x == 1.0 else self.x * x
        for image, noise, estimate in zip(self.image, self.noise, estimates, strict=True):
            if image != 0.0:
                moved = moved + image * estimate.image
            if isinstance(noise, Tensor):
                moved = moved + spread(noise, x) * estimate.noise
            elif noise != 0.0:
                moved = moved + noise * estimate.noise
        return moved

    def __add__(self, other: StepWeights) -> StepWeights:
        """Both together; the last nodes of one are the last nodes of the other."""
        count = max(len(self.image), len(other.image))

        def added(one: tuple[Any, ...], two: tuple[Any, ...]) -> tuple[Any, ...]:
            padded = [(0.0,) * (count - len(part)) + part for part in (one, two)]
            return tuple(map(sum, zip(*padded, strict=True)))

        return StepWeights(self.x + other.x, added(self.image, other.image), added(self.noise, other.noise))


@lru_cache(maxsize=4096)
def step_weights(
    form: str, clock: str, b: float, a: float, nodes: tuple[float, ...], coarsest: float, churn: float = 0.0
) -> StepWeights:
    """The weights of the step from angle b to angle a through estimates at the nodes, exact to rounding.

    In the form `both` for width 0; `noise_weights` has those of other widths.

    Args:
        form, clock: as for `Multistep`.
        b, a: where the step starts and ends; b is not pi/2 in the noise form, nor 0 in the image form.
        nodes: distinct angles.
        coarsest: of the clock `octave`, as for `quarterarc.arc.octave`.
        churn: as for `Multistep`; in the image form.
    """
    at, none = np.array(nodes), np.zeros(len(nodes))
    if form == "image" and a == 0.0:  # all that counts is the image at the end
        return _rounded(0.0, _lagrange(at, np.zeros(1), clock, coarsest)[:, 0], none)
    angles, shares = _quadrature(form, clock, b, a, coarsest)
    weights = _lagrange(at, angles, clock, coarsest) * shares
    if form == "velocity":
        return _rounded(1.0, -np.sin(at) * weights.sum(1), np.cos(at) * weights.sum(1))
    if form == "both":
        return _rounded(1.0, -weights @ np.sin(angles), weights @ np.cos(angles))
    if form == "noise":
        return _rounded(math.cos(a) / math.cos(b), none, math.cos(a) * weights.sum(1))
    excess, fresh = _excess(b, a, churn)
    decay = (math.tan(a) / np.tan(angles)) ** excess
    kept = math.sin(a) / math.sin(b) * math.sqrt(1.0 - fresh**2)
    return _rounded(kept, math.sin(a) * (1.0 + excess) * (weights * decay).sum(1), none)


def widths(before: Tensor, after: Tensor, b: float, a: float) -> Tensor:
    """The squared width w^2 of the data around each image, in pixels of [-1, 1], shape (B,); in float32 or wider.

    Along the flow the noise estimate of Gaussian data of width w is proportional to s_w. What share of it is kept from
    b to a, in the direction of the first estimate, tells w:

        kept = s_w(a) / s_w(b)      =>      w^2 = tan^2 a (1 - kept^2) / (kept^2 - tan^2 a / tan^2 b)

    A noise that grows has width 0.

    Args:
        before, after: noise estimates at the angles b and a, shape (B, *).
        b, a: descending; from b = pi/2, where the estimate is of everything that is not noise, the width is 0.
    """
    dtype = torch.promote_types(before.dtype, torch.float32)
    before, after = before.flatten(1).to(dtype), after.flatten(1).to(dtype)
    if b >= NOISE_END:
        return before.new_zeros(len(before))
    # of no noise at all nothing is kept, and of noise that turned round neither
    kept = torch.nan_to_num((before * after).sum(1) / before.square().sum(1), nan=0.0).clamp(0.0, 1.0).square()
    lost, left = math.tan(a) ** 2 * (1.0 - kept), kept - (math.tan(a) / math.tan(b)) ** 2
    most = WIDEST**2 * math.tan(a) * math.tan(b)
    return torch.where(left * most > lost, lost / left, most)


def width_at_the_end(squared: Tensor, earlier: Tensor) -> Tensor:
    """The squared width that counts in the last step, from the last reading and the one before.

    Data around one shape have one width. Real images have detail at every scale, and the width read from a step shrinks
    with its sigmas; it is then taken to go on shrinking as it did, by w^2 / earlier w^2.
    """
    return squared * torch.where(earlier > squared, squared / earlier, 1.0)


def gaussian_weights(b: float, a: float, squared: Tensor) -> StepWeights:
    """The step from b to a that is exact for Gaussian data of width w around each image, from the estimates at b.

        x_a = cos a image_hat + (S_a S_b - cos a cos b w^2) / sin b noise_hat        S = sqrt(sin^2 + w^2 cos^2)

    since Gaussian data of mean m have x - cos m in proportion to S along the flow, and m = image_hat - w^2 cot b
    noise_hat. For width 0 it is DDIM's step, which ends in the image estimate. Estimates that disagree move x by what
    this would move the point that they agree on.

    Args:
        b, a: descending; b above 0.
        squared: w^2, shape (B,), or (1,) for all.
    """
    (sin_b, cos_b), (sin_a, cos_a) = ((math.sin(angle), math.cos(angle)) for angle in (b, a))
    sizes = ((sin_b**2 + squared * cos_b**2) * (sin_a**2 + squared * cos_a**2)).sqrt()
    # the difference without its cancelling; 0 / 0 at width 0 and angle 0, where it is 0
    squares = sin_a**2 * sin_b**2 + squared * (sin_a**2 * cos_b**2 + sin_b**2 * cos_a**2)
    noise = squares / (sizes + cos_a * cos_b * squared).clamp(min=1e-30) / sin_b
    return StepWeights(1.0, (cos_a - cos_b,), (noise - sin_b,))


def noise_weights(
    clock: str, b: float, a: float, nodes: tuple[float, ...], coarsest: float, squared: Tensor
) -> tuple[Tensor, ...]:
    """The weights of the noise estimates in the form `both` where each image has its width, one tensor a node.

        int cos(angle) l_j(angle) s_w(angle) / s_w(node_j)          l_j Lagrange's polynomial of node j

    Args:
        clock, b, a, nodes, coarsest: as for `step_weights`.
        squared: w^2, shape (B,).

    Returns:
        Tensors of shape (B,), in the dtype of `squared`.
    """
    weights, angles = _noise_integrand(clock, b, a, nodes, coarsest)

    def size(at: np.ndarray) -> Tensor:
        """s_w, shape (B, angles)."""
        return (1.0 + squared[:, None] * torch.as_tensor(np.tan(at) ** -2.0).to(squared)).rsqrt()

    sizes, at_nodes = size(angles), size(np.array(nodes))
    found = ((sizes * torch.as_tensor(row).to(squared)).sum(1) for row in weights)
    return tuple(each / at_nodes[:, j] for j, each in enumerate(found))


@lru_cache(maxsize=4096)
def _noise_integrand(
    clock: str, b: float, a: float, nodes: tuple[float, ...], coarsest: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is summed over the returned angles to integrate cos l_j from b to a, shape (nodes, angles)."""
    angles, shares = _quadrature("both", clock, b, a, coarsest)
    return _lagrange(np.array(nodes), angles, clock, coarsest) * shares * np.cos(angles), angles


def _excess(b: float, a: float, churn: float) -> tuple[float, float]:
    """What churn makes of the step from b to a: tau^2 of the reverse process, and the share of x's noise made anew.

    The reverse process with tau^2 times the noise of DDPM's keeps the marginals for any tau (Xue et al. 2023, Eq. 9):

        x_a = sin a / sin b r^(tau^2) x_b + sin a (1 + tau^2) int (cot / cot a)^(tau^2) image d cot
              + sin a sqrt(1 - r^(2 tau^2)) z,                                          r = tan a / tan b

    and tau is chosen such that the fresh noise is DDIM's with this churn, sin a churn sqrt(1 - r^2). tau is churn at 1.
    """
    if churn == 0.0 or a == 0.0:
        return 0.0, 0.0
    left = math.sin(b - a) * math.sin(b + a) / (math.sin(b) * math.cos(a)) ** 2  # 1 - r^2
    fresh = churn * math.sqrt(left)
    if churn == 1.0 or b >= NOISE_END:  # from pure noise r is 0, and any smaller power of it is 1
        return float(churn == 1.0), fresh
    return math.log1p(-(fresh**2)) / (2.0 * math.log(math.tan(a) / math.tan(b))), fresh


def _rounded(x: float, image: np.ndarray, noise: np.ndarray) -> StepWeights:
    return StepWeights(x, tuple(map(float, image)), tuple(map(float, noise)))


def _quadrature(form: str, clock: str, b: float, a: float, coarsest: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles and shares that integrate from b to a over tan (noise form), cot (image form) or the angle (the others).

    Each integral is taken in a variable in which the integrand is smooth up to the end of the arc: log(1 + tan),
    log(1 + cot), and the octave.
    """

    def over(first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        half = (last - first) / 2
        return first + half * (_POINTS + 1.0), half * _SHARES

    if form == "noise":
        w, shares = over(math.log1p(math.tan(b)), math.log1p(math.tan(a)))
        return np.arctan(np.expm1(w)), shares * np.exp(w)
    if form == "image":
        w, shares = over(math.log1p(1.0 / math.tan(b)), math.log1p(1.0 / math.tan(a)))
        return np.arctan2(1.0, np.expm1(w)), shares * np.exp(w)
    if clock == "angle":
        return over(b, a)
    w, shares = over(float(octave(b, coarsest)), float(octave(a, coarsest)))
    angles = octave_to_angle(w, coarsest)
    sine, cosine = np.sin(angles), np.cos(angles)
    pace = (1.0 - FINEST / coarsest) / ((sine + FINEST * cosine) * (cosine + sine / coarsest) * math.log(2.0))
    return angles, shares / pace


def _lagrange(nodes: np.ndarray, angles: np.ndarray, clock: str, coarsest: float) -> np.ndarray:
    """Lagrange's polynomials of the nodes at angles, in a clock; shape (nodes, angles)."""
    if clock == "octave":
        nodes, angles = octave(nodes, coarsest), octave(angles, coarsest)
    values = np.ones((len(nodes), len(angles)))
    for i, node in enumerate(nodes):
        for other in np.delete(nodes, i):
            values[i] *= (angles - other) / (node - other)
    return values


@dataclass(frozen=True)
class Multistep:
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
            churn with offsets, the corrector or another form than `image`, or a grid from pi/2 in the noise form.
    """

    order: int | None = None
    form: str | None = None
    clock: str = "octave"
    corrector: bool | None = None
    share: float | None = 0.2
    width: float | None = None
    start: str = "rising"
    finish: str | None = None
    churn: float = 0.0
    offsets: tuple[StepWeights, ...] = ()

    evaluations = 1
    default_grid = "octave"

    def __post_init__(self) -> None:
        if self.order is not None and (isinstance(self.order, bool) or self.order not in (1, 2, 3, 4)):
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
        coarsest = BEYOND * math.sqrt(x[0].numel())
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
                    # never more than is right for the widest data there are
                    share = self.share / (1.0 + (math.tan(b) / coarsest) ** 2)
                    estimates[-1] = estimate.moved(x - predicted, b, share)
            before = x
            if not self._free(k, order):
                x = runge_kutta(denoise, x, estimate, VELOCITY, _STARTER[order], b, a, smallest)
                continue
            most = min(order, steps - k) if finish == "falling" else order
            x = step(x, b, a, k, most, self.offsets[k] if self.offsets else None)
            if self.churn > 0.0 and a > 0.0:
                x = x + math.sin(a) * _excess(b, a, self.churn)[1] * draw(x)
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
