"""Heads: the meaning of a network's output channels.

A head reads the output of a network, together with x and the angle, as an `Estimate`, and names the objective by which
the papers train it.

| head     | channels | image                | noise                | undefined at | objective |
|----------|----------|----------------------|----------------------|--------------|-----------|
| noise    | C        | (x - sin noise)/cos  | the output           | pi/2         | noise     |
| image    | C        | the output           | (x - cos image)/sin  | 0            | image     |
| velocity | C        | cos x - sin v        | sin x + cos v        | -            | velocity  |
| both     | 2C       | the output           | the output           | -            | both      |
| gated    | 2C + 1   | from a mean of the velocities of both outputs, one gate per pixel | | - | both |
| mean     | C        | from the posterior mean of one training step | from the image | 0 | mean    |

An `Extended` head adds channels to any other one, and has its name with a suffix: `+variance` (Nichol & Dhariwal 2021)
and `+log-variance` (Ho et al. 2020) C channels for a learned variance, `+tangent` as many channels as the head has, for
the tangent where the jump of a flow map starts.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from .arc import Angle, cos_sin, float64, rotate, spread
from .common.errors import InputError
from .common.registry import Registry, check_definition
from .common.text import one_line
from .estimate import Estimate
from .posterior import mean_weights
from .schedules import Schedule

__all__ = [
    "HEADS",
    "Both",
    "Extended",
    "Gated",
    "Head",
    "Image",
    "LearnedVariance",
    "LogVariance",
    "Mean",
    "Noise",
    "Tangent",
    "Velocity",
    "head",
]


class Head(ABC):
    """The meaning of a network's output. A subclass implements `read`, and declares what differs from the defaults.

    Args:
        schedule: the training schedule, for heads that depend on the training step.

    Attributes:
        name: the name or import path by which `head` finds it.
        objective: name of the objective by which the papers train this head (`quarterarc.objectives.OBJECTIVES`).
        at_noise: whether both estimates are defined at pi/2.
        at_image: whether both estimates are defined at 0.
        agrees: whether x = cos image + sin noise holds for every output, because one estimate is derived from the
            other. If not, sampling projects the estimates (`Estimate.projected`).
    """

    name: str = "custom"
    objective: str = "both"
    at_noise: bool = True
    at_image: bool = True
    agrees: bool = False

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = schedule

    def channels(self, image_channels: int) -> int:
        """Number of output channels of the network for images of `image_channels` channels; the same by default."""
        return image_channels

    @abstractmethod
    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        """The estimate of an output.

        Args:
            output: the network's output, shape (B, channels, H, W), in the dtype of x.
            x: points of the arc, shape (B, C, H, W).
            angle: their angle, one for all images or one per image, shape (B,).
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Noise(Head):
    """The network estimates the noise (DDPM, DDIM). Undefined at pi/2, where x does not determine the image."""

    name = "noise"
    objective = "noise"
    at_noise = False
    agrees = True

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        return Estimate((x - s * output) / c, output)


class Image(Head):
    """The network estimates the image (Cold Diffusion). Undefined at 0, where x does not determine the noise."""

    name = "image"
    objective = "image"
    at_image = False
    agrees = True

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        return Estimate(output, (x - c * output) / s)


class Velocity(Head):
    """The network estimates the velocity dx/dangle (Salimans & Ho 2022)."""

    name = "velocity"
    objective = "velocity"
    agrees = True

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        return Estimate(*rotate(x, output, -angle))


class Both(Head):
    """The network estimates image and noise side by side (Zhang et al. 2023, section 3.2), image channels first."""

    name = "both"

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        image, noise = output.chunk(2, dim=1)
        return Estimate(image, noise)


class Gated(Head):
    """Both estimates, and in the last channel one gate per pixel that weighs them (Benny & Wolf 2022).

    Each estimate alone implies a velocity: (cos x - image)/sin and (noise - sin x)/cos. The gate g weighs the two by
    p sin^2 : q cos^2 with p = sigmoid(g), q = 1 - p. The factors sin^2 and cos^2 cancel both divisions: at each end of
    the arc the well conditioned estimate takes over for every gate. At g = 0 the result is the velocity of `Both`.
    Image and noise are derived from this one velocity, so that they always agree with x.
    """

    name = "gated"
    agrees = True

    LARGEST_GATE = 15.0  # keeps p and q above 3e-7, where a division in float32 is still accurate

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels + 1

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        c, s = cos_sin(angle, x)
        image, noise = output[:, :-1].chunk(2, dim=1)
        gate = output[:, -1:].clamp(-self.LARGEST_GATE, self.LARGEST_GATE)
        p, q = gate.sigmoid(), (-gate).sigmoid()
        v = (s * p * (c * x - image) + c * q * (noise - s * x)) / (s * s * p + c * c * q)
        return Estimate(*rotate(x, v, -angle))


class Mean(Head):
    """The network estimates mu-tilde, the mean of one training step t -> t - 1 (Ho et al. 2020, Eq. 7 and 8)."""

    name = "mean"
    objective = "mean"
    at_image = False
    agrees = True
    schedule: Schedule

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)

    def before(self, angle: Angle) -> Angle:
        """The angle one training step closer to the image."""
        times = self.schedule.time(float64(angle)) - 1.0
        return self.schedule.angle(times.clamp(min=0.0))

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        image_weight, x_weight = mean_weights(angle, self.before(angle))
        c, s = cos_sin(angle, x)
        image = (output - spread(x_weight, x) * x) / spread(image_weight, x)
        return Estimate(image, (x - c * image) / s)


class Extended(Head):
    """A head with further channels after those of another head.

    Args:
        inner: the head of the first channels.

    Attributes:
        SUFFIX: what the name of the inner head is extended by.
    """

    SUFFIX: ClassVar[str]

    def __init__(self, inner: Head) -> None:
        super().__init__(inner.schedule)
        self.inner = inner
        self.name, self.objective = inner.name + self.SUFFIX, inner.objective
        self.at_noise, self.at_image, self.agrees = inner.at_noise, inner.at_image, inner.agrees

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


class LearnedVariance(Extended):
    """A head with C more channels in [-1, 1] for a learned variance (Nichol & Dhariwal 2021, section 3.1).

    They place the variance of DDPM's step between its small and its large one.
    """

    SUFFIX = "+variance"

    def channels(self, image_channels: int) -> int:
        return self.inner.channels(image_channels) + image_channels

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        inner, variance = output.split([output.shape[1] - x.shape[1], x.shape[1]], dim=1)
        return self._with_variance(self.inner.read(inner, x, angle), variance)

    def _with_variance(self, estimate: Estimate, output: Tensor) -> Estimate:
        return replace(estimate, variance_fraction=(output + 1.0) / 2.0)


class LogVariance(LearnedVariance):
    """A head with C more channels that are the log variance of DDPM's step (Ho et al. 2020, Table 2: learned Sigma)."""

    SUFFIX = "+log-variance"

    def _with_variance(self, estimate: Estimate, output: Tensor) -> Estimate:
        return replace(estimate, log_variance=output)


class Tangent(Extended):
    """A head of flow maps that also estimates the tangent: what a denoiser estimates where the jump starts.

    The objective `flow-map` trains it on every example, and steps along it.
    """

    SUFFIX = "+tangent"

    def channels(self, image_channels: int) -> int:
        return 2 * self.inner.channels(image_channels)

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        jump, tangent = output.chunk(2, dim=1)
        return replace(self.inner.read(jump, x, angle), tangent=self.inner.read(tangent, x, angle))


_SUFFIXES: dict[str, Callable[[Head], Extended]] = {
    kind.SUFFIX: kind for kind in (LearnedVariance, LogVariance, Tangent)
}
"""The extended heads by the suffix of their names."""


def learns_variance(name: str) -> bool:
    """Whether the head of this name also learns the variance of DDPM's step."""
    return name.endswith((LearnedVariance.SUFFIX, LogVariance.SUFFIX))


def estimates_tangent(name: str) -> bool:
    """Whether the head of this name also estimates the tangent where a jump starts."""
    return name.endswith(Tangent.SUFFIX)


def _parts(name: str) -> tuple[str, Callable[[Head], Extended] | None]:
    """The name without a suffix, and the extended head of the suffix; None without one."""
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), kind
    return name, None


HeadFactory = Callable[[Schedule], Head]


class _HeadRegistry(Registry[HeadFactory]):
    """A registry whose `lookup` accepts the suffix of an extended head after every name."""

    def names(self) -> list[str]:
        return [*self, *(name + suffix for suffix in _SUFFIXES for name in self)]

    def lookup(self, name: str) -> HeadFactory:
        plain, kind = _parts(str(name))
        factory = super().lookup(plain)
        return factory if kind is None else lambda schedule: kind(factory(schedule))

    def require(self, name: str) -> None:
        plain, _ = _parts(str(name))
        if plain not in self:
            super().require(plain if ":" in plain else name)


def _check_factory(entry: Any, path: str) -> None:
    check_definition(entry, path, "head")
    if inspect.isclass(entry) and not issubclass(entry, Head):
        raise InputError(f"the head '{path}' is not a Head: derive it from quarterarc.heads.Head")
    if inspect.isabstract(entry):
        missing = ", ".join(sorted(entry.__abstractmethods__))
        raise InputError(f"the head '{path}' does not implement {missing}")


HEADS: Registry[HeadFactory] = _HeadRegistry(
    "head",
    {"noise": Noise, "image": Image, "velocity": Velocity, "both": Both, "gated": Gated, "mean": Mean},
    _check_factory,
)
"""The heads by name. An entry is called with the training schedule and returns a `Head`: a subclass, or a function."""


def head(name: str, schedule: Schedule) -> Head:
    """The head of a name or import path.

    Args:
        name: a name of `HEADS`, or an import path `package.module:Head`, with the suffix `+variance` or `+log-variance`
            for a learned variance, or `+tangent`: "both", "noise+variance", "both+tangent".
        schedule: the training schedule, from which `mean` derives the training step.

    Returns:
        The head, with `name` as its name.

    Raises:
        InputError: for an unknown name, or an entry that does not return a `Head`.
    """
    plain, kind = _parts(str(name))
    factory = HEADS.lookup(plain)
    try:
        built = factory(schedule)
    except InputError:
        raise
    except Exception as error:  # code from outside this package
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"the head '{plain}' cannot be built from a schedule: {reason}") from error
    if not isinstance(built, Head):
        raise InputError(f"the head '{plain}' is a {type(built).__name__}: derive it from quarterarc.heads.Head")
    built.name = plain
    return built if kind is None else kind(built)


def check_channels(output: Tensor, x: Tensor, head: Head) -> None:
    """Raise an InputError unless a network's output has the channels that the head reads."""
    if output.shape[1] != head.channels(x.shape[1]):
        raise InputError(
            f"the head '{head.name}' reads {head.channels(x.shape[1])} channels for images of {x.shape[1]}, "
            f"the network has {output.shape[1]} output channels: give a network with {head.channels(x.shape[1])}"
        )
