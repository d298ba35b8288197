"""The demo's flow map: distilled from its network, and compared with it at few evaluations per image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..data.pixels import to_uint8
from ..denoiser import Denoiser
from ..sampling.generation import generate
from ..storage.checkpoints import hash_of, load
from ..storage.files import make_folder
from ..storage.pictures import contact_sheet, write_png
from ..storage.runs import checkpoints
from ..storage.temporary import sweep
from ..training.distilling import distill
from ..training.log import read_log, seconds_of
from ..training.teachers import check_teacher
from .demo_quality import Quality

__all__ = ["EVALUATIONS", "compare_map", "distil_map"]

logger = logging.getLogger("quarterarc")

EVALUATIONS, MOST = (1, 2, 4), 10
"""Evaluations per image at which map and teacher are compared, and those of the teacher's best images."""
SAMPLERS = ("ddim", "multistep")
"""The teacher's samplers at few evaluations, of which the better one is shown."""
IMAGES, SHOWN, COLUMNS = 1024, 16, 8
"""Images that the teacher makes for the distillation; images of a picture, and of a row of it."""


def distil_map(denoise: Denoiser, out: Path, steps: int) -> Path | None:
    """Distil the demo's network into a flow map, or continue.

    Args:
        denoise: the network, loaded from its checkpoint.
        out: the demo's run folder; the map's is `maps/STEP` in it, named after the checkpoint.
        steps: optimiser steps; 0 for no map.

    Returns:
        The checkpoint of the map; None without steps, and for a network that cannot be a teacher.
    """
    assert denoise.checkpoint is not None
    if steps == 0 or denoise.maps:
        return None
    try:
        check_teacher(denoise, str(denoise.checkpoint))
    except InputError as error:
        logger.info("no flow map: %s", error)
        return None
    run = out / "maps" / denoise.checkpoint.name
    fields = {"training.steps": steps} if checkpoints(run) else {"training.steps": steps, "teacher.images": IMAGES}
    return distill(denoise.checkpoint, run, fields=fields, resume=True)


def compare_map(
    checkpoint: Path, teacher: Denoiser, quality: Quality, best: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Measure and draw the map and its teacher at `EVALUATIONS`, from the same seeds.

    Args:
        checkpoint: that of the map.
        teacher: the network that it was distilled from.
        quality: measures the images.
        best: the measurement of the teacher's best sampler at `MOST` evaluations.
        out: the demo's run folder, for the pictures in `compare/`.

    Returns:
        Of the map its `run` folder, `checkpoint_sha256`, `steps` and `seconds` of its training; `map`, `teacher`:
        measurements, one per number of evaluations; the last one of `teacher` is `best`. Each has the path of its
        `picture`.
    """
    mapped, log = load(checkpoint), read_log(checkpoint.parents[1])
    lines = {
        "map": [quality.of(mapped, "jump", steps) for steps in EVALUATIONS],
        "teacher": [
            *(
                min((quality.of(teacher, name, steps) for name in SAMPLERS), key=lambda line: float(line["fid"]))
                for steps in EVALUATIONS
            ),
            best,
        ],
    }
    folder = make_folder(out / "compare")
    sweep(folder)
    shown: dict[str, list[dict[str, Any]]] = {}
    for name, denoise in (("map", mapped), ("teacher", teacher)):
        shown[name] = []
        for line in lines[name]:
            path = folder / f"{name}-{line['nfe']}.png"
            images = generate(denoise, range(SHOWN), line["sampler"], line["steps"], progress=False)
            write_png(path, contact_sheet(to_uint8(images), columns=COLUMNS, size=48, smooth=True))
            shown[name].append({**line, "picture": path})
    return {
        "run": checkpoint.parents[1],
        "checkpoint_sha256": hash_of(checkpoint),
        "steps": log[-1]["step"],
        "seconds": round(seconds_of(log), 1),
        **shown,
    }
