"""Adaptive: accuracy for its tolerance, order of both pairs, each image on its own, labels, NFE."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc import sample, trajectory
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.samplers.adaptive import PAIRS, integrate

PI_2 = math.pi / 2
GENERATOR = torch.Generator().manual_seed(0)
ROOT = torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)
GAUSSIAN = GaussianData(
    torch.randn(1, 2, 3, generator=GENERATOR, dtype=torch.float64), ROOT @ ROOT.T / 6 + 0.1 * torch.eye(6)
)
NOISE = torch.randn(8, 1, 2, 3, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_meet_the_order_conditions(name: str) -> None:
    pair = PAIRS[name]
    stages = len(pair.error)
    matrix = np.zeros((stages, stages))
    for i, row in enumerate(pair.matrix):
        matrix[i + 1, : len(row)] = row
    weights, nodes = matrix[-1], matrix.sum(1)
    embedded = weights - np.array(pair.error)
    for power in range(pair.order):  # quadrature conditions: sum b c^(k-1) = 1/k up to each method's order
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-14)
        holds = abs(embedded @ nodes**power - 1 / (power + 1)) < 1e-14
        assert holds == (power < pair.order - 1)
    assert weights @ matrix @ nodes == pytest.approx(1 / 6, abs=1e-14)
    assert nodes[-1] == pytest.approx(1.0, abs=1e-15)  # the last stage is the step: first same as last


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_end_is_as_near_as_the_tolerance_asks(name: str, tolerance: float) -> None:
    result = sample(GAUSSIAN, NOISE, "adaptive", pair=name, tolerance=tolerance)
    miss = float((result.images - GAUSSIAN.flow(NOISE, PI_2, 0.0)).abs().max())
    assert miss < 4 * tolerance
    assert result.angles.tolist() == [PI_2, 0.0]
    assert result.nfe > 1


def test_the_error_falls_with_the_tolerance_and_the_order_with_the_cost() -> None:
    def cost(name: str, tolerance: float) -> float:
        return sample(GAUSSIAN, NOISE, "adaptive", pair=name, tolerance=tolerance).nfe

    # an error of order p costs tolerance^(-1/p): 10^(4/3) = 21.5 and 10^(4/5) = 6.3 times as many steps
    assert cost("bogacki-shampine", 1e-8) / cost("bogacki-shampine", 1e-4) == pytest.approx(10 ** (4 / 3), rel=0.35)
    assert cost("dormand-prince", 1e-12) / cost("dormand-prince", 1e-8) == pytest.approx(10 ** (4 / 5), rel=0.35)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.05)
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    together = sample(world, x, "adaptive", tolerance=1e-4)
    alone = [sample(world, x[i : i + 1], "adaptive", tolerance=1e-4) for i in range(9)]
    torch.testing.assert_close(together.images, torch.cat([one.images for one in alone]), rtol=0, atol=1e-12)
    assert together.nfe == pytest.approx(np.mean([one.nfe for one in alone]), abs=1e-12)
    assert len({one.nfe for one in alone}) > 1


def test_states_at_the_angles_asked_for_cost_little() -> None:
    plain = sample(GAUSSIAN, NOISE, "adaptive", tolerance=1e-5)
    angles = [PI_2, 1.0, 0.4, 0.0]
    states = list(trajectory(GAUSSIAN, NOISE, "adaptive", grid=angles, tolerance=1e-5))
    assert [state.angle for state in states] == angles
    for state in states:
        torch.testing.assert_close(state.x, GAUSSIAN.flow(NOISE, PI_2, state.angle), rtol=0, atol=1e-4)
    assert sample(GAUSSIAN, NOISE, "adaptive", grid=angles, tolerance=1e-5).nfe < plain.nfe + 12


def test_labels_go_with_their_images() -> None:
    def denoise(x: Tensor, angle: Tensor | float, labels: Tensor) -> Estimate:
        assert len(labels) == len(x)
        image = labels.to(x)[:, None, None, None].expand_as(x) / 10
        at = torch.as_tensor(angle, dtype=x.dtype).reshape(-1, 1, 1, 1)
        c, s = at.cos(), at.sin()
        return Estimate(image, torch.where(s > 0, (x - c * image) / s.clamp(min=1e-12), x))

    labels = torch.arange(8)
    images = sample(denoise, NOISE, "adaptive", tolerance=1e-6, labels=labels).images
    torch.testing.assert_close(images, (labels.double() / 10)[:, None, None, None].expand_as(images), rtol=0, atol=1e-4)


def test_there_and_back_again() -> None:
    def velocity(points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        shaped = points.reshape(-1, 1, 2, 3)
        return GAUSSIAN(shaped, angle).velocity(angle).flatten(1)

    start = NOISE.flatten(1)
    down, nfe, _ = integrate(velocity, start, PI_2, 0.0, 1e-9)
    up, _, _ = integrate(velocity, down, 0.0, PI_2, 1e-9)
    torch.testing.assert_close(up, start, rtol=0, atol=1e-7)
    assert nfe.shape == (8,)
    assert bool(((nfe - 1) % 6 == 0).all())


def test_what_it_refuses() -> None:
    for tolerance in (0.0, -1e-3, 1.0, math.nan):
        with pytest.raises(InputError, match=r"tolerance lies in \(0, 1\)"):
            sample(GAUSSIAN, NOISE, "adaptive", tolerance=tolerance)
    with pytest.raises(InputError, match="a tolerance of 1e-08 is below what float32 can tell: take at least 5e-07"):
        sample(GAUSSIAN, NOISE.float(), "adaptive", tolerance=1e-8)
    with pytest.raises(InputError, match="unknown pair 'rk45'"):
        sample(GAUSSIAN, NOISE, "adaptive", pair="rk45")

    def pole(x: Tensor, angle: Tensor | float) -> Estimate:
        return Estimate(x * 0.0, 1.0 / (torch.as_tensor(angle).reshape(-1, 1, 1, 1) - 0.7 + 1e-12).to(x) + x * 0.0)

    with pytest.raises(InputError, match=r"too steep near angle 0\.7.* raise it"):
        sample(pole, NOISE, "adaptive", tolerance=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_flow_that_is_not_a_number_is_refused(value: float) -> None:
    """From the start, from some angle on, and for one image of many."""

    def below(angle: Tensor | float) -> Tensor:
        return torch.as_tensor(angle, dtype=torch.float64).expand(len(NOISE)).reshape(-1, 1, 1, 1) < 0.7

    def late(x: Tensor, angle: Tensor | float) -> Estimate:
        said = GAUSSIAN(x, angle)
        return Estimate(torch.where(below(angle)[: len(x)], value, said.image), said.noise)

    with pytest.raises(InputError, match=r"not a number near angle 1\.57"):
        sample(lambda x, angle: Estimate(value * x, x), NOISE, "adaptive")
    with pytest.raises(InputError, match=r"not a number near angle 0\.[789]"):
        sample(late, NOISE, "adaptive", tolerance=1e-4)
    noise = NOISE.clone()
    noise[3, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"not a number near angle 1\.57"):
        sample(GAUSSIAN, noise, "adaptive")
