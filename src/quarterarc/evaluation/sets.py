"""Image sets: 8-bit images from memory, from files, or sampled by a denoiser; every set has images of one shape.

Nothing is resized, and images of different sizes raise an InputError. `image_files` has the sets of files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.compiling import Compile
from ..common.errors import InputError
from ..common.hashes import digest
from ..common.text import counted, ranges
from ..data.image_set import Shape, Wanted
from ..data.memory import as_pixels
from ..data.pixels import levels
from ..denoiser import Denoise, traits
from ..sampling.compiled import compiled
from ..sampling.generation import batches, count_evaluations, mean_evaluations
from ..sampling.plans import Sampling, labels_in_turn, numbered_labels

__all__ = ["BatchSet", "SampledSet", "TensorSet", "batch_rows"]


def batch_rows(count: int, size: int, wanted: Wanted) -> list[tuple[int, range]]:
    """Number and images of every wanted batch."""
    return [
        (number, range(number * size, min((number + 1) * size, count)))
        for number in range(math.ceil(count / size))
        if wanted(number)
    ]


class TensorSet:
    """Images in memory.

    Args:
        images: uint8 (N, C, H, W), a tensor or an array.
        what: name of the images, for messages and results.

    Raises:
        InputError: for another dtype or other axes, with the call that converts the images.
    """

    sampling: dict[str, Any] | None = None

    def __init__(self, images: Tensor | NDArray[Any], what: str = "the images") -> None:
        self.what, self.images = what, as_pixels(images, what)
        self.count = len(self.images)
        self.shape: Shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        data = self.images.cpu().contiguous().numpy()
        self.fingerprint = self.identity = digest(data.shape, hashlib.sha256(data.data).hexdigest())

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        for number, rows in batch_rows(self.count, size, wanted):
            yield number, self.images[rows.start : rows.stop]


class BatchSet:
    """Batches from an iterable, which are read once and regrouped to batches of equal size.

    Args:
        images: batches, uint8 (B, C, H, W), tensors or arrays.
        what: name of the images, for messages and results.
        limit: number of images to read; all if None.
    """

    count: int | None = None
    shape: Shape | None = None
    fingerprint: str | None = None
    identity: str | None = None
    sampling: dict[str, Any] | None = None

    def __init__(self, images: Iterable[Any], what: str = "the images", limit: int | None = None) -> None:
        self.what, self._images, self._limit = what, images, limit

    def _limited(self) -> Iterator[Tensor]:
        left = self._limit
        for batch in self._images:
            if left is not None and left <= 0:
                return
            if not isinstance(batch, Tensor | np.ndarray):
                raise InputError(
                    f"{self.what}: batches must be tensors or arrays, uint8 of shape (B, C, H, W), got "
                    f"{type(batch).__name__}"
                )
            images = as_pixels(batch, self.what)[:left]
            left = None if left is None else left - len(images)
            yield images

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        number, rest = 0, torch.empty(0)
        for images in self._limited():
            if len(rest) and rest.shape[1:] != images.shape[1:]:
                shapes = f"{tuple(rest.shape[1:])} and {tuple(images.shape[1:])}"
                raise InputError(f"{self.what} hold images of different shapes, {shapes}: evaluate them separately")
            rest = torch.cat([rest, images]) if len(rest) else images
            while len(rest) >= size:
                if wanted(number):
                    yield number, rest[:size]
                number, rest = number + 1, rest[size:]
        if len(rest) and wanted(number):
            yield number, rest


class SampledSet:
    """Images that a denoiser makes from seeds, rounded to 8 bits; they are not kept.

    Args:
        denoise: a denoiser that declares the shape of its images.
        seeds: one per image.
        sampling: sampler, steps, grid and so on.
        labels: classes by number or name, used in turn over `seeds`: seeds[k] has the label labels[k % len(labels)].
        what: name of the model, for messages and results.
        about: further entries of `sampling` that decide the images, such as the checkpoint's hash.
        compile: whether to compile the network, as for `quarterarc.generate`.

    Attributes:
        sampling: how the images are sampled, as JSON types, with the network evaluations per image, `nfe`: the mean of
            the images sampled by this process, or that of the first one if all were known from an earlier command.
        fingerprint, identity: None unless `about` identifies the network, by `checkpoint_sha256` or
            `recipe_hash`, and the settings determine the sampler.

    Raises:
        InputError: without seeds, for a denoiser of unknown shape, and as for `sample`.
    """

    def __init__(
        self,
        denoise: Denoise,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        what: str = "the model",
        about: Mapping[str, Any] | None = None,
        compile: Compile = "auto",
    ) -> None:
        shape = traits(denoise).shape
        if shape is None:
            raise InputError(
                "this denoiser does not declare the shape of its images: set its attribute "
                "traits = quarterarc.Traits(shape=(C, H, W)), or Denoiser(..., shape=(C, H, W))"
            )
        if not len(seeds):
            raise InputError("there are no seeds: give one per image")
        numbers = numbered_labels(denoise, labels)
        self._seeds, self._labels = seeds, labels_in_turn(numbers, len(seeds))
        self._plan = (sampling or Sampling()).plan(denoise)
        self.what, self.count = what, len(seeds)
        self.shape: Shape = (shape[0], shape[1], shape[2])
        self._settings = {
            **(about or {}),
            **self._plan.describe(),
            "labels": numbers,
            "seeds": _seed_text(seeds),
        }
        identified = self._plan.exact and bool(about and (about.get("checkpoint_sha256") or about.get("recipe_hash")))
        images = list(seeds) if self._labels is None else list(zip(seeds, self._labels, strict=True))
        altered = traits(denoise).altered  # a wrapper that was given with the denoiser, in neither `about` nor request
        decisive = {key: value for key, value in self._settings.items() if key != "model"}  # one run has many paths
        parts = (decisive, images) if altered is None else (decisive, images, altered)
        self.fingerprint = self.identity = digest(*parts) if identified else None
        self._evaluated: list[tuple[float, int]] = []
        self._compile = compile

    @property
    def sampling(self) -> dict[str, Any] | None:
        if not self._evaluated:
            label = None if self._labels is None else self._labels[0]
            self._evaluated.append((count_evaluations(self._plan, self._seeds[0], label), 1))
        return {**self._settings, "nfe": mean_evaluations(self._evaluated)}

    def batches(self, size: int, wanted: Wanted) -> Iterator[tuple[int, Tensor]]:
        rows_of = batch_rows(self.count, size, wanted)
        plan = compiled(self._plan, self._compile, sum(len(rows) for _, rows in rows_of), size)
        for number, rows in rows_of:
            seeds = self._seeds[rows.start : rows.stop]
            labels = None if self._labels is None else self._labels[rows.start : rows.stop]
            ((_, result),) = batches(plan, seeds, batch_size=size, labels=labels)
            wrong = ~torch.isfinite(result.images).flatten(1).all(1)
            if wrong.any():
                first = seeds[int(wrong.nonzero()[0, 0])]
                raise InputError(
                    f"{self.what} sampled {int(wrong.sum())} of {counted(len(seeds), 'image')} with NaN or infinity, "
                    f"first the image of seed {first}: check the network's weights and the sampler's options"
                )
            self._evaluated.append((result.nfe, len(seeds)))
            yield number, levels(result.images)


def _seed_text(seeds: Sequence[int]) -> str:
    """Seeds in short: "0-63", or count and ends of a long list without a pattern."""
    if all(after > before for before, after in pairwise(seeds)):
        text = ranges(seeds)
        if len(text) < 1000:
            return text
    elif len(seeds) <= 100:
        return ",".join(map(str, seeds))
    return f"{len(seeds)} from {min(seeds)} to {max(seeds)}"
