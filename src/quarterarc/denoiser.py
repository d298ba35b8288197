"""Denoisers: callables `(x, angle, labels=None) -> Estimate`, and the traits that they declare.

A `Denoiser` is a network, a schedule and a head. A bare function `(x, angle) -> Estimate` is a denoiser too. The
properties of a denoiser beyond the call (the angles at which it is defined, the shape of its images, its classes, ...)
are one `Traits` object, its attribute `traits`. `traits(denoise)` is the only place that reads it; a bare function has
the default traits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .arc import NOISE_END, ROUNDING, Angle, float64, mix
from .common.devices import send
from .common.errors import InputError
from .common.streams import FORMAT as STREAMS
from .estimate import Estimate
from .heads import Head, check_channels
from .objectives import Losses, Objective
from .objectives import objective as named_objective
from .schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .mean_image import MeanImage

__all__ = [
    "DeclaresTraits",
    "Denoise",
    "Denoiser",
    "Traits",
    "angle_range",
    "check_angle",
    "required_shape",
    "traits",
]


class Denoise(Protocol):
    """A denoiser: a callable `(x, angle) -> Estimate`, or `(x, angle, labels) -> Estimate` for one with classes.

        x: points of the arc, shape (B, C, H, W), floating.
        angle: a float for all images, or a tensor with one angle per image, shape (B,), float64, in [0, pi/2].
        labels: classes, int64, shape (B,). They are passed only if there are any, so that a function of two arguments
            is a denoiser.

    It returns estimates of image and noise, in the shape and dtype of x. Any function is a denoiser. One that is not
    defined on the whole arc, or has classes, declares that by an attribute `traits` of type `Traits`
    (`DeclaresTraits`).

    A flow map is a denoiser that also takes the end of the step: `denoise(x, angle, to=a)` with a <= angle returns
    image and noise of the arc through x and the point to which the probability flow moves x at angle a, so that
    cos(a) image + sin(a) noise is that point. Without `to` it is an ordinary denoiser, the case `to = angle`. It
    declares `Traits.maps`.
    """

    def __call__(self, *args: Any, **options: Any) -> Estimate: ...


@dataclass(frozen=True)
class Traits:
    """The properties of a denoiser that samplers, likelihoods and evaluation use; the defaults are a bare function's.

    Attributes:
        smallest_angle, largest_angle: the interval of angles in which both estimates are defined, within [0, pi/2].
            Grids start at `largest_angle`, and never evaluate below `smallest_angle`.
        shape: (C, H, W) of the images, if known.
        classes: number of labels; None without labels. The label `classes` itself means "no label".
        class_names: the names of the classes by label; empty where they have none.
        unlabelled: whether images without a label can be sampled (some labels were dropped in training).
        schedule: the training schedule, if there is one.
        device: device of the network; None for a function that computes on the device of its input.
        evaluations: network evaluations per call and image: 2 under classifier-free guidance.
        checkpoint: the checkpoint folder of the weights, if there is one; grids tuned for it are stored there.
        altered: how the flow differs from that of the checkpoint, exactly ("guided by 1.5"); None if it does not.
            Grids that were tuned for the checkpoint are not valid for an altered flow.
        maps: whether the denoiser is a flow map, which takes the end of a step, `to`.
        reverses: whether the steps of a flow map may also go towards the noise.
        streams: the format of the random streams from which the noise of a seed is drawn (`common.streams`).
        mean_image: the image estimate at pi/2, by class, which samplers then need not evaluate; None if it is unknown.
    """

    smallest_angle: float = 0.0
    largest_angle: float = NOISE_END
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    unlabelled: bool = True
    schedule: Schedule | None = None
    device: torch.device | None = None
    evaluations: int = 1
    checkpoint: Path | None = None
    altered: str | None = None
    maps: bool = False
    reverses: bool = False
    streams: int = STREAMS
    mean_image: MeanImage | None = None

    def __post_init__(self) -> None:
        if self.mean_image is None:
            return
        if not are_mean_images(self.mean_image.shape, self.shape, self.classes, self.unlabelled):
            expected = mean_images_of(self.classes, self.unlabelled)
            raise InputError(
                f"a denoiser of images of shape {self.shape} with {self.classes or 'no'} classes has mean images of "
                f"shape ({expected}, C, H, W), one per class and one without a label, got {self.mean_image.shape}"
            )


def mean_images_of(classes: int | None, unlabelled: bool) -> int:
    """The number of mean images of a denoiser: one per class, and one for images without a label."""
    return 1 if classes is None else classes + unlabelled


def are_mean_images(given: Sequence[int], shape: Sequence[int] | None, classes: int | None, unlabelled: bool) -> bool:
    """Whether a tensor of the shape `given` can hold the mean images of a denoiser of images of shape (C, H, W)."""
    size = given[1:] if shape is None else shape
    return len(given) == 4 and list(given) == [mean_images_of(classes, unlabelled), *size]


class DeclaresTraits(Denoise, Protocol):
    """A denoiser that declares its traits, by a property or an attribute."""

    @property
    def traits(self) -> Traits: ...


DEFAULT_PROJECTION = "velocity"
"""The projection of a loaded network whose two estimates disagree (docs/residual.md)."""

_TRAITS = tuple(field.name for field in fields(Traits))


def traits(denoise: Denoise) -> Traits:
    """The traits of a denoiser: its attribute `traits`, or the defaults.

    Version 0.1 read each trait as an attribute of the denoiser (`largest_angle`, `shape`, ...). Without an attribute
    `traits` these are still used, with a DeprecationWarning.

    Raises:
        InputError: for an attribute `traits` of another type.
    """
    declared = getattr(denoise, "traits", None)
    if isinstance(declared, Traits):
        return declared
    if declared is not None:
        kind = type(declared).__name__
        raise InputError(f"the attribute 'traits' of a denoiser is a {kind}: declare traits = quarterarc.Traits(...)")
    old = {name: getattr(denoise, name) for name in _TRAITS if hasattr(denoise, name)}
    if old:
        warnings.warn(
            f"attributes {', '.join(old)} of a denoiser are deprecated: declare traits = quarterarc.Traits(...)",
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
        raise InputError("the denoiser does not declare the shape of its images: give shape=(C, H, W)")
    channels, height, width = known
    return channels, height, width


def check_angle(angle: Angle, defined: tuple[float, float], what: str) -> None:
    """Raise an InputError if an angle lies outside those at which `what` is defined."""
    if isinstance(angle, Tensor):
        if angle.device.type != "cpu":
            return  # reading values waits for the device
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
            0..1000, labels int64 of shape (B,) or None; returns `head.channels(C)` channels. That of a flow map is
            called as `network(x, time, labels, span)`, with the span of the jump, 0..1000 for 0..pi/2, like the time.
        schedule: maps the angle to the training step.
        head: the meaning of the output channels.
        shape: (C, H, W) of the training images, if known.
        classes: number of labels; the label `classes` itself means "no label".
        precision: dtype of autocast for the network (torch.bfloat16); estimates have the dtype of x in any case.
        time_shift: offset added to the time; -1 for networks that number DDPM's steps from 0. The time is clamped at 0.
        time_scale: time per training step; 1000/T if None, 1 for networks that count steps.
        clock: the schedule whose steps the network's time counts, for a network that was trained on another schedule
            before; None for `schedule`. Beyond its last angle the time is the last one.
        unlabelled: whether the network can be evaluated without labels, because some were dropped in training. If not,
            a denoiser with classes raises an InputError without labels.
        projection: the `keep` of `Estimate.projected` for a head whose two estimates may disagree; None leaves both
            unchanged.
        checkpoint: the checkpoint folder of the weights, if there is one.
        altered, streams, mean_image: as in `Traits`; the mean image is that of the weights, and of no others.
        class_names: the names of the classes by label; empty where they have none.
        maps: whether it is a flow map.
        reverses: whether the steps of the map may also go towards the noise.
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
    streams: int = STREAMS
    class_names: tuple[str, ...] = ()
    maps: bool = False
    reverses: bool = False
    clock: Schedule | None = None
    mean_image: MeanImage | None = None

    @property
    def traits(self) -> Traits:
        """Angles, image shape, classes, schedule, device, checkpoint and mean image of this denoiser.

        A mean image of other classes or another shape, as after `replace(denoise, classes=...)`, is not declared.
        """
        mean = self.mean_image
        if mean is not None and not are_mean_images(mean.shape, self.shape, self.classes, self.unlabelled):
            mean = None
        return Traits(
            smallest_angle=self.smallest_angle,
            largest_angle=self.largest_angle,
            shape=self.shape,
            classes=self.classes,
            class_names=self.class_names,
            unlabelled=self.unlabelled,
            schedule=self.schedule,
            device=self.device,
            checkpoint=self.checkpoint,
            altered=self.altered,
            maps=self.maps,
            reverses=self.reverses,
            streams=self.streams,
            mean_image=mean,
        )

    @cached_property
    def largest_angle(self) -> float:
        """The schedule's last angle; for a head that is undefined at pi/2 the last angle below pi/2."""
        if self.head.at_noise or self.schedule.end < NOISE_END:
            return self.schedule.end
        return self.schedule.angle(self.schedule.steps - 1.0)

    @cached_property
    def smallest_angle(self) -> float:
        """0; for a head that is undefined at 0 the angle of the first training step."""
        return 0.0 if self.head.at_image else self.schedule.angle(1.0)

    @property
    def device(self) -> torch.device:
        """Device of the network; the CPU for a network without weights."""
        weight = self._weight()
        return torch.device("cpu") if weight is None else weight.device

    def __call__(
        self,
        x: Tensor,
        angle: Angle,
        labels: Tensor | None = None,
        to: Angle | None = None,
        augmentation: Tensor | None = None,
    ) -> Estimate:
        """Estimate image and noise.

        Args:
            x: points of the arc, shape (B, C, H, W).
            angle: one for all images, or one per image, shape (B,), within `smallest_angle`..`largest_angle`.
            labels: classes, int64, shape (B,), for a network with classes.
            to: for a flow map, the end of the step, at most the angle unless the map `reverses`; one for all images, or
                one per image.
            augmentation: in training, the parameters by which the images were augmented, for a network that takes them.

        Returns:
            The estimate, in the dtype of x.

        Raises:
            InputError: for an angle outside the range, the end of a step above its angle or given to a denoiser that is
                not a flow map, a network whose output channels do not fit the head, or missing
                labels if the network was trained with a label for every image.
        """
        if labels is None and self.classes is not None and not self.unlabelled:
            raise InputError(
                f"the denoiser was trained with one of the labels 0..{self.classes - 1} for every image: give labels"
            )
        what = f"the head '{self.head.name}' on the schedule '{self.schedule.name}'"
        check_angle(angle, (self.smallest_angle, self.largest_angle), what)
        weight = self._weight()
        dtype = x.dtype if weight is None else weight.dtype
        arguments = [self._time(angle, x.device), labels]
        if self.maps:
            arguments.append(_span(angle, angle if to is None else to, x.device, self.reverses))
        elif to is not None:
            raise InputError("the end of a step, `to`, is for flow maps, and this denoiser estimates at one angle")
        given = {} if augmentation is None else {"augmentation": augmentation}
        cast = torch.autocast(x.device.type, self.precision) if self.precision else nullcontext()
        with cast:
            output = self.network(x.to(dtype), *arguments, **given)
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
        augmentation: Tensor | None = None,
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
            augmentation: the parameters by which the images were augmented, for a network that takes them.

        Raises:
            InputError: for an unknown objective, or one that does not return `Losses` with one total per image.
        """
        if objective is None or isinstance(objective, str):
            objective = named_objective(objective or self.head.objective)
        angle = self.schedule.angle(times)
        x = mix(image, noise, angle)
        estimate = self(x, angle, labels, augmentation=augmentation)
        losses = objective(estimate, image, noise, x, times, self.schedule)
        if not isinstance(losses, Losses) or losses.total.shape != image.shape[:1]:
            raise InputError(
                f"the objective {objective!r} does not return quarterarc.objectives.Losses with a total of shape "
                f"({len(image)},), one per image"
            )
        return losses

    def _weight(self) -> Tensor | None:
        """The network's first weight, for dtype and device; None for a function or a module without weights."""
        return next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None

    def _time(self, angle: Angle, device: torch.device) -> Tensor:
        """The network's time at an angle: float32 of shape () or (B,) on a device."""
        table = self.schedule
        if self.clock is not None:
            table = self.clock
            angle = angle.clamp(max=table.end) if isinstance(angle, Tensor) else min(angle, table.end)
        scale = 1000.0 / table.steps if self.time_scale is None else self.time_scale
        time = table.time(angle) * scale + self.time_shift
        if isinstance(time, Tensor):
            return send(time.to(torch.float32).clamp(min=0.0), device)
        return torch.full((), max(time, 0.0), dtype=torch.float32, device=device)  # filled in there, without a copy

    def to(self, device: torch.device | str) -> Denoiser:
        """A copy whose network is moved to another device."""
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


def _span(angle: Angle, to: Angle, device: torch.device, reverses: bool) -> Tensor:
    """The length of the step from `angle` to `to`, in 0..1000 for 0..pi/2: float32, shape () or (B,).

    It is negative towards the noise, which is an error unless the map `reverses`.
    """
    scale, least = 1000.0 / NOISE_END, -math.inf if reverses else 0.0
    if not isinstance(angle, Tensor) and not isinstance(to, Tensor):
        if not reverses:
            _check_towards(angle - to, angle, to)
        return torch.full((), max(angle - to, least) * scale, dtype=torch.float32, device=device)  # without a copy
    span = float64(angle) - float64(to)
    if span.device.type == "cpu" and not reverses:  # reading values of another device waits for it
        starts, ends = (float64(value).expand(span.shape).reshape(-1) for value in (angle, to))
        worst = int(span.argmin())
        _check_towards(float(span.min()), float(starts[worst]), float(ends[worst]))
    return send((span * scale).clamp(min=least), device, torch.float32)


def _check_towards(span: float, angle: float, to: float) -> None:
    if span < -ROUNDING:
        raise InputError(
            f"this flow map moves towards the image alone: the step from angle {angle:.6g} to {to:.6g} moves away from "
            "it (`quarterarc distill` with teacher.reversed=0.5 trains both ways)"
        )


def call(denoise: Denoise, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
    """Evaluate a denoiser, passing labels only if there are any, so that a bare `(x, angle)` function works.

    Args:
        denoise: a denoiser.
        x, angle, labels: as for `Denoise`.
        to: the end of the step, which is passed to a flow map alone.
    """
    further = () if labels is None else (labels,)
    if to is not None and traits(denoise).maps:
        return denoise(x, angle, *further, to=to)
    return denoise(x, angle, *further)
