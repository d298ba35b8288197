"""How images are sampled: the request (`Sampling`), and its resolution for one denoiser (`Plan`).

A request is resolved once, then passed down: names are looked up, defaults filled in, and the grid is checked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .. import grids
from ..arc import NOISE_END, ROUNDING
from ..common.devices import send
from ..common.errors import InputError, unknown_name
from ..common.streams import Purpose, streams
from ..common.text import counted, one_line
from ..denoiser import Denoise, traits
from ..mean_image import MeanImage
from ..samplers import Draw, Sampler, State, current_options, described, is_plain
from ..samplers import sampler as named_sampler
from ..wrappers import Evaluator, Guided, project
from .tuned_grids import tuned_grid

__all__ = [
    "DEFAULT_SAMPLER",
    "DEFAULT_STEPS",
    "GridLike",
    "Plan",
    "Sampling",
    "check_seeds",
    "label_tensor",
    "labels_in_turn",
    "labels_of_images",
    "note_missing_labels",
    "numbered_labels",
    "resolve_grid",
]

logger = logging.getLogger("quarterarc")

DEFAULT_SAMPLER = "multistep"
DEFAULT_STEPS = 10

GridLike: TypeAlias = str | Sequence[float] | np.ndarray
"""A grid by name, or its angles."""


@dataclass(frozen=True)
class Sampling:
    """A request to sample: the arguments that `sample`, `generate`, `evaluate` and the command line have in common.

    Every function that takes `sampler` also takes a `Sampling` in its place: `sample(denoise, noise, Sampling("ddim",
    50))`.

    Attributes:
        sampler: a registered name of `quarterarc.samplers.SAMPLERS`, an import path, or a sampler; if None
            `multistep`, and `jump` for a flow map.
        steps: number of steps with an evaluation; 10 if None, or the sampler's own default. A free first one of
            `multistep` is not counted. The cost is `Result.nfe`.
        grid: a name in `quarterarc.grids.GRIDS`, from the denoiser's largest angle to 0; `tuned` for the grid that
            `quarterarc tune` fitted to this network; or the angles themselves. The sampler's default grid if None.
        options: options of the sampler, such as `eta` for `ddim` or `variance` for `ddpm`.
        guidance: scale of classifier-free guidance; None for none.
        projection: the quantity kept where image and noise estimates disagree: `velocity`, `image`, `noise`, or `none`
            to leave both unchanged; None for the denoiser's own.
    """

    sampler: str | Sampler | None = None
    steps: int | None = None
    grid: GridLike | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    projection: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.grid, np.ndarray) and self.grid.ndim:  # arrays have no equality that dataclasses can use
            object.__setattr__(self, "grid", tuple(self.grid.tolist()))

    @classmethod
    def of(cls, sampler: str | Sampler | Sampling | None, *rest: Any) -> Sampling:
        """The request of these arguments, in the order of the fields; `sampler` may be the whole request.

        Raises:
            InputError: if `sampler` is a request and other arguments are given too.
        """
        if not isinstance(sampler, Sampling):
            return cls(sampler, *rest)
        if any(not (value is None or (isinstance(value, Mapping) and not value)) for value in rest):
            raise InputError("a Sampling holds steps, grid and options: give them there, or a sampler's name")
        return sampler

    def denoiser(self, denoise: Denoise) -> Denoise:
        """The denoiser with the projection and the guidance of this request."""
        if self.projection is not None:
            denoise = project(denoise, self.projection)
        return denoise if self.guidance is None else Guided(denoise, self.guidance)

    def plan(self, denoise: Denoise, shape: Sequence[int] | None = None, start: float | None = None) -> Plan:
        """Resolve the request for a denoiser.

        Args:
            denoise: a denoiser.
            shape: (C, H, W) of the images, for the grid `octave`; the denoiser's own if None.
            start: the first angle of the grid; the denoiser's largest angle if None.

        Raises:
            InputError: for an unknown name or option, steps below 1 or in contradiction to the grid, or a grid outside
                the denoiser's angles, or that does not begin at `start`.
        """
        denoise = self.denoiser(denoise)
        name, sampler, options, exact = self._sampler("jump" if traits(denoise).maps else DEFAULT_SAMPLER)
        settings = {"guidance": self.guidance, "projection": self.projection}
        grid, steps = self.grid, self.steps
        if grid is None:
            grid = sampler.default_grid
            steps = sampler.default_steps if steps is None else steps
        if isinstance(grid, str) and grid == "tuned":
            if start is not None:
                raise InputError("a tuned grid begins at the noise: leave out the grid to begin elsewhere")
            if isinstance(self.sampler, Sampler):
                raise InputError(
                    f"a tuned grid needs a sampler's name: give 'multistep' instead of {type(sampler).__name__}"
                )
            tuned = tuned_grid(denoise, name, options, DEFAULT_STEPS if steps is None else steps)
            sampler, angles = tuned.apply(sampler), np.array(tuned.angles)
            settings["tuned_weights"] = tuned.fingerprint
        else:
            sampler, angles, mean = _with_free_start(sampler, denoise, grid, steps, shape, start)
            if mean is not None:
                settings["mean_image"] = mean.fingerprint
        sampler.check(angles)
        settings = {key: value for key, value in settings.items() if value is not None}
        grid_name = grid if isinstance(grid, str) else "explicit"
        return Plan(denoise, sampler, name, options, grid_name, angles, settings, exact)

    def _sampler(self, default: str) -> tuple[str, Sampler, dict[str, Any], bool]:
        """Name, sampler and options, under their current names; whether name and options determine the sampler.

        Args:
            default: the name of the sampler if none is requested.
        """
        if not isinstance(self.sampler, Sampler):
            name = default if self.sampler is None else self.sampler
            options = current_options(name, self.options)
            return name, named_sampler(name, **options), options, is_plain(options)
        if self.options:
            raise InputError(
                f"options ({', '.join(self.options)}) go with a sampler's name; give them to the sampler itself"
            )
        name, options, exact = described(self.sampler)
        return name, self.sampler, options, exact


@dataclass(frozen=True, eq=False)
class Plan:
    """A request resolved for one denoiser: a sampler and the angles of its steps.

    Attributes:
        denoise: the denoiser.
        sampler: the sampler.
        name: the sampler's name; `module:Class` for an object whose class is not registered.
        options: options of the sampler; for an object, the fields that differ from their defaults.
        grid: name of the grid, `tuned`, or `explicit`.
        angles: float64, from the first angle to the last, usually 0.
        further: guidance, projection and the hashes of tuned weights and of the mean image, where there are any.
        exact: whether name and options determine the sampler.
        start: returns the points at the first angle, given the first noise of some seeds, shape (B, C, H, W), and the
            seeds; None for the noise itself.
    """

    denoise: Denoise
    sampler: Sampler
    name: str
    options: dict[str, Any]
    grid: str
    angles: np.ndarray
    further: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    start: Callable[[Tensor, Sequence[int]], Tensor] | None = None

    @property
    def steps(self) -> int:
        """Number of steps that evaluate the denoiser: all but a free first one."""
        return len(self.angles) - 1 - self.sampler.free

    def describe(self) -> dict[str, Any]:
        """The settings as JSON types, sufficient to repeat the sampling by the grid's name if `exact`."""
        declared = traits(self.denoise).streams
        return {
            **self.further,
            **({} if declared == 1 else {"streams": declared}),  # version 0.2 did not record format 1
            "sampler": self.name,
            "options": self.options,
            "grid": self.grid,
            "steps": self.steps,
            "angles": [float(angle) for angle in self.angles],
        }

    def states(
        self, noise: Tensor, labels: Tensor | Sequence[int | str] | None = None, seeds: Sequence[int] | None = None
    ) -> tuple[Evaluator, Iterator[State]]:
        """The states from noise, shape (B, C, H, W), and the evaluator that counts network evaluations.

        Raises:
            InputError: before the first state, if the noise is not floating point, labels or seeds are not one per
                image, or labels are outside the classes.
        """
        check_seeds(seeds)
        given = label_tensor(self.denoise, labels)
        for name, values in (("labels", given), ("seeds", seeds)):
            if values is not None and len(values) != len(noise):
                raise InputError(f"got {counted(len(noise), 'image')} but {len(values)} {name}: give one per image")
        if not noise.is_floating_point():
            raise InputError(f"noise is a floating point tensor, got {noise.dtype}")
        evaluator = Evaluator(self.denoise, None if given is None else send(given, noise.device))
        return evaluator, _without_gradients(
            self.sampler, evaluator, noise, self.angles.tolist(), _draw(seeds, traits(self.denoise).streams)
        )


def check_seeds(seeds: Any) -> None:
    """Raise an InputError unless seeds are None or a sequence, of which a part can be taken."""
    if seeds is not None and not isinstance(seeds, Sequence | np.ndarray):
        raise InputError(f"seeds are a list or a range of whole numbers, one per image, got {seeds!r}: give range(4)")


def label_tensor(denoise: Denoise, labels: Tensor | np.ndarray | Sequence[int | str] | None) -> Tensor | None:
    """Labels, by number or name, as an int64 tensor of shape (B,); None without labels.

    Those in a tensor stay on its device. Only on the CPU are they compared with the classes: reading them waits for
    another device. A denoiser without classes may use any.

    Raises:
        InputError: for labels of another type or shape, or outside the denoiser's classes; the label `classes` is
            among them where it means "no label".
    """
    if labels is None:
        return None
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(label, str) for label in labels):
        labels = numbered_labels(denoise, labels)
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are whole numbers, one per image: {one_line(error)}") from None
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise InputError(f"labels are whole numbers of shape (B,), got {tensor.dtype} of shape {tuple(tensor.shape)}")
    declared, tensor = traits(denoise), tensor.long()
    if declared.classes is not None and tensor.device.type == "cpu" and len(tensor):
        least, most = int(tensor.min()), int(tensor.max())
        if least < 0 or most >= declared.classes + declared.unlabelled:
            wrong = least if least < 0 else most
            raise InputError(f"the model was trained with the labels 0..{declared.classes - 1}, got the label {wrong}")
    return tensor


@torch.no_grad()
def _without_gradients(
    sampler: Sampler, denoise: Denoise, noise: Tensor, angles: Sequence[float], draw: Draw
) -> Iterator[State]:
    yield from sampler(denoise, noise, angles, draw)


def _draw(seeds: Sequence[int] | None, format: int) -> Draw:
    if seeds is None:
        return torch.randn_like
    drawn = streams(Purpose.STEPS, seeds, format=format)
    return lambda like: drawn.normal(like.shape[1:], like.dtype, like.device)


def _with_free_start(
    sampler: Sampler,
    denoise: Denoise,
    grid: GridLike,
    steps: int | None,
    shape: Sequence[int] | None,
    start: float | None,
) -> tuple[Sampler, np.ndarray, MeanImage | None]:
    """The sampler, the angles, and the mean image where it is the sampler's first estimate; arguments as for `plan`.

    A grid by name then has one more step, since the number of steps is that of the evaluations.
    """
    angles = resolve_grid(denoise, grid, steps, shape, start)
    if sampler.free and angles[0] < (largest := traits(denoise).largest_angle) - ROUNDING:
        raise InputError(
            f"a free first step is from pure noise, at angle {largest:.6g}, and the grid starts at {angles[0]:.6g}: "
            "start at the noise, or give a sampler without a first estimate of its own"
        )
    named = isinstance(grid, str) and grid in grids.GRIDS and grid not in grids.PUBLISHED
    mean = traits(denoise).mean_image
    if mean is not None and shape is not None and tuple(shape) != mean.shape[1:]:
        mean = None  # a network can make images of other sizes, whose mean is another one
    begun = sampler.with_free_start(mean if angles[0] > NOISE_END - ROUNDING else None, named)
    if begun.free and named:
        try:
            angles = resolve_grid(denoise, grid, len(angles) - 1 + begun.free, shape, start)
        except InputError:  # the grid has no more steps
            begun = sampler.with_free_start(None, named)
    return begun, angles, None if begun is sampler else mean


def resolve_grid(
    denoise: Denoise,
    grid: GridLike,
    steps: int | None = None,
    shape: Sequence[int] | None = None,
    start: float | None = None,
) -> np.ndarray:
    """The angles of a grid, checked against the range of the denoiser; arguments as for `Sampling.plan`.

    Raises:
        InputError: for an unknown grid, steps that contradict explicit angles, angles outside the denoiser's range, or
            a grid that does not begin at `start`.
    """
    declared = traits(denoise)
    smallest, largest = declared.smallest_angle, declared.largest_angle
    if isinstance(grid, str):
        if start is not None and grid in grids.PUBLISHED:
            raise InputError(f"the grid '{grid}' begins at the noise: take another one to begin elsewhere")
        if start is None and largest < NOISE_END:
            logger.info("the denoiser is defined up to angle %.6g: the grid starts there instead of at pi/2", largest)
        shape = declared.shape if shape is None else shape
        dimensions = grids.DIMENSIONS if shape is None else math.prod(shape)
        steps = DEFAULT_STEPS if steps is None else steps
        first = largest if start is None else start
        angles = grids.grid(grid, steps, first, declared.schedule, smallest, dimensions)
    else:
        angles = grids.explicit(grid)
    if start is not None and abs(angles[0] - start) > ROUNDING:
        raise InputError(
            f"the grid starts at angle {angles[0]:.6g} instead of {start:.6g}: start there, or give a name"
        )
    own_steps = isinstance(grid, str) and grid in grids.PUBLISHED
    if steps is not None and steps != len(angles) - 1 and not own_steps:
        raise InputError(f"the grid's {len(angles)} angles make {len(angles) - 1} steps, but steps={steps} was given")
    if angles[0] > largest + ROUNDING:
        raise InputError(
            f"the grid starts at angle {angles[0]:.6g} but the denoiser is defined up to {largest:.6g}: start there"
        )
    if angles[-2] < smallest - ROUNDING:
        raise InputError(
            f"the grid evaluates at angle {angles[-2]:.6g} but the denoiser is defined from {smallest:.6g}: "
            "take fewer steps, or the grid 'time'"
        )
    return angles


def numbered_labels(denoise: Denoise, labels: Sequence[int | str] | None) -> list[int] | None:
    """Labels as numbers; those that are text are names of the denoiser's classes.

    Raises:
        InputError: for labels outside the denoiser's classes, or missing labels that it requires.
    """
    declared = traits(denoise)
    if labels is None:
        if declared.classes is not None and not declared.unlabelled:
            raise InputError(
                f"the model was trained with one of the labels 0..{declared.classes - 1} for every image: give labels"
            )
        return None
    if not len(labels):
        raise InputError("the list of labels is empty: give at least one label, or None")
    if declared.classes is None:
        raise InputError(f"the model was trained without labels, got the label {labels[0]}: leave labels out")
    numbers = [_number_of(label, declared.class_names) for label in labels]
    wrong = [label for label in numbers if not 0 <= label < declared.classes]
    if wrong:
        raise InputError(f"the model was trained with the labels 0..{declared.classes - 1}, got the label {wrong[0]}")
    return numbers


def note_missing_labels(denoise: Denoise, labels: Sequence[int | str] | None) -> None:
    """Log that images without labels are requested of a model that has classes."""
    declared = traits(denoise)
    if labels is None and declared.classes and declared.unlabelled:
        logger.info(
            "no labels were given: images without a class, of which training saw few (training.drop_labels), are often "
            "worse; --labels takes numbers, 0 to %d, or names", declared.classes - 1,
        )  # fmt: skip


def _number_of(label: int | str, names: Sequence[str]) -> int:
    """The number of a class that is given by its number or name."""
    if not isinstance(label, str):
        try:
            return index(label)
        except TypeError:
            raise InputError(f"a label is the number or the name of a class, got {label!r}") from None
    if not names:
        raise InputError(f"the label '{label}': the model's classes have no names; give numbers")
    if label not in names:
        quoted = "; a name with a comma in double quotes on the command line" * any("," in name for name in names)
        raise unknown_name("class", label, names, f"or a number from 0 to {len(names) - 1}{quoted}")
    return names.index(label)


def labels_of_images(
    labels: Tensor | np.ndarray | Sequence[int | str] | int | str | None, count: int
) -> Sequence[int | str] | None:
    """Labels as a list, of which a single one is that of all `count` images; None without labels."""
    if isinstance(labels, Tensor | np.ndarray | np.generic):
        labels = labels.tolist()
    return [labels] * count if isinstance(labels, int | str) else labels


def labels_in_turn(labels: Sequence[int] | None, count: int) -> list[int] | None:
    """One label per image: image k of a request, from 0, has the label labels[k % len(labels)]; None without labels."""
    return None if labels is None else [labels[place % len(labels)] for place in range(count)]
