"""Samplers: one-step algebra by probing, order by slope, moments against closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

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
    Rotation,
    Sampler,
    State,
    Tableau,
    Weights,
    sampler,
)

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
KEEPS_TO_THE_ARC = [name for name in LINEAR if name not in ("ddpm large", "euler")]


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def told(image: float, noise: float) -> Callable[[Tensor, float], Estimate]:
    """A denoiser that says the same whatever it is asked."""
    return lambda x, angle: Estimate(one(image), one(noise))


def move(rule: Sampler, b: float, a: float, x: float, image: float, noise: float, fresh: float) -> float:
    *_, end = rule(told(image, noise), one(x), [b, a], lambda like: torch.full_like(like, fresh))
    return float(end.x)


def probe(rule: Sampler, b: float, a: float) -> Weights:
    """The weights of a linear step, from what it does to one unit of each ingredient."""
    return Weights(*(move(rule, b, a, *unit) for unit in np.eye(4).tolist()))


def beta(b: float, a: float) -> float:
    # 1 - cos^2 b / cos^2 a = tan^2-free form of Ho et al.'s 1 - alpha_bar_b / alpha_bar_a, by another identity
    return (math.sin(b) ** 2 - math.sin(a) ** 2) / math.cos(a) ** 2


def expected(name: str, b: float, a: float) -> Weights:
    """The table of the samplers: x_a = A x_b + B image + G noise + S z."""
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
def test_the_step_is_the_table_s(name: str, b: float, a: float) -> None:
    # with eta 1 from pi/2 the expected weight of the noise is the root of a difference of equals, off by 1e-8
    tolerance = 3e-8 if name == "ddim 1" else 1e-12
    assert parts(probe(LINEAR[name], b, a)) == pytest.approx(parts(expected(name, b, a)), rel=1e-11, abs=tolerance)


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
@pytest.mark.parametrize("name", KEEPS_TO_THE_ARC)
def test_linear_samplers_keep_to_the_arc(name: str, b: float, a: float) -> None:
    w = probe(LINEAR[name], b, a)
    assert w.x * math.cos(b) + w.image == pytest.approx(math.cos(a), abs=1e-14)
    variance = (w.x * math.sin(b) + w.noise) ** 2 + w.fresh**2
    assert variance == pytest.approx(math.sin(a) ** 2, rel=1e-12, abs=1e-16)


def test_euler_leaves_the_arc() -> None:
    w = probe(Gradient(EULER), 0.8, 0.2)
    assert abs(w.x * math.cos(0.8) + w.image - math.cos(0.2)) > 0.05
    assert abs(w.x * math.sin(0.8) + w.noise - math.sin(0.2)) > 0.05


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_ddpm_is_ddim_with_eta_1_where_the_estimates_agree(b: float, a: float) -> None:
    ddpm, ddim = probe(DDPM("small"), b, a), probe(DDIM(1.0), b, a)
    # with x = cos b image + sin b noise only these two weights are left
    assert ddpm.x * math.cos(b) + ddpm.image == pytest.approx(ddim.image, abs=1e-14)
    assert ddpm.x * math.sin(b) == pytest.approx(ddim.noise, rel=1e-12, abs=1e-15)
    assert ddpm.fresh == pytest.approx(ddim.fresh, rel=1e-14)
    assert ddim.x == 0.0


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_cold_and_ddim_and_rotation_differ_by_the_residual(b: float, a: float) -> None:
    image, noise = 0.7, -1.3
    for residual in (0.0, 0.5):
        x = math.cos(b) * image + math.sin(b) * noise + residual
        ddim, cold, rotation = (move(rule, b, a, x, image, noise, 0.0) for rule in (DDIM(), Cold(), Rotation()))
        assert ddim == pytest.approx(math.cos(a) * image + math.sin(a) * noise, abs=1e-14)
        assert cold - ddim == pytest.approx(math.sin(a) / math.sin(b) * residual, abs=1e-13)
        assert rotation - ddim == pytest.approx(math.cos(b - a) * residual, abs=1e-13)


def test_eta_lies_between_and_never_fails_to_rounding() -> None:
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


def test_euler_overshoots_by_the_known_amount_even_for_a_perfect_network() -> None:
    for steps, image, noise in ((10, 1.076, 0.081), (50, 1.016, 0.016)):
        grid = uniform(steps)
        by_image = float(run(Gradient(EULER), told(1, 0), one(0.0), grid))
        by_noise = float(run(Gradient(EULER), told(0, 1), one(1.0), grid))
        assert by_image == pytest.approx(image, abs=5e-4)  # as published, to three decimals
        assert by_noise == pytest.approx(noise, abs=5e-4)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_rotation_is_exact_for_a_perfect_network(steps: int) -> None:
    for rule in (Rotation(), DDIM(), Cold()):
        assert float(run(rule, told(0.6, -1.1), one(-1.1), uniform(steps))) == pytest.approx(0.6, abs=1e-13)


def test_rk4_is_exact_to_five_decimals_in_ten_steps() -> None:
    assert float(run(Gradient(RK4), told(1, 0), one(0.0), uniform(10))) == pytest.approx(1, abs=1e-5)
    assert float(run(Gradient(RK4), told(0, 1), one(1.0), uniform(10))) == pytest.approx(0, abs=1e-5)


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
    """The order at which the error falls with the number of steps."""
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
    # the next order of the error is a step, 0.02, of the leading one: the slope is off by a few hundredths
    counts = (64, 80, 96, 128, 160) if order == 4 else (64, 96, 128, 192, 256)
    assert slope(rule, world, x, world.flow(x, b, a), counts, b, a) == pytest.approx(order, abs=0.06)


def mixture_flow(world: MixtureData, x: np.ndarray, b: float, a: float) -> np.ndarray:
    """F_a^{-1} F_b: in one dimension the flow keeps the order of points, so that it matches quantiles."""
    means = world.means.flatten().numpy()

    def cdf(points: np.ndarray, angle: float) -> np.ndarray:
        deviation = math.sqrt(world.h**2 * math.cos(angle) ** 2 + math.sin(angle) ** 2)
        return ndtr((points[:, None] - math.cos(angle) * means) / deviation).mean(1)

    low, high, wanted = np.full_like(x, -9.0), np.full_like(x, 9.0), cdf(x, b)
    for _ in range(80):  # halves of 18 until neighbours in float64
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
def test_order_is_kept_in_every_form_of_the_flow(tableau: Tableau, order: int, form: str) -> None:
    # a mixture: on Gaussian data the midpoint in these forms happens to be of order 3
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.5)
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    exact = torch.from_numpy(mixture_flow(world, x.flatten().numpy(), 1.2, 0.4)).reshape(x.shape)
    counts = (48, 64, 80, 96) if order == 4 else (96, 136, 192, 272)
    assert slope(Gradient(tableau, form), world, x, exact, counts, 1.2, 0.4) == pytest.approx(order, abs=0.15)


def test_the_noise_form_has_no_clock_at_pure_noise() -> None:
    with pytest.raises(InputError, match="the noise form is not defined at pi/2"):
        run(Gradient(HEUN, "noise"), opinion, one(0.5), [PI_2, 1.0])
    assert run(Gradient(HEUN, "noise"), opinion, one(0.5), [1.5, PI_2 / 2]).isfinite().all()


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
def test_tableaus_that_are_none_are_refused(matrix: tuple, weights: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tableau(2, matrix, weights)


def opinion(x: Tensor, angle: float) -> Estimate:
    """A denoiser that is neither linear nor consistent."""
    return Estimate(torch.tanh(x) * math.cos(angle), torch.sin(3 * x) + angle)


def test_bansal_et_al_s_two_algorithms() -> None:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    angles = [1.5, 1.1, 0.6, 0.1, 0.0]

    def degrade(image: Tensor, angle: float) -> Tensor:
        return math.cos(angle) * image + math.sin(angle) * noise

    naive = improved = noise
    for b, a in pairwise(angles):
        naive = degrade(opinion(naive, b).image, a)
        restored = opinion(improved, b).image
        improved = improved - degrade(restored, b) + degrade(restored, a)
    torch.testing.assert_close(run(ColdNaive(), opinion, noise, angles), naive, rtol=0, atol=1e-14)
    torch.testing.assert_close(run(ColdImproved(), opinion, noise, angles), improved, rtol=0, atol=1e-14)


def test_runge_kutta_by_hand() -> None:
    x, (b, a) = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(-1, 1, 1, 1), (1.1, 0.7)
    h, half = a - b, (a - b) / 2

    def v(point: Tensor, angle: float) -> Tensor:
        return opinion(point, angle).velocity(angle)

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
        torch.testing.assert_close(run(Gradient(tableau), opinion, x, [b, a]), wanted, rtol=0, atol=1e-14)


STOCHASTIC = {
    "ddpm small": DDPM("small"),
    "ddpm large": DDPM("large"),
    "ddim 0.5": DDIM(0.5),
    "ddim 1": DDIM(1.0),
}
MEAN, VARIANCE = 0.4, 0.25  # of the data in one pixel


def propagate(name: str, angles: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Mean and variance of x after each step, from the papers' formulas alone: every step is affine in a normal x."""
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
def test_stochastic_samplers_have_the_moments_of_closed_form(name: str) -> None:
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
def test_the_law_of_stochastic_samplers_is_the_propagated_one_to_every_digit(name: str) -> None:
    # the end is affine in the first x and in each step's z: its variance is the sum of the squares of the factors
    world = GaussianData(torch.full((1, 1, 1), MEAN, dtype=torch.float64), VARIANCE)
    angles = uniform(6)

    def end(x: float, unit: int | None) -> float:
        draws = iter(range(len(angles)))
        *_, last = STOCHASTIC[name](world, one(x), angles, lambda like: torch.full_like(like, next(draws) == unit))
        return float(last.x)

    offset = end(0.0, None)
    factors = [end(1.0, None) - offset] + [end(0.0, unit) - offset for unit in range(len(angles))]
    *_, (mean, variance) = propagate(name, angles)
    assert offset == pytest.approx(mean, abs=1e-12)
    assert math.fsum(factor**2 for factor in factors) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_data_with_more_steps(name: str) -> None:
    def missed(steps: int) -> float:
        *_, (mean, variance) = propagate(name, uniform(steps))
        assert abs(mean - MEAN) < 0.2
        return abs(variance - VARIANCE)

    assert missed(4000) < 2e-3
    assert missed(1000) / missed(2000) == pytest.approx(2, abs=0.1)  # first order in law


def learned(fraction: float) -> Callable[[Tensor, float], Estimate]:
    return lambda x, angle: Estimate(x.tanh(), x.sin(), torch.full_like(x, fraction))


@pytest.mark.parametrize(("b", "a"), STEPS + LAST)
def test_the_learned_variance_lies_between_small_and_large(b: float, a: float) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def moved(variance: str, fraction: float) -> Tensor:
        *_, end = DDPM(variance)(learned(fraction), x, [b, a], lambda like: torch.full_like(like, -0.7))
        return end.x

    small, large = moved("small", 0.0), moved("large", 0.0)
    torch.testing.assert_close(moved("learned", 0.0), small, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(moved("learned", 1.0), large, rtol=1e-13, atol=1e-14)
    if a > 0.0:
        still = small + 0.7 * probe(DDPM("small"), b, a).fresh
        between = ((small - still) * (large - still)).sqrt()  # the geometric mean, half way in the logarithm
        torch.testing.assert_close(still - moved("learned", 0.5), between, rtol=0, atol=1e-12)


def test_a_learned_variance_needs_a_denoiser_that_learned_one() -> None:
    with pytest.raises(InputError, match="'learned' needs a network that learned one"):
        run(DDPM("learned"), opinion, one(0.5), [1.0, 0.5])
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
def test_a_trajectory_is_a_state_an_angle(name: str) -> None:
    x = torch.linspace(-1, 1, 4).reshape(-1, 1, 1, 1)
    angles = [1.5, 1.0, 0.4, 0.0]
    states = list(sampler(name)(opinion, x, angles, torch.zeros_like))
    assert [state.angle for state in states] == angles
    assert states[0].x is x
    assert states[-1].estimate is None
    for state in states[:-1]:
        assert isinstance(state, State)
        assert state.estimate is not None
        torch.testing.assert_close(state.estimate.image, opinion(state.x, state.angle).image)
        assert state.x.dtype == torch.float32
    assert states[-1].x.dtype == torch.float32


def test_an_estimate_that_is_not_asked_for_may_be_infinite() -> None:
    # a network of the noise alone says infinities of the image near pi/2, and the other way round near 0
    nowhere = torch.full((1, 1, 1, 1), math.inf, dtype=torch.float64)
    for rule in (DDPM("small"), Cold(), ColdNaive(), ColdImproved()):
        assert run(rule, lambda x, angle: Estimate(one(0.5), nowhere), one(0.3), [0.7, 0.2]).isfinite().all()


def image_network(error: float) -> Callable[[Tensor, float], Estimate]:
    """A network of the image alone with an error of this size: its noise divides by the sine."""
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.3)

    class Network:
        traits = Traits(smallest_angle=1e-3)

        def __init__(self) -> None:
            self.asked: list[float] = []

        def __call__(self, x: Tensor, angle: float) -> Estimate:
            self.asked.append(angle)
            image = world(x, angle).image + error * torch.sin(40 * x)
            return Estimate(image, (x - math.cos(angle) * image) / math.sin(angle))

    return Network()


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun", "rk4", "rotation", "ddim", "cold"])
def test_a_network_of_the_image_is_not_asked_where_it_says_nothing_of_the_noise(name: str) -> None:
    x = torch.linspace(-1.8, 1.8, 37, dtype=torch.float64).reshape(-1, 1, 1, 1)
    right, wrong = image_network(0.0), image_network(0.01)
    angles = uniform(20)
    off = run(sampler(name), wrong, x, angles) - run(sampler(name), right, x, angles)
    # the flow carries errors on; what it must not do is multiply one by the last step over the smallest angle, 78
    assert off.abs().max() < 10 * 0.01
    assert min(right.asked) >= 1e-3  # type: ignore[attr-defined]


def test_unknown_names_and_options_list_the_known() -> None:
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


def test_names_are_the_samplers_that_they_say() -> None:
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
