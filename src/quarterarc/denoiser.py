"""Denoisers: callables `(x, angle, labels=None) -> Estimate`, and wrappers that change what one says.

A `Denoiser` is a network, a schedule and a head. A bare function is a denoiser too; it is taken to be defined on
the whole arc. One that is not says so by the attributes `largest_angle` and `smallest_angle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .arc import NOISE_END, ROUNDING, Angle, cos_sin
from .errors import InputError
from .estimate import Denoise, Estimate
from .heads import Head, check_channels
from .schedules import Schedule

__all__ = ["Clipped", "Counted", "Denoiser", "Guided", "Labelled", "Projected", "Replayed", "angle_range"]


def angle_range(denoise: Denoise) -> tuple[float, float]:
    """The smallest and the largest angle at which a denoiser's two estimates are defined; 0 and pi/2 unless it says."""
    return getattr(denoise, "smallest_angle", 0.0), getattr(denoise, "largest_angle", NOISE_END)


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


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with what is needed to read it.

    Attributes:
        network: called as `network(x, time, labels)`, x of shape (B, C, H, W), time float32 of shape () or (B,) in
            0..1000, labels int64 of shape (B,) or None; puts out `head.channels(C)` channels.
        schedule: maps the angle to the time that the network was trained with.
        head: what the output channels mean.
        shape: (C, H, W) of the images it was trained on, where known.
        classes: how many labels it knows; the label `classes` itself then means "no label".
        precision: dtype to autocast the network to (torch.bfloat16); estimates are float32 or wider all the same.
        time_scale: what a training step adds to the time, 1000/T unless given; 1 for networks that count steps.
        time_shift: added to the time, -1 for networks that number DDPM's steps from 0. No network is asked below 0.
        unlabelled: whether it knows images without a label too, because some labels were dropped in training; if it
            does not, a denoiser with classes is never asked without labels.
        tuned: reads the grids that were tuned for this network (`quarterarc.tuned`), where it has a checkpoint.
        projection: what `Estimate.projected` keeps where the head's two estimates disagree; None leaves both as they
            are.
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
    tuned: Callable[[], list[Any]] | None = None
    projection: str | None = None

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
            angle: one for all, or one an image, shape (B,), within `smallest_angle`..`largest_angle`.
            labels: classes, int64, shape (B,), if the network knows any.

        Returns:
            The estimate, in the dtype of x.

        Raises:
            InputError: if the angle lies outside the range, the network's channels do not fit the head, or there are no
                labels and it was trained with a label for every image.
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

    def _weight(self) -> Tensor | None:
        """One of the network's weights, which shows their dtype and device; None for a function, or without any."""
        return next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None

    def _time(self, angle: Angle) -> Tensor:
        scale = 1000.0 / self.schedule.steps if self.time_scale is None else self.time_scale
        time = self.schedule.time(angle) * scale + self.time_shift
        return torch.as_tensor(time, dtype=torch.float32).clamp(min=0.0)

    def to(self, device: torch.device | str) -> Denoiser:
        """The same denoiser with its network on another device."""
        network = self.network.to(device) if isinstance(self.network, nn.Module) else self.network
        return replace(self, network=network)


class _Wrapper:
    """A denoiser around a denoiser: what it does not say itself, the inner one says."""

    inner: Denoise

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # not yet set: asking the inner one would never end
            raise AttributeError(name)
        return getattr(self.inner, name)


class _OtherFlow(_Wrapper):
    """A denoiser whose flow is another than the inner one's."""

    def tuned(self) -> list[Any]:
        """Refuses: grids are tuned to one flow."""
        raise InputError(
            f"the tuned grids are of the network's own flow, not of one that is {type(self).__name__.lower()}: name "
            "another grid"
        )


@dataclass(frozen=True)
class Clipped(_OtherFlow):
    """Clips the image estimate to a range, as DDPM's sampler does.

    Attributes:
        inner: the denoiser.
        low, high: the range, that of the images by default.
        rederive: also give up the noise estimate for the one that agrees with the clipped image,
            (x - cos image)/sin. Without it the two estimates disagree wherever clipping did anything. At angle 0,
            where x says nothing of the noise, the inner estimate of it stays.
    """

    inner: Denoise
    low: float = -1.0
    high: float = 1.0
    rederive: bool = True

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        estimate = call(self.inner, x, angle, labels)
        image = estimate.image.clamp(self.low, self.high)
        if not self.rederive:
            return replace(estimate, image=image)
        c, s = cos_sin(angle, x)
        at_image = torch.as_tensor(s == 0.0, device=x.device)
        return replace(estimate, image=image, noise=torch.where(at_image, estimate.noise, (x - c * image) / s))


@dataclass(frozen=True)
class Projected(_OtherFlow):
    """Makes the two estimates agree on x (`Estimate.projected`).

    A `Denoiser` does so itself if its `projection` says so; this is for other denoisers.

    Attributes:
        inner: the denoiser.
        keep: `velocity`, `image` or `noise`.
    """

    inner: Denoise
    keep: str = "velocity"

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        return call(self.inner, x, angle, labels).projected(x, angle, self.keep)


@dataclass(frozen=True)
class Guided(_OtherFlow):
    """Classifier-free guidance (Ho & Salimans 2022): unconditional + scale (conditional - unconditional).

    Attributes:
        inner: a denoiser with `classes`, trained with some labels dropped.
        scale: 1 is the conditional estimate itself, larger follows the label more closely.

    Raises:
        InputError: if the denoiser says that it was not, or is asked without labels; for a scale that is not finite.
    """

    inner: Denoise
    scale: float = 1.0

    evaluations = 2

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"the scale of guidance is a finite number, got {self.scale}")
        if not getattr(self.inner, "unlabelled", True):
            raise InputError("guidance needs a denoiser that was trained with some labels dropped: this one was not")

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        classes = getattr(self.inner, "classes", None)
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


class Labelled(_Wrapper):
    """A denoiser with its labels filled in, one an image of the batch, so that samplers need not know of them."""

    def __init__(self, inner: Denoise, labels: Tensor | None) -> None:
        self.inner, self.labels = inner, labels

    def __call__(self, x: Tensor, angle: Angle) -> Estimate:
        return call(self.inner, x, angle, self.labels)

    def of_rows(self, rows: Tensor) -> Labelled:
        """The same for some images of the batch, by their row numbers."""
        return self if self.labels is None else Labelled(self.inner, self.labels[rows.to(self.labels.device)])


class Counted(_Wrapper):
    """Counts the number of function evaluations, NFE: how often the network sees each image."""

    def __init__(self, inner: Denoise) -> None:
        self.inner = inner
        self.seen = self.images = 0

    def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None) -> Estimate:
        self.images = max(self.images, len(x))
        self.seen += len(x) * getattr(self.inner, "evaluations", 1)
        return call(self.inner, x, angle, labels)

    @property
    def nfe(self) -> float:
        """An image, the mean over the batch: whole unless a sampler takes more steps for some images than others."""
        mean = self.seen / max(self.images, 1)
        return int(mean) if mean.is_integer() else mean


class Replayed(_Wrapper):
    """Remembers its first run, and answers each later one from it for as long as that asks for the same.

    All runs have the same labels.
    """

    def __init__(self, inner: Denoise) -> None:
        self.inner = inner
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
            seen, at, estimate = self._run[self._call]
            if at == angle and torch.equal(seen, x):
                self._call += 1
                return estimate
            self._call = len(self._run)  # from here on all is new
        return call(self.inner, x, angle, labels)


def call(denoise: Denoise, x: Tensor, angle: Angle, labels: Tensor | None) -> Estimate:
    """Call a denoiser with labels only where there are any, so that a bare `(x, angle)` will do."""
    return denoise(x, angle) if labels is None else denoise(x, angle, labels)
