"""Memorisation: how close samples are to the images that a network was trained on.

A sample is counted as a copy if its distance to the nearest training image is below a third of that to the second
nearest one (Yoon et al. 2023). For comparison, the same distance is measured for images that were
held out of training, which the network has not seen, and from training images to one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.image_set import ImageSet
from ..data.order import permutation
from ..storage.files import make_folder
from ..storage.pictures import contact_sheet, write_png
from .arrays import Features, as_pair

__all__ = ["COPY", "copies", "memorisation", "nearest", "nearest_sheet", "write_nearest"]

COPY = 1 / 3
"""Largest ratio of the two smallest distances of a copy."""
NEIGHBOURS = 3
"""Training images beside a sample in the picture."""
SHOWN = 12
"""Samples in the picture, those nearest to a training image."""
COMPARED = 1000
"""Training images whose distances to one another are measured, at random, at most."""
_BLOCK, _SPARE = 2048, 8
_SEED = 2023


@torch.no_grad()
def nearest(queries: Features, references: Features, k: int, itself: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query, nearest first.

    Candidates are found in float32, and their distances computed in float64: equal rows have distance 0.

    Args:
        queries, references: features, shapes (N, D) and (M, D).
        k: number of neighbours, at most M; with `itself` below M.
        itself: of queries that are references, their numbers (N,): a query is no neighbour of itself.

    Returns:
        Distances, root mean square per feature, float64 (N, k), and numbers of the references, int64 (N, k).
    """
    first, second = as_pair(queries, references, ("the features of images", "the features of the reference"), fewest=1)
    if not 0 < k < len(second) + (itself is None):
        raise InputError(f"{k} neighbours of {len(second)} images were requested: give fewer")
    centre = second.double().mean(0)
    columns = (second.double() - centre).float()
    norms = columns.square().sum(1)
    width = min(len(second), k + _SPARE)
    distances, numbers = [], []
    for start in range(0, len(first), _BLOCK):
        rows = first[start : start + _BLOCK].double()
        lower = torch.addmm(norms, (rows - centre).float(), columns.T, alpha=-2)
        if itself is not None:
            own = itself[start : start + _BLOCK].to(lower.device)
            lower[torch.arange(len(rows), device=lower.device), own] = math.inf
        found = lower.topk(width, dim=1, largest=False).indices
        exact = torch.stack(
            [(row - second[places].double()).square().mean(1) for row, places in zip(rows, found, strict=True)]
        )
        if itself is not None:
            exact[found == own[:, None]] = math.inf
        squared, order = exact.topk(k, dim=1, largest=False)
        distances.append(squared.sqrt().cpu())
        numbers.append(found.gather(1, order).cpu())
    return torch.cat(distances), torch.cat(numbers)


def copies(images: Features, training: Features) -> Tensor:
    """Whether each image is a copy of a training image, bool (N,); see the module.

    Of an image that the training images contain twice, only copies at distance 0 are counted.
    """
    distances, _ = nearest(images, training, 2)
    return (distances[:, 0] < COPY * distances[:, 1]) | (distances[:, 0] == 0.0)


def memorisation(images: Tensor, training: Tensor, held_out: Tensor | None = None) -> dict[str, Any]:
    """The distances of images to the nearest training image, and what to compare them with.

    Args:
        images, training, held_out: features (N, D).

    Returns:
        JSON types: `median`, the median distance of the images; `held_out_median`, that of the held-out images, or
        None; `training_median`, that of training images to the nearest other one; `shown`, the images nearest to a
        training image, each with the numbers and distances of its neighbours.
    """
    neighbours = min(NEIGHBOURS, len(training))
    distances, numbers = nearest(images, training, neighbours)
    chosen = torch.from_numpy(permutation(_SEED, count=len(training))[:COMPARED])
    among, _ = nearest(training[chosen], training, 1, itself=chosen)
    order = distances[:, 0].argsort(stable=True)[:SHOWN]
    return {
        "median": float(distances[:, 0].median()),
        "held_out_median": None if held_out is None else float(nearest(held_out, training, 1)[0].median()),
        "training_median": float(among.median()),
        "shown": [
            {"image": place, "neighbours": numbers[place].tolist(), "distances": distances[place].tolist()}
            for place in order.tolist()
        ],
    }


def _pixels_of(images: ImageSet, numbers: Sequence[int], batch_size: int) -> dict[int, Tensor]:
    """Images of a set by their numbers, uint8 (C, H, W), which are read or sampled again in the same batches."""
    batches = {number // batch_size for number in numbers}
    pixels: dict[int, Tensor] = {}
    for batch, part in images.batches(batch_size, lambda number: number in batches):
        first = batch * batch_size
        pixels |= {number: part[number - first].cpu() for number in numbers if 0 <= number - first < len(part)}
    return pixels


def write_nearest(
    path: Path, shown: Sequence[Mapping[str, Any]], images: ImageSet, training: ImageSet | None, batch_size: int
) -> bool:
    """Write the picture of `nearest_sheet`, if the images and the training images can be read again.

    Args:
        path: the PNG file.
        shown: as `memorisation` returns them.
        images, training: the sets, which are read or sampled again in the same batches.
        batch_size: images per batch.

    Returns:
        Whether it is written.
    """
    if images.count is None or training is None or training.count is None:
        return False
    own = _pixels_of(images, [row["image"] for row in shown], batch_size)
    neighbours = _pixels_of(training, [number for row in shown for number in row["neighbours"]], batch_size)
    make_folder(path.parent)
    write_png(path, nearest_sheet(shown, own, neighbours))
    return True


def nearest_sheet(
    shown: Sequence[Mapping[str, Any]], images: Mapping[int, Tensor], training: Mapping[int, Tensor]
) -> Tensor:
    """A picture of images, each followed by its nearest training images: uint8 (C, height, width), in two columns.

    Args:
        shown: as `memorisation` returns them.
        images, training: the pixels by number, uint8 (C, H, W).
    """
    rows = []
    for row in shown:
        own = contact_sheet(images[row["image"]][None], columns=1)
        others = torch.stack([training[number] for number in row["neighbours"]])
        rows.append(_beside([own, contact_sheet(others, columns=len(others))], gap=8))
    half = -(-len(rows) // 2)
    columns = [torch.cat(part, 1) for part in (rows[:half], rows[half:]) if part]
    height = max(column.shape[1] for column in columns)
    return _beside([_padded(column, height) for column in columns], gap=28)


def _beside(pictures: Sequence[Tensor], gap: int) -> Tensor:
    white = torch.full((*pictures[0].shape[:2], gap), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (white, picture)]
    return torch.cat(parts[1:], 2)


def _padded(picture: Tensor, height: int) -> Tensor:
    missing = height - picture.shape[1]
    return torch.nn.functional.pad(picture, (0, 0, 0, missing), value=255)
