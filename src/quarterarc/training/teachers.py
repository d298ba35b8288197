"""The teacher of a distillation: where it is, the denoiser that starts as a copy of it, and images that it makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.devices import Processes
from ..common.errors import InputError
from ..common.hashes import short_hash
from ..common.streams import FORMAT, Purpose, torch_seed
from ..common.text import counted
from ..data import ImageData
from ..data.pixels import to_uint8
from ..denoiser import Denoise, Denoiser
from ..heads import Extended, Mean, Tangent
from ..interop.opening import load
from ..interop.pipelines import with_own_network
from ..networks import UNet
from ..sampling.generation import generate
from ..schedules import schedule
from ..storage.files import replace_file
from ..storage.runs import TEACHER_IMAGES
from ..storage.weights import hash_of_weights, read_weights, save_tensors
from ..wrappers import Guided, project
from .distillation import Distillation
from .network import network_fields, recipe_network
from .recipe import OBJECT, Recipe, ScheduleSpec, flatten_fields
from .trajectories import Trajectories

__all__ = [
    "check_same_teacher",
    "check_sections",
    "check_teacher",
    "distillation_of",
    "guided",
    "identity_of",
    "images_of",
    "new_student",
    "open_teacher",
    "read_teacher",
    "sections_of",
    "student_of",
]

logger = logging.getLogger("quarterarc")

FIRST_SEED = 2**40
"""Seeds of the teacher's images, far from those of samples and previews."""


def read_teacher(source: str | Path, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser of a run, of a checkpoint, or of a diffusers pipeline folder, with a network that can be trained.

    Raises:
        InputError: if there is nothing at this place, or it cannot be loaded.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise InputError(
            f"there is no teacher at {source}: give the folder of a run, of a checkpoint or of a diffusers pipeline, "
            "and to resume a run whose teacher has moved `quarterarc distill PLACE --out RUN --resume`"
        )
    return with_own_network(load(source, device))


def identity_of(teacher: Denoiser) -> str:
    """16 hexadecimal digits of everything that decides the estimates of a teacher, independent of its place."""
    assert isinstance(teacher.network, UNet)
    angles = teacher.schedule.angles.tolist()
    clock = [] if teacher.clock is None else [teacher.clock.angles.tolist()]
    return short_hash(
        [hash_of_weights(teacher.network), angles, teacher.head.name, teacher.time_shift, teacher.time_scale, *clock]
    )


def check_same_teacher(identity: str, recipe: Recipe, config: Mapping[str, Any], run: Path) -> None:
    """Raise an InputError unless a run is resumed with the teacher that it began with, wherever that is now.

    Args:
        identity: `identity_of` the teacher now.
        recipe: the recipe now.
        config: config.json of the checkpoint that the run continues from.
        run: the run folder, for messages.
    """
    assert recipe.teacher is not None
    now, before = recipe.teacher.source, config["recipe"]["teacher"]["source"]
    if config.get("teacher", identity if now == before else None) != identity:
        raise InputError(
            f"{run} was distilled from another teacher: the weights of {now} are not those of {before} at that time; "
            "give the checkpoint that it began with, or choose another folder (--out)"
        )


def open_teacher(recipe: Recipe, given: Denoiser | None, device: torch.device) -> Denoiser | None:
    """The teacher of a recipe, on a device; None for a recipe without one.

    Args:
        recipe: its section `teacher`.
        given: the teacher as an object, in place of the folder that the recipe names.
        device: the device.

    Raises:
        InputError: if the folder cannot be loaded, or the denoiser cannot be a teacher of the recipe's images.
    """
    if recipe.teacher is None:
        return None
    source = recipe.teacher.source
    if given is None and source == OBJECT:
        raise InputError("the teacher of this run was given as an object in Python: give it again (quarterarc.distill)")
    teacher = read_teacher(source, device) if given is None else with_own_network(given).to(device)
    check_teacher(teacher, source)
    data = recipe.data
    check_sections(recipe, teacher, source)
    if recipe.teacher.guidance is not None and teacher.classes is None:
        raise InputError(f"the teacher {source} has no classes, so that guidance does not apply: leave it out")
    if data.labels and teacher.classes is None:
        raise InputError(f"the teacher {source} has no classes, and the data has labels: give data.labels=false")
    if teacher.classes is not None and not teacher.unlabelled and recipe.training.drop_labels > 0.0:
        raise InputError(
            f"the teacher {source} was trained with a label for every image: give training.drop_labels=0, got "
            f"{recipe.training.drop_labels:g}"
        )
    return teacher


def sections_of(teacher: Denoiser) -> dict[str, Any]:
    """The sections of a recipe that a map has from its teacher: `network`, `head`, and `schedule` if it has a name."""
    assert isinstance(teacher.network, UNet)
    assert teacher.shape is not None
    sections: dict[str, Any] = {
        "network": network_fields(teacher.network, teacher.shape[1]),
        "head": teacher.head.name,
        "schedule": {"name": teacher.schedule.name, "steps": teacher.schedule.steps},
    }
    try:
        schedule(teacher.schedule.name, teacher.schedule.steps)
    except InputError:  # the teacher's own, which the map has too
        del sections["schedule"]
    return sections


def check_sections(recipe: Recipe, teacher: Denoiser, source: str) -> None:
    """Raise an InputError for a recipe whose images, network, head or schedule are not those of the teacher."""
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    if teacher.shape != shape:
        raise InputError(f"the teacher {source} makes images of shape {teacher.shape}, and the data have {shape}")
    # in place of a schedule without a name a recipe has the default one
    expected = _flat({"network": {"name": "unet"}}, {"schedule": ScheduleSpec().model_dump()}, sections_of(teacher))
    own = _own_sections(recipe, teacher)
    name = next((name for name in (*own, *expected) if own.get(name) != expected.get(name)), None)
    if name is not None:
        raise InputError(
            f"a map starts as a copy of its teacher, and the recipe for the teacher {source} has "
            f"{name}={expected.get(name)}, got {own.get(name)}: leave {name} out"
        )


def _own_sections(recipe: Recipe, teacher: Denoiser) -> dict[str, Any]:
    """The fields of a recipe in the form of `sections_of`, by dotted name."""
    if recipe.network.name != "unet":
        return {"network.name": recipe.network.name}
    assert isinstance(teacher.network, UNet)
    config = teacher.network.config
    with torch.device("meta"):  # the arguments that the recipe leaves out are the defaults of the U-Net
        network = recipe_network(recipe, config["in_channels"], config["out_channels"], config["classes"])
    assert isinstance(network, UNet)
    return _flat(
        {"network": {"name": "unet"}},
        {"schedule": recipe.schedule.model_dump()},
        {"network": network_fields(network, recipe.data.height), "head": recipe.head},
    )


def _flat(*sections: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for section in sections for name, value in flatten_fields(section)}


def check_teacher(teacher: Denoiser, what: str) -> None:
    """Raise an InputError for a denoiser whose flow or network a flow map cannot start from."""
    if not isinstance(teacher, Denoiser) or type(teacher.network) is not UNet:
        kind = type(teacher.network if isinstance(teacher, Denoiser) else teacher).__name__
        raise InputError(f"the teacher {what} is a {kind}: a flow map starts from a Denoiser with a quarterarc UNet")
    if isinstance(teacher.head, Mean | Extended):
        belongs = "a flow map from scratch" if isinstance(teacher.head, Tangent) else "one step of DDPM"
        raise InputError(
            f"the teacher {what} has the head '{teacher.head.name}', which belongs to {belongs}: a teacher has "
            "the head both, velocity, image, noise or gated"
        )


def student_of(teacher: Denoiser) -> Denoiser:
    """The flow map that starts as a copy of a teacher: it has its network with spans, its schedule and its head."""
    assert isinstance(teacher.network, UNet)
    network = teacher.network.with_spans().requires_grad_(True).train()
    student = replace(teacher, network=network, maps=True, checkpoint=None, mean_image=None)
    return replace(student, altered=None, projection=None, streams=FORMAT)


def new_student(teacher: Denoiser, recipe: Recipe, data: ImageData) -> Denoiser:
    """The flow map of a recipe with a teacher; weights that the teacher lacks are decided by the seed.

    Raises:
        InputError: if the data have classes that the teacher does not know, or none where it needs them.
    """
    if teacher.classes is not None and (data.classes is None or data.classes > teacher.classes):
        has = "no labels" if data.classes is None else f"{data.classes} classes"
        raise InputError(f"the teacher has {teacher.classes} classes, and the data {has}: give data with its labels")
    reverses = recipe.teacher is not None and recipe.teacher.reversed > 0.0
    if reverses and not teacher.head.at_image:
        raise InputError(
            f"a jump from the image needs an estimate there, and the head '{teacher.head.name}' has none: leave out "
            "teacher.reversed"
        )
    torch.manual_seed(torch_seed(recipe.training.seed, Purpose.WEIGHTS))
    return replace(
        student_of(teacher),
        precision=torch.bfloat16 if recipe.training.precision == "bf16" else None,
        unlabelled=teacher.unlabelled and recipe.training.drop_labels > 0,
        reverses=reverses,
    )


def guided(teacher: Denoiser, recipe: Recipe) -> Denoise:
    """The denoiser whose flow is learned: the teacher with its projection, under the guidance of the recipe."""
    assert recipe.teacher is not None
    projected = project(teacher, "velocity")
    scale = recipe.teacher.guidance
    return projected if scale is None else Guided(projected, scale)


def distillation_of(
    teacher: Denoiser, recipe: Recipe, processes: Processes, device: torch.device | str
) -> Distillation:
    """The objective of a recipe with a teacher.

    Args:
        teacher: the teacher, on the device.
        recipe: the settings.
        processes: this process among all.
        device: the device.

    Raises:
        InputError: for an option outside its range, or one that the objective does not have.
    """
    settings, training, followed = recipe.teacher, recipe.training, guided(teacher, recipe)
    assert settings is not None
    trajectories = Trajectories(
        followed, settings.steps, settings.trajectories, settings.uses, batch=training.batch // processes.count,
        seed=training.seed, rank=processes.rank, processes=processes.count,
        unlabelled=training.drop_labels if teacher.unlabelled else 0.0, device=device,
    )  # fmt: skip
    try:
        return Distillation(
            teacher=followed, trajectories=trajectories, length=training.steps, stage=settings.stage,
            from_noise=settings.from_noise, reversed=settings.reversed, **recipe.objective.options,
        )  # fmt: skip
    except TypeError as error:
        raise InputError(
            f"the objective 'flow-map' cannot use the options {recipe.objective.options}: {error}"
        ) from None


def images_of(teacher: Denoiser, recipe: Recipe, run: Path, processes: Processes, progress: bool) -> Any:
    """Images that the teacher makes, as uint8 (N, C, H, W), with their labels if it has classes.

    They are made by the first process, once per run, and read from the run folder by a resumed one.
    """
    assert recipe.teacher is not None
    path, count = run / TEACHER_IMAGES, recipe.teacher.images
    with processes.raising_together():
        if processes.rank == 0 and not path.is_file():
            logger.info("the teacher makes %s", counted(count, "image"))
            labels = None if teacher.classes is None else [number % teacher.classes for number in range(count)]
            seeds = range(FIRST_SEED, FIRST_SEED + count)
            images = generate(guided(teacher, recipe), seeds, labels=labels, progress=progress, batch_size=64)
            tensors: dict[str, Tensor] = {"images": to_uint8(images)}
            if labels is not None:
                tensors["labels"] = torch.tensor(labels)
            with replace_file(path) as beside:
                save_tensors(tensors, beside)
    tensors = read_weights(path)
    return (tensors["images"], tensors["labels"]) if "labels" in tensors else tensors["images"]
