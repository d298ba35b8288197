"""Likelihood metrics of a denoiser on a set of images: bits per dimension, by the bound and by the probability flow.

The random draws of an image depend on its number alone, so processes can share the images without changing the result.
Partial sums can be kept in a file, so that an interrupted evaluation continues.
"""

from __future__ import annotations

import operator
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..common.devices import processes
from ..common.errors import InputError
from ..common.hashes import digest
from ..common.limits import check_batch_size
from ..common.progress import progress_bar
from ..data.image_set import ImageSet
from ..denoiser import Denoise, traits
from ..storage.checksums import read_sealed, write_sealed
from ..storage.files import make_folder
from .flow import FlowLikelihood, flow_bits_per_dim
from .variational import Bound, bits_per_dim, chain_of

__all__ = ["LIKELIHOOD_METRICS", "LikelihoodMetric", "LikelihoodSettings", "evaluate_likelihood"]

_SAVE_EVERY = 10.0  # seconds between two writes of the partial sum


@dataclass(frozen=True)
class LikelihoodSettings:
    """The numbers that likelihood metrics depend on.

    Attributes:
        variance: variance of the bound's steps, "small", "large" or "learned"; the head's own if None.
        terms: number of the bound's terms per image, drawn at random; all if None.
        probes: number of probes per image of the flow's divergence; None for the exact divergence.
        seed: seed of all random draws.
    """

    variance: str | None = None
    terms: int | None = None
    probes: int | None = 1
    seed: int = 0


@dataclass(frozen=True)
class LikelihoodMetric:
    """A likelihood metric.

    Attributes:
        compute: (denoise, uint8 images (B, C, H, W), their numbers, settings, batch size) -> a `result`.
        result: a dataclass of numbers, arrays and such dataclasses, with `+` for merging and `describe()`.
        points: (denoise, settings) -> points per image in a batch of the denoiser.
        uses: the settings that it depends on.
        function: the name of the function of `quarterarc` that computes it, for messages.
    """

    compute: Callable[[Denoise, Tensor, range, LikelihoodSettings, int], Any]
    result: type
    points: Callable[[Denoise, LikelihoodSettings], int]
    uses: tuple[str, ...]
    function: str


def _bound(denoise: Denoise, images: Tensor, numbers: range, settings: LikelihoodSettings, batch_size: int) -> Bound:
    """The variational bound in bits per dimension (Ho et al. 2020, Eq. 5)."""
    return bits_per_dim(
        denoise,
        images,
        settings.variance,
        terms=settings.terms,
        seed=settings.seed,
        numbers=numbers,
        batch_size=batch_size,
        progress=False,
    )


def _flow(
    denoise: Denoise, images: Tensor, numbers: range, settings: LikelihoodSettings, batch_size: int
) -> FlowLikelihood:
    """The likelihood of the probability flow in bits per dimension (Song et al. 2021, Eq. 39)."""
    return flow_bits_per_dim(
        denoise,
        images,
        probes=settings.probes,
        seed=settings.seed,
        numbers=numbers,
        batch_size=batch_size,
        progress=False,
    )


LIKELIHOOD_METRICS = {
    "bits-per-dim": LikelihoodMetric(
        _bound,
        Bound,
        lambda denoise, s: s.terms or chain_of(denoise).steps,
        ("variance", "terms", "seed"),
        "bits_per_dim",
    ),
    "flow-bits-per-dim": LikelihoodMetric(
        _flow, FlowLikelihood, lambda denoise, s: 1, ("probes", "seed"), "log_likelihood"
    ),
}
"""The likelihood metrics, by name."""


def evaluate_likelihood(
    denoise: Denoise,
    images: ImageSet,
    metrics: Sequence[str],
    settings: LikelihoodSettings | None = None,
    *,
    batch_size: int = 64,
    what: str = "the model",
    about: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Likelihood metrics of a denoiser on a set of images; `quarterarc.evaluate` opens model and images for it.

    Args:
        denoise: the denoiser.
        images: the images.
        metrics: names in `LIKELIHOOD_METRICS`.
        settings: the numbers that the metrics depend on.
        batch_size: points per batch of the denoiser.
        what: name of the model, for the result.
        about: further entries of the result about the model, such as its checkpoint and the hash of that.
        cache: folder for partial sums, from which an interrupted evaluation continues; the caller removes it. Needs
            `checkpoint_sha256` in `about`, and an image set with an identity.
        progress: whether to show progress: a bar, or lines in a log file.

    Returns:
        The result as JSON types, with one mapping per metric; empty in every process but the first.

    Raises:
        InputError: if the shape of the images is not the denoiser's, and as for the metrics themselves.
    """
    settings = settings or LikelihoodSettings()
    shape = traits(denoise).shape
    if shape is not None and images.shape is not None and tuple(shape) != images.shape:
        raise InputError(
            f"{images.what}: images of shape {images.shape}, but {what} was trained on {tuple(shape)}: give images of "
            "that shape"
        )
    check_batch_size(batch_size)
    checkpoint = (about or {}).get("checkpoint_sha256")
    if checkpoint is None or images.identity is None:
        cache = None
    results = {}
    for name in metrics:
        key = digest(__version__, checkpoint, images.identity, name, settings, batch_size)
        folder = None if cache is None else cache / key
        results[name] = _sum_over_images(name, denoise, images, settings, batch_size, folder, progress)
    if processes().rank:
        return {}
    return {
        "quarterarc": __version__,
        "format": 1,
        "model": {"what": what, **(about or {})},
        "metrics": {name: result.describe() for name, result in results.items()},
        "data": {"what": images.what, "count": images.count, "fingerprint": images.fingerprint},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _sum_over_images(
    name: str,
    denoise: Denoise,
    images: ImageSet,
    settings: LikelihoodSettings,
    batch_size: int,
    folder: Path | None,
    progress: bool,
) -> Any:
    """A metric over all images, complete in the first process; batch b belongs to process b % count."""
    metric, process = LIKELIHOOD_METRICS[name], processes()
    size = max(1, batch_size // metric.points(denoise, settings))
    device = traits(denoise).device or "cpu"
    path = None if folder is None else folder / f"{process.rank}-of-{process.count}.json"
    bar = progress_bar(images.count, "image", name, progress and process.rank == 0, leave=False)
    with bar, _PartialSum(metric.result, path) as partial:
        bar.update(partial.batches * size * process.count)
        first = process.rank + partial.batches * process.count
        for number, batch in images.batches(size, lambda n: n >= first and n % process.count == process.rank):
            numbers = range(number * size, number * size + len(batch))
            partial.add(metric.compute(denoise, batch.to(device), numbers, settings, batch_size))
            bar.update(len(batch) * process.count)
    sums = [value for value in process.gathered(partial.value) if value is not None]
    if not sums:
        raise InputError(f"{images.what} holds no images: give at least 1")
    return reduce(operator.add, sums)


class _PartialSum:
    """The sum of a metric over the first batches of a process, kept in a file if it has a path."""

    def __init__(self, kind: type, path: Path | None) -> None:
        self.path, self.batches, self.value, self.saved = path, 0, None, time.monotonic()
        if path is not None and path.is_file():
            with suppress(InputError, KeyError, TypeError, ValueError, AttributeError):  # damaged: computed again
                stored = read_sealed(path)
                self.batches, self.value = _from_json(int, stored["batches"]), _from_json(kind, stored["value"])

    def __enter__(self) -> _PartialSum:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()

    def add(self, value: Any) -> None:
        """Add the value of the next batch."""
        self.batches, self.value = self.batches + 1, value if self.value is None else self.value + value
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        if self.path is not None and self.value is not None:
            make_folder(self.path.parent)
            write_sealed(self.path, {"batches": self.batches, "value": _to_json(self.value)})
        self.saved = time.monotonic()


def _to_json(value: Any) -> Any:
    """A dataclass of numbers, arrays and dataclasses as JSON types; float64 numbers are restored bit for bit."""
    if is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _from_json(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _from_json(kinds[name], entry) for name, entry in value.items()})  # type: ignore[operator]
    return np.array(value) if kind is np.ndarray else value
