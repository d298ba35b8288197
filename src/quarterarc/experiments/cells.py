"""Cells: the smallest things that are measured, each kept on disk as soon as it is done.

A cell is an arm, a seed, and a measure with its settings. What it found lies in a folder named by the hash of
everything that decides it, so that a run that was killed goes on with the next cell, and experiments share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .arms import Arm, digest
from .scales import Scale

__all__ = ["Cell", "quality"]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        arm: the network.
        seed: of its training, and of the noise that its images begin with.
        measure: one of `measures.MEASURES`.
        settings: the measure's, name and value in pairs, JSON types.
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
        """A setting, None if the cell has none of this name."""
        return dict(self.settings).get(name)

    def key(self, scale: Scale, identity: Mapping[str, Any]) -> str:
        """The hash of the arm, the measure and all settings, and of what else the measure says decides it."""
        return digest([self.arm.hash(scale, self.seed), self.seed, self.measure, dict(self.settings), identity])


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
    """How good the images of a sampler are: metrics of features against the training images.

    All arms and samplers begin with the same noise, that of the seed and `draw`. Where a trajectory takes more than
    half of the schedule's steps, `scale.few` images are made instead of `scale.images`.

    Args:
        scale: the scale.
        arm: the network.
        seed: of its training and of the noise.
        sampler: the sampler's name.
        steps: how many steps.
        grid: a name of `quarterarc.grids`, or `leading`, see `measures.leading`.
        through: a name of `measures.WRAPPERS`, which changes what the network says.
        draw: another draw of noise for the same seed.
        metrics: the scale's, if not given.
        images: how many.
        options: the sampler's.
    """
    few = steps > 0.5 * scale.all_steps
    more = {} if through is None else {"through": through}
    return Cell.of(
        arm,
        seed,
        "quality",
        sampler=sampler,
        steps=steps,
        grid=grid,
        draw=draw,
        images=images or (scale.few if few else scale.images),
        metrics=tuple(metrics or scale.metrics),
        options=tuple(sorted(options.items())),
        **more,
    )
