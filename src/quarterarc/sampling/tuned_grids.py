"""Tuned grids: angles, weights of the steps and a free first step, fitted to one network by `tuning`.

They are stored beside the network's weights (`storage.runs`), and are valid for this network only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.text import counted
from ..denoiser import Denoise, traits
from ..grids import explicit
from ..interop.opening import identity
from ..mean_image import MeanImage
from ..samplers import Multistep, Sampler, current_options
from ..samplers.step_weights import StepWeights
from ..storage.checksums import DamagedFile, read_sealed, write_sealed

__all__ = ["TunedGrid", "find", "read_tuned", "tuned_grid", "write_tuned"]

FORMAT = 4
READABLE = (3, FORMAT)  # before 4 no grid had a free first step
FILE = "tuned.json"


@dataclass(frozen=True)
class TunedGrid:
    """A grid fitted for one sampler and number of steps.

    Attributes:
        sampler, options: the sampler by name, with its options.
        angles: the grid, from the first angle to 0.
        offsets: weights added to those of each step of `multistep`; empty if only the angles were tuned.
        errors: median distance of held-out images to the network's own fine trajectories, root mean square per pixel,
            of both candidates: `untuned`, and `weights` (or `angles`, if only the angles were tuned).
        kept: name of the better candidate, which this grid is.
        nfe: network evaluations per image.
        width: the `width` of `multistep` with which the weights were fitted; None for the one in the options.
        flow: how the flow to which it was fitted differs from the network's own, `Traits.altered`: "guided by 2.0".
        first: the image estimate of a free first step, which is not evaluated; None if all steps are.
    """

    sampler: str
    options: dict[str, Any]
    angles: tuple[float, ...]
    offsets: tuple[StepWeights, ...]
    errors: dict[str, float]
    kept: str
    nfe: int
    width: float | None = None
    flow: str | None = None
    first: MeanImage | None = None

    @property
    def steps(self) -> int:
        """Number of steps that evaluate the denoiser; a free first step is not among them."""
        return len(self.angles) - 1 - (self.first is not None)

    @property
    def key(self) -> str:
        """Identifies the sampler, options, steps and flow: a grid replaces an earlier one with the same key."""
        return repr((self.sampler, sorted(self.options.items()), self.steps, self.flow))

    @property
    def fingerprint(self) -> str | None:
        """Identifies the tuned weights and the free first step; None for tuned angles alone."""
        if self.first is not None:
            return digest(self.offsets, self.width, self.first.shape, self.first.pixels)
        return digest(self.offsets, self.width) if self.offsets else None

    def apply(self, sampler: Sampler) -> Sampler:
        """The sampler with the tuned weights and the free first step."""
        if not self.offsets and self.first is None:
            return sampler
        assert isinstance(sampler, Multistep)
        width = sampler.width if self.width is None else self.width
        return replace(sampler, offsets=self.offsets, width=width, first=self.first)

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        weights = [{"x": step.x, "image": list(step.image), "noise": list(step.noise)} for step in self.offsets]
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
            **({} if self.flow is None else {"flow": self.flow}),
            **({} if self.first is None else {"first": self.first.describe()}),
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> TunedGrid:
        """From `describe`'s JSON types.

        Raises:
            KeyError, TypeError, ValueError: for a value that does not describe a tuned grid.
        """
        angles = explicit([float(angle) for angle in value["angles"]])
        if angles[-1] != 0.0:
            raise ValueError(f"the grid ends at {angles[-1]:.6g} instead of 0")
        offsets = tuple(
            StepWeights(float(step["x"]), tuple(map(float, step["image"])), tuple(map(float, step["noise"])))
            for step in value["offsets"]
        )
        if offsets and len(offsets) != len(angles) - 1:
            raise ValueError(f"{len(offsets)} of {len(angles) - 1} steps have weights")
        for k, step in enumerate(offsets):
            if not len(step.image) == len(step.noise) <= k + 1:
                raise ValueError(f"step {k} has weights for {len(step.image)} images and {len(step.noise)} noises")
            if not all(map(math.isfinite, (float(step.x), *step.image, *step.noise))):
                raise ValueError(f"step {k} has weights that are not finite")
        if not isinstance(value["nfe"], int):
            raise ValueError(f"the number of evaluations is {value['nfe']}")
        name = str(value["sampler"])
        return cls(
            name,
            _current(name, dict(value["options"])),
            tuple(map(float, angles)),
            offsets,
            dict(value["errors"]),
            str(value["kept"]),
            value["nfe"],
            None if value["width"] is None else float(value["width"]),
            None if value.get("flow") is None else str(value["flow"]),
            None if value.get("first") is None else MeanImage.read(value["first"]),
        )


def _current(sampler: str, options: dict[str, Any]) -> dict[str, Any]:
    """Stored options under their current names."""
    with suppress(InputError):  # a sampler that is not installed: its grids are listed, but not used
        return current_options(sampler, options, warn=False)
    return options


def find(
    grids: Sequence[TunedGrid], sampler: str, options: Mapping[str, Any], steps: int, flow: str | None = None
) -> TunedGrid:
    """The grid for a sampler with these options and steps, fitted to this flow.

    Raises:
        InputError: if there is none; the existing ones are listed.
    """
    for grid in grids:
        if (grid.sampler, grid.options, grid.steps, grid.flow) == (sampler, dict(options), steps, flow):
            return grid
    tuned = ", ".join(
        f"{grid.sampler}{''.join(f' {k}={v}' for k, v in grid.options.items())} {grid.steps} steps"
        f"{f' {grid.flow}' if grid.flow else ''}"
        for grid in grids
    )
    wanted = f"{sampler} with {counted(steps, 'step')}{' and these options' if options else ''}"
    command = "quarterarc tune"
    if guided := _GUIDED.fullmatch(flow or ""):
        wanted, command = f"{wanted}, {flow}", f"{command} --guidance {guided[1]}"
    raise InputError(f"no grid was tuned for {wanted} (tuned: {tuned or 'none'}): run `{command}` for it")


def tuned_grid(denoise: Denoise, sampler: str, options: Mapping[str, Any], steps: int) -> TunedGrid:
    """The grid tuned for this denoiser's network, for a sampler with these options and steps.

    Raises:
        InputError: if the denoiser was not read from a checkpoint, its flow differs from that of the checkpoint in
            more than guidance, or no such grid was tuned.
    """
    declared = traits(denoise)
    if declared.checkpoint is None:
        raise InputError("a tuned grid belongs to a trained network: load one with `quarterarc.load`, or name a grid")
    if declared.altered is not None and not _GUIDED.fullmatch(declared.altered):
        raise InputError(
            "tuned grids are valid for the network's own flow, with or without guidance, and this one is "
            f"{declared.altered}: name another grid"
        )
    return find(read_tuned(declared.checkpoint), sampler, options, steps, declared.altered)


_GUIDED = re.compile(r"guided by ([^, ]+)")
"""`Traits.altered` of a denoiser under guidance alone."""


def read_tuned(checkpoint: Path) -> list[TunedGrid]:
    """The grids tuned for a checkpoint.

    Raises:
        InputError: if there are none, or they were tuned for another network or head.
    """
    path = checkpoint / FILE
    if not path.is_file():
        raise InputError(f"no grid was tuned for this network: run `quarterarc tune` on {checkpoint}")
    try:
        value = read_sealed(path)
    except DamagedFile:
        raise InputError(f"{path} is damaged: run `quarterarc tune` on {checkpoint} again") from None
    try:
        if value["format"] not in READABLE:
            raise ValueError(f"format {value['format']}")
        network, grids = value["network"], [TunedGrid.of(entry) for entry in value["grids"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold tuned grids of format {FORMAT} ({error}): tune again") from None
    if network != identity(checkpoint):
        raise InputError(f"{path} was tuned for another network or head: run `quarterarc tune` on {checkpoint}")
    return grids


def write_tuned(checkpoint: Path, grids: Iterable[TunedGrid]) -> Path:
    """Store grids beside the checkpoint they were tuned for; they replace those for the same sampler and steps."""
    try:
        before = read_tuned(checkpoint)
    except InputError:  # none yet, or grids of another network
        before = []
    merged = {grid.key: grid for grid in [*before, *grids]}
    value = {
        "format": FORMAT,
        "network": identity(checkpoint),
        "grids": [grid.describe() for grid in merged.values()],
    }
    write_sealed(checkpoint / FILE, value)
    return checkpoint / FILE
