"""One pass over a set of images gives everything that any metric needs: moments, and feature vectors where asked.

Batches keep their number whoever works on them: with several processes, process p takes the batches p, p + count, ...,
so that each batch is the same as in one process. Moments merge, and feature vectors are put in order by number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.devices import processes
from ..common.errors import InputError
from ..data.image_set import ImageSet, Shape
from ..data.sources import digest
from ..storage.files import make_folder, replace_file
from ..storage.weights import save_tensors
from .arrays import as_features
from .extractors import Extractor
from .statistics import Statistics

__all__ = ["Collected", "collect"]


@dataclass
class Collected:
    """What a pass over images gave, kind by kind.

    Attributes:
        count: how many images.
        shape: theirs, (C, H, W).
        statistics: mean and covariance, of the kinds that were asked for.
        features: the feature vectors in the order of the images, float32 (N, D), of the kinds that were asked for.
    """

    count: int = 0
    shape: Shape | None = None
    statistics: dict[str, Statistics] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


def collect(
    images: ImageSet,
    extractor: Extractor,
    moments: Collection[str] = (),
    features: Collection[str] = (),
    *,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: bool | None = None,
) -> Collected:
    """Extract features once.

    Memory is that of a batch and of the moments, whatever the count; only kinds of `features` are kept.

    Args:
        images: the set.
        extractor: what makes features.
        moments: kinds to take mean and covariance of.
        features: kinds to keep every vector of.
        batch_size: images at once; another size may round features differently in the last bit.
        cache: a folder in which the features of finished batches are kept until the caller removes it: a pass that was
            interrupted goes on there. Sets without an identity are not cached.
        progress: whether to show a progress bar; None for one on a terminal and none in a pipe.

    Returns:
        What was collected over all processes; nothing, with count 0, in every process but the first.

    Raises:
        InputError: for images that cannot be read or differ in shape, NaN in features (how many, and the first image),
            or no images at all.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    here = processes()
    kinds = sorted({*moments, *features})
    shards = _Shards(cache, images, extractor, kinds, batch_size)
    found = _Pass(images.what, extractor, moments, features, batch_size)

    def mine(number: int) -> bool:
        return number % here.count == here.rank

    bar = tqdm(total=images.count, unit="image", desc=f"features of {images.what}", leave=False,
               disable=_hidden(progress, here.rank))  # fmt: skip
    with bar:
        for number in sorted(filter(mine, shards.there)):
            shape, made = shards.read(number)
            found.take(number, shape, made)
            bar.update(batch_size * here.count)
        for number, batch in images.batches(batch_size, lambda number: mine(number) and number not in shards.there):
            shape = (batch.shape[1], batch.shape[2], batch.shape[3])
            made = {kind: values for kind, values in extractor(batch).items() if kind in kinds}
            found.take(number, shape, made)
            shards.write(number, shape, made)
            bar.update(len(batch) * here.count)
    found.to_cpu()
    passes = _gathered(found, here.count) if here.count > 1 else [found]
    return Collected() if here.rank else _joined(passes, images.what)


def _hidden(progress: bool | None, rank: int) -> bool | None:
    if rank:
        return True
    return None if progress is None else not progress


class _Pass:
    """The share of one process."""

    def __init__(
        self, what: str, extractor: Extractor, moments: Collection[str], features: Collection[str], batch_size: int
    ) -> None:
        self.what, self.extractor_name, self.batch_size = what, extractor.name, batch_size
        self.moments, self.features = tuple(moments), tuple(features)
        self.count = 0
        self.shape: Shape | None = None
        self.statistics: dict[str, Statistics] = {}
        self.kept: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)

    def take(self, number: int, shape: Shape, made: dict[str, Tensor]) -> None:
        if self.shape not in (None, shape):
            raise InputError(f"{self.what} hold images of shapes {self.shape} and {shape}: evaluate them apart")
        self.shape = shape
        for kind, values in made.items():
            what = f"the {kind} features that '{self.extractor_name}' gives for {self.what}"
            checked = as_features(values, what, start=number * self.batch_size)
            if kind in self.moments:
                if kind not in self.statistics:
                    self.statistics[kind] = Statistics(checked.shape[1], checked.device)
                self.statistics[kind].update(checked)
            if kind in self.features:
                self.kept[kind].append((number, checked.cpu()))
        self.count += len(next(iter(made.values())))

    def to_cpu(self) -> None:
        """Bring the moments to where they can be sent to another process."""
        for statistics in self.statistics.values():
            statistics.mean, statistics.scatter = statistics.mean.cpu(), statistics.scatter.cpu()


def _gathered(found: _Pass, count: int) -> list[_Pass]:
    from accelerate.utils import gather_object

    passes: list[_Pass] = gather_object([found])
    assert len(passes) == count
    return passes


def _joined(passes: list[_Pass], what: str) -> Collected:
    whole = Collected()
    kept: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for part in passes:
        if part.shape is None:
            continue
        if whole.shape not in (None, part.shape):
            raise InputError(f"{what} hold images of shapes {whole.shape} and {part.shape}: evaluate them apart")
        whole.shape = part.shape
        whole.count += part.count
        for kind, statistics in part.statistics.items():
            if kind in whole.statistics:
                whole.statistics[kind].merge(statistics)
            else:
                whole.statistics[kind] = statistics
        for kind, batches in part.kept.items():
            kept[kind] += batches
    if whole.count == 0:
        raise InputError(f"{what} hold no images: give at least one")
    for kind, batches in kept.items():
        whole.features[kind] = torch.cat([rows for _, rows in sorted(batches, key=lambda batch: batch[0])])
    return whole


class _Shards:
    """The features of finished batches as safetensors files, under a key that changes with images and extractor."""

    def __init__(
        self, cache: Path | None, images: ImageSet, extractor: Extractor, kinds: list[str], batch_size: int
    ) -> None:
        self.folder: Path | None = None
        self.there: frozenset[int] = frozenset()
        if cache is not None and images.identity is not None:
            key = digest(images.identity, extractor.describe(), kinds, batch_size)
            self.folder = cache / key
            self.there = frozenset(self._numbers(self.folder))

    @staticmethod
    def _numbers(folder: Path) -> Iterator[int]:
        return (int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdigit())

    def read(self, number: int) -> tuple[Shape, dict[str, Tensor]]:
        from safetensors.torch import load_file

        assert self.folder is not None
        made = load_file(self.folder / f"{number:08d}.safetensors")
        channels, height, width = made.pop("shape").tolist()
        return (channels, height, width), made

    def write(self, number: int, shape: Shape, made: dict[str, Tensor]) -> None:
        if self.folder is not None:
            make_folder(self.folder)
            with replace_file(self.folder / f"{number:08d}.safetensors") as beside:
                save_tensors({**made, "shape": torch.tensor(shape)}, beside)
