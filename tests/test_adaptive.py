"""Adaptive: error norm and step size control of `integrate`, order of both pairs, independent images, labels, NFE."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc import sample, trajectory
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.samplers.adaptive import BOGACKI_SHAMPINE, PAIRS, integrate

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
def test_the_error_at_the_end_is_at_most_four_tolerances(name: str, tolerance: float) -> None:
    result = sample(GAUSSIAN, NOISE, "adaptive", pair=name, tolerance=tolerance)
    error = float((result.images - GAUSSIAN.flow(NOISE, PI_2, 0.0)).abs().max())
    assert error < 4 * tolerance
    assert result.angles.tolist() == [PI_2, 0.0]
    assert result.nfe > 1


def test_the_cost_grows_with_the_tolerance_as_the_order_predicts() -> None:
    def cost(name: str, tolerance: float) -> float:
        return sample(GAUSSIAN, NOISE, "adaptive", pair=name, tolerance=tolerance).nfe

    # an error of order p costs tolerance^(-1/p): 10^(4/3) = 21.5 and 10^(4/5) = 6.3 times as many steps
    assert cost("bogacki-shampine", 1e-8) / cost("bogacki-shampine", 1e-4) == pytest.approx(10 ** (4 / 3), rel=0.35)
    assert cost("dormand-prince", 1e-12) / cost("dormand-prince", 1e-8) == pytest.approx(10 ** (4 / 5), rel=0.35)


def test_an_image_does_not_depend_on_the_other_images_of_its_batch() -> None:
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.05)
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    together = sample(world, x, "adaptive", tolerance=1e-4)
    alone = [sample(world, x[i : i + 1], "adaptive", tolerance=1e-4) for i in range(9)]
    torch.testing.assert_close(together.images, torch.cat([result.images for result in alone]), rtol=0, atol=1e-12)
    assert together.nfe == pytest.approx(np.mean([result.nfe for result in alone]), abs=1e-12)
    assert len({result.nfe for result in alone}) > 1


def test_states_at_further_angles_cost_at_most_two_steps_each() -> None:
    plain = sample(GAUSSIAN, NOISE, "adaptive", tolerance=1e-5)
    angles = [PI_2, 1.0, 0.4, 0.0]
    states = list(trajectory(GAUSSIAN, NOISE, "adaptive", grid=angles, tolerance=1e-5))
    assert [state.angle for state in states] == angles
    for state in states:
        torch.testing.assert_close(state.x, GAUSSIAN.flow(NOISE, PI_2, state.angle), rtol=0, atol=1e-4)
    assert sample(GAUSSIAN, NOISE, "adaptive", grid=angles, tolerance=1e-5).nfe < plain.nfe + 12


def test_labels_are_selected_with_their_images() -> None:
    def denoise(x: Tensor, angle: Tensor | float, labels: Tensor) -> Estimate:
        assert len(labels) == len(x)
        image = labels.to(x)[:, None, None, None].expand_as(x) / 10
        at = torch.as_tensor(angle, dtype=x.dtype).reshape(-1, 1, 1, 1)
        c, s = at.cos(), at.sin()
        return Estimate(image, torch.where(s > 0, (x - c * image) / s.clamp(min=1e-12), x))

    labels = torch.arange(8)
    images = sample(denoise, NOISE, "adaptive", tolerance=1e-6, labels=labels).images
    torch.testing.assert_close(images, (labels.double() / 10)[:, None, None, None].expand_as(images), rtol=0, atol=1e-4)


def test_integrating_forwards_and_backwards_returns_the_points() -> None:
    def velocity(points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        shaped = points.reshape(-1, 1, 2, 3)
        return GAUSSIAN(shaped, angle).velocity(angle).flatten(1)

    start = NOISE.flatten(1)
    down, nfe, _ = integrate(velocity, start, PI_2, 0.0, 1e-9)
    up, _, _ = integrate(velocity, down, 0.0, PI_2, 1e-9)
    torch.testing.assert_close(up, start, rtol=0, atol=1e-7)
    assert nfe.shape == (8,)
    assert bool(((nfe - 1) % 6 == 0).all())


def square_flow(rates: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """dx/dangle = rates angle^2: the lower-order method is not exact, and the slopes do not depend on x."""
    return lambda points, angle, rows: rates * angle[:, None].square()


def documented_error(h: float, start: float, x: np.ndarray, rates: np.ndarray, tolerance: float) -> float:
    """The error of one Bogacki-Shampine step on `square_flow` from `start` to `start + h`, by the docstring."""
    nodes = start + h * np.array([0.0, 1 / 2, 3 / 4, 1.0])
    higher, lower = np.array([2 / 9, 1 / 3, 4 / 9, 0.0]), np.array([7 / 24, 1 / 4, 1 / 3, 1 / 8])
    estimate = h * (higher - lower) @ nodes**2 * rates
    after = x + h * higher @ nodes**2 * rates
    scaled = estimate / (tolerance * (1 + np.maximum(np.abs(x), np.abs(after))))
    return float(np.sqrt(np.mean(scaled**2)))


def test_the_error_norm_is_the_root_mean_square_relative_to_the_larger_end() -> None:
    # one value grows in size, one shrinks, one changes little: another norm or another scale gives another number
    x, rates, tolerance = np.array([0.1, -2.0, 5.0]), np.array([3.0, 4.5, 0.2]), 0.1
    error = documented_error(1.0, 0.0, x, rates, tolerance)
    assert 0.01 < error < 0.5
    _, nfe, radians = integrate(
        square_flow(torch.tensor(rates)), torch.tensor(x)[None], 0.0, 1.0, tolerance, BOGACKI_SHAMPINE, first=1.0
    )
    assert nfe.tolist() == [4]  # one step
    assert float(radians) == pytest.approx(0.9 * error ** (-0.7 / 3), rel=1e-12)


def test_steps_follow_the_documented_controller() -> None:
    x, rates, tolerance = np.array([0.1, -2.0, 5.0]), np.array([30.0, 45.0, 2.0]), 0.01
    evaluated: list[float] = []
    flow = square_flow(torch.tensor(rates))

    def recorded(points: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        evaluated.append(float(angle))
        return flow(points, angle, rows)

    integrate(recorded, torch.tensor(x)[None], 0.0, 1.0, tolerance, BOGACKI_SHAMPINE, first=0.4)
    start, h, previous, rejected = 0.0, 0.4, 1.0, 0
    ends = []
    while start < 1.0:
        h = min(h, 1.0 - start)
        ends.append(start + h)
        at = x + rates * start**3 / 3
        error = documented_error(h, start, at, rates, tolerance)
        if error <= 1.0:
            start, factor, previous = start + h, error ** (-0.7 / 3) * previous ** (0.4 / 3), error
        else:
            factor, rejected = error ** (-1 / 3), rejected + 1
        h *= min(max(0.9 * factor, 0.2), 5.0)
    assert rejected > 0
    assert len(ends) > 5
    assert evaluated[3::3] == pytest.approx(ends, rel=1e-9)  # the last stage of every step lies at its end


@pytest.mark.parametrize(("first", "radians"), [(0.98, 1.0), (1.0, 5.0)])
def test_a_last_step_shortened_by_the_end_does_not_reduce_the_next_step(first: float, radians: float) -> None:
    """A constant flow has no error, so that a step proposes up to five times its length.

    After a step of 0.98 the last one is shortened to 0.02, and proposes less than 0.1; the earlier proposal stands,
    limited to the interval. A last step that is not shortened proposes five times its length.
    """
    x = torch.zeros(1, 2, dtype=torch.float64)
    _, _, proposed = integrate(lambda points, angle, rows: torch.ones_like(points), x, 1.0, 0.0, 1e-3, first=first)
    assert float(proposed) == pytest.approx(radians, rel=1e-12)


def test_invalid_tolerances_pairs_and_steep_flows_raise() -> None:
    for tolerance in (0.0, -1e-3, 1.0, math.nan):
        with pytest.raises(InputError, match=r"tolerance lies in \(0, 1\)"):
            sample(GAUSSIAN, NOISE, "adaptive", tolerance=tolerance)
    with pytest.raises(InputError, match="a tolerance of 1e-08 is below the precision of float32: take at least 5e-07"):
        sample(GAUSSIAN, NOISE.float(), "adaptive", tolerance=1e-8)
    with pytest.raises(InputError, match="unknown pair 'rk45'"):
        sample(GAUSSIAN, NOISE, "adaptive", pair="rk45")

    def pole(x: Tensor, angle: Tensor | float) -> Estimate:
        return Estimate(x * 0.0, 1.0 / (torch.as_tensor(angle).reshape(-1, 1, 1, 1) - 0.7 + 1e-12).to(x) + x * 0.0)

    with pytest.raises(InputError, match=r"too steep near angle 0\.7.* raise the tolerance"):
        sample(pole, NOISE, "adaptive", tolerance=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_flow_that_is_not_finite_raises(value: float) -> None:
    """At the start, from some angle on, and for one image of a batch."""

    def below(angle: Tensor | float) -> Tensor:
        return torch.as_tensor(angle, dtype=torch.float64).expand(len(NOISE)).reshape(-1, 1, 1, 1) < 0.7

    def late(x: Tensor, angle: Tensor | float) -> Estimate:
        estimate = GAUSSIAN(x, angle)
        return Estimate(torch.where(below(angle)[: len(x)], value, estimate.image), estimate.noise)

    with pytest.raises(InputError, match=r"not a number near angle 1\.57"):
        sample(lambda x, angle: Estimate(value * x, x), NOISE, "adaptive")
    with pytest.raises(InputError, match=r"not a number near angle 0\.[789]"):
        sample(late, NOISE, "adaptive", tolerance=1e-4)
    noise = NOISE.clone()
    noise[3, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"not a number near angle 1\.57"):
        sample(GAUSSIAN, noise, "adaptive")
