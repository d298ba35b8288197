"""The order of the images in a run: a permutation per epoch, the same in all versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quarterarc.common.errors import InputError
from quarterarc.data.order import indices, order


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_each_image_occurs_once_per_epoch(count: Any) -> None:
    seen = indices(range(5 * count), seed=3, count=count).reshape(5, count)
    assert (np.sort(seen, axis=1) == np.arange(count)).all()


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(images) for images in orders}) == 4
    # Independent permutations of 100 agree in one place on average; 10 has probability 1e-7.
    assert max((a == b).sum() for i, a in enumerate(orders) for b in orders[:i]) < 10


def test_indices_accept_any_order_shape_and_epochs() -> None:
    numbers = np.array([[25, 3, 10], [9, 3, 31]])
    expected = [[order(5, k // 10, 10)[k % 10] for k in row] for row in numbers]
    assert indices(numbers, seed=5, count=10).tolist() == expected


def test_the_order_of_old_runs_is_unchanged() -> None:
    assert order(0, 0, 8).tolist() == [4, 2, 7, 0, 6, 5, 1, 3]
    assert order(0, 0, 8) is order(0, 0, 8)  # drawn once
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 8)[0] = 1


def test_each_place_is_equally_likely() -> None:
    first = np.array([order(seed, 0, 4)[0] for seed in range(2000)])
    # 2000 draws of probability 1/4: mean 500, standard deviation 19.4; five of them.
    assert abs(np.bincount(first, minlength=4) - 500).max() < 97


def test_an_order_of_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="at least 1"):
        order(0, 0, 0)
    with pytest.raises(InputError, match="negative"):
        order(-1, 0, 5)
