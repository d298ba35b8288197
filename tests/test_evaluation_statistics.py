from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc.common.errors import InputError
from quarterarc.evaluation import MeanCovariance, Statistics, frechet_distance, inception_score, kernel_distance


def features(count: int, dimensions: int = 24, offset: float = 0.0, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=random, dtype=torch.float64) @ weights + offset


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def shards(x: Tensor, *cuts: int) -> Statistics:
    parts = [Statistics(x.shape[1]).update(part) for part in torch.tensor_split(x, cuts)]
    merged = Statistics(x.shape[1])
    for part in parts:
        merged.merge(part)
    return merged


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mean_and_covariance_equal_numpys(offset: float) -> None:
    x = features(3000, offset=offset)
    statistics = Statistics.of(x)
    assert statistics.count == 3000
    # numpy subtracts the mean from all rows at once; both are accurate to the rounding of sums, about 1e-15
    assert relative(statistics.mean, torch.from_numpy(x.numpy().mean(0))) < 1e-13
    assert relative(statistics.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False))) < 1e-13
    assert torch.equal(statistics.covariance, statistics.covariance.T)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("cuts", [(1,), (1000, 2000), (1, 2, 3, 1500, 2999)])
def test_shards_merge_to_the_whole(cuts: tuple[int, ...], offset: float) -> None:
    x = features(3000, offset=offset)
    whole, merged = Statistics.of(x), shards(x, *cuts)
    assert merged.count == whole.count
    assert relative(merged.mean, whole.mean) < 1e-13
    assert relative(merged.covariance, whole.covariance) < 1e-13


def test_batches_of_any_size_give_the_whole() -> None:
    x = features(3000, offset=1000.0)
    stream = Statistics(x.shape[1])
    for batch in x.split(7):
        assert stream.update(batch) is stream
    assert relative(stream.covariance, Statistics.of(x).covariance) < 1e-13


def test_more_dimensions_than_a_panel_and_more_rows_than_a_chunk() -> None:
    x = features(1100, dimensions=700)
    covariance = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    assert relative(shards(x, 600).covariance, covariance) < 1e-13


def test_merging_leaves_its_argument_unchanged() -> None:
    x = features(50)
    a, b = Statistics.of(x[:20]), Statistics.of(x[20:])
    before = b.covariance
    a.merge(b).merge(Statistics(x.shape[1]))
    assert a.count == 50
    assert b.count == 30
    assert torch.equal(b.covariance, before)


def test_the_arguments_are_unchanged() -> None:
    x = features(40)
    kept = x.clone()
    Statistics.of(x)
    Statistics(x.shape[1]).update(x)
    assert torch.equal(x, kept)


def test_all_dtypes_are_accumulated_in_float64() -> None:
    x = features(500, offset=3.0).float()
    want = Statistics.of(x.double())
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    for given in (x, read_only, x.numpy().astype(">f4"), np.asfortranarray(x.numpy())):
        got = Statistics.of(given)
        assert got.covariance.dtype == torch.float64
        assert torch.equal(got.covariance, want.covariance)
    half = x.half()
    assert torch.equal(Statistics.of(half).covariance, Statistics.of(half.double()).covariance)
    whole = (10 * x).to(torch.int64)
    assert torch.equal(Statistics.of(whole).covariance, Statistics.of(whole.double()).covariance)


def test_saved_covariances_become_symmetric_float64() -> None:
    covariance = torch.tensor([[2.0, 0.5], [0.5 + 1e-7, 1.0]])
    statistics = MeanCovariance(torch.zeros(2), covariance)
    assert statistics.covariance.dtype == statistics.mean.dtype == torch.float64
    assert torch.equal(statistics.covariance, statistics.covariance.T)


def bad(*rows: int) -> Tensor:
    x = features(10)
    x[list(rows), 3] = torch.nan
    return x


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(5), "must have shape (images, dimensions), got (5,)"),
        (torch.zeros(2, 3, 4), "got (2, 3, 4): flatten"),
        (torch.zeros(0, 4), "empty"),
        (torch.zeros(4, 0), "empty"),
        (bad(4), "hold 1 NaN or infinite number in 1 of 10 rows, first in row 4"),
        (bad(7, 2).numpy(), "hold 2 NaN or infinite numbers in 2 of 10 rows, first in row 2"),
        (torch.full((3, 2), torch.inf), "hold 6 NaN or infinite numbers in 3 of 3 rows, first in row 0"),
        (torch.zeros(3, 2, dtype=torch.complex64), "real numbers"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[None, 1.0]]), "real numbers"),
    ],
)
def test_invalid_features_raise_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        Statistics.of(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_whose_sum_overflows_is_valid() -> None:
    x = np.full((3, 4), 3e38, dtype=np.float32)
    assert Statistics.of(x).covariance.abs().max() < 1e-6 * 3e38**2


def test_row_numbers_in_errors_count_from_the_start_of_the_stream() -> None:
    stream = Statistics(24).update(features(10)).update(features(10))
    with pytest.raises(InputError, match="first in row 25"):
        stream.update(bad(5))
    assert stream.count == 20


def test_other_dimensions_raise() -> None:
    with pytest.raises(InputError, match="24 dimensions where those before have 5"):
        Statistics(5).update(features(10))
    with pytest.raises(InputError, match="24 dimensions where those before have 5"):
        Statistics(5).merge(Statistics.of(features(10)))


def test_covariance_of_one_image_raises() -> None:
    with pytest.raises(InputError, match="at least 2 images, got 1"):
        _ = Statistics.of(features(1)).covariance


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(3), torch.eye(2), r"\(D, D\)"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.full((2,), torch.nan), torch.eye(2), "the mean hold"),
    ],
)
def test_invalid_saved_statistics_raise(mean: Tensor, covariance: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeanCovariance(mean, covariance)


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_pairs_of_different_dimensions_raise(metric: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="dimensions"):
        metric(features(1100), features(1100, dimensions=7))


def test_invalid_logits_raise() -> None:
    with pytest.raises(InputError, match="first in row 2"):
        inception_score(bad(2))
