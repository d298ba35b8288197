"""Cells: the smallest units of measurement, each kept on disk as soon as it is measured.

A cell is an arm, a seed, and a measure with its settings. Its values lie in a folder named by the hash of everything
that decides them, so that an interrupted run continues with the next cell and experiments share cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.hashes import short_hash
from .arms import Arm
from .scales import Scale

__all__ = ["Cell", "hashed_settings", "quality"]

_HASHED_NAMES = {"eta": "churn"}
"""Options of samplers that had another name in version 0.1: its name is hashed, so that existing caches stay valid."""


LEADING = "leading"
"""The recorded name of the grid `uniform` where it has exactly the requested number of steps, as before the grid had
this name: its angles are the same there, so that existing caches stay valid."""


def _as_requested(length: int, steps: int) -> bool:
    """Whether the grid `uniform` of a schedule of this length has exactly the requested number of steps."""
    return 0 < steps <= length and math.ceil(length / (length // steps)) == steps


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        arm: the network.
        seed: the seed of its training and of the initial noise of its images.
        measure: a name in `measures.MEASURES`.
        settings: the settings of the measure, pairs of name and value of JSON types.
    """

    arm: Arm
    seed: int
    measure: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, arm: Arm, seed: int, measure: str, **settings: Any) -> Cell:
        """A cell from settings by name."""
        return cls(arm, seed, measure, tuple(sorted(settings.items())))

    def __getitem__(self, name: str) -> Any:
        return dict(self.settings)[name]

    def get(self, name: str) -> Any:
        """The value of a setting; None if the cell does not have it."""
        return dict(self.settings).get(name)

    def key(self, scale: Scale, identity: Mapping[str, Any]) -> str:
        """The hash that names the cell's folder.

        Args:
            scale: the scale, which decides the arm's recipe.
            identity: what else decides the values: `Measure.identity`.
        """
        arm = self.arm.hash(scale, self.seed)
        return short_hash([arm, self.seed, self.measure, hashed_settings(dict(self.settings)), identity])


def hashed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are hashed: options of samplers have the name that they had in version 0.1."""
    options = [[_HASHED_NAMES.get(name, name), value] for name, value in settings.get("options", ())]
    hashed = {**settings, **({"options": options} if "options" in settings else {})}
    # since its first step is free by default, `multistep` makes other images
    given = dict(settings.get("options", ()))
    free = settings.get("sampler") == "multistep" and given.keys().isdisjoint({"eta", "start", "free_start"})
    return {**hashed, **({"free_start": True} if free else {})}


def quality(
    scale: Scale,
    arm: Arm,
    seed: int,
    sampler: str,
    steps: int,
    *,
    grid: str = "time",
    through: str | None = None,
    draw: int = 0,
    metrics: tuple[str, ...] | None = None,
    images: int | None = None,
    **options: Any,
) -> Cell:
    """The quality of the images of a sampler: metrics of their features against the training images.

    All arms and samplers start from the same noise, which `seed` and `draw` decide. A trajectory of more than half of
    the schedule's steps is measured on `scale.few` images instead of `scale.images`.

    Args:
        scale: the scale.
        arm: the network.
        seed: the seed of its training and of the noise.
        sampler: the sampler's name.
        steps: the number of steps.
        grid: a name of `quarterarc.grids`.
        through: a wrapper of the denoiser, a name of `measures.WRAPPERS`.
        draw: the number of the draw of noise for the same seed.
        metrics: the metrics (default: the scale's).
        images: the number of images (default: the scale's).
        options: options of the sampler.
    """
    few = steps > 0.5 * scale.all_steps
    wrapper = {} if through is None else {"through": through}
    return Cell.of(
        arm,
        seed,
        "quality",
        sampler=sampler,
        steps=steps,
        grid=LEADING if grid == "uniform" and _as_requested(scale.all_steps, steps) else grid,
        draw=draw,
        images=images or (scale.few if few else scale.images),
        metrics=tuple(metrics or scale.metrics),
        options=tuple(sorted(options.items())),
        **wrapper,
    )
