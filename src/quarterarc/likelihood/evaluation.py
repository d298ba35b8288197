"""What a denoiser itself says about images: bits a dimension, by the bound and by the probability flow.

The draws of an image depend on its number alone, so the images are shared out over processes and the result is the
same. What was found so far can be kept in a file, so that hours of work go on where they were interrupted.
"""

from __future__ import annotations

import operator
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..common.devices import processes
from ..common.errors import InputError
from ..data.image_set import ImageSet
from ..data.sources import digest
from ..denoiser import Denoise, traits
from ..storage.files import make_folder, read_json, write_json
from .flow import FlowLikelihood, flow_bits_per_dim
from .variational import Bound, bits_per_dim, chain_of

__all__ = ["MODEL_METRICS", "ModelMetric", "ModelSettings", "evaluate_model"]

_SAVE_EVERY = 10.0  # seconds between two writes of what was found so far


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


@dataclass(frozen=True)
class ModelMetric:
    """A metric of a model.

    Attributes:
        ask: (denoise, uint8 images (B, C, H, W), their numbers, settings) -> a `kind`.
        kind: a dataclass of numbers, arrays and such dataclasses, which adds up with `+` and has `describe()`.
        points: how many times an image is asked at once; as many as fill a batch are one piece of work.
    """

    ask: Callable[[Denoise, Tensor, range, ModelSettings], Any]
    kind: type
    points: Callable[[Denoise, ModelSettings], int]


def _bound(denoise: Denoise, images: Tensor, numbers: range, settings: ModelSettings) -> Bound:
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


def _flow(denoise: Denoise, images: Tensor, numbers: range, settings: ModelSettings) -> FlowLikelihood:
    return flow_bits_per_dim(
        denoise,
        images,
        probes=settings.probes,
        seed=settings.seed,
        numbers=numbers,
        batch_size=settings.batch_size,
        progress=False,
    )


MODEL_METRICS = {
    "bits-per-dim": ModelMetric(_bound, Bound, lambda denoise, s: s.terms or chain_of(denoise).steps),
    "flow-bits-per-dim": ModelMetric(_flow, FlowLikelihood, lambda denoise, s: 1),
}
"""The metrics that ask a denoiser about images, by name."""


def evaluate_model(
    denoise: Denoise,
    images: ImageSet,
    metrics: Sequence[str],
    settings: ModelSettings | None = None,
    *,
    what: str = "the model",
    about: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """What a denoiser says about images, by metrics of `MODEL_METRICS`.

    Args:
        denoise: the denoiser.
        images: the data.
        metrics: names.
        settings: what they depend on.
        what: the model, for the result.
        about: what else the result says of the model, such as its checkpoint and the hash of that.
        cache: a folder in which what was found so far is kept until the caller removes it: an evaluation that was
            interrupted goes on there. Needs `checkpoint_sha256` in `about`, and a set with an identity.
        progress: whether to show a progress bar; None for one on a terminal and none in a pipe.

    Returns:
        The result as JSON types, each metric's findings under its name; empty in every process but the first.

    Raises:
        InputError: for images of another shape than the denoiser's, and what the metrics refuse.
    """
    settings = settings or ModelSettings()
    shape = traits(denoise).shape
    if shape is not None and images.shape is not None and tuple(shape) != images.shape:
        raise InputError(
            f"{images.what} has images of shape {images.shape}, but {what} is of {tuple(shape)}: make them alike"
        )
    if settings.batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {settings.batch_size}")
    known = (about or {}).get("checkpoint_sha256")
    if known is None or images.identity is None:
        cache = None
    found = {}
    for name in metrics:
        key = digest(__version__, known, images.identity, name, settings)
        found[name] = _over_all(name, denoise, images, settings, None if cache is None else cache / key, progress)
    if processes().rank:
        return {}
    return {
        "quarterarc": __version__,
        "format": 1,
        "model": {"what": what, **(about or {})},
        "metrics": {name: each.describe() for name, each in found.items()},
        "data": {"what": images.what, "count": images.count, "fingerprint": images.fingerprint},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _over_all(
    name: str, denoise: Denoise, images: ImageSet, settings: ModelSettings, cache: Path | None, progress: bool | None
) -> Any:
    """The sum of a metric over all images, in the first process; each process has a share of the pieces."""
    metric, here = MODEL_METRICS[name], processes()
    size = max(1, settings.batch_size // metric.points(denoise, settings))
    device = traits(denoise).device or "cpu"
    path = None if cache is None else cache / f"{here.rank}-of-{here.count}.json"
    hidden = True if here.rank or progress is False else None if progress is None else False
    bar = tqdm(total=images.count, unit="image", desc=name, leave=False, disable=hidden)
    with bar, _Sum(metric.kind, path) as mine:
        bar.update(mine.pieces * size * here.count)
        first = here.rank + mine.pieces * here.count
        for number, batch in images.batches(size, lambda n: n >= first and n % here.count == here.rank):
            numbers = range(number * size, number * size + len(batch))
            mine.add(metric.ask(denoise, batch.to(device), numbers, settings))
            bar.update(len(batch) * here.count)
    if here.count == 1:
        sums = [mine.found]
    else:
        from accelerate.utils import gather_object

        sums = gather_object([mine.found])
    sums = [each for each in sums if each is not None]
    if not sums:
        raise InputError(f"{images.what} hold no images: give at least one")
    return reduce(operator.add, sums)


class _Sum:
    """What was found in the first pieces of a process's share, kept in a file if it has a path."""

    def __init__(self, kind: type, path: Path | None) -> None:
        self.path, self.pieces, self.found, self.saved = path, 0, None, time.monotonic()
        if path is not None and path.is_file():
            stored = read_json(path)
            self.pieces, self.found = stored["pieces"], _decode(kind, stored["found"])

    def __enter__(self) -> _Sum:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()

    def add(self, found: Any) -> None:
        """Take in what the next piece gave."""
        self.pieces, self.found = self.pieces + 1, found if self.found is None else self.found + found
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        if self.path is not None and self.found is not None:
            make_folder(self.path.parent)
            write_json(self.path, {"pieces": self.pieces, "found": _encode(self.found)})
        self.saved = time.monotonic()


def _encode(value: Any) -> Any:
    """A dataclass of numbers, arrays and dataclasses as JSON types; float64 comes back bit for bit."""
    if is_dataclass(value):
        return {each.name: _encode(getattr(value, each.name)) for each in fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _decode(kinds[name], each) for name, each in value.items()})  # type: ignore[operator]
    return np.array(value) if kind is np.ndarray else value
