"""The order in which a run sees its images, by arithmetic alone: no state to save, none to restore.

Example number k, counted over the whole run, lies in epoch k // count and is image
`order(seed, epoch, count)[k % count]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import InputError

__all__ = ["indices", "order", "permutation"]

_STREAM = 0x6F72646572  # "order": keeps these draws apart from anything else that is drawn from the same seed


def permutation(*key: int, count: int) -> NDArray[np.int64]:
    """A random permutation of 0..count-1 that depends on the non-negative integers `key` alone.

    The ranks of raw Philox words: NumPy promises that raw words never change, which it does not promise of
    `Generator.permutation`, and a run must be resumable under a later NumPy.
    """
    if min(key) < 0:
        raise InputError(f"a seed must not be negative, got {min(key)}")
    words = np.random.Philox(np.random.SeedSequence([_STREAM, *key])).random_raw(count)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The images of one epoch in the order they are seen: a permutation of 0..count-1, shape (count,), read-only.

    Raises:
        InputError: for a negative `seed` or `epoch`, or a `count` under 1.
    """
    if count < 1:
        raise InputError(f"there is no order of {count} images; at least 1 is needed")
    images = permutation(seed, epoch, count=count)
    images.flags.writeable = False
    return images


def indices(numbers: Sequence[int] | ArrayLike, seed: int, count: int) -> NDArray[np.int64]:
    """Example numbers of a run, in any order and from any epochs, to image indices of the same shape."""
    epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), count)
    images = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        images[here] = order(seed, int(epoch), count)[places[here]]
    return images
