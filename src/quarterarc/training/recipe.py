"""Recipes: everything that decides what a training run does, validated, in one YAML file.

A recipe is read from a file or by the name of one that ships with the package; any field can be set from the command
line as `section.field=value`. Nothing is ignored: a field that is not known is refused with the nearest name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..common.errors import InputError, unknown_name
from ..data.spec import DataSpec

if TYPE_CHECKING:
    from ..objectives import Objective

__all__ = ["Recipe", "differences", "read_recipe", "recipe_names"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSpec(Section):
    """The schedule (see `quarterarc.schedule`)."""

    name: str = "arc"
    steps: Positive = 1000


class NetworkSpec(Section):
    """The U-Net (see `quarterarc.networks.UNet`); attention is given by the resolutions that have it."""

    channels: Positive = 128
    multipliers: tuple[Positive, ...] = (1, 2, 2, 2)
    blocks: Positive = 2
    attention: tuple[Positive, ...] = (16,)
    dropout: Fraction = 0.0


class ObjectiveSpec(Section):
    """The objective (see `quarterarc.objectives`): a registered name, or an import path `package.module:Objective`.

    `gamma`, `norm` and `variance` apply to objectives that have an option of this name; `options` are further options
    of an objective by their names.
    """

    name: str = "both+gradient"
    gamma: Annotated[float, Field(ge=0.0)] = 1.0
    norm: str = "mse"
    variance: Literal["learned", "small", "large"] = "learned"
    options: dict[str, Any] = {}

    def build(self) -> Objective:
        """The objective with its options; errors as for `quarterarc.objectives.objective`."""
        from ..objectives import objective, options_of

        general = {"gamma": self.gamma, "norm": self.norm, "variance": self.variance}
        known = options_of(self.name)
        return objective(self.name, **{**{key: general[key] for key in general if key in known}, **self.options})


class OptimizerSpec(Section):
    """Adam, a linear warm-up, and what follows it."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup: Count = 5000
    decay: Literal["constant", "cosine"] = "constant"
    clip: Annotated[float, Field(gt=0.0)] = 1.0


class EMASpec(Section):
    """The moving average of the weights that is exported: decay, and a warm-up (1 + step)/(10 + step) below it."""

    decay: Fraction = 0.9999
    warmup: bool = True


class TrainingSpec(Section):
    """How long, how much at once, and how often to write.

    `batch` is global: the images of one optimiser step over all processes and accumulated parts. `drop_labels` is the
    share of labels that become "no label", which guidance needs; at 0 the model is never asked without labels.
    `compile` needs what `torch.compile` does: on the CPU a C++ compiler.
    """

    steps: Positive
    batch: Positive = 128
    accumulate: Positive = 1
    seed: Count = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    drop_labels: Fraction = 0.1
    log_every: Positive = 100
    checkpoint_every: Positive = 5000
    keep: Positive = 3
    sample_every: Positive = 5000
    sample_count: Positive = 64


class Recipe(Section):
    """A whole recipe."""

    name: str = "custom"
    data: DataSpec
    schedule: ScheduleSpec = ScheduleSpec()
    network: NetworkSpec = NetworkSpec()
    head: str = "both"
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: EMASpec = EMASpec()
    training: TrainingSpec

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        from ..heads import HEADS
        from ..objectives.base import check_norm
        from ..schedules import SCHEDULES

        SCHEDULES.require(self.schedule.name)
        HEADS.require(self.head)
        check_norm(self.objective.norm)
        self.objective.build()
        learns = self.objective.name in ("vlb", "hybrid") and self.objective.variance == "learned"
        if learns and not self.head.endswith("+variance"):
            raise InputError(
                f"the objective '{self.objective.name}' with a learned variance needs a head that has one: "
                f"head={self.head}+variance, or objective.variance=small"
            )
        if self.training.batch % self.training.accumulate:
            raise InputError(
                f"training.batch={self.training.batch} cannot be split into {self.training.accumulate} equal parts"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that `read_recipe` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("quarterarc.training") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, from a YAML file, or from a mapping, with `section.field=value` overrides on top.

    Raises:
        InputError: for an unknown name, a missing or malformed file, a field that is not known (with the nearest
            name), a value of the wrong kind, or a combination that cannot work.
    """
    fields = dict(source) if isinstance(source, Mapping) else _read_yaml(str(source))
    for override in overrides:
        _set(fields, override)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"recipe: {_explain(error)}") from None


def differences(old: Recipe, new: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Every field that two recipes set differently, as (dotted name, old value, new value)."""
    before, after = dict(_flatten(old.model_dump())), dict(_flatten(new.model_dump()))
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_yaml(source: str) -> dict[str, Any]:
    looks_like_a_path = source.endswith((".yaml", ".yml")) or "/" in source or Path(source).is_file()
    if looks_like_a_path:
        if not Path(source).is_file():
            raise InputError(f"no recipe file at {source} (recipes that ship: {', '.join(recipe_names())})")
        try:
            text = Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is no text in UTF-8 ({error.reason}): give a YAML file") from None
    elif source in recipe_names():
        text = (resources.files("quarterarc.training") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown_name("recipe", source, recipe_names())
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{source} does not hold a recipe: its top level is a mapping of sections")
    return fields


def _set(fields: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"'{override}' sets nothing: write section.field=value, such as training.steps=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, name = path.split(".")
    here = fields
    for section in sections:
        inner = here.get(section) or {}
        if not isinstance(inner, Mapping):
            raise InputError(f"'{override}': {section} is one value, {inner!r}, and has no fields")
        here[section] = dict(inner)  # never write into a mapping that the caller gave
        here = here[section]
    here[name] = value


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    name = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _known_fields(location[:-1])
        near = get_close_matches(location[-1], known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown field '{name}'{hint} (known here: {', '.join(known)})"
    if first["type"] == "missing":
        return f"the field '{name}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first.get("ctx", {}).get("error"), InputError):
        return message  # says itself what was given
    return f"{name}: {message}, got {first['input']!r}"


def _known_fields(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in path:
        annotation: Any = model.model_fields[part].annotation if part in model.model_fields else None
        options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        model = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), model)
    return list(model.model_fields)
