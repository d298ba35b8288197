"""Published checkpoints as checkpoint folders of this library: weights of other layouts, read without running code."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch

from ..common import limits
from ..common.errors import InputError
from ..denoiser import Denoiser
from ..heads import Head, LearnedVariance, Noise, Velocity
from ..networks import build_network
from ..schedules import Schedule
from ..schedules import schedule as named_schedule
from ..storage.checkpoints import save
from .layouts import Converted, Settings, convert, layout_of
from .preconditioning import Preconditioned
from .torch_files import read_state

__all__ = ["import_checkpoint", "imported"]

logger = logging.getLogger("quarterarc")

PRECONDITIONED = "quarterarc.interop.preconditioning:Preconditioned"
STEPS = 1000


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    schedule: str = "linear",
    steps: int = STEPS,
    heads: int | None = None,
    head_channels: int | None = None,
    order: str = "legacy",
) -> Path:
    """Write a published checkpoint as a checkpoint folder, which `quarterarc.load` reads.

    The layout is recognised by names and shapes: DDIM's and that of its conversion `pesser/pytorch_diffusion`, that of
    improved-diffusion and guided-diffusion (ADM), and EDM's. Nothing in the file is executed.

    Args:
        file: a state dict as safetensors, or a file of `torch.save`, of which the moving average is taken.
        out: the folder, which must not exist.
        size, heads, head_channels, order: what weights do not contain, see `quarterarc.interop.layouts.Settings`.
        schedule, steps: the schedule of training, for DDIM's and ADM's layouts: "linear" or "cosine".

    Returns:
        The folder.

    Raises:
        InputError: for a file that cannot be read, another layout, tensors that are missing, superfluous or of another
            shape, or a folder that exists.
    """
    if Path(out).exists():
        raise InputError(f"{out} already exists: give the path of a new folder")
    try:
        denoise = imported(Path(file), Settings(size, heads, head_channels, order), schedule, steps)
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{file}: {error}") from None
    return save(denoise, out)


def imported(file: Path, settings: Settings, schedule: str = "linear", steps: int = STEPS) -> Denoiser:
    """The denoiser of a published checkpoint; arguments and errors as for `import_checkpoint`."""
    state = read_state(file)
    layout = layout_of(state)
    converted = convert(layout, state, settings)
    if converted.size > limits.LARGEST_SIDE:
        raise InputError(f"images of {converted.size} pixels are larger than {limits.LARGEST_SIDE}")
    denoise = _edm(converted) if layout == "edm" else _numbered(converted, named_schedule(schedule, steps))
    logger.info("the layout is '%s': %r", layout, denoise)
    return denoise


def _numbered(converted: Converted, schedule: Schedule) -> Denoiser:
    """A network that is called with the number of the training step, from 0, in thousandths of T."""
    head: Head = Noise()
    outputs = converted.network.last.out_channels
    if outputs == 2 * converted.channels:
        head = LearnedVariance(head)
    elif outputs != converted.channels:
        raise InputError(
            f"the network has {converted.channels} input and {outputs} output channels: it needs as many, or twice as "
            "many for a learned variance"
        )
    return Denoiser(
        converted.network,
        schedule,
        head,
        shape=(converted.channels, converted.size, converted.size),
        classes=converted.classes,
        unlabelled=converted.classes is None,
        time_shift=-1000.0 / schedule.steps,
    )


def _edm(converted: Converted) -> Denoiser:
    """A network of EDM with its preconditioning, on the part of the arc where it is defined."""
    with torch.device("meta"):  # its own network is replaced
        network = build_network({"name": PRECONDITIONED, "arguments": {"network": converted.description}})
    assert isinstance(network, Preconditioned)
    network.model = converted.network
    angles = np.linspace(0.0, math.atan(80.0), STEPS + 1)
    return Denoiser(
        network.eval(),
        Schedule("custom", angles),
        Velocity(),
        shape=(converted.channels, converted.size, converted.size),
        classes=converted.classes,
        unlabelled=converted.classes is None,
    )
