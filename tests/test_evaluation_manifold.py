import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from torch import Tensor

from quarterarc.common.errors import InputError
from quarterarc.evaluation import density_coverage, manifold_scores, precision_recall
from quarterarc.evaluation import manifold as module

LINE = np.arange(10.0)[:, None]


def draw(count: int, dimensions: int, seed: int = 0, intrinsic: int | None = None) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, intrinsic or dimensions, generator=random)
    return (
        x if intrinsic is None else x @ torch.randn(intrinsic, dimensions, generator=torch.Generator().manual_seed(9))
    )


def by_definition(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    """The four scores from all squared differences in float64."""
    real, fake = real.double(), fake.double()

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(b - row).square().sum(1) for row in a])

    def radii(x: Tensor) -> Tensor:
        return squared(x, x).fill_diagonal_(math.inf).kthvalue(k).values

    between = squared(real, fake)
    in_real, in_fake = between <= radii(real)[:, None], between <= radii(fake)[None]
    shares = [int(mask.sum()) / len(mask) for mask in (in_real.any(0), in_fake.any(1), in_real.any(1))]
    return shares[0], shares[1], int(in_real.sum()) / (k * len(fake)), shares[2]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("shift", "share"), [(3.0, 1.0), (3.1, 0.9), (11.0, 0.2), (12.0, 0.1), (12.1, 0.0)])
def test_precision_and_recall_of_a_shifted_line(shift: float, share: float, dtype: type) -> None:
    # the balls of 9 and 8 have radii 3 and 2: the points 3 and 12 lie exactly on a border
    real: Any = LINE.astype(dtype)
    fake: Any = (LINE + shift).astype(dtype)
    assert precision_recall(real, fake, k=3) == (share, share)


@pytest.mark.parametrize("beyond", [1e-4, 1e-6, 1e-8, 1e-12])
def test_the_border_of_a_ball_is_exact_to_float64(beyond: float) -> None:
    # the relative precision of float32 is 1e-7
    assert precision_recall(LINE, LINE + 3.0 + beyond, k=3) == (0.9, 0.9)
    assert precision_recall(LINE, LINE + 3.0 - beyond, k=3) == (1.0, 1.0)


def test_density_and_coverage_of_a_shifted_line() -> None:
    # the balls of 0..9 have radii 3, 2, 2, ..., 2, 3 and contain 4, 4, 5, ..., 5, 4, 4 of the points
    assert density_coverage(LINE, LINE, k=3) == pytest.approx((46 / 30, 1.0))
    # shifted by 11, only the ball of 9 contains a fake image, the first one
    assert density_coverage(LINE, LINE + 11.0, k=3) == pytest.approx((2 / 30, 0.1))


def test_mode_collapse_has_precision_1_and_recall_0() -> None:
    real = LINE
    fake = 4.5 + 1e-3 * LINE
    collapsed = precision_recall(real, fake)
    assert (collapsed.precision, collapsed.recall) == (1.0, 0.0)
    swapped = precision_recall(fake, real)
    assert (swapped.precision, swapped.recall) == (0.0, 1.0)


def kinds() -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "float32", draw(150, 40), draw(131, 40, 1)
    yield "float64", draw(150, 3).double(), draw(90, 3, 1).double()
    yield "far from 0", draw(150, 8) + 1000.0, draw(151, 8, 1) + 1000.0
    # many neighbours at exactly the same distance
    yield "whole numbers", draw(150, 6).mul(2).round(), draw(151, 6, 1).mul(2).round()
    # a spread of 1e-6 of the lengths, which float32 cannot order
    modes = 100.0 * draw(3, 8, 5).double()
    yield (
        "tight modes",
        modes[torch.arange(150) % 3] + 1e-4 * draw(150, 8),
        modes[:2].repeat(60, 1) + 1e-4 * draw(120, 8, 1),
    )
    yield "all the same", torch.full((20, 5), 3.3), torch.full((30, 5), 3.3)
    yield "copies", draw(50, 8), draw(50, 8)[torch.arange(70) % 20]
    yield "tiny", 1e-30 * draw(50, 8), 1e-30 * draw(50, 8, 1)
    yield "huge", 1e30 * draw(50, 8), 1e30 * draw(50, 8, 1)


@pytest.mark.parametrize(("real", "fake"), [pytest.param(r, f, id=name) for name, r, f in kinds()])
@pytest.mark.parametrize("k", [1, 4])
def test_every_block_size_equals_the_definition_exactly(real: Tensor, fake: Tensor, k: int) -> None:
    want = by_definition(real, fake, k)
    for block in (2048, 37, 6):
        assert tuple(manifold_scores(real, fake, k, block=block)) == want


def test_blocks_of_one_and_the_smallest_sets() -> None:
    real, fake = draw(4, 2), draw(5, 2, 1)
    assert tuple(manifold_scores(real, fake, 3, block=1)) == by_definition(real, fake, 3)


def test_repeated_images_lie_in_their_ball_of_radius_0() -> None:
    # image 0 has 3 copies, so that its ball has radius 0; with a norm of 45 a float32 product has an error of 1e-4
    real = torch.cat([draw(1, 2048).repeat(4, 1), draw(50, 2048, 1)])
    fake = torch.cat([real[:1], draw(20, 2048, 2) + 10.0])
    scores = manifold_scores(real, fake, 3)
    assert scores.precision == 1 / 21
    assert scores.density == 4 / (3 * 21)
    assert scores.coverage == 4 / 54


def test_the_memory_layout_does_not_matter() -> None:
    real = torch.cat([draw(1, 999).repeat(4, 1), draw(50, 999, 1)])
    fake = real.T.contiguous().T
    assert manifold_scores(real, fake) == manifold_scores(real, real.numpy())


def test_a_copy_of_the_kth_neighbour_is_on_the_border() -> None:
    real = draw(60, 512)
    distances = torch.cdist(real.double(), real.double()).fill_diagonal_(math.inf)
    fake = real[distances.topk(3, largest=False).indices[:, 2]]
    assert manifold_scores(real, fake, 3).coverage == 1.0


def test_float64_is_used_if_float32_products_may_be_imprecise() -> None:
    real, fake = draw(150, 40), draw(131, 40, 1)
    want = manifold_scores(real, fake)
    torch.set_float32_matmul_precision("medium")
    try:
        assert module._filters(real.device) == (torch.float64,)
        assert manifold_scores(real, fake) == want
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert manifold_scores(real, fake) == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dimensions", [2, 700])
def test_the_error_bounds_of_the_filter_hold(dtype: Any, dimensions: int) -> None:
    real, fake = draw(90, dimensions) * torch.logspace(-3, 3, 90)[:, None] + 7.0, draw(80, dimensions, 1)
    reals, fakes = module._frame(real, fake)
    lower = module._lower(reals, slice(0, 90), fakes, slice(0, 80), dtype).double()
    width = module._widths(reals.norms[:, None], fakes.norms[None], reals.tolerance(dtype))
    true = torch.stack([(fake.double() - row).square().sum(1) for row in real.double()]) * reals.scale**2
    assert (lower <= true).all()
    assert (true <= lower + width).all()
    assert torch.finfo(dtype).eps < reals.tolerance(dtype) < dimensions * 100 * torch.finfo(dtype).eps


def test_nearly_all_radii_are_settled_by_the_first_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    squared_distances = module._squared_distances

    def count(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
        measured.append(len(rows))
        return squared_distances(a, rows, b, columns)

    monkeypatch.setattr(module, "_squared_distances", count)
    manifold_scores(draw(500, 256, 0, 16), draw(500, 256, 1, 16))
    # at least one pair per image is computed: the radius itself
    assert 1000 <= sum(measured) < 1300


def test_scores_agree_with_prdc() -> None:
    """`prdc.compute_prdc`, whose balls are open: equal except for ties."""
    real, fake = draw(300, 32, 0, 6), draw(250, 32, 1, 6) + 0.1

    def radii(x: Tensor) -> Any:
        distances = pairwise_distances(x, x, metric="euclidean")
        return np.take_along_axis(distances, np.argpartition(distances, 4, axis=-1)[..., :4], axis=-1).max(axis=-1)

    between = pairwise_distances(real, fake, metric="euclidean")
    in_real, in_fake = between < radii(real)[:, None], between < radii(fake)[None]
    want = (
        in_real.any(0).mean(),
        in_fake.any(1).mean(),
        in_real.sum(0).mean() / 3,
        (between.min(1) < radii(real)).mean(),
    )
    got = manifold_scores(real, fake, 3)
    assert got == pytest.approx(want, abs=1e-12)
    assert 0.1 < got.precision < 1.0
    assert 0.1 < got.recall < 1.0


def test_scores_agree_with_torch_fidelity() -> None:
    """`calculate_precision_recall_full`, which counts the image as its own nearest neighbour."""
    real, fake = draw(300, 32, 0, 6).double(), draw(250, 32, 1, 6).double() + 0.1
    radii_real, radii_fake = (torch.cdist(x, x).kthvalue(4).values for x in (real, fake))
    between = torch.cdist(fake, real)
    precision = (between <= radii_real).any(1).double().mean().item()
    from_real = between.T
    recall = (from_real <= radii_fake).any(1).double().mean().item()
    assert precision_recall(real, fake, 3) == pytest.approx((precision, recall), abs=1e-12)


def test_numpy_and_torch_agree_and_arguments_are_unchanged() -> None:
    real, fake = draw(60, 5).double(), draw(50, 5, 1).double()
    before = real.clone(), fake.clone()
    scores = manifold_scores(real, fake)
    assert manifold_scores(real.numpy(), fake.numpy()) == scores
    assert precision_recall(real, fake) == scores[:2]
    assert density_coverage(real, fake) == scores[2:]
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


@pytest.mark.parametrize(
    ("real", "fake", "k", "message"),
    [
        (draw(9, 3), draw(9, 2), 3, "real features have 3 dimensions and fake features 2"),
        (draw(3, 3), draw(9, 3), 3, "real features hold 3 images where at least 4 are needed"),
        (draw(9, 3), draw(1, 3), 3, "fake features hold 1 image where at least 4 are needed"),
        (
            draw(9, 3),
            draw(9, 3) / torch.arange(9)[:, None],
            3,
            "fake features hold 3 NaN or infinite numbers in 1 of 9",
        ),
        (draw(9, 3), draw(0, 3), 3, "fake features are empty"),
        (draw(9, 3), draw(9, 3), 0, "at least 1, got k = 0"),
        (draw(9, 3), draw(9, 3).double() * 1e200, 3, "overflow float64"),
    ],
)
def test_invalid_arguments_raise_in_one_line(real: Tensor, fake: Tensor, k: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        precision_recall(real, fake, k)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
