"""Tuned grids: angles, and weights where they pay, that `quarterarc.tuning` fitted to one network.

They are kept beside its weights (`quarterarc.runs`), and worthless for any other network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError
from .grids import explicit
from .samplers import Multistep, Sampler
from .samplers.step_weights import StepWeights

__all__ = ["TunedGrid", "find"]


@dataclass(frozen=True)
class TunedGrid:
    """What was found for one sampler and number of steps.

    Attributes:
        sampler, options: the sampler by name, with its options.
        angles: the grid, from the first angle to 0.
        offsets: what is added to the weights of each step of `multistep`; empty where only the angles were tuned.
        errors: the median distance of held-out images to the network's own fine trajectories, root mean square a pixel,
            of both candidates: `untuned`, and `weights` or, where only they were tuned, `angles`.
        kept: which of the two this is.
        nfe: evaluations an image.
        width: the sampler's, which the weights were fitted with; None for the one that the options give it.
    """

    sampler: str
    options: dict[str, Any]
    angles: tuple[float, ...]
    offsets: tuple[StepWeights, ...]
    errors: dict[str, float]
    kept: str
    nfe: int
    width: float | None = None

    @property
    def steps(self) -> int:
        """How many steps."""
        return len(self.angles) - 1

    @property
    def key(self) -> str:
        """What it is for: two grids with the same key replace each other."""
        return repr((self.sampler, sorted(self.options.items()), self.steps))

    def apply(self, sampler: Sampler) -> Sampler:
        """The sampler with the tuned weights."""
        if not self.offsets:
            return sampler
        assert isinstance(sampler, Multistep)
        width = sampler.width if self.width is None else self.width
        return replace(sampler, offsets=self.offsets, width=width)

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        weights = [{"x": one.x, "image": list(one.image), "noise": list(one.noise)} for one in self.offsets]
        return {
            "sampler": self.sampler,
            "options": self.options,
            "steps": self.steps,
            "nfe": self.nfe,
            "kept": self.kept,
            "errors": self.errors,
            "width": self.width,
            "angles": list(self.angles),
            "offsets": weights,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> TunedGrid:
        """From `describe`'s JSON types.

        Raises:
            KeyError, TypeError, ValueError: for what is no such grid.
        """
        angles = explicit([float(angle) for angle in value["angles"]])
        if angles[-1] != 0.0:
            raise ValueError(f"a grid that ends at {angles[-1]:.6g} and not at 0")
        offsets = tuple(
            StepWeights(float(one["x"]), tuple(map(float, one["image"])), tuple(map(float, one["noise"])))
            for one in value["offsets"]
        )
        if offsets and len(offsets) != len(angles) - 1:
            raise ValueError(f"weights for {len(offsets)} of {len(angles) - 1} steps")
        for step, one in enumerate(offsets):
            if not len(one.image) == len(one.noise) <= step + 1:
                raise ValueError(f"weights of step {step} for {len(one.image)} images and {len(one.noise)} noises")
            if not all(map(math.isfinite, (float(one.x), *one.image, *one.noise))):
                raise ValueError(f"weights of step {step} that are no finite numbers")
        if not isinstance(value["nfe"], int):
            raise ValueError(f"{value['nfe']} evaluations")
        return cls(
            str(value["sampler"]),
            dict(value["options"]),
            tuple(map(float, angles)),
            offsets,
            dict(value["errors"]),
            str(value["kept"]),
            value["nfe"],
            None if value["width"] is None else float(value["width"]),
        )


def find(grids: Sequence[TunedGrid], sampler: str, options: Mapping[str, Any], steps: int) -> TunedGrid:
    """The grid for a sampler with these options and steps.

    Raises:
        InputError: if there is none; what there is, is listed.
    """
    for one in grids:
        if (one.sampler, one.options, one.steps) == (sampler, dict(options), steps):
            return one
    there = ", ".join(
        f"{one.sampler}{''.join(f' {k}={v}' for k, v in one.options.items())} {one.steps} steps" for one in grids
    )
    wanted = f"{sampler} with {steps} steps{' and these options' if options else ''}"
    raise InputError(f"no grid was tuned for {wanted}: there is {there or 'none'}; `quarterarc tune` makes more")
