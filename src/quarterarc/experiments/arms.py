"""Arms: networks that differ in one stated point. An arm is a few fields on top of the scale's recipe.

An arm is trained once: its folder is named by the hash of its resolved recipe, seed included, so that experiments share
it and a changed recipe is another arm.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..heads import head as named_head
from ..schedules import schedule as named_schedule
from ..storage.runs import checkpoints
from ..training.recipe import Recipe, read_recipe
from ..training.trainer import MAY_CHANGE
from .scales import Scale

__all__ = ["Arm", "arm", "decisive", "digest"]


@dataclass(frozen=True)
class Arm:
    """What sets a network apart from the others of its scale.

    Attributes:
        name: in words.
        fields: overrides of the scale's recipe, `section.field=value`.
        share: of the scale's training steps.
    """

    name: str
    fields: tuple[str, ...]
    share: float = 1.0

    def recipe(self, scale: Scale, seed: int) -> Recipe:
        """The resolved recipe."""
        steps = max(1, round(self.share * scale.recipe.training.steps))
        fields = (*self.fields, f"training.seed={seed}", f"training.steps={steps}", f"name={scale.recipe.name}")
        return read_recipe(scale.recipe.model_dump(mode="json"), fields)

    def hash(self, scale: Scale, seed: int) -> str:
        """Names the arm's folder: 16 hexadecimal digits of everything that decides its weights."""
        return digest(decisive(self.recipe(scale, seed)))

    def folder(self, scale: Scale, seed: int, cache: Path) -> Path:
        """Its run folder."""
        return cache / "arms" / self.hash(scale, seed)

    def steps_done(self, scale: Scale, seed: int, cache: Path) -> int:
        """How many optimiser steps its newest checkpoint has seen."""
        found = checkpoints(self.folder(scale, seed, cache))
        return int(found[-1].name.removeprefix("step-")) if found else 0


def arm(
    head: str,
    schedule: str = "arc",
    *,
    objective: str | None = None,
    gamma: float | None = None,
    variance: str | None = None,
    share: float = 1.0,
) -> Arm:
    """An arm by what the papers vary.

    Args:
        head: what the network estimates.
        schedule: at which angles it is trained.
        objective: by what loss; the head's own squared error if not given, Eq. 12 if `gamma` is.
        gamma: the weight of the gradient loss in Eq. 12.
        variance: of the bound's steps.
        share: of the scale's training steps.
    """
    own = named_head(head, named_schedule(schedule)).objective
    objective = objective or ("both+gradient" if gamma is not None else own)
    fields = [f"head={head}", f"schedule.name={schedule}", f"objective.name={objective}"]
    words = [head, schedule]
    if gamma is not None:
        fields.append(f"objective.gamma={gamma}")
        words.append(f"gradient loss {gamma:g}")
    elif objective != own or head.endswith("+variance"):
        words.append({"vlb": "bound"}.get(objective, objective))
    if variance is not None:
        fields.append(f"objective.variance={variance}")
        words.append(f"{variance} variance")
    if share != 1.0:
        words.append(f"{share:g} of the steps")
    return Arm(", ".join(words), tuple(fields), share)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what says only how often a run writes, as JSON types."""
    fields = recipe.model_dump(mode="json")
    for name in MAY_CHANGE:
        section, _, field = name.partition(".")
        if name != "training.steps":
            del fields[section][field]
    if not fields["objective"]["options"]:
        del fields["objective"]["options"]  # new in version 0.2: arms of 0.1 keep their hash
    return fields


def digest(value: Any) -> str:
    """16 hexadecimal digits of JSON types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
