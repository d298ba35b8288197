"""Inception score and kernel distance."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc.common.errors import InputError
from quarterarc.evaluation import (
    INCEPTION_SCORES,
    MeanStd,
    full_kernel_distance,
    inception_score,
    inception_score_adm,
    kernel_distance,
)


def draw(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def one_hot(count: int, classes: int, logit: float) -> Tensor:
    return logit * torch.eye(classes).repeat(count // classes, 1)


@pytest.mark.parametrize("score", INCEPTION_SCORES.values())
def test_uniform_predictions_score_1(score: Callable[..., MeanStd]) -> None:
    assert score(torch.full((100, 7), 3.0)) == pytest.approx((1.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("logit", [200.0, 800.0])
def test_certain_predictions_of_equal_classes_score_their_number(logit: float) -> None:
    # at 800 all other probabilities are 0 in float64, and their logarithms must not be computed
    assert inception_score_adm(one_hot(100, 10, logit)).mean == pytest.approx(10.0, abs=1e-12)
    assert inception_score(one_hot(100, 10, logit), splits=1).mean == pytest.approx(10.0, abs=1e-12)
    lost = torch.zeros(50, 10)
    lost[:, 0] = logit
    assert inception_score(lost).mean == pytest.approx(1.0, abs=1e-12)


def test_score_of_two_classes_in_closed_form() -> None:
    # images of probability p and 1 - p: the marginal is uniform, so log score = log 2 - H(p)
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log() + 5.0
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert inception_score_adm(logits.repeat(20, 1)).mean == pytest.approx(2.0 * np.exp(-entropy), abs=1e-12)


def test_inception_score_agrees_with_torch_fidelity() -> None:
    """`isc_features_to_metric`, on logits where its log of a mean does not underflow."""
    logits = 3.0 * draw(1003, 20)
    shuffled = logits[np.random.RandomState(2020).permutation(1003)].double()
    scores = []
    for i in range(10):
        part = shuffled[i * 1003 // 10 : (i + 1) * 1003 // 10]
        p = part.softmax(1)
        scores.append((p * (part.log_softmax(1) - p.mean(0).log())).sum(1).mean().exp().item())
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-12)


def test_inception_score_agrees_with_adm() -> None:
    """`Evaluator.compute_inception_score`: splits of 5000 in order, the last one with the rest."""
    logits = draw(5100, 5) * torch.linspace(0.1, 3.0, 5100)[:, None]
    p = logits.double().softmax(1).numpy()
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in (p[:5000], p[5000:])]
    assert inception_score_adm(logits) == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-12)
    assert INCEPTION_SCORES["adm"](logits) == inception_score_adm(logits)
    assert abs(inception_score(logits).mean - np.mean(scores)) > 1e-3


def test_invalid_splits_raise() -> None:
    with pytest.raises(InputError, match="9 images where at least 10"):
        inception_score(draw(9, 3))
    with pytest.raises(InputError, match="at least 1 split"):
        inception_score(draw(9, 3), splits=0)
    with pytest.raises(InputError, match="at least 1 image, got 0"):
        inception_score_adm(draw(9, 3), split_size=0)


def cubic(a: Any, b: Any) -> Any:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def unbiased(a: Any, b: Any) -> float:
    """The estimate of torch-fidelity, torchmetrics and the authors, from whole kernel matrices."""
    m, n = len(a), len(b)
    own_a, own_b, between = cubic(a, a), cubic(b, b), cubic(a, b)
    within = (own_a.sum() - own_a.trace()) / (m * (m - 1)) + (own_b.sum() - own_b.trace()) / (n * (n - 1))
    return within - 2.0 * between.mean()


def test_kernel_distance_of_constant_sets() -> None:
    a, b = torch.full((50, 4), 0.5), torch.full((60, 4), -1.0)
    # k(a, a) = (0.25 + 1)^3, k(b, b) = 2^3, k(a, b) = 0.5^3
    want = 1.25**3 + 8.0 - 2.0 * 0.125
    assert kernel_distance(a, b, subsets=3, subset_size=20) == pytest.approx((want, 0.0), abs=1e-12)
    assert full_kernel_distance(a, b) == pytest.approx(want, abs=1e-12)
    assert full_kernel_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_full_kernel_distance_equals_the_published_formula_for_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draw(301, 6), draw(280, 6, 1) + 0.2
    want = unbiased(a.double().numpy(), b.double().numpy())
    assert full_kernel_distance(a, b) == pytest.approx(want, rel=1e-12)
    monkeypatch.setattr("quarterarc.evaluation.kernel._BLOCK", 7)
    assert full_kernel_distance(a, b) == pytest.approx(want, rel=1e-12)


def test_subsets_equal_those_of_torch_fidelity() -> None:
    """`kid_features_to_metric`: one numpy stream draws from the first set, then from the second."""
    a, b = draw(120, 6), draw(110, 6, 1) + 0.2
    random = np.random.RandomState(2020)
    distances = []
    for _ in range(5):
        x = a.double().numpy()[random.choice(120, 50, replace=False)]
        y = b.double().numpy()[random.choice(110, 50, replace=False)]
        distances.append(unbiased(x, y))
    got = kernel_distance(a, b, subsets=5, subset_size=50)
    assert got == pytest.approx((np.mean(distances), np.std(distances)), rel=1e-12)
    assert kernel_distance(a, b, subsets=5, subset_size=50, seed=1) != got


def test_kernel_distance_of_equal_distributions_is_unbiased() -> None:
    distances = [full_kernel_distance(draw(40, 3, seed), draw(40, 3, 1000 + seed)) for seed in range(200)]
    # 200 draws: the mean is within 4 standard errors of 0; that of the biased estimate is 20 away
    assert abs(np.mean(distances)) < 4.0 * np.std(distances) / np.sqrt(200)
    assert min(distances) < 0.0


def test_invalid_subsets_raise() -> None:
    with pytest.raises(InputError, match="120 and 110 images are fewer than subset_size = 1000"):
        kernel_distance(draw(120, 6), draw(110, 6))
    with pytest.raises(InputError, match="at least 1 subset of at least 2 images, got 0 of 10"):
        kernel_distance(draw(120, 6), draw(110, 6), subsets=0, subset_size=10)
    with pytest.raises(InputError, match="the second features hold 1 image"):
        full_kernel_distance(draw(120, 6), draw(1, 6))
