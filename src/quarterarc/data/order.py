"""The order of the images in a training run, a function of the seed: there is no state to save or restore.

Example k of the run, counted from 0 over all epochs, is image `order(seed, k // count, count)[k % count]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import InputError

__all__ = ["balanced_indices", "indices", "order", "permutation"]

_STREAM = 0x6F72646572  # "order": separates these draws from others with the same seed


def permutation(*key: int, count: int) -> NDArray[np.int64]:
    """A random permutation of 0..count-1, a function of the non-negative integers `key`.

    It sorts raw Philox words, whose stream NumPy guarantees over versions, unlike that of `Generator.permutation`: a
    run can be resumed with a later NumPy.
    """
    if min(key) < 0:
        raise InputError(f"a seed must not be negative, got {min(key)}")
    words = np.random.Philox(np.random.SeedSequence([_STREAM, *key])).random_raw(count)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of the images in one epoch: a permutation of 0..count-1, shape (count,), read-only.

    Raises:
        InputError: for a negative `seed` or `epoch`, or a `count` below 1.
    """
    if count < 1:
        raise InputError(f"cannot order {count} images; at least 1 is needed")
    images = permutation(seed, epoch, count=count)
    images.flags.writeable = False
    return images


def indices(numbers: Sequence[int] | ArrayLike, seed: int, count: int) -> NDArray[np.int64]:
    """The image indices of examples of a run.

    Args:
        numbers: example numbers, in any order and from any epochs.
        seed: the seed of the run.
        count: images per epoch.

    Returns:
        int64, the shape of `numbers`.
    """
    epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), count)
    images = np.empty_like(places)
    for epoch in np.unique(epochs):
        selected = epochs == epoch
        images[selected] = order(seed, int(epoch), count)[places[selected]]
    return images


def balanced_indices(
    numbers: Sequence[int] | ArrayLike, seed: int, places: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The image indices of examples of a run in which the classes take turns.

    Of n classes, the examples n r to n r + n - 1 are one image of each, in an order of their own. The images of a class
    follow one another in a new order per epoch of that class.

    Args:
        numbers: example numbers, in any order.
        seed: the seed of the run.
        places: the indices of the images of each class; none is empty.

    Returns:
        int64, the shape of `numbers`.
    """
    rounds, turns = np.divmod(np.asarray(numbers, dtype=np.int64), len(places))
    images = np.empty_like(turns)
    for at in np.ndindex(images.shape):
        round = int(rounds[at])
        label = int(_turns(seed, round, len(places))[turns[at]])
        epoch, place = divmod(round, len(places[label]))
        images[at] = places[label][_order_within(seed, label, epoch, len(places[label]))[place]]
    return images


@lru_cache(maxsize=64)
def _turns(seed: int, round: int, classes: int) -> NDArray[np.int64]:
    return permutation(seed, 0, round, count=classes)


@lru_cache(maxsize=4096)  # of every class the epoch that is under way
def _order_within(seed: int, label: int, epoch: int, count: int) -> NDArray[np.int64]:
    return permutation(seed, 1, label, epoch, count=count)
