"""Recipes: all settings of a training run, validated, in one object.

    qa.Recipe(data="photos/", size=64)                                  in Python
    qa.Recipe(data="photos/", size=64, training={"steps": 20_000}, head="velocity")

`recipe_text` reads them from YAML files and the command line. An unknown field raises an InputError with the nearest
name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, TypedDict, Unpack

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ..common import limits
from ..common.errors import InputError
from ..common.plain_yaml import PlainDumper
from ..common.registry import Registry
from ..common.sections import Section
from ..data.spec import DataSpec

if TYPE_CHECKING:
    from ..objectives import Objective

__all__ = ["TRACKERS", "Recipe", "differences", "expand", "flatten", "flatten_fields"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=limits.LARGEST_WIDTH)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")
"""The trackers of `accelerate`, which are named like their packages."""

LONGEST_WARMUP = 5000
"""Steps of the automatic warm-up, that of DDPM, unless it is more than a tenth of the run."""


class ScheduleSpec(Section):
    """The schedule (`quarterarc.schedule`)."""

    name: str = "arc"
    """A registered name, or an import path `package.module:function`."""
    steps: Annotated[int, Field(ge=1, le=limits.LONGEST_SCHEDULE)] = 1000
    """T, the number of training steps of the schedule."""


class NetworkSpec(Section):
    """The network: the U-Net (`quarterarc.networks.UNet`), or another module by its name and arguments.

    Another module is called `network(x, time, labels)`, see `quarterarc.networks`. `in_channels`, `out_channels`,
    `size` and `classes` are filled in where its constructor has parameters of these names.
    """

    name: str = "unet"
    """`unet`, another registered name, or an import path `package.module:Class` of a torch.nn.Module."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of another module's constructor, or further ones of the U-Net; JSON types."""
    channels: Width = 128
    """U-Net: width of the first level."""
    multipliers: Annotated[tuple[Width, ...], Field(max_length=limits.MOST_LEVELS)] = (1, 2, 2, 2)
    """U-Net: width of each level as a multiple of `channels`."""
    blocks: Annotated[int, Field(ge=1, le=limits.MOST_BLOCKS)] = 2
    """U-Net: residual blocks per level on the way down; one more on the way up."""
    attention: tuple[Positive, ...] | Literal["auto"] = "auto"
    """U-Net: resolutions with self-attention, in pixels. `auto`: the largest resolution of at most 16 pixels."""
    dropout: Fraction = 0.0
    """U-Net: dropout probability in the residual blocks."""
    head_channels: Positive | None = None
    """U-Net: channels per attention head, which divide the width of levels with attention; `null` for one head."""

    @field_validator("arguments")
    @classmethod
    def _are_json(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return as_json(arguments)

    def check_fields(self) -> None:
        """Raise an InputError if fields of the U-Net are given together with another network."""
        given = sorted(self.model_fields_set & self._unet_fields())
        if self.name != "unet" and given:
            raise InputError(
                f"network: '{self.name}' is not the U-Net, whose fields are {', '.join(given)}: give the arguments of "
                "its constructor in network.arguments"
            )

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields that apply; a U-Net has no name, and fields that version 0.1 did not have only if they are set."""
        values: dict[str, Any] = handler(self)
        unused = {"name"} if self.name == "unet" else self._unet_fields()
        unused |= {name for name in ("arguments", "head_channels") if not values.get(name)}
        return {name: values[name] for name in values if name not in unused}

    @classmethod
    def _unet_fields(cls) -> set[str]:
        return cls.model_fields.keys() - {"name", "arguments"}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class ObjectiveSpec(Section):
    """The objective (`quarterarc.objectives`).

    `gamma`, `norm` and `variance` apply to objectives that have an option of this name.
    """

    name: str = "both+gradient"
    """A registered name, or an import path `package.module:Objective`."""
    gamma: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the velocity error in `both+gradient` (Zhang et al. 2023, Eq. 12)."""
    norm: str = "mse"
    """`mse` (squared, as in DDPM's code), `l2` (unsquared, as Zhang et al. print it), `l1` or `huber`."""
    variance: Literal["learned", "small", "large"] = "learned"
    """Variance of a step in `vlb` and `hybrid`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of an objective by name; JSON types."""

    @field_validator("options")
    @classmethod
    def _are_json(cls, options: dict[str, Any]) -> dict[str, Any]:
        return as_json(options)

    def build(self) -> Objective:
        """The objective with its options; errors as for `quarterarc.objectives.objective`."""
        from ..objectives import objective, options_of

        general = {"gamma": self.gamma, "norm": self.norm, "variance": self.variance}
        known = options_of(self.name)
        return objective(self.name, **{**{key: general[key] for key in general if key in known}, **self.options})

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; empty options are left out, as in recipes of version 0.1."""
        values: dict[str, Any] = handler(self)
        return {name: values[name] for name in values if name != "options" or values[name]}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON types, which a recipe and a checkpoint can store; InputError for other values."""
    try:
        return dict(json.loads(json.dumps(values)))
    except (TypeError, ValueError) as error:
        raise InputError(f"only numbers, strings, booleans, null, lists and mappings can be stored: {error}") from None


class OptimizerSpec(Section):
    """AdamW, with a linear warm-up of the learning rate, and what follows it."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-4
    """The learning rate after the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """Added to the denominator of Adam's step."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay."""
    warmup: Count | Literal["auto"] = "auto"
    """Steps of the warm-up. `auto`: a tenth of `training.steps`, at most 5000."""
    decay: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or half a cosine down to 0 at the last step."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""


class EMASpec(Section):
    """The exponential moving average of the weights, which is the exported network."""

    decay: Fraction = 0.9999
    """Weight of the old average in a step."""
    warmup: bool = True
    """Limit the decay to (1 + step)/(10 + step)."""


class TrainingSpec(Section):
    """Length of the run, batches, precision, and how often files are written."""

    steps: Annotated[int, Field(ge=1, le=limits.MOST_STEPS)] = 100_000
    """Optimiser steps of the whole run."""
    batch: Annotated[int, Field(ge=1, le=limits.LARGEST_BATCH)] = 128
    """Images per optimiser step, over all processes and accumulated parts."""
    accumulate: Positive = 1
    """Parts that a process divides its share of the batch into, to save memory."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the images, and all training noise."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast of the network to bfloat16; weights and optimiser stay float32."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network by `torch.compile`, with CUDA graphs on a GPU. `auto`: on a GPU, from 5000 steps.
    `true` needs a C++ compiler on the CPU."""
    recompute: bool = False
    """U-Net: keep less for the backward pass, which computes it again: less memory, slower, the same gradients."""
    drop_labels: Fraction = 0.1
    """Share of labels replaced by "no label", which guidance needs. At 0 sampling needs labels for all images."""
    log_every: Positive = 100
    """Steps per line of metrics.jsonl."""
    checkpoint_every: Positive = 5000
    """Steps per checkpoint; where they take long, one is saved every ten minutes too, which the next one replaces."""
    keep: Positive = 3
    """Number of checkpoints kept, the newest ones."""
    sample_every: Positive = 5000
    """Steps per contact sheet of sampled images."""
    sample_count: Annotated[int, Field(ge=1, le=limits.LARGEST_SHEET)] = 64
    """Images per contact sheet."""
    track: tuple[str, ...] | Literal["auto"] = "auto"
    """Trackers that receive losses and contact sheets: `tensorboard`, `wandb`, `trackio`, `mlflow`, `comet_ml`, `aim`,
    `clearml`, `dvclive`, `swanlab`, or an import path `package.module:Class` of a tracker of `accelerate`; several are
    separated by commas. `auto`: `tensorboard` if it is installed. `[]`: none."""

    init: str | None = None
    """A trained model to start from (fine-tuning): the folder of a run, of a checkpoint, or of a diffusers pipeline.
    Its network replaces the section `network`, except for `dropout`."""

    @field_validator("track", mode="before")
    @classmethod
    def _listed(cls, names: Any) -> Any:
        return names if names == "auto" or not isinstance(names, str) else [name.strip() for name in names.split(",")]


TEACHER = "teacher"
"""`DataSpec.source` of the images that the teacher makes."""
OBJECT = "object"
"""`TeacherSpec.source` of a teacher that was given as an object."""


class TeacherSpec(Section):
    """The teacher of a distillation: the flow map starts as a copy of its network, and learns its flow."""

    source: Annotated[str, Field(min_length=1)]
    """The folder of a run, of a checkpoint or of a diffusers pipeline; `object` for a denoiser given in Python."""
    guidance: float | None = None
    """Scale of classifier-free guidance under which the teacher is distilled."""
    stage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75
    """Share of the steps in which jumps are compared with the teacher's own trajectories, without data."""
    from_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """Share of these jumps that start at the noise, as those of one evaluation do."""
    reversed: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of all jumps that go the other way, towards the noise: the map then encodes images too."""
    steps: Positive = 8
    """Steps of such a trajectory, by the sampler `multistep`."""
    trajectories: Positive = 1024
    """Trajectories among which a process draws the jumps of a batch; fewer where they would take more than 1 GiB."""
    uses: Positive = 8
    """Jumps that are drawn per trajectory before a new one takes its place."""
    images: Positive = 2048
    """Images that the teacher makes, for `data.source=teacher`."""


Size: TypeAlias = int | tuple[int, int]


class Sections(TypedDict, total=False):
    """Fields of a recipe beside its data, as its constructor accepts them."""

    name: str
    schedule: ScheduleSpec | Mapping[str, Any] | str
    network: NetworkSpec | Mapping[str, Any] | str
    head: str
    objective: ObjectiveSpec | Mapping[str, Any] | str
    optimizer: OptimizerSpec | Mapping[str, Any]
    ema: EMASpec | Mapping[str, Any]
    training: TrainingSpec | Mapping[str, Any]
    teacher: TeacherSpec | Mapping[str, Any] | None


class Recipe(Section):
    """All settings of a training run: `Recipe(data="photos/", size=64)`.

    An import path is checked for its form only: training imports the code that it names.

    Everything but the data has a default: DDPM's U-Net (35.7 M parameters for RGB images), the heads and the objective
    of Zhang et al. 2023 (Eq. 12) on the arc schedule, Adam at 2e-4 for 100,000 steps of 128 images, and a moving
    average of the weights with decay 0.9999.

    Args:
        data: a path or name (`DataSpec.source`), a `DataSpec`, or a mapping of its fields.
        size: height and width in pixels, or (height, width): short for `data.size`.
        channels: image channels, 3 if not given: short for `data.channels`.
        sections: `name`, `schedule`, `network`, `head`, `objective`, `optimizer`, `ema`, `training`, `teacher`: section
            objects, or mappings of their fields; for schedule, network and objective also a name.

    Raises:
        InputError: for an unknown field (with the nearest name), a missing or wrong value, or settings that contradict
            each other.
    """

    SHORT_FORMS: ClassVar[tuple[str, ...]] = ("size", "channels")

    name: str = "custom"
    """Name of the recipe, for messages."""
    data: DataSpec
    """The images (`DataSpec`)."""
    schedule: ScheduleSpec = ScheduleSpec()
    network: NetworkSpec = NetworkSpec()
    head: str = "both"
    """What the network estimates: a name of `quarterarc.heads.HEADS`, or an import path."""
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: EMASpec = EMASpec()
    training: TrainingSpec = TrainingSpec()
    teacher: TeacherSpec | None = None
    """The teacher of a distillation (`TeacherSpec`); None for training from data alone."""

    def __init__(
        self,
        data: str | Path | DataSpec | Mapping[str, Any] | None = None,
        *,
        size: Size | None = None,
        channels: int | None = None,
        **sections: Unpack[Sections],
    ) -> None:
        given = {"data": data, "size": size, "channels": channels}
        super().__init__(**{name: value for name, value in given.items() if value is not None}, **sections)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # see Section

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, fields: Any) -> Any:
        return expand(fields) if isinstance(fields, Mapping) else fields

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        from ..heads import HEADS, estimates_tangent, learns_variance
        from ..networks import NETWORKS
        from ..objectives import OBJECTIVES
        from ..objectives.base import check_norm
        from ..schedules import SCHEDULES

        SCHEDULES.require(self.schedule.name)
        HEADS.require(self.head)
        NETWORKS.require(self.network.name)
        self.network.check_fields()
        trackers = Registry("tracker", dict.fromkeys(TRACKERS))
        for name in () if self.training.track == "auto" else self.training.track:
            trackers.require(name)
        check_norm(self.objective.norm)
        OBJECTIVES.require(self.objective.name)
        if self.objective.name in OBJECTIVES:  # an import path names code, which only training and loading run
            self.objective.build()
        learns = self.objective.name in ("vlb", "hybrid") and self.objective.variance == "learned"
        if learns and not learns_variance(self.head):
            raise InputError(
                f"the objective '{self.objective.name}' with a learned variance needs a head that estimates one: "
                f"head={self.head}+variance, or objective.variance=small"
            )
        if self.training.recompute and self.network.name not in ("unet", "ddpm++", "adm"):
            raise InputError(f"training.recompute=true is for the U-Nets, not for '{self.network.name}': leave it out")
        if self.teacher is not None and self.objective.name != "flow-map":
            raise InputError("a recipe with a teacher trains a flow map: give objective=flow-map")
        if self.teacher is not None and self.training.init is not None:
            raise InputError("a flow map starts as a copy of its teacher: leave out training.init")
        if self.teacher is None and self.data.source == TEACHER:
            raise InputError("data.source=teacher needs the teacher that makes the images: give teacher.source=RUN")
        if self.objective.name == "flow-map" and (self.head in ("mean", "mean+tangent") or learns_variance(self.head)):
            raise InputError(
                f"a flow map (objective=flow-map) has no head '{self.head}', which belongs to one step of DDPM: give "
                "head=both, velocity, image, noise or gated"
            )
        if estimates_tangent(self.head) and (
            self.teacher is not None or self.objective.name in {*OBJECTIVES} - {"flow-map"}
        ):
            raise InputError(
                f"head={self.head} is for flow maps from scratch, whose jumps are compared with the tangent: give "
                "objective=flow-map and no teacher, or leave out +tangent"
            )
        unconditioned = "a flow map" if self.objective.name == "flow-map" else f"'{self.network.name}'"
        if self.data.augment not in (0.0, "auto") and unconditioned != "'unet'":
            raise InputError(
                f"data.augment={self.data.augment} is a condition of the U-Net, not of {unconditioned}: leave it out"
            )
        if self.training.batch % self.training.accumulate:
            raise InputError(
                f"training.batch={self.training.batch} cannot be split into {self.training.accumulate} equal parts"
            )
        return self

    @property
    def is_map(self) -> bool:
        """Whether the objective trains a flow map; an import path is imported."""
        from ..objectives import MapObjective

        return isinstance(self.objective.build(), MapObjective)

    def resolved(self) -> Recipe:
        """The recipe with numbers in place of `auto` for the warm-up and the resolutions of attention."""
        from ..networks import attention_resolutions

        warmup, network = self.optimizer.warmup, self.network
        if warmup == "auto":
            warmup = min(LONGEST_WARMUP, self.training.steps // 10)
        if network.name == "unet" and network.attention == "auto":
            attention = attention_resolutions(self.data.height, len(network.multipliers))
            network = network.model_copy(update={"attention": attention})
        return self.model_copy(
            update={"network": network, "optimizer": self.optimizer.model_copy(update={"warmup": warmup})}
        )

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; a missing teacher is left out, as in recipes of earlier versions."""
        values: dict[str, Any] = handler(self)
        return {name: values[name] for name in values if name != "teacher" or values[name] is not None}

    def to_yaml(self) -> str:
        """The recipe as YAML that `read_recipe` reads back to an equal one."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=PlainDumper, sort_keys=False)


def differences(old: Recipe, new: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Every field that differs between two recipes, as (dotted name, old value, new value)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def expand(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's fields with sections in place of the short forms.

    Raises:
        InputError: for data of another type, or a short form that contradicts its field.
    """
    expanded = dict(fields)
    for section in ("schedule", "network", "objective"):
        if isinstance(expanded.get(section), str):
            expanded[section] = {"name": expanded[section]}
    data = expanded.get("data")
    short = {name: expanded.pop(name) for name in Recipe.SHORT_FORMS if name in expanded}
    if isinstance(data, str | PurePath):
        expanded["data"] = {"source": str(data), **short}
    elif data is not None and not isinstance(data, DataSpec | Mapping):
        raise InputError(
            f"data is a {type(data).__name__}, a path, name, DataSpec or mapping is expected: images in memory are an "
            "argument of training, qa.train(recipe, out, data=images)"
        )
    elif short and isinstance(data, DataSpec | Mapping | None):
        given = data.model_dump(exclude_unset=True) if isinstance(data, DataSpec) else dict(data or {})
        for name, value in short.items():
            if given.setdefault(name, value) != value:
                raise InputError(f"{name}={value} and data.{name}={given[name]} differ: give one of them")
        expanded["data"] = given
    return expanded


def flatten(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The fields of a recipe as (dotted name, value)."""
    return flatten_fields(recipe.model_dump())


def flatten_fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings as (dotted name, value)."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flatten_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
