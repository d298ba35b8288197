"""Heads: what the output channels of a network mean.

A head says how many channels it needs and reads them, together with x and the angle, as an `Estimate`.

| head     | channels | image                | noise                | not defined at |
|----------|----------|----------------------|----------------------|----------------|
| noise    | C        | (x - sin noise)/cos  | as given             | pi/2           |
| image    | C        | as given             | (x - cos image)/sin  | 0              |
| velocity | C        | cos x - sin v        | sin x + cos v        | -              |
| both     | 2C       | as given             | as given             | -              |
| gated    | 2C + 1   | a learned mean of what the two estimates say, one gate a pixel | | - |
| mean     | C        | from the posterior mean of one training step | from the image | 0 |

`LearnedVariance` adds C channels to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from .arc import Angle, cos_sin, float64, rotate, spread
from .common.errors import InputError, unknown_name
from .estimate import Estimate
from .posterior import mean_weights
from .schedules import Schedule

__all__ = ["HEADS", "Both", "Gated", "Head", "Image", "LearnedVariance", "Mean", "Noise", "Velocity", "head"]


class Head(Protocol):
    """How to read a network's output.

    Attributes:
        name: the name by which `head` finds it.
        at_noise: whether both estimates are defined at pi/2.
        at_image: whether both estimates are defined at 0.
        agrees: whether the two estimates always agree on x, one being derived from the other.
    """

    @property
    def name(self) -> str: ...
    @property
    def at_noise(self) -> bool: ...
    @property
    def at_image(self) -> bool: ...
    @property
    def agrees(self) -> bool: ...

    def channels(self, image_channels: int) -> int:
        """How many channels the network puts out for images of `image_channels`."""
        ...

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        """The estimate that `output`, shape (B, channels, H, W), means at x, shape (B, C, H, W), and `angle`."""
        ...


@dataclass(frozen=True)
class _OneEstimate:
    """A head whose output has the image's own channels, and estimates one of the two."""

    agrees = True

    def channels(self, image_channels: int) -> int:
        return image_channels


@dataclass(frozen=True)
class Noise(_OneEstimate):
    """The network estimates the noise (DDPM, DDIM); at pi/2 that says nothing of the image."""

    name = "noise"
    at_noise = False
    at_image = True

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        return Estimate((x - s * output) / c, output)


@dataclass(frozen=True)
class Image(_OneEstimate):
    """The network estimates the image (Cold Diffusion); at 0 that says nothing of the noise."""

    name = "image"
    at_noise = True
    at_image = False

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        return Estimate(output, (x - c * output) / s)


@dataclass(frozen=True)
class Velocity(_OneEstimate):
    """The network estimates the tangent dx/dangle (Salimans & Ho 2022)."""

    name = "velocity"
    at_noise = True
    at_image = True

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        return Estimate(*rotate(x, output, -angle))


@dataclass(frozen=True)
class Both:
    """The network estimates image and noise side by side (Zhang et al. 2023, section 3.2), image channels first."""

    name = "both"
    at_noise = True
    at_image = True
    agrees = False

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        image, noise = output.chunk(2, dim=1)
        return Estimate(image, noise)


@dataclass(frozen=True)
class Gated:
    """Both estimates and, in the last channel, a gate a pixel that says which to trust (Benny & Wolf 2022).

    Each estimate alone implies a velocity: (cos x - image)/sin and (noise - sin x)/cos. The gate g weighs them by
    p sin^2 : q cos^2 with p = sigmoid(g), q = 1 - p. The angle is part of the weight so that neither division
    survives: at each end of the arc the well conditioned estimate takes over, whatever the gate says. An open gate,
    g = 0, is the velocity of `Both`. Image and noise are read off that one velocity, so they always agree with x.
    """

    name = "gated"
    at_noise = True
    at_image = True
    agrees = True

    LARGEST_GATE = 15.0  # keeps p and q above 3e-7, where float32 still divides safely

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels + 1

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        image, noise = output[:, :-1].chunk(2, dim=1)
        gate = output[:, -1:].clamp(-self.LARGEST_GATE, self.LARGEST_GATE)
        p, q = gate.sigmoid(), (-gate).sigmoid()
        v = (s * p * (c * x - image) + c * q * (noise - s * x)) / (s * s * p + c * c * q)
        return Estimate(*rotate(x, v, -angle))


@dataclass(frozen=True)
class Mean(_OneEstimate):
    """The network estimates mu-tilde, the mean of one training step t -> t - 1 (Ho et al. 2020, Eq. 7 and 8)."""

    schedule: Schedule

    name = "mean"
    at_noise = True
    at_image = False

    def before(self, angle: Angle) -> Angle:
        """The angle one training step closer to the image."""
        times = self.schedule.time(float64(angle)) - 1.0
        return self.schedule.angle(times.clamp(min=0.0))

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        image_weight, x_weight = mean_weights(angle, self.before(angle))
        c, s = cos_sin(angle, x)
        image = (output - spread(x_weight, x) * x) / spread(image_weight, x)
        return Estimate(image, (x - c * image) / s)


@dataclass(frozen=True)
class LearnedVariance:
    """Any head with a learned variance on top, C channels in [-1, 1] (Nichol & Dhariwal 2021, section 3.1)."""

    inner: Head

    @property
    def name(self) -> str:
        return f"{self.inner.name}+variance"

    @property
    def at_noise(self) -> bool:
        return self.inner.at_noise

    @property
    def at_image(self) -> bool:
        return self.inner.at_image

    @property
    def agrees(self) -> bool:
        return self.inner.agrees

    def channels(self, image_channels: int) -> int:
        return self.inner.channels(image_channels) + image_channels

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        inner, fraction = output.split([output.shape[1] - x.shape[1], x.shape[1]], dim=1)
        return replace(self.inner.read(inner, x, angle), variance_fraction=(fraction + 1.0) / 2.0)


_HEADS: dict[str, Callable[[Schedule], Head]] = {
    "noise": lambda schedule: Noise(),
    "image": lambda schedule: Image(),
    "velocity": lambda schedule: Velocity(),
    "both": lambda schedule: Both(),
    "gated": lambda schedule: Gated(),
    "mean": Mean,
}
HEADS: tuple[str, ...] = (*_HEADS, *(f"{name}+variance" for name in _HEADS))
"""The names that `head` knows."""


def head(name: str, schedule: Schedule) -> Head:
    """A head by name, `+variance` for a learned variance on top: "both", "noise+variance".

    Args:
        name: one of `HEADS`.
        schedule: what `mean` takes its training step from.

    Raises:
        InputError: for an unknown name.
    """
    plain, plus, _ = name.partition("+variance")
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    inner = _HEADS[plain](schedule)
    return LearnedVariance(inner) if plus else inner


def check_channels(output: Tensor, x: Tensor, head: Head) -> None:
    """Raise an InputError unless a network's output has the channels that the head reads."""
    if output.shape[1] != head.channels(x.shape[1]):
        raise InputError(
            f"the head '{head.name}' reads {head.channels(x.shape[1])} channels for images of {x.shape[1]}, "
            f"the network put out {output.shape[1]}: give a network with that many output channels"
        )
