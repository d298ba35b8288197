"""Arms: networks that differ in one stated point. An arm is a few recipe fields on top of the scale's recipe.

An arm is trained once per seed. Its folder is named by the hash of its resolved recipe, so that experiments share it
and a changed recipe is another arm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.hashes import short_hash
from ..data import DataSpec
from ..heads import head as named_head
from ..heads import learns_variance
from ..schedules import schedule as named_schedule
from ..storage.runs import checkpoints, steps_of
from ..training.distilling import recipe_of_map
from ..training.recipe import Recipe
from ..training.recipe_text import read_recipe
from ..training.trainer import MAY_CHANGE
from .scales import PINNED, Scale

__all__ = ["Arm", "arm", "decisive", "distilled"]


@dataclass(frozen=True)
class Arm:
    """A network of an experiment.

    Attributes:
        name: a description in words: "both, arc".
        fields: overrides of the scale's recipe, `section.field=value`.
        share: the fraction of the scale's training steps, or of those of a distillation.
        teacher: the arm whose network is distilled into a flow map; None for training on the scale's images.
    """

    name: str
    fields: tuple[str, ...]
    share: float = 1.0
    teacher: Arm | None = None

    def recipe(self, scale: Scale, seed: int) -> Recipe:
        """The resolved recipe; the teacher of an arm is named by its hash."""
        base: Recipe = scale.recipe
        pinned: tuple[str, ...] = PINNED
        if self.teacher is not None:
            base, pinned = recipe_of_map(self.teacher.recipe(scale, seed), self.teacher.hash(scale, seed)), ()
        fields = (*pinned, *self.fields, f"training.seed={seed}", f"name={scale.recipe.name}")
        recipe = read_recipe(base.model_dump(mode="json"), fields)
        whole = base.training.steps if self.teacher is not None else scale.training_steps(recipe.head)
        training = recipe.training.model_copy(update={"steps": max(1, round(self.share * whole))})
        return recipe.model_copy(update={"training": training})

    def in_norm(self, norm: str) -> Arm:
        """The arm with its errors in a norm of `quarterarc.objectives.NORMS`; the arm itself for "mse"."""
        if norm == "mse":
            return self
        return replace(self, name=f"{self.name}, {norm} norm", fields=(*self.fields, f"objective.norm={norm}"))

    def evaluations(self, scale: Scale, seed: int) -> float:
        """Network evaluations without gradients per training image, in addition to the loss: those of flow maps."""
        recipe = self.recipe(scale, seed)
        if recipe.teacher is None:
            return 1.0 if recipe.is_map else 0.0
        settings = recipe.teacher
        return settings.stage * settings.steps / settings.uses + (1.0 - settings.stage) * 3.0

    def hash(self, scale: Scale, seed: int) -> str:
        """The name of the arm's folder: 16 hexadecimal digits of everything that decides its weights."""
        network = scale.given(self.name)
        return short_hash(decisive(self.recipe(scale, seed)) if network is None else ["given", network.identity])

    def folder(self, scale: Scale, seed: int, cache: Path) -> Path:
        """The run folder."""
        return cache / "arms" / self.hash(scale, seed)

    def steps_done(self, scale: Scale, seed: int, cache: Path) -> int:
        """The number of optimiser steps of the newest checkpoint; 0 without a checkpoint."""
        saved = checkpoints(self.folder(scale, seed, cache))
        return steps_of(saved[-1]) if saved else 0


def arm(
    head: str,
    schedule: str = "arc",
    *,
    objective: str | None = None,
    gamma: float | None = None,
    variance: str | None = None,
    share: float = 1.0,
) -> Arm:
    """An arm from the choices that the papers vary.

    Args:
        head: the head of the network.
        schedule: the schedule of training and sampling.
        objective: the objective; by default Eq. 12 if `gamma` is given, else the head's own squared error.
        gamma: the weight of the gradient loss in Eq. 12.
        variance: the variance of the reverse steps in the variational bound.
        share: the fraction of the scale's training steps.
    """
    own = named_head(head, named_schedule(schedule)).objective
    objective = objective or ("both+gradient" if gamma is not None else own)
    fields = [f"head={head}", f"schedule.name={schedule}", f"objective.name={objective}"]
    words = [head, schedule]
    if gamma is not None:
        fields.append(f"objective.gamma={gamma}")
        words.append(f"gradient loss γ = {gamma:g}")
    elif objective != own or learns_variance(head):
        words.append({"vlb": "variational bound"}.get(objective, f"objective {objective}"))
    if variance is not None:
        fields.append(f"objective.variance={variance}")
        words.append(f"{variance} variance")
    if share != 1.0:
        words.append(f"{share:g} of the training steps")
    return Arm(", ".join(words), tuple(fields), share)


def distilled(teacher: Arm, *fields: str, share: float = 1.0) -> Arm:
    """The arm of a flow map that is distilled from another arm's network, with further fields of its recipe."""
    words = [f"map of {teacher.name}", *fields, *([] if share == 1.0 else [f"{share:g} of the distillation steps"])]
    return Arm(", ".join(words), fields, share, teacher)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that decide the weights, as JSON types: without intervals of logging and checkpoints.

    Fields that later versions added are left out at their defaults, so that existing caches stay valid.
    """
    fields = recipe.model_dump(mode="json")
    for field in ("pages", "range", "augment", "label_level", "balanced", "stream_parts", "holdout"):
        if fields["data"][field] == DataSpec.model_fields[field].default:
            del fields["data"][field]
    if fields["training"]["init"] is None:
        del fields["training"]["init"]
    if fields.get("teacher") and fields["teacher"]["reversed"] == 0.0:
        del fields["teacher"]["reversed"]
    if fields["training"]["compile"] == "auto":  # the default was false, and the results are the same up to rounding
        fields["training"]["compile"] = False
    for name in MAY_CHANGE:
        section, _, field = name.partition(".")
        if name != "training.steps":
            del fields[section][field]
    return fields
