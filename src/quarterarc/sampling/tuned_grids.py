"""Tuned grids: angles, and weights where they pay, that `quarterarc.tuning` fitted to one network.

They are kept beside its weights (`quarterarc.runs`), and worthless for any other network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..denoiser import Denoise, traits
from ..grids import explicit
from ..samplers import SAMPLERS, Multistep, Sampler
from ..samplers.step_weights import StepWeights
from ..storage.checkpoints import identity
from ..storage.files import read_json, write_json

__all__ = ["TunedGrid", "find", "read_tuned", "tuned_grid", "write_tuned"]

FORMAT = 3
FILE = "tuned.json"


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


def tuned_grid(denoise: Denoise, sampler: str, options: Mapping[str, Any], steps: int) -> TunedGrid:
    """The grid that was tuned for this denoiser's network, for a sampler with these options and steps.

    Raises:
        InputError: if the denoiser comes from no checkpoint, has another flow than the checkpoint's network, or no such
            grid was tuned.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"a tuned grid goes with a sampler's name and options: give 'multistep' instead of {sampler}")
    declared = traits(denoise)
    if declared.checkpoint is None:
        raise InputError("a tuned grid belongs to a trained network: load one with `quarterarc.load`, or name a grid")
    if declared.altered is not None:
        raise InputError(
            f"tuned grids are for the network's own flow, and this one is {declared.altered}: name another grid"
        )
    return find(read_tuned(declared.checkpoint), sampler, options, steps)


def read_tuned(checkpoint: Path) -> list[TunedGrid]:
    """The grids that were tuned for a checkpoint.

    Raises:
        InputError: if there are none, or they were made for another network or head.
    """
    path = checkpoint / FILE
    if not path.is_file():
        raise InputError(f"no grid was tuned for this network: run `quarterarc tune` on {checkpoint}")
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")
        made_for, grids = value["network"], [TunedGrid.of(entry) for entry in value["grids"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold tuned grids of format {FORMAT} ({error}): tune again") from None
    if made_for != identity(checkpoint):
        raise InputError(f"{path} was made for another network or head: run `quarterarc tune` on {checkpoint}")
    return grids


def write_tuned(checkpoint: Path, grids: Iterable[TunedGrid]) -> Path:
    """Keep grids with the checkpoint they were tuned for, in place of those for the same sampler and steps."""
    try:
        before = read_tuned(checkpoint)
    except InputError:  # none yet, or those of another network
        before = []
    merged = {grid.key: grid for grid in [*before, *grids]}
    value = {
        "format": FORMAT,
        "network": identity(checkpoint),
        "grids": [grid.describe() for grid in merged.values()],
    }
    write_json(checkpoint / FILE, value)
    return checkpoint / FILE
