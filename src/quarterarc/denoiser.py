"""Denoisers: callables `(x, angle, labels=None) -> Estimate`, what they declare about themselves, and wrappers.

A `Denoiser` is a network, a schedule and a head. A bare function `(x, angle) -> Estimate` is a denoiser too. What a
denoiser declares beyond the call (the angles at which it is defined, the shape of its images, its classes, ...) is one
`Traits` object, its attribute `traits`; `traits(denoise)` reads it, and a bare function has the defaults.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from .arc import NOISE_END, ROUNDING, Angle, cos_sin, mix
from .common.errors import InputError, unknown_name
from .estimate import PROJECTIONS, Estimate
from .heads import Head, check_channels
from .objectives import Losses, Objective
from .objectives import objective as named_objective
from .schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Clipped",
    "Denoise",
    "Denoiser",
    "Evaluator",
    "Guided",
    "Projected",
    "Replayed",
    "Traits",
    "angle_range",
    "check_angle",
    "project",
    "required_shape",
    "traits",
]

Denoise: TypeAlias = Callable[..., Estimate]
"""Any callable `(x, angle) -> Estimate`, or `(x, angle, labels) -> Estimate` where there are labels.

It may declare more about itself by an attribute `traits` of type `Traits`.
"""


@dataclass(frozen=True)
class Traits:
    """What a denoiser declares about itself; the defaults are those of a bare function.

    Attributes:
        smallest_angle, largest_angle: the angles between which both estimates are defined, in [0, pi/2].
        shape: (C, H, W) of the images, where known.
        classes: number of labels; None without labels. The label `classes` itself means "no label".
        unlabelled: whether images without a label are known too (some labels were dropped in training).
        schedule: maps training steps to angles, where there is one.
        device: where the network is; None for a function that computes on the device of its input.
        evaluations: network evaluations per call and image: 2 under classifier-free guidance.
        checkpoint: the checkpoint folder that the weights were read from, where there is one.
        altered: how the flow differs from that of the checkpoint ("guided", "clipped", ...); None if it does not.
            Grids that were tuned for the checkpoint are not valid for an altered flow.
    """

    smallest_angle: float = 0.0
    largest_angle: float = NOISE_END
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    unlabelled: bool = True
    schedule: Schedule | None = None
    device: torch.device | None = None
    evaluations: int = 1
    checkpoint: Path | None = None
    altered: str | None = None


DEFAULT_PROJECTION = "velocity"
"""What a loaded network keeps where its two estimates disagree, by default (docs/residual.md)."""

_TRAITS = tuple(field.name for field in fields(Traits))


def traits(denoise: Denoise) -> Traits:
    """The traits of a denoiser: its attribute `traits`, or the defaults.

    Attributes named like single traits (`largest_angle`, `shape`, ...) were read one by one in version 0.1; they still
    count where there is no `traits`, with a warning.
    """
    declared = getattr(denoise, "traits", None)
    if isinstance(declared, Traits):
        return declared
    old = {name: getattr(denoise, name) for name in _TRAITS if hasattr(denoise, name)}
    if old:
        warnings.warn(
            f"a denoiser declares {', '.join(old)} by one attribute now: traits = quarterarc.Traits(...)",
            DeprecationWarning,
            stacklevel=2,
        )
    return Traits(**old)


def angle_range(denoise: Denoise) -> tuple[float, float]:
    """The smallest and the largest angle at which a denoiser's two estimates are defined."""
    declared = traits(denoise)
    return declared.smallest_angle, declared.largest_angle


def required_shape(denoise: Denoise, shape: Sequence[int] | None = None) -> tuple[int, int, int]:
    """The shape (C, H, W) of a denoiser's images: `shape` if given, else the one that it declares.

    Raises:
        InputError: if neither is known.
    """
    known = tuple(shape) if shape is not None else traits(denoise).shape
    if known is None:
        raise InputError("this denoiser does not declare the shape of its images: give shape=(C, H, W)")
    channels, height, width = known
    return channels, height, width


def check_angle(angle: Angle, defined: tuple[float, float], what: str) -> None:
    """Raise an InputError if an angle lies outside those at which `what` is defined."""
    if isinstance(angle, Tensor):
        if angle.device.type != "cpu":
            return  # reading it would stall the device
        low, high = float(angle.min()), float(angle.max())
    else:
        low = high = angle
    if low < defined[0] - ROUNDING or high > defined[1] + ROUNDING:
        raise InputError(
            f"{what} is defined at angles {defined[0]:.6g}..{defined[1]:.6g}, got {low:.6g}"
            f"{f'..{high:.6g}' if high > low else ''}: use a grid that stays inside"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Denoiser:
    """A network together with its schedule and its head.

    Attributes:
        network: called as `network(x, time, labels)` with x of shape (B, C, H, W), time float32 of shape () or (B,) in
            0..1000, labels int64 of shape (B,) or None; returns `head.channels(C)` channels.
        schedule: maps the angle to the time that the network was trained with.
        head: the meaning of the output channels.
        shape: (C, H, W) of the images that it was trained on, where known.
        classes: number of labels; the label `classes` itself then means "no label".
        precision: dtype to autocast the network to (torch.bfloat16); estimates are float32 or wider in any case.
        time_shift: added to the time; -1 for networks that number DDPM's steps from 0. The time is clamped at 0.
        time_scale: increase of the time per training step; 1000/T unless given, 1 for networks that count steps.
        unlabelled: whether images without a label are known too, because some labels were dropped in training. If not,
            a denoiser with classes raises an InputError without labels.
        projection: what `Estimate.projected` keeps where the head's two estimates disagree; None leaves both as they
            are.
        checkpoint: the checkpoint folder that the weights were read from, where there is one.
        altered: as in `Traits`.
    """

    network: Callable[..., Tensor]
    schedule: Schedule
    head: Head
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    precision: torch.dtype | None = None
    time_shift: float = 0.0
    time_scale: float | None = None
    unlabelled: bool = True
    projection: str | None = None
    checkpoint: Path | None = None
    altered: str | None = None

    @property
    def traits(self) -> Traits:
        """What samplers, likelihoods and evaluation need to know about this denoiser."""
        return Traits(
            smallest_angle=self.smallest_angle,
            largest_angle=self.largest_angle,
            shape=self.shape,
            classes=self.classes,
            unlabelled=self.unlabelled,
            schedule=self.schedule,
            device=self.device,
            checkpoint=self.checkpoint,
            altered=self.altered,
        )

    @property
    def largest_angle(self) -> float:
        """The schedule's last angle; for a head that is not defined at pi/2 the last one below it."""
        if self.head.at_noise or self.schedule.end < NOISE_END:
            return self.schedule.end
        return self.schedule.angle(self.schedule.steps - 1.0)

    @property
    def smallest_angle(self) -> float:
        """0; for a head that is not defined there the angle of the first training step."""
        return 0.0 if self.head.at_image else self.schedule.angle(1.0)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        weight = self._weight()
        return torch.device("cpu") if weight is None else weight.device

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        """Estimate image and noise.

        Args:
            x: points of the arc, shape (B, C, H, W).
            angle: one for all images, or one per image, shape (B,), within `smallest_angle`..`largest_angle`.
            labels: classes, int64, shape (B,), for a network with classes.

        Returns:
            The estimate, in the dtype of x.

        Raises:
            InputError: if the angle lies outside the range, the network's channels do not fit the head, or labels are
                missing and the network was trained with a label for every image.
        """
        if labels is None and self.classes is not None and not self.unlabelled:
            raise InputError(
                f"this denoiser was trained with one of the labels 0..{self.classes - 1} for every image: give labels"
            )
        what = f"the head '{self.head.name}' on the schedule '{self.schedule.name}'"
        check_angle(angle, (self.smallest_angle, self.largest_angle), what)
        weight = self._weight()
        dtype = x.dtype if weight is None else weight.dtype
        time = self._time(angle).to(x.device)
        cast = torch.autocast(x.device.type, self.precision) if self.precision else nullcontext()
        with cast:
            output = self.network(x.to(dtype), time, labels)
        check_channels(output, x, self.head)
        estimate = self.head.read(output.to(x.dtype), x, angle)
        if self.projection is None or self.head.agrees:
            return estimate
        return estimate.projected(x, angle, self.projection)

    def loss(
        self,
        objective: Objective | str | None,
        image: Tensor,
        noise: Tensor,
        times: Tensor,
        labels: Tensor | None = None,
    ) -> Losses:
        """The losses of a batch, one per image (Zhang et al. 2023, Eq. 9 to 12).

            x     = cos(angle) image + sin(angle) noise,    angle = schedule(t)
            total = |image_hat - image|^2 + |noise_hat - noise|^2 + gamma |v_hat - v|^2        with `both+gradient`

        Args:
            objective: compares the estimate at x with image and noise: a name of `quarterarc.objectives.OBJECTIVES`, or
                a callable that satisfies the protocol `quarterarc.objectives.Objective`; None for the objective by
                which the papers train the head, `head.objective`.
            image: clean images, shape (B, C, H, W), in [-1, 1].
            noise: standard normal noise, shape (B, C, H, W).
            times: training steps t in 1..T, shape (B,), float64 on the CPU.
            labels: classes, int64, shape (B,), for a network with classes.

        Raises:
            InputError: for an unknown objective, or one that does not return `Losses` with one total per image.
        """
        if objective is None or isinstance(objective, str):
            objective = named_objective(objective or self.head.objective)
        angle = self.schedule.angle(times)
        x = mix(image, noise, angle)
        estimate = self(x, angle, labels)
        losses = objective(estimate, image, noise, x, times, self.schedule)
        if not isinstance(losses, Losses) or losses.total.shape != image.shape[:1]:
            raise InputError(
                f"the objective {objective!r} does not return quarterarc.objectives.Losses with a total of shape "
                f"({len(image)},), one per image"
            )
        return losses

    def _weight(self) -> Tensor | None:
        """One of the network's weights, for their dtype and device; None for a function, or without any."""
        return next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None

    def _time(self, angle: Angle) -> Tensor:
        scale = 1000.0 / self.schedule.steps if self.time_scale is None else self.time_scale
        time = self.schedule.time(angle) * scale + self.time_shift
        return torch.as_tensor(time, dtype=torch.float32).clamp(min=0.0)

    def to(self, device: torch.device | str) -> Denoiser:
        """The same denoiser with its network on another device."""
        network = self.network.to(device) if isinstance(self.network, nn.Module) else self.network
        return replace(self, network=network)

    def __repr__(self) -> str:
        parts = [type(self.network).__name__, f"head '{self.head.name}'", f"schedule '{self.schedule.name}'"]
        if isinstance(self.network, nn.Module):
            parts[0] += f" of {sum(weight.numel() for weight in self.network.parameters()):,} parameters"
        if self.shape is not None:
            parts.append(f"images {'x'.join(map(str, self.shape))}")
        if self.classes is not None:
            parts.append(f"{self.classes} classes")
        return f"Denoiser({', '.join(parts)})"


@dataclass(frozen=True)
class Clipped:
    """Clips the image estimate to a range, as DDPM's sampler does.

    Attributes:
        inner: the denoiser.
        low, high: the range; that of the images by default.
        rederive: also replace the noise estimate by the one that agrees with the clipped image, (x - cos image)/sin.
            Without it the two estimates disagree wherever clipping changed something. At angle 0, where x does not
            determine the noise, the inner noise estimate stays.
    """

    inner: Denoise
    low: float = -1.0
    high: float = 1.0
    rederive: bool = True

    @property
    def traits(self) -> Traits:
        """Those of the inner denoiser, with an altered flow."""
        return replace(traits(self.inner), altered="clipped")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        estimate = call(self.inner, x, angle, labels)
        image = estimate.image.clamp(self.low, self.high)
        if not self.rederive:
            return replace(estimate, image=image)
        c, s = cos_sin(angle, x)
        at_image = torch.as_tensor(s == 0.0, device=x.device)
        return replace(estimate, image=image, noise=torch.where(at_image, estimate.noise, (x - c * image) / s))


@dataclass(frozen=True)
class Projected:
    """Makes the two estimates agree on x (`Estimate.projected`).

    A `Denoiser` does so itself by its `projection`; this is for other denoisers.

    Attributes:
        inner: the denoiser.
        keep: `velocity`, `image` or `noise`.
    """

    inner: Denoise
    keep: str = "velocity"

    @property
    def traits(self) -> Traits:
        """Those of the inner denoiser, with an altered flow."""
        return replace(traits(self.inner), altered="projected")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        return call(self.inner, x, angle, labels).projected(x, angle, self.keep)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022): unconditional + scale (conditional - unconditional).

    Attributes:
        inner: a denoiser with classes, trained with some labels dropped.
        scale: 1 is the conditional estimate itself; larger values follow the label more closely.

    Raises:
        InputError: if the denoiser was trained with a label for every image, on a call without labels, or for a scale
            that is not finite.
    """

    inner: Denoise
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"the scale of guidance is a finite number, got {self.scale}")
        if not traits(self.inner).unlabelled:
            raise InputError("guidance needs a denoiser that was trained with some labels dropped: this one was not")

    @property
    def traits(self) -> Traits:
        """Those of the inner denoiser, with an altered flow and twice the evaluations."""
        inner = traits(self.inner)
        return replace(inner, altered="guided", evaluations=2 * inner.evaluations)

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        classes = traits(self.inner).classes
        if labels is None or classes is None:
            raise InputError("guidance needs labels and a denoiser that was trained with classes")
        twice = torch.cat([angle, angle]) if isinstance(angle, Tensor) and angle.numel() > 1 else angle
        estimate = self.inner(torch.cat([x, x]), twice, torch.cat([labels, torch.full_like(labels, classes)]))
        fraction = estimate.variance_fraction
        return Estimate(
            self._combine(estimate.image),
            self._combine(estimate.noise),
            None if fraction is None else fraction[: len(x)],
        )

    def _combine(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def project(denoise: Denoise, keep: str) -> Denoise:
    """The denoiser with another projection of estimates that disagree.

    Args:
        denoise: the denoiser.
        keep: `velocity`, `image` or `noise`, as for `Estimate.projected`; `none` leaves the estimates as they are.

    Raises:
        InputError: for another name, or `none` for a denoiser whose estimates are projected by a wrapper.
    """
    if keep not in (*PROJECTIONS, "none"):
        raise unknown_name("projection", keep, (*PROJECTIONS, "none"))
    if isinstance(denoise, Denoiser):
        same = denoise.head.agrees or keep == DEFAULT_PROJECTION
        altered = None if same else f"projected by '{keep}'"
        return replace(denoise, projection=None if keep == "none" else keep, altered=altered)
    if isinstance(denoise, Guided):
        return replace(denoise, inner=project(denoise.inner, keep))
    if keep == "none":
        if isinstance(denoise, Projected):
            raise InputError("this denoiser is wrapped in Projected: give the denoiser inside for projection='none'")
        return denoise
    return Projected(denoise, keep)


class Evaluator:
    """A denoiser as a sampler sees it: labels filled in, network evaluations counted.

    Args:
        inner: the denoiser.
        labels: classes, int64, one per image of the batch, shape (B,); None without labels.
    """

    def __init__(self, inner: Denoise, labels: Tensor | None = None) -> None:
        self.inner, self.labels = inner, labels
        self.traits = traits(inner)
        self._evaluated = self._images = 0

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        return self._evaluate(x, angle, self.labels if labels is None else labels)

    def of_rows(self, rows: Tensor) -> Denoise:
        """The same for some images of the batch, by their row numbers; their evaluations count too."""
        if self.labels is None:
            return self
        labels = self.labels[rows.to(self.labels.device)]
        return lambda x, angle: self._evaluate(x, angle, labels)

    def _evaluate(self, x: Tensor, angle: Angle, labels: Tensor | None) -> Estimate:
        self._images = max(self._images, len(x))
        self._evaluated += len(x) * self.traits.evaluations
        return call(self.inner, x, angle, labels)

    @property
    def nfe(self) -> float:
        """Network evaluations per image, averaged over the batch; an int where the average is whole."""
        mean = self._evaluated / max(self._images, 1)
        return int(mean) if mean.is_integer() else mean


class Replayed:
    """Caches the evaluations of its first run; later runs use them for as long as they ask for the same points.

    All runs have the same labels.
    """

    def __init__(self, inner: Denoise) -> None:
        self.inner = inner
        self.traits = traits(inner)
        self._run: list[tuple[Tensor, Angle, Estimate]] = []
        self._first, self._call = True, 0

    def rewind(self) -> None:
        """Begin another run."""
        self._first, self._call = False, 0

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        if self._first:
            self._run.append((x, angle, call(self.inner, x, angle, labels)))
            return self._run[-1][2]
        if self._call < len(self._run):
            point, at, estimate = self._run[self._call]
            if at == angle and torch.equal(point, x):
                self._call += 1
                return estimate
            self._call = len(self._run)  # from here on the runs differ
        return call(self.inner, x, angle, labels)


def call(denoise: Denoise, x: Tensor, angle: Angle, labels: Tensor | None) -> Estimate:
    """Call a denoiser, with labels only where there are any, so that a bare `(x, angle)` function works."""
    return denoise(x, angle) if labels is None else denoise(x, angle, labels)
