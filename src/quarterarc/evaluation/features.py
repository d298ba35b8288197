"""Features of a set of images in one pass: mean and covariance, and feature vectors if needed.

Batches have the same number and the same images for any number of processes: process p takes the batches p, p + count,
and so on. Statistics of the processes merge, and feature vectors are put in the order of the batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..common.devices import processes
from ..common.errors import InputError
from ..common.hashes import digest
from ..common.limits import check_batch_size
from ..common.memory import memory_checked
from ..common.progress import progress_bar
from ..common.text import counted
from ..data.image_set import ImageSet, Shape
from ..storage.files import make_folder, replace_file
from ..storage.weights import read_weights, save_tensors
from .arrays import as_features
from .extractors import Extractor
from .statistics import MeanCovariance, Statistics

__all__ = ["ImageFeatures", "collect"]


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of a set of images, by kind; metrics compare two of these.

    Attributes:
        count: number of images; None if unknown.
        shape: (C, H, W) of the images; None if unknown.
        statistics: mean and covariance by kind.
        vectors: feature vectors by kind, in the order of the images, float32 (N, D).
    """

    count: int | None = None
    shape: Shape | None = None
    statistics: Mapping[str, Statistics | MeanCovariance] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


def collect(
    images: ImageSet,
    extractor: Extractor,
    statistics: Collection[str] = (),
    vectors: Collection[str] = (),
    *,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: bool = True,
) -> ImageFeatures:
    """Extract the features of a set of images.

    Memory is that of one batch and of the statistics, for any number of images; feature vectors are kept only for the
    kinds in `vectors`.

    Args:
        images: the set.
        extractor: the feature extractor.
        statistics: kinds whose mean and covariance are computed.
        vectors: kinds whose feature vectors are kept.
        batch_size: images per batch; another size may change the last bit of features.
        cache: folder for the features of finished batches, from which an interrupted pass continues; the caller removes
            it. Sets without an identity are not cached.
        progress: whether to show progress: a bar, or lines in a log file.

    Returns:
        The features over all processes; in every process but the first, empty with count 0.

    Raises:
        InputError: for images that cannot be read or differ in shape, NaN or infinity in features (with the number of
            rows and the first image), or an empty set.
    """
    check_batch_size(batch_size)
    process = processes()
    kinds = sorted({*statistics, *vectors})
    shards = _Shards(cache, images, extractor, kinds, batch_size)
    part = _Part(images.what, extractor, statistics, vectors, batch_size)

    def mine(number: int) -> bool:
        return number % process.count == process.rank

    show = progress and process.rank == 0
    bar = progress_bar(images.count, "image", f"features of {images.what}", show, leave=False)
    with process.raising_together(), bar:
        for number in sorted(filter(mine, shards.finished)):
            stored = shards.read(number)
            if stored is None:
                continue
            shape, features = stored
            part.add(number, shape, features)
            bar.update(batch_size * process.count)
        for number, batch in images.batches(batch_size, lambda number: mine(number) and number not in shards.finished):
            shape = (batch.shape[1], batch.shape[2], batch.shape[3])
            with memory_checked(
                lambda: (
                    f"features '{extractor.name}' of a batch of {counted(len(batch), 'image')} of shape {shape} on "  # noqa: B023
                    f"{extractor.device}: lower the batch size (--batch-size, batch_size=)"
                )
            ):
                features = {kind: values for kind, values in extractor(batch).items() if kind in kinds}
                part.add(number, shape, features)
            shards.write(number, shape, features)
            bar.update(len(batch) * process.count)
    part.to_cpu()
    parts = process.gathered(part)
    merged = ImageFeatures(count=0)
    with process.raising_together():
        if not process.rank:
            merged = _merged(parts, images.what)
    return merged


class _Part:
    """The features of one process's batches."""

    def __init__(
        self, what: str, extractor: Extractor, statistics: Collection[str], vectors: Collection[str], batch_size: int
    ) -> None:
        self.what, self.extractor_name, self.batch_size = what, extractor.name, batch_size
        self.of_statistics, self.of_vectors = tuple(statistics), tuple(vectors)
        self.count = 0
        self.shape: Shape | None = None
        self.statistics: dict[str, Statistics] = {}
        self.vectors: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)

    def add(self, number: int, shape: Shape, features: dict[str, Tensor]) -> None:
        """Add the features of the batch with this number."""
        _check_same_shape(self.what, self.shape, shape)
        self.shape = shape
        for kind, values in features.items():
            what = f"the {kind} features of {self.what} ('{self.extractor_name}')"
            checked = as_features(values, what, start=number * self.batch_size)
            if kind in self.of_statistics:
                if kind not in self.statistics:
                    self.statistics[kind] = Statistics(checked.shape[1], checked.device)
                self.statistics[kind].update(checked)
            if kind in self.of_vectors:
                self.vectors[kind].append((number, checked.cpu()))
        self.count += len(next(iter(features.values())))

    def to_cpu(self) -> None:
        """Move the statistics to the CPU, so that they can be sent to another process."""
        for statistics in self.statistics.values():
            statistics.mean, statistics.scatter = statistics.mean.cpu(), statistics.scatter.cpu()


def _check_same_shape(what: str, first: Shape | None, second: Shape) -> None:
    if first not in (None, second):
        raise InputError(f"{what} hold images of shapes {first} and {second}: evaluate them separately")


def _merged(parts: list[_Part], what: str) -> ImageFeatures:
    count, shape = 0, None
    statistics: dict[str, Statistics | MeanCovariance] = {}
    batches: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for part in parts:
        if part.shape is None:
            continue
        _check_same_shape(what, shape, part.shape)
        count, shape = count + part.count, part.shape
        for kind, values in part.statistics.items():
            merged = statistics.setdefault(kind, values)
            if merged is not values:
                assert isinstance(merged, Statistics)
                merged.merge(values)
        for kind, numbered in part.vectors.items():
            batches[kind] += numbered
    if count == 0:
        raise InputError(f"{what} hold no images: give at least 1")
    vectors = {
        kind: torch.cat([rows for _, rows in sorted(numbered, key=lambda batch: batch[0])])
        for kind, numbered in batches.items()
    }
    return ImageFeatures(count, shape, statistics, vectors)


class _Shards:
    """The features of finished batches as safetensors files, in a folder whose name depends on images and extractor."""

    def __init__(
        self, cache: Path | None, images: ImageSet, extractor: Extractor, kinds: list[str], batch_size: int
    ) -> None:
        self.folder: Path | None = None
        self._kinds = kinds
        self.finished: frozenset[int] = frozenset()
        if cache is not None and images.identity is not None:
            key = digest(images.identity, extractor.describe(), kinds, batch_size)
            self.folder = cache / key
            self.finished = frozenset(self._numbers(self.folder))

    @staticmethod
    def _numbers(folder: Path) -> Iterator[int]:
        return (int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdigit())

    def read(self, number: int) -> tuple[Shape, dict[str, Tensor]] | None:
        """The features of a batch; None for a damaged file, whose batch then counts as not finished."""
        assert self.folder is not None
        try:
            features = read_weights(self.folder / f"{number:08d}.safetensors")
            channels, height, width = features.pop("shape").tolist()
            if features.keys() == set(self._kinds) and all(values.ndim == 2 for values in features.values()):
                return (channels, height, width), features
        except (InputError, KeyError, TypeError, ValueError):
            pass
        self.finished -= {number}
        return None

    def write(self, number: int, shape: Shape, features: dict[str, Tensor]) -> None:
        if self.folder is not None:
            make_folder(self.folder)
            with replace_file(self.folder / f"{number:08d}.safetensors") as beside:
                save_tensors({**features, "shape": torch.tensor(shape)}, beside)
