import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from quarterarc.common.errors import InputError
from quarterarc.evaluation import MeanCovariance, Statistics, frechet_distance

ROUNDING = 1e-12
"""Rounding error for traces of about 1 to 1000, after a few hundred float64 operations."""


def matrix(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gaussian(covariance: Tensor, mean: list[float] | None = None) -> MeanCovariance:
    return MeanCovariance(matrix(mean or [0.0] * len(covariance)), covariance)


def draw(count: int, rank: int, dimensions: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(rank, dimensions, generator=random, dtype=torch.float64) / rank**0.5
    return torch.randn(count, rank, generator=random, dtype=torch.float64) @ weights


def from_singular_values(x: Tensor, y: Tensor) -> float:
    """The distance from QR factors of the features, which are not squared: accurate for any rank."""
    a, b = (torch.linalg.qr((z - z.mean(0)) / math.sqrt(len(z) - 1), mode="r").R for z in (x, y))
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return (mean + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()).item()


def quiet(a: Any, b: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return frechet_distance(a, b)


def test_closed_form_of_two_by_two_covariances() -> None:
    a, b = matrix([[2.0, 1.0], [1.0, 3.0]]), matrix([[1.0, -0.5], [-0.5, 4.0]])
    # for a 2 x 2 matrix, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    product = a @ b
    root = math.sqrt(product.trace() + 2.0 * math.sqrt(torch.linalg.det(product)))
    want = 0.25 + 4.0 + 5.0 + 5.0 - 2.0 * root
    assert frechet_distance(gaussian(a, [0.5, 0.0]), gaussian(b, [0.0, 2.0])) == pytest.approx(want, abs=ROUNDING)


def test_closed_form_of_commuting_covariances() -> None:
    axes = torch.linalg.qr(draw(40, 40, 40, 0)).Q
    a, b = torch.logspace(1, -7, 40, dtype=torch.float64), torch.logspace(-5, 0, 40, dtype=torch.float64)
    got = frechet_distance(gaussian((axes * a) @ axes.T), gaussian((axes * b) @ axes.T))
    assert got == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), abs=ROUNDING)


def test_closed_form_of_rank_one_covariances() -> None:
    u, v = matrix([1.0, 2.0, -1.0, 0.5]), matrix([0.0, 1.0, 1.0, -3.0])
    want = u @ u + v @ v - 2 * abs(u @ v)
    got = frechet_distance(gaussian(torch.outer(u, u)), gaussian(torch.outer(v, v)))
    assert got == pytest.approx(want.item(), abs=ROUNDING)
    # against a full covariance the root of u u^T S is u u^T S / sqrt(u^T S u)
    full = matrix([[2.0, 0.3, 0.0, 0.1], [0.3, 1.0, 0.2, 0.0], [0.0, 0.2, 3.0, 0.5], [0.1, 0.0, 0.5, 1.0]])
    want = u @ u + full.trace() - 2 * (u @ full @ u).sqrt()
    assert frechet_distance(gaussian(torch.outer(u, u)), gaussian(full)) == pytest.approx(want.item(), abs=ROUNDING)


def test_orthogonal_supports_give_the_sum_of_the_traces() -> None:
    a, b = matrix([[3.0, 0.0], [0.0, 0.0]]), matrix([[0.0, 0.0], [0.0, 2.0]])
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(5.0, abs=ROUNDING)


def test_zero_covariances_give_the_distance_of_the_means() -> None:
    still = torch.zeros(2, 2, dtype=torch.float64)
    assert frechet_distance(gaussian(still, [3.0, 0.0]), gaussian(still, [0.0, 4.0])) == 25.0
    assert frechet_distance(gaussian(still), gaussian(matrix([[2.0, 0.0], [0.0, 1.0]]))) == pytest.approx(3.0)


@pytest.mark.parametrize("count", [40, 64, 65, 300])
@pytest.mark.parametrize("rank", [16, 64])
def test_distance_of_a_set_to_itself_is_0(count: int, rank: int) -> None:
    x = draw(count, rank, 64, 0) + 5.0
    for a, b in ((x, x), (Statistics.of(x), Statistics.of(x)), (x, Statistics.of(x)), (x.float(), x.float())):
        assert quiet(a, b) < 1e-10


@pytest.mark.parametrize(
    ("counts", "ranks"),
    [
        ((300, 300), (64, 64)),
        ((300, 300), (20, 20)),
        ((300, 280), (20, 64)),
        ((40, 30), (64, 64)),
        ((40, 300), (64, 64)),
        ((300, 40), (20, 64)),
        ((65, 66), (64, 64)),
    ],
)
def test_all_ranks_and_counts_agree_with_qr_factors_of_the_features(
    counts: tuple[int, int], ranks: tuple[int, int]
) -> None:
    x, y = draw(counts[0], ranks[0], 64, 1), draw(counts[1], ranks[1], 64, 2) * 1.1 + 0.1
    want = from_singular_values(x, y)
    # methods based on eigenvalues of the product have errors of 1e-6 to 1e-5 for deficient ranks
    assert quiet(x, y) == pytest.approx(want, abs=1e-11)
    assert quiet(Statistics.of(x), Statistics.of(y)) == pytest.approx(want, abs=1e-11)
    assert quiet(y, x) == pytest.approx(want, abs=1e-11)


def test_few_images_are_not_squared_to_a_covariance() -> None:
    # lengths along the axes from 1 to 1e-10, whose squares are below the precision of a covariance
    scales = torch.logspace(0, -10, 30, dtype=torch.float64)
    x, y = draw(30, 30, 30, 1) * scales, draw(29, 30, 30, 2) * scales.flip(0)
    assert quiet(x, y) == pytest.approx(from_singular_values(x, y), abs=1e-13)


@pytest.mark.parametrize("seed", range(10))
def test_linearly_dependent_features_are_accurate(seed: int) -> None:
    x, y = draw(300, 8, 8, seed), draw(300, 8, 8, 100 + seed)
    x[:, 7] = x[:, :7].sum(1)
    # a last pivot of 1e-16 that is not set to 0 gives an error of its root, 1e-8
    assert frechet_distance(x, y) == pytest.approx(from_singular_values(x, y), abs=1e-12)


@pytest.mark.parametrize("spread", [2.0, 4.0, 6.0, 7.0])
@pytest.mark.parametrize("seed", range(5))
def test_eigenvalues_are_used_only_if_they_are_accurate(
    spread: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard deviations over up to seven decades, whose fourth powers exceed the precision of eigenvalues."""
    random = torch.Generator().manual_seed(seed)

    def covariance(deviations: Tensor) -> MeanCovariance:
        root = torch.linalg.qr(torch.randn(60, 60, generator=random, dtype=torch.float64)).Q * deviations
        product = root @ root.T
        return gaussian((product + product.T) / 2)

    falling = torch.logspace(0, -spread, 60, dtype=torch.float64)
    two = torch.where(torch.arange(60) % 2 == 0, 1.0, falling[-1])
    a, b = covariance(falling), covariance(two)
    got = frechet_distance(a, b), frechet_distance(a, a)
    assert got[1] < 1e-10
    monkeypatch.setattr("quarterarc.evaluation.frechet._is_triangular", lambda factor: False)
    # 1e-12 of traces up to 60
    assert got == pytest.approx((frechet_distance(a, b), frechet_distance(a, a)), abs=6e-11)


def test_agrees_with_published_implementations_on_well_conditioned_data() -> None:
    x, y = draw(2000, 32, 32, 1), draw(2500, 32, 32, 2) + 0.3
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    rest = (x.mean(0) - y.mean(0)).square().sum().item() + a.trace() + b.trace()
    pytorch_fid = rest - 2 * scipy.linalg.sqrtm(a @ b).real.trace()
    torch_fidelity = rest - 2 * np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    torchmetrics = rest - 2 * torch.linalg.eigvals(torch.from_numpy(a @ b)).sqrt().real.sum().item()
    # well-conditioned, so that roots lose few digits
    assert [pytorch_fid, torch_fidelity, torchmetrics] == pytest.approx([frechet_distance(x, y)] * 3, abs=1e-9)


def test_distance_is_invariant_to_an_offset() -> None:
    x, y = draw(300, 16, 16, 1), draw(300, 16, 16, 2)
    # 1000 + x rounds x to 1e-13
    assert frechet_distance(x + 1000.0, y + 1000.0) == pytest.approx(frechet_distance(x, y), abs=1e-10)


def test_merged_statistics_give_the_distance_of_the_whole() -> None:
    x, y = draw(300, 16, 16, 1), draw(301, 16, 16, 2)
    merged = Statistics.of(x[:77]).merge(Statistics.of(x[77:]))
    assert frechet_distance(merged, y) == pytest.approx(frechet_distance(x, y), abs=ROUNDING)


@pytest.mark.parametrize("few", [31, 20, 8])
def test_few_images_cause_a_warning_with_the_counts(few: int) -> None:
    x, y = draw(100, 16, 16, 1), draw(few, 16, 16, 2)
    for a, b in ((x, y), (y, x), (x, Statistics.of(y))):
        with pytest.warns(UserWarning, match=rf"from {few} images, fewer than 2 x 16 = 32"):
            frechet_distance(a, b)


def test_enough_images_or_an_unknown_count_cause_no_warning() -> None:
    x = draw(32, 16, 16, 1)
    unknown = MeanCovariance(torch.zeros(16), torch.eye(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(x, x)
        frechet_distance(x, unknown)
    with pytest.warns(UserWarning, match="from 5 images"):
        frechet_distance(x, MeanCovariance(torch.zeros(16), torch.eye(16), count=5))


def test_invalid_covariances_and_counts_raise() -> None:
    with pytest.raises(InputError, match="negative eigenvalue"):
        frechet_distance(gaussian(matrix([[1.0, 2.0], [2.0, 1.0]])), gaussian(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(InputError, match="3 and 2 dimensions"):
        quiet(draw(10, 3, 3, 0), gaussian(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(InputError, match="the second features hold 1 image where at least 2"):
        frechet_distance(draw(10, 3, 3, 0), draw(1, 3, 3, 0))


def test_the_arguments_are_unchanged() -> None:
    x = draw(10, 16, 16, 0)
    before = x.clone()
    quiet(x, x)
    assert torch.equal(x, before)
