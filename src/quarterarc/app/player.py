"""What the page makes: settings within bounds, and the images and the trajectory that they give."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.memory import memory_checked
from ..common.text import counted
from ..data.pixels import levels, to_uint8
from ..denoiser import Denoise, required_shape, traits
from ..edit import inpaint
from ..samplers import SAMPLERS
from ..sampling.generation import first_noise
from ..sampling.plans import DEFAULT_SAMPLER, DEFAULT_STEPS, Sampling
from .training import TrainingImages

__all__ = ["Frame", "Player", "Point", "Settings"]

MOST_IMAGES, MOST_STEPS, MOST_GUIDANCE = 16, 100, 10.0
"""Upper limits of one request."""
MOST_PIXELS = 2**20
"""Pixels of all images of one request together, height times width; one image may have more."""
MOST_POINTS = 24
"""Angles of the trajectory that are shown, evenly spaced over its steps with the first and the last one."""
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Settings:
    """A request of a visitor.

    Attributes:
        seeds: one per image.
        steps: steps of the sampler.
        sampler: its registered name.
        label: the number of the class; None for none.
        guidance: scale of classifier-free guidance; None for none.
    """

    seeds: range
    steps: int
    sampler: str
    label: int | None = None
    guidance: float | None = None

    @property
    def labels(self) -> list[int] | None:
        """The label of each image."""
        return None if self.label is None else [self.label] * len(self.seeds)

    @property
    def sampling(self) -> Sampling:
        """The request to sample."""
        return Sampling(self.sampler, self.steps, guidance=self.guidance)

    @property
    def command(self) -> str:
        """The command that makes the same images of the model `RUN`."""
        first, last = self.seeds[0], self.seeds[-1]
        words = ["--seeds", str(first) if first == last else f"{first}-{last}"]
        words += ["--steps", str(self.steps), "--sampler", self.sampler]
        words += [] if self.label is None else ["--labels", str(self.label)]
        words += [] if self.guidance is None else ["--guidance", f"{self.guidance:g}"]
        return f"quarterarc sample RUN --out made {shlex.join(words)}"


@dataclass(frozen=True, eq=False)
class Point:
    """One angle of the trajectory of the first image.

    Attributes:
        angle: the angle.
        x: the point of the arc, uint8 (C, H, W), clamped to the range of images.
        estimate: the image estimate there; None at the last angle, where x is the image.
    """

    angle: float
    x: Tensor
    estimate: Tensor | None


@dataclass(frozen=True, eq=False)
class Frame:
    """What is known at one moment of sampling.

    Attributes:
        done: steps done.
        steps: steps in all.
        points: the trajectory of the first image so far.
        images: uint8 (B, C, H, W) once all steps are done; None before.
        nfe: network evaluations per image so far.
    """

    done: int
    steps: int
    points: Sequence[Point]
    images: Tensor | None
    nfe: float


@dataclass(frozen=True, eq=False)
class Player:
    """A denoiser with the bounds of what visitors may ask of it.

    Attributes:
        denoise: a denoiser that declares the shape of its images.
        name: its name, for the title.
        training: the images that it was trained on, which visitors may start from; None for none.

    Raises:
        InputError: for images that have no PNG, of more than 4 channels, or an undeclared shape.
    """

    denoise: Denoise
    name: str = "the model"
    training: TrainingImages | None = None

    def __post_init__(self) -> None:
        channels = self.shape[0]
        if not 1 <= channels <= 4:
            raise InputError(f"images of {channels} channels cannot be shown on a page: 1 to 4 are expected")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = required_shape(self.denoise, None)
        return channels, height, width

    @property
    def most_images(self) -> int:
        """The most images of one request."""
        _, height, width = self.shape
        return max(1, min(MOST_IMAGES, MOST_PIXELS // (height * width)))

    @property
    def samplers(self) -> list[str]:
        """The names of the samplers; `jump` is one for a flow map alone."""
        return [name for name in SAMPLERS if name != "jump" or traits(self.denoise).maps]

    @property
    def default_sampler(self) -> str:
        """The sampler of `quarterarc sample`."""
        return "jump" if traits(self.denoise).maps else DEFAULT_SAMPLER

    @property
    def default_steps(self) -> int:
        """The number of steps of `quarterarc sample`."""
        return SAMPLERS[self.default_sampler]().default_steps or DEFAULT_STEPS

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Name and number of each class, and -1 for none where the model has images without one; empty without."""
        declared = traits(self.denoise)
        if declared.classes is None:
            return []
        names = declared.class_names or tuple(map(str, range(declared.classes)))
        anything = [("any", -1)] if declared.unlabelled else []  # last: its images are the worst of most models
        return [*zip(names, range(declared.classes), strict=True), *anything]

    @property
    def guided(self) -> bool:
        """Whether the model takes guidance: it has classes, and was trained with some labels dropped."""
        declared = traits(self.denoise)
        return declared.classes is not None and declared.unlabelled

    def settings(
        self, seed: Any, images: Any, steps: Any, sampler: Any, label: Any = -1, guidance: Any = 1.0
    ) -> Settings:
        """The settings of a visitor; values come from outside.

        Args:
            seed: seed of the first image; the others have the next ones.
            images: number of images.
            steps: number of steps.
            sampler: the registered name of a sampler.
            label: number of a class; -1 for none.
            guidance: scale of guidance; 1 for none.

        Raises:
            InputError: for a value out of bounds, or of another type.
        """
        count = _whole("Images", images, 1, self.most_images)
        first = _whole("Seed", seed, 0, LARGEST_SEED - count + 1)
        number = _whole("Steps", steps, 1, MOST_STEPS)
        if sampler not in self.samplers:  # an import path, which the command line takes, would run code
            raise InputError(f"Sampler is one of {', '.join(self.samplers)}, got {str(sampler)[:40]!r}")
        labels = [value for _, value in self.classes] or [-1]
        chosen = _whole("Class", label, min(labels), max(labels))
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= MOST_GUIDANCE:
            raise InputError(f"Guidance is a number from 0 to {MOST_GUIDANCE:g}, got {str(guidance)[:40]!r}")
        scale = None if chosen < 0 or guidance == 1 or not self.guided else float(guidance)
        return Settings(range(first, first + count), number, sampler, None if chosen < 0 else chosen, scale)

    def frames(self, settings: Settings) -> Iterator[Frame]:
        """Sample; yield what is known after each step, and at the end the images of `quarterarc sample`.

        Raises:
            InputError: for settings that do not go together, images with NaN or infinity, or too little memory.
        """
        plan = settings.sampling.plan(self.denoise)
        steps = len(plan.angles) - 1  # with a free first one
        shown = {*np.linspace(0, steps, min(steps + 1, MOST_POINTS)).round().astype(int).tolist()}
        points: list[Point] = []
        with self._memory(settings):
            noise = first_noise(self.denoise, settings.seeds)
            evaluator, states = plan.states(noise, settings.labels, settings.seeds)
            x = noise
            for place, state in enumerate(states):
                x = state.x
                if place in shown:
                    estimate = None if state.estimate is None else _pixels(state.estimate.image)
                    points.append(Point(state.angle, _pixels(x), estimate))
                images = to_uint8(x).cpu() if place == steps else None
                yield Frame(place, steps, tuple(points), images, evaluator.nfe)

    def images(self, settings: Settings) -> Tensor:
        """The images of `frames`, uint8 (B, C, H, W)."""
        *_, last = self.frames(settings)
        assert last.images is not None
        return last.images

    def training_picture(self, number: Any) -> Tensor:
        """A training image, uint8 (C, H, W).

        Args:
            number: its number; the value comes from outside.

        Raises:
            InputError: for a number out of bounds, and an image that cannot be read.
        """
        if self.training is None:
            raise InputError("the training images of this model are not at hand")
        return self.training.picture(_whole("Training image", number, 0, self.training.count - 1))

    def filled(self, picture: Tensor, mask: Tensor, settings: Settings) -> Tensor:
        """Images with new content in a part of a picture, one per seed; uint8 (B, C, H, W).

        Args:
            picture: uint8 (C, H, W).
            mask: true where new content is made, bool (H, W).
            settings: as for `frames`.

        Raises:
            InputError: as for `frames`, and if the mask marks no pixel.
        """
        request = settings.sampling
        if settings.sampler == self.default_sampler:  # no choice of the visitor: inpainting has its own default
            request = replace(request, sampler=None)
        with self._memory(settings):
            result = inpaint(self.denoise, picture, mask, seeds=settings.seeds, sampler=request, labels=settings.labels)
        return to_uint8(result.images).cpu()

    def _memory(self, settings: Settings) -> AbstractContextManager[None]:
        return memory_checked(
            lambda: f"{counted(len(settings.seeds), 'image')} of shape {self.shape}: choose fewer images"
        )


@torch.no_grad()
def _pixels(images: Tensor) -> Tensor:
    """The first image of a batch, uint8 on the CPU."""
    return levels(images[0]).cpu()


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number within bounds; browsers send 3.0 for 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} is a whole number from {low} to {high}, got {str(value)[:40]!r}")
    return value
