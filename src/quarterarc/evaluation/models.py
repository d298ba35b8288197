"""What a denoiser itself says about images: bits a dimension, by the bound and by the probability flow.

The draws of an image depend on its number alone, so the images are shared out over processes batch by batch and the
result is the same.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..devices import processes
from ..errors import InputError
from ..estimate import Denoise
from ..flow import flow_bits_per_dim
from ..likelihood import bits_per_dim
from .sets import ImageSet

__all__ = ["MODEL_METRICS", "ModelMetric", "ModelSettings", "evaluate_model"]


@dataclass(frozen=True)
class ModelSettings:
    """What metrics of a model depend on.

    Attributes:
        variance: of the bound's steps, "small", "large" or "learned"; the head's own if None.
        terms: how many of the bound's terms an image draws; all of them if None.
        probes: of the flow's divergence; None for the exact one.
        seed: of all random draws.
        batch_size: images at once.
    """

    variance: str | None = None
    terms: int | None = None
    probes: int | None = 1
    seed: int = 0
    batch_size: int = 64


ModelMetric: TypeAlias = Callable[[Denoise, Tensor, range, ModelSettings], Any]
"""(denoise, uint8 images (B, C, H, W), their numbers, settings) -> what adds up with `+` and has `describe()`."""


def _bound(denoise: Denoise, images: Tensor, numbers: range, settings: ModelSettings) -> Any:
    return bits_per_dim(
        denoise,
        images,
        settings.variance,
        terms=settings.terms,
        seed=settings.seed,
        numbers=numbers,
        batch_size=settings.batch_size,
        progress=False,
    )


def _flow(denoise: Denoise, images: Tensor, numbers: range, settings: ModelSettings) -> Any:
    return flow_bits_per_dim(
        denoise,
        images,
        probes=settings.probes,
        seed=settings.seed,
        numbers=numbers,
        batch_size=settings.batch_size,
        progress=False,
    )


MODEL_METRICS: dict[str, ModelMetric] = {"bits-per-dim": _bound, "flow-bits-per-dim": _flow}
"""The metrics that ask a denoiser about images, by name."""


def evaluate_model(
    denoise: Denoise,
    images: ImageSet,
    metrics: Sequence[str],
    settings: ModelSettings | None = None,
    *,
    what: str = "the model",
    progress: bool | None = None,
) -> dict[str, Any]:
    """What a denoiser says about images, by metrics of `MODEL_METRICS`.

    Args:
        denoise: the denoiser.
        images: the data.
        metrics: names.
        settings: what they depend on.
        what: the model, for the result.
        progress: whether to show a progress bar; None for one on a terminal and none in a pipe.

    Returns:
        The result as JSON types, each metric's findings under its name; empty in every process but the first.

    Raises:
        InputError: for images of another shape than the denoiser's, and what the metrics refuse.
    """
    settings = settings or ModelSettings()
    shape = getattr(denoise, "shape", None)
    if shape is not None and images.shape is not None and tuple(shape) != images.shape:
        raise InputError(
            f"{images.what} has images of shape {images.shape}, but {what} is of {tuple(shape)}: make them alike"
        )
    asked = [MODEL_METRICS[name] for name in metrics]
    device = getattr(denoise, "device", "cpu")
    here = processes()
    mine: list[tuple[int, list[Any]]] = []
    hidden = True if here.rank or progress is False else None if progress is None else False
    with tqdm(total=images.count, unit="image", desc=", ".join(metrics), leave=False, disable=hidden) as bar:
        for number, batch in images.batches(settings.batch_size, lambda number: number % here.count == here.rank):
            numbers = range(number * settings.batch_size, number * settings.batch_size + len(batch))
            mine.append((number, [ask(denoise, batch.to(device), numbers, settings) for ask in asked]))
            bar.update(len(batch) * here.count)
    if here.count > 1:
        from accelerate.utils import gather_object

        mine = gather_object(mine)
    if here.rank:
        return {}
    if not mine:
        raise InputError(f"{images.what} hold no images: give at least one")
    in_order = [parts for _, parts in sorted(mine, key=lambda part: part[0])]
    sums = [reduce(operator.add, parts) for parts in zip(*in_order, strict=True)]
    return {
        "quarterarc": __version__,
        "format": 1,
        "model": what,
        "metrics": {name: found.describe() for name, found in zip(metrics, sums, strict=True)},
        "data": {"what": images.what, "count": images.count, "fingerprint": images.fingerprint},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
