"""Samplers: weights of one step, order of convergence, moments against closed form, the registry and its options."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from quarterarc import arc
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Traits
from quarterarc.estimate import Estimate
from quarterarc.samplers import (
    DDIM,
    DDPM,
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    SAMPLERS,
    Cold,
    ColdImproved,
    ColdNaive,
    Gradient,
    Option,
    Rotation,
    Sampler,
    State,
    Tableau,
    Weights,
    sampler,
    sampler_options,
)
from quarterarc.sampling import sample

PI_2 = math.pi / 2
STEPS = [(PI_2, 1.4), (PI_2, 1e-3), (1.57, 1.5), (1.0, 0.99), (0.8, 0.2), (1e-2, 1e-3)]  # from b to a
LAST = [(PI_2, 0.0), (0.4, 0.0)]

LINEAR: dict[str, Sampler] = {
    "ddpm small": DDPM("small"),
    "ddpm large": DDPM("large"),
    "ddim 0": DDIM(),
    "ddim 0.4": DDIM(0.4),
    "ddim 1": DDIM(1.0),
    "cold": Cold(),
    "rotation": Rotation(),
    "euler": Gradient(EULER),
}
KEEPS_THE_MARGINALS = [name for name in LINEAR if name not in ("ddpm large", "euler")]


def pixel(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def constant(image: float, noise: float) -> Callable[[Tensor, float], Estimate]:
    """A denoiser whose estimates do not depend on x and the angle."""
    return lambda x, angle: Estimate(pixel(image), pixel(noise))


def move(rule: Sampler, b: float, a: float, x: float, image: float, noise: float, fresh: float) -> float:
    *_, end = rule(constant(image, noise), pixel(x), [b, a], lambda like: torch.full_like(like, fresh))
    return float(end.x)


def probe(rule: Sampler, b: float, a: float) -> Weights:
    """The weights of a linear step, measured with one unit of each input."""
    return Weights(*(move(rule, b, a, *unit) for unit in np.eye(4).tolist()))


def beta(b: float, a: float) -> float:
    # 1 - cos^2 b / cos^2 a = tan^2-free form of Ho et al.'s 1 - alpha_bar_b / alpha_bar_a, by another identity
    return (math.sin(b) ** 2 - math.sin(a) ** 2) / math.cos(a) ** 2


def expected(name: str, b: float, a: float) -> Weights:
    """The published weights: x_a = A x_b + B image + G noise + S z."""
    kind, _, option = name.partition(" ")
    posterior = beta(b, a) * math.sin(a) ** 2 / math.sin(b) ** 2
    if kind == "ddpm":
        fresh = beta(b, a) if option == "large" else posterior
        x = math.cos(b) / math.cos(a) * math.sin(a) ** 2 / math.sin(b) ** 2
        return Weights(x, math.cos(a) * beta(b, a) / math.sin(b) ** 2, 0.0, math.sqrt(fresh) if a > 0 else 0.0)
    if kind == "ddim":
        variance = float(option) ** 2 * posterior
        return Weights(0.0, math.cos(a), math.sqrt(max(math.sin(a) ** 2 - variance, 0.0)), math.sqrt(variance))
    if kind == "cold":
        return Weights(math.sin(a) / math.sin(b), math.cos(a) - math.sin(a) / math.tan(b), 0.0)
    by = a - b
    if kind == "rotation":  # cos(a - b) x + sin(a - b) v
        return Weights(math.cos(by), -math.sin(by) * math.sin(b), math.sin(by) * math.cos(b))
    return Weights(1.0, -by * math.sin(b), by * math.cos(b))


def parts(weights: Weights) -> list[float]:
    return [weights.x, weights.image, weights.noise, weights.fresh]


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
@pytest.mark.parametrize("name", LINEAR)
def test_weights_of_one_step_are_the_published_ones(name: str, b: float, a: float) -> None:
    # for eta 1 from pi/2 the expected weight of the noise is the root of a difference of equal numbers: error 1e-8
    tolerance = 3e-8 if name == "ddim 1" else 1e-12
    assert parts(probe(LINEAR[name], b, a)) == pytest.approx(parts(expected(name, b, a)), rel=1e-11, abs=tolerance)


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
@pytest.mark.parametrize("name", KEEPS_THE_MARGINALS)
def test_linear_samplers_keep_the_marginals_of_the_arc(name: str, b: float, a: float) -> None:
    w = probe(LINEAR[name], b, a)
    assert w.x * math.cos(b) + w.image == pytest.approx(math.cos(a), abs=1e-14)
    variance = (w.x * math.sin(b) + w.noise) ** 2 + w.fresh**2
    assert variance == pytest.approx(math.sin(a) ** 2, rel=1e-12, abs=1e-16)


def test_euler_does_not_keep_the_marginals_of_the_arc() -> None:
    w = probe(Gradient(EULER), 0.8, 0.2)
    assert abs(w.x * math.cos(0.8) + w.image - math.cos(0.2)) > 0.05
    assert abs(w.x * math.sin(0.8) + w.noise - math.sin(0.2)) > 0.05


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_ddpm_equals_ddim_at_eta_1_if_the_estimates_agree(b: float, a: float) -> None:
    ddpm, ddim = probe(DDPM("small"), b, a), probe(DDIM(1.0), b, a)
    # for x = cos b image + sin b noise, only these two weights remain
    assert ddpm.x * math.cos(b) + ddpm.image == pytest.approx(ddim.image, abs=1e-14)
    assert ddpm.x * math.sin(b) == pytest.approx(ddim.noise, rel=1e-12, abs=1e-15)
    assert ddpm.fresh == pytest.approx(ddim.fresh, rel=1e-14)
    assert ddim.x == 0.0


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_cold_ddim_and_rotation_differ_by_a_multiple_of_the_residual(b: float, a: float) -> None:
    image, noise = 0.7, -1.3
    for residual in (0.0, 0.5):
        x = math.cos(b) * image + math.sin(b) * noise + residual
        ddim, cold, rotation = (move(rule, b, a, x, image, noise, 0.0) for rule in (DDIM(), Cold(), Rotation()))
        assert ddim == pytest.approx(math.cos(a) * image + math.sin(a) * noise, abs=1e-14)
        assert cold - ddim == pytest.approx(math.sin(a) / math.sin(b) * residual, abs=1e-13)
        assert rotation - ddim == pytest.approx(math.cos(b - a) * residual, abs=1e-13)


def test_weights_are_monotone_in_eta_for_every_step() -> None:
    starts = np.linspace(0.01, PI_2, 50)
    for b in starts:
        for a in b * np.linspace(0.001, 0.9999, 41):
            low, middle, high = (DDIM(eta).weights(b, a) for eta in (0.0, 0.5, 1.0))
            assert high.noise <= middle.noise <= low.noise
            assert low.fresh <= middle.fresh <= high.fresh
            assert middle.fresh == pytest.approx(high.fresh / 2, rel=1e-14)
    for eta in (-1e-3, 1.001, math.nan):
        with pytest.raises(InputError, match=r"eta lies in 0\.\.1"):
            DDIM(eta)


def run(rule: Sampler, denoise: Callable[[Tensor, float], Estimate], x: Tensor, angles: Sequence[float]) -> Tensor:
    *_, end = rule(denoise, x, angles, torch.zeros_like)
    return end.x


def uniform(steps: int, b: float = PI_2, a: float = 0.0) -> list[float]:
    return [b + (a - b) * k / steps for k in range(steps)] + [a]


def test_euler_overshoots_by_the_published_amount_for_constant_estimates() -> None:
    for steps, image, noise in ((10, 1.076, 0.081), (50, 1.016, 0.016)):
        grid = uniform(steps)
        by_image = float(run(Gradient(EULER), constant(1, 0), pixel(0.0), grid))
        by_noise = float(run(Gradient(EULER), constant(0, 1), pixel(1.0), grid))
        assert by_image == pytest.approx(image, abs=5e-4)  # as published, to three decimals
        assert by_noise == pytest.approx(noise, abs=5e-4)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_rotation_ddim_and_cold_are_exact_for_constant_estimates(steps: int) -> None:
    for rule in (Rotation(), DDIM(), Cold()):
        assert float(run(rule, constant(0.6, -1.1), pixel(-1.1), uniform(steps))) == pytest.approx(0.6, abs=1e-13)


def test_rk4_is_exact_to_five_decimals_in_ten_steps_for_constant_estimates() -> None:
    assert float(run(Gradient(RK4), constant(1, 0), pixel(0.0), uniform(10))) == pytest.approx(1, abs=1e-5)
    assert float(run(Gradient(RK4), constant(0, 1), pixel(1.0), uniform(10))) == pytest.approx(0, abs=1e-5)


ORDERS: dict[str, tuple[Sampler, int]] = {
    "euler": (Gradient(EULER), 1),
    "rotation": (Rotation(), 1),
    "ddim": (DDIM(), 1),
    "cold": (Cold(), 1),
    "midpoint": (Gradient(MIDPOINT), 2),
    "heun": (Gradient(HEUN), 2),
    "rk4": (Gradient(RK4), 4),
}


def slope(
    rule: Sampler, denoise: Callable, x: Tensor, exact: Tensor, counts: Sequence[int], b: float, a: float
) -> float:
    """The measured order of convergence: minus the slope of log error against log steps."""
    errors = [float((run(rule, denoise, x, uniform(n, b, a)) - exact).abs().max()) for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(("b", "a"), [(PI_2, 0.0), (1.3, 0.2)])
@pytest.mark.parametrize("name", ORDERS)
def test_order_on_the_flow_of_correlated_gaussian_data(name: str, b: float, a: float) -> None:
    rule, order = ORDERS[name]
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    world = GaussianData(
        torch.randn(1, 2, 3, generator=generator, dtype=torch.float64), root @ root.T / 6 + 0.1 * torch.eye(6)
    )
    x = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    # the next term of the error is 0.02, one step, relative to the leading one: the slope is off by a few hundredths
    counts = (64, 80, 96, 128, 160) if order == 4 else (64, 96, 128, 192, 256)
    assert slope(rule, world, x, world.flow(x, b, a), counts, b, a) == pytest.approx(order, abs=0.06)


def mixture_flow(world: MixtureData, x: np.ndarray, b: float, a: float) -> np.ndarray:
    """F_a^{-1} F_b: in one dimension the flow is monotone, so that it maps quantiles to quantiles."""
    means = world.means.flatten().numpy()

    def cdf(points: np.ndarray, angle: float) -> np.ndarray:
        deviation = math.sqrt(world.h**2 * math.cos(angle) ** 2 + math.sin(angle) ** 2)
        return ndtr((points[:, None] - math.cos(angle) * means) / deviation).mean(1)

    low, high, wanted = np.full_like(x, -9.0), np.full_like(x, 9.0), cdf(x, b)
    for _ in range(80):  # bisection of 18 down to neighbours in float64
        middle = (low + high) / 2
        below = cdf(middle, a) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("name", ORDERS)
def test_order_on_the_monotone_map_of_a_mixture(name: str) -> None:
    rule, order = ORDERS[name]
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.5)
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    exact = torch.from_numpy(mixture_flow(world, x.flatten().numpy(), PI_2, 0.0)).reshape(x.shape)
    counts = (24, 34, 48, 68, 96) if order == 4 else (96, 136, 192, 272, 384)
    assert slope(rule, world, x, exact, counts, PI_2, 0.0) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("form", ["noise", "image"])
@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (MIDPOINT, 2), (HEUN, 2), (RK4, 4)])
def test_order_in_the_noise_and_image_forms(tableau: Tableau, order: int, form: str) -> None:
    # a mixture, because the midpoint method in these forms has order 3 on Gaussian data
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.5)
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    exact = torch.from_numpy(mixture_flow(world, x.flatten().numpy(), 1.2, 0.4)).reshape(x.shape)
    counts = (48, 64, 80, 96) if order == 4 else (96, 136, 192, 272)
    assert slope(Gradient(tableau, form), world, x, exact, counts, 1.2, 0.4) == pytest.approx(order, abs=0.15)


def test_the_noise_form_raises_at_pi_2() -> None:
    with pytest.raises(InputError, match="the noise form is not defined at pi/2"):
        run(Gradient(HEUN, "noise"), nonlinear, pixel(0.5), [PI_2, 1.0])
    assert run(Gradient(HEUN, "noise"), nonlinear, pixel(0.5), [1.5, PI_2 / 2]).isfinite().all()


@pytest.mark.parametrize("tableau", [EULER, MIDPOINT, HEUN, RK4])
def test_tableaus_meet_the_order_conditions(tableau: Tableau) -> None:
    stages = len(tableau.weights)
    weights, nodes, matrix = np.array(tableau.weights), np.array(tableau.nodes), np.zeros((stages, stages))
    for i, row in enumerate(tableau.matrix):
        matrix[i, :i] = row
    conditions: dict[int, list[tuple[float, float]]] = {
        1: [(weights.sum(), 1)],
        2: [(weights @ nodes, 1 / 2)],
        3: [(weights @ nodes**2, 1 / 3), (weights @ matrix @ nodes, 1 / 6)],
        4: [
            (weights @ nodes**3, 1 / 4),
            ((weights * nodes) @ matrix @ nodes, 1 / 8),
            (weights @ matrix @ nodes**2, 1 / 12),
            (weights @ matrix @ matrix @ nodes, 1 / 24),
        ],
    }
    for order, pairs in conditions.items():
        met = all(value == pytest.approx(wanted, abs=1e-15) for value, wanted in pairs)
        assert met == (order <= tableau.order) or order > tableau.order + 1


@pytest.mark.parametrize(
    ("matrix", "weights", "message"),
    [
        (((), (0.5, 0.5)), (0.0, 1.0), "row i of an explicit tableau has i entries"),
        (((),), (0.5, 0.5), "row i of an explicit tableau has i entries"),
        (((), (0.5,)), (0.5, 0.4), "weights sum to 1"),
        (((), (0.0,)), (0.5, 0.5), "nodes above 0"),
    ],
)
def test_invalid_tableaus_raise(matrix: tuple, weights: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tableau(2, matrix, weights)


def nonlinear(x: Tensor, angle: float) -> Estimate:
    """A nonlinear denoiser whose estimates do not agree on x."""
    return Estimate(torch.tanh(x) * math.cos(angle), torch.sin(3 * x) + angle)


def test_cold_naive_and_improved_are_the_algorithms_of_bansal_et_al() -> None:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    angles = [1.5, 1.1, 0.6, 0.1, 0.0]

    def degrade(image: Tensor, angle: float) -> Tensor:
        return math.cos(angle) * image + math.sin(angle) * noise

    naive = improved = noise
    for b, a in pairwise(angles):
        naive = degrade(nonlinear(naive, b).image, a)
        restored = nonlinear(improved, b).image
        improved = improved - degrade(restored, b) + degrade(restored, a)
    torch.testing.assert_close(run(ColdNaive(), nonlinear, noise, angles), naive, rtol=0, atol=1e-14)
    torch.testing.assert_close(run(ColdImproved(), nonlinear, noise, angles), improved, rtol=0, atol=1e-14)


def test_runge_kutta_methods_equal_their_formulas() -> None:
    x, (b, a) = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(-1, 1, 1, 1), (1.1, 0.7)
    h, half = a - b, (a - b) / 2

    def v(point: Tensor, angle: float) -> Tensor:
        return nonlinear(point, angle).velocity(angle)

    k1 = v(x, b)
    k2 = v(x + half * k1, b + half)
    k3 = v(x + half * k2, b + half)
    k4 = v(x + h * k3, a)
    for tableau, wanted in (
        (EULER, x + h * k1),
        (MIDPOINT, x + h * k2),
        (HEUN, x + half * (k1 + v(x + h * k1, a))),
        (RK4, x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)),
    ):
        torch.testing.assert_close(run(Gradient(tableau), nonlinear, x, [b, a]), wanted, rtol=0, atol=1e-14)


STOCHASTIC = {
    "ddpm small": DDPM("small"),
    "ddpm large": DDPM("large"),
    "ddim 0.5": DDIM(0.5),
    "ddim 1": DDIM(1.0),
}
MEAN, VARIANCE = 0.4, 0.25  # of the data in one pixel


def propagate(name: str, angles: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Mean and variance of x after each step by the published formulas: every step is affine in a normal x."""
    mean, variance = 0.0, 1.0
    for b, a in pairwise(angles):
        w = expected(name, b, a)
        level = math.cos(b) ** 2 * VARIANCE + math.sin(b) ** 2
        # image = MEAN + gain (x - cos b MEAN), noise = sin b / level (x - cos b MEAN)
        gain, of_noise = math.cos(b) * VARIANCE / level, math.sin(b) / level
        factor = w.x + w.image * gain + w.noise * of_noise
        mean = factor * (mean - math.cos(b) * MEAN) + w.x * math.cos(b) * MEAN + w.image * MEAN
        variance = factor**2 * variance + w.fresh**2
        yield mean, variance


@pytest.mark.parametrize("name", STOCHASTIC)
def test_sample_moments_of_stochastic_samplers_are_those_of_closed_form(name: str) -> None:
    count, generator = 200_000, torch.Generator().manual_seed(1)
    world = GaussianData(torch.full((1, 1, 1), MEAN, dtype=torch.float64), VARIANCE)
    x = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    angles = uniform(6)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    _, *states = STOCHASTIC[name](world, x, angles, draw)
    for state, (mean, variance) in zip(states, propagate(name, angles), strict=True):
        # five standard errors of the mean and of the variance of a normal sample
        assert abs(float(state.x.mean()) - mean) < 5 * math.sqrt(variance / count)
        assert abs(float(state.x.var()) - variance) < 5 * variance * math.sqrt(2 / count)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_mean_and_variance_of_stochastic_samplers_are_exact(name: str) -> None:
    # the end is affine in the first x and in the z of each step: its variance is the sum of the squared factors
    world = GaussianData(torch.full((1, 1, 1), MEAN, dtype=torch.float64), VARIANCE)
    angles = uniform(6)

    def end(x: float, unit: int | None) -> float:
        draws = iter(range(len(angles)))
        *_, last = STOCHASTIC[name](world, pixel(x), angles, lambda like: torch.full_like(like, next(draws) == unit))
        return float(last.x)

    offset = end(0.0, None)
    factors = [end(1.0, None) - offset] + [end(0.0, unit) - offset for unit in range(len(angles))]
    *_, (mean, variance) = propagate(name, angles)
    assert offset == pytest.approx(mean, abs=1e-12)
    assert math.fsum(factor**2 for factor in factors) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_converge_to_the_data_at_first_order(name: str) -> None:
    def error(steps: int) -> float:
        *_, (mean, variance) = propagate(name, uniform(steps))
        assert abs(mean - MEAN) < 0.2
        return abs(variance - VARIANCE)

    assert error(4000) < 2e-3
    assert error(1000) / error(2000) == pytest.approx(2, abs=0.1)  # first order in law


def learned(fraction: float) -> Callable[[Tensor, float], Estimate]:
    return lambda x, angle: Estimate(x.tanh(), x.sin(), torch.full_like(x, fraction))


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_the_learned_variance_interpolates_between_small_and_large(b: float, a: float) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def moved(variance: str, fraction: float) -> Tensor:
        *_, end = DDPM(variance)(learned(fraction), x, [b, a], lambda like: torch.full_like(like, -0.7))
        return end.x

    small, large = moved("small", 0.0), moved("large", 0.0)
    torch.testing.assert_close(moved("learned", 0.0), small, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(moved("learned", 1.0), large, rtol=1e-13, atol=1e-14)
    if a > 0.0:
        still = small + 0.7 * probe(DDPM("small"), b, a).fresh
        between = ((small - still) * (large - still)).sqrt()  # geometric mean: linear in the logarithm
        torch.testing.assert_close(still - moved("learned", 0.5), between, rtol=0, atol=1e-12)


def test_a_learned_variance_raises_without_a_variance_head() -> None:
    with pytest.raises(InputError, match="'learned' needs a network that learned one"):
        run(DDPM("learned"), nonlinear, pixel(0.5), [1.0, 0.5])
    with pytest.raises(InputError, match=r"unknown variance 'smal'; did you mean 'small'\?"):
        DDPM("smal")


@pytest.mark.parametrize("rule", [DDPM("small"), DDPM("large"), DDPM("learned"), DDIM(1.0)])
def test_the_last_step_adds_no_noise(rule: Sampler) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def end(a: float, z: float) -> Tensor:
        *_, last = rule(learned(0.3), x, [0.6, a], lambda like: torch.full_like(like, z))
        return last.x

    assert (end(0.3, 1.0) - end(0.3, 0.0)).abs().min() > 0.1
    for z in (0.0, 1.0):
        torch.testing.assert_close(end(0.0, z), x.tanh(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", [*ORDERS, "ddpm", "cold-naive", "cold-improved"])
def test_a_trajectory_has_one_state_per_angle(name: str) -> None:
    x = torch.linspace(-1, 1, 4).reshape(-1, 1, 1, 1)
    angles = [1.5, 1.0, 0.4, 0.0]
    states = list(sampler(name)(nonlinear, x, angles, torch.zeros_like))
    assert [state.angle for state in states] == angles
    assert states[0].x is x
    assert states[-1].estimate is None
    for state in states[:-1]:
        assert isinstance(state, State)
        assert state.estimate is not None
        torch.testing.assert_close(state.estimate.image, nonlinear(state.x, state.angle).image)
        assert state.x.dtype == torch.float32
    assert states[-1].x.dtype == torch.float32


def test_an_estimate_of_weight_0_may_be_infinite() -> None:
    # the image estimate of a noise head diverges near pi/2, and the noise estimate of an image head near 0
    nowhere = torch.full((1, 1, 1, 1), math.inf, dtype=torch.float64)
    for rule in (DDPM("small"), Cold(), ColdNaive(), ColdImproved()):
        assert run(rule, lambda x, angle: Estimate(pixel(0.5), nowhere), pixel(0.3), [0.7, 0.2]).isfinite().all()


def image_network(error: float) -> Callable[[Tensor, float], Estimate]:
    """An image head with an error of this size: its noise estimate divides by the sine."""
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.3)

    class Network:
        traits = Traits(smallest_angle=1e-3)

        def __init__(self) -> None:
            self.angles: list[float] = []

        def __call__(self, x: Tensor, angle: float) -> Estimate:
            self.angles.append(angle)
            image = world(x, angle).image + error * torch.sin(40 * x)
            return Estimate(image, (x - math.cos(angle) * image) / math.sin(angle))

    return Network()


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun", "rk4", "rotation", "ddim", "cold"])
def test_an_image_head_is_not_evaluated_below_its_smallest_angle(name: str) -> None:
    x = torch.linspace(-1.8, 1.8, 37, dtype=torch.float64).reshape(-1, 1, 1, 1)
    right, wrong = image_network(0.0), image_network(0.01)
    angles = uniform(20)
    off = run(sampler(name), wrong, x, angles) - run(sampler(name), right, x, angles)
    # the flow may amplify errors, but not by the last step divided by the smallest angle, 78
    assert off.abs().max() < 10 * 0.01
    assert min(right.angles) >= 1e-3  # type: ignore[attr-defined]


def test_unknown_names_and_options_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown sampler 'ddimm'; did you mean 'ddim'\?") as caught:
        sampler("ddimm")
    for name in SAMPLERS:
        assert name in str(caught.value)
    with pytest.raises(InputError, match=r"the sampler 'ddim' has no option 'etta' \(known: eta\)"):
        sampler("ddim", etta=1.0)
    with pytest.raises(InputError, match=r"the sampler 'rotation' has no option 'eta' \(it has none\)"):
        sampler("rotation", eta=1.0)
    with pytest.raises(InputError, match="no option 'tableau'"):
        sampler("heun", tableau=RK4)
    assert sampler("ddim", eta=0.5) == DDIM(0.5)
    assert sampler("ddpm", variance="large") == DDPM("large")


def test_registered_names_give_the_published_samplers() -> None:
    for name, rule in (
        ("ddpm", DDPM("small")),
        ("ddim", DDIM(0.0)),
        ("cold", Cold()),
        ("cold-naive", ColdNaive()),
        ("cold-improved", ColdImproved()),
        ("euler", Gradient(EULER)),
        ("midpoint", Gradient(MIDPOINT)),
        ("heun", Gradient(HEUN)),
        ("rk4", Gradient(RK4)),
        ("rotation", Rotation()),
    ):
        assert sampler(name) == rule
    assert arc.NOISE_END == PI_2


MODULE = '''
from dataclasses import dataclass
from quarterarc.samplers import LinearSampler, Weights

@dataclass(frozen=True)
class Half(LinearSampler):
    """A step that scales x.

    Attributes:
        scale, other: the factor, 0 to 1. A second sentence.
        kind: a word; continued
            on the next line.
    """

    scale: float
    other: float = 0.25
    kind: str | None = None

    def weights(self, b, a):
        return Weights(self.scale, 0.0, 0.0)

def factory(scale=0.5):
    return Half(scale)

def anything(**options):
    return Half(**options)

def wrong():
    return 3

instance = Half(0.5)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module with a sampler."""
    (tmp_path / "own_samplers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_samplers", raising=False)
    return "own_samplers"


def test_a_sampler_is_found_by_its_import_path(module: str) -> None:
    for name in ("Half", "factory", "anything"):
        rule = sampler(f"{module}:{name}", scale=0.5)
        assert float(run(rule, constant(0, 0), pixel(8.0), [1.0, 0.5, 0.0])) == 2.0
    result = sample(nonlinear, pixel(8.0), f"{module}:Half", 2, "angle", scale=0.5)
    assert float(result.images) == 2.0
    with pytest.raises(InputError, match=r"no option 'scael' \(known: scale, other, kind\)"):
        sampler(f"{module}:Half", scael=1.0)
    with pytest.raises(InputError, match=r"cannot use the options {}: .*missing 1 required .* 'scale'"):
        sampler(f"{module}:Half")
    with pytest.raises(InputError, match=r"is not a subclass of quarterarc\.samplers\.Sampler"):
        sampler("collections:OrderedDict")
    with pytest.raises(InputError, match="is an instance of Half: give the class"):
        sampler(f"{module}:instance")
    with pytest.raises(InputError, match="returned a int"):
        sampler(f"{module}:wrong")
    with pytest.raises(InputError, match="cannot import the sampler 'absent_package:Mine'"):
        sampler("absent_package:Mine")


def test_a_registered_sampler_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAMPLERS, "_entries", dict(SAMPLERS))
    SAMPLERS.register("mine")(Rotation)
    assert sampler("mine") == Rotation()
    with pytest.raises(InputError, match="the sampler name 'ddim' is registered already"):
        SAMPLERS.register("ddim")


def test_options_have_names_types_defaults_and_one_line_of_documentation(module: str) -> None:
    assert sampler_options("ddim") == (Option("eta", "float", 0.0, "amount of fresh noise in [0, 1]"),)
    assert sampler_options("rotation") == ()
    assert [option.name for option in sampler_options("heun")] == ["form"]
    scale, other, kind = sampler_options(f"{module}:Half")
    assert (scale.description, other.description) == ("the factor, 0 to 1", "the factor, 0 to 1")
    assert scale.required
    assert not other.required
    assert kind == Option("kind", "str | None", None, "a word")
    assert sampler_options(f"{module}:anything") == ()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_option_of_a_registered_sampler_is_documented(name: str) -> None:
    for option in sampler_options(name):
        assert option.description, option
        assert option.type, option
        assert not option.required, option
    assert "offsets" not in [option.name for option in sampler_options(name)]


@pytest.mark.parametrize("name", ["ddim", "multistep"])
def test_churn_is_accepted_as_the_old_name_of_eta(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="quarterarc"):
        assert sampler(name, churn=0.5) == sampler(name, eta=0.5)
    (record,) = caplog.records
    assert f"the sampler '{name}': the option 'churn' is now called 'eta'" in record.getMessage()
    with pytest.raises(InputError, match="'churn' is the old name of the option 'eta': give 'eta' alone"):
        sampler(name, churn=0.5, eta=0.5)
    with pytest.raises(InputError, match="no option 'churn'"):
        sampler("ddpm", churn=0.5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ddim", {"eta": "abc"}, "the option 'eta' of the sampler 'ddim' is a number, got 'abc'"),
        ("multistep", {"order": 2.5}, "the option 'order' of the sampler 'multistep' is a whole number, got 2.5"),
        ("multistep", {"corrector": 1}, "the option 'corrector' of the sampler 'multistep' is true or false, got 1"),
        ("heun", {"form": True}, "the option 'form' of the sampler 'heun' is a word, got True"),
    ],
)
def test_options_of_another_type_raise_before_sampling(name: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        sampler(name, **options)


def test_the_old_name_of_an_option_names_the_new_one() -> None:
    with pytest.raises(InputError, match=r"'churn' of DDIM is called 'eta': DDIM\(eta=\.\.\.\)"):
        DDIM(churn=0.5)  # type: ignore[call-arg]
