"""Multistep: exact weights, order of convergence in every form, equivalences at order 1, marginals with fresh noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import count, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from quarterarc import grid, noise, sample, to_float
from quarterarc.arc import octave, octave_to_angle
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.estimate import Estimate
from quarterarc.samplers import DDIM, DDPM, EULER, FORMS, Cold, Gradient, Multistep, Sampler
from quarterarc.samplers.step_weights import CLOCKS, NoiseWeights, StepWeights, gaussian_weights, step_weights
from quarterarc.samplers.widths import width_at_the_end, widths
from quarterarc.sampling.plans import Sampling
from quarterarc.sampling.trajectories import trajectory

PI_2 = math.pi / 2
NODES = (1.45, 1.3, 1.05, 0.8)


def run(rule: Sampler, denoise: Callable, x: Tensor, angles: Sequence[float]) -> Tensor:
    *_, end = rule(denoise, x, angles, torch.randn_like)
    return end.x


def mixture() -> MixtureData:
    return MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), 0.5)


def points(count: int = 9) -> Tensor:
    return torch.linspace(-1.8, 1.8, count, dtype=torch.float64).reshape(-1, 1, 1, 1)


def uniform(steps: int, b: float, a: float) -> list[float]:
    return np.linspace(b, a, steps + 1).tolist()


@functools.cache
def fine_solution(b: float, a: float) -> Tensor:
    """The flow of `mixture` from `points` at angle b to angle a; solved once, since many tests compare with it."""
    return sample(mixture(), points(), "rk4", grid=uniform(2048, b, a)).images


@pytest.mark.parametrize("coarsest", [1.0, 8.0, 443.0])
def test_octave_to_angle_inverts_octave(coarsest: float) -> None:
    angles = np.concatenate([np.linspace(0, PI_2, 101), [1e-9, 1e-3, PI_2 - 1e-3, PI_2 - 1e-9]])
    np.testing.assert_allclose(octave_to_angle(octave(angles, coarsest), coarsest), angles, rtol=0, atol=1e-12)
    assert octave(0.0, coarsest) == pytest.approx(math.log2(0.3), abs=1e-14)
    assert octave(PI_2, coarsest) == pytest.approx(math.log2(coarsest), abs=1e-12)
    # far from both ends an octave is a factor of 2 in sigma
    assert octave(math.atan(2e3), 1e9) - octave(math.atan(1e3), 1e9) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("form", "clock"), [*product(("both", *FORMS), CLOCKS)])
@pytest.mark.parametrize(("b", "a"), [(1.05, 0.8), (0.8, 0.3), (0.8, 1e-3)])
def test_weights_are_integrals_of_lagrange_polynomials(form: str, clock: str, b: float, a: float) -> None:
    coarsest = 12.0

    def at(angle: float) -> float:
        return float(octave(angle, coarsest)) if clock == "octave" else angle

    def basis(j: int, angle: float) -> float:
        others = [node for i, node in enumerate(NODES) if i != j]
        return math.prod((at(angle) - at(node)) / (at(NODES[j]) - at(node)) for node in others)

    def integral(j: int, weight: Callable[[float], float]) -> float:
        middle = math.sqrt(a * b)  # cot changes by decades near 0
        return sum(
            quad(lambda angle: weight(angle) * basis(j, angle), *ends, epsabs=1e-13, epsrel=1e-13, limit=200)[0]
            for ends in pairwise((b, middle, a))
        )

    got = step_weights(form, clock, b, a, NODES, coarsest)
    for j, node in enumerate(NODES):
        if form == "both":
            image, noise = integral(j, lambda t: -math.sin(t)), integral(j, math.cos)
        elif form == "velocity":
            share = integral(j, lambda t: 1.0)
            image, noise = -math.sin(node) * share, math.cos(node) * share
        elif form == "noise":
            image, noise = 0.0, math.cos(a) * integral(j, lambda t: math.cos(t) ** -2)
        else:
            image, noise = math.sin(a) * integral(j, lambda t: -(math.sin(t) ** -2)), 0.0
        assert (got.image[j], got.noise[j]) == pytest.approx((image, noise), rel=1e-10, abs=1e-11)
    scale = {"noise": math.cos(a) / math.cos(b), "image": math.sin(a) / math.sin(b)}.get(form, 1.0)
    assert got.x == pytest.approx(scale, rel=1e-15)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize(("b", "a"), [(1.05, 0.8), (0.8, 0.3), (0.3, 0.0)])
def test_noise_weights_are_integrals_of_lagrange_polynomials_times_the_size_of_the_noise(
    clock: str, b: float, a: float
) -> None:
    coarsest, squared = 12.0, torch.tensor([0.0, 0.04, 0.5, 30.0], dtype=torch.float64)

    def at(angle: float) -> float:
        return float(octave(angle, coarsest)) if clock == "octave" else angle

    def size(angle: float, square: float) -> float:
        return math.sin(angle) / math.sqrt(math.sin(angle) ** 2 + square * math.cos(angle) ** 2) if angle else 0.0

    def integrand(angle: float, j: int, square: float) -> float:
        others = [node for i, node in enumerate(NODES) if i != j]
        basis = math.prod((at(angle) - at(node)) / (at(NODES[j]) - at(node)) for node in others)
        return math.cos(angle) * basis * size(angle, square) / size(NODES[j], square)

    steps = [(1.2, 1.05, NODES), (b, a, NODES[1:]), (b, a, NODES)]
    got = NoiseWeights(clock, coarsest, steps, squared.dtype, squared.device)((b, a, NODES), squared)
    for j, row in enumerate(got):
        for weight, square in zip(row.tolist(), squared.tolist(), strict=True):
            expected = quad(integrand, b, a, (j, square), epsabs=1e-13, epsrel=1e-13, limit=200)[0]
            assert weight == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert [float(row[0]) for row in got] == pytest.approx(step_weights("both", clock, b, a, NODES, coarsest).noise)


def test_widths_of_gaussian_data_are_exact_and_independent_per_image() -> None:
    true = torch.tensor([0.05, 0.15, 0.4, 2.0], dtype=torch.float64)
    start = torch.tensor([0.7, -1.0, 0.2, 1.3], dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0, 0.5])

    def noise_at(angle: float) -> Tensor:
        return start * (math.sin(angle) / (math.sin(angle) ** 2 + true**2 * math.cos(angle) ** 2).sqrt())[:, None]

    for b, a in ((1.2, 0.05), (0.30, 0.25), (0.30, 0.29)):
        assert widths(noise_at(b), noise_at(a), b, a).sqrt() == pytest.approx(true, rel=1e-9)
    assert torch.equal(
        widths(noise_at(0.3), noise_at(0.25), 0.3, 0.25)[2:3],
        widths(noise_at(0.3)[2:3], noise_at(0.25)[2:3], 0.3, 0.25),
    )


def test_widths_are_finite_for_noise_that_grows_changes_sign_or_vanishes() -> None:
    one = torch.ones(3, 1, 2, 2)
    grown, turned = widths(one, 1.2 * one, 0.5, 0.3), widths(one, -one, 0.5, 0.3)
    assert torch.equal(grown, torch.zeros(3))
    assert turned.sqrt() == pytest.approx(100 * math.sqrt(math.tan(0.5) * math.tan(0.3)))
    assert turned.isfinite().all()
    for before, after in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        assert widths(before * one, after * one, 0.5, 0.3).isfinite().all()
    assert torch.equal(widths(one, 0.5 * one, PI_2, 1.4), torch.zeros(3))
    assert widths(one.bfloat16(), one.bfloat16(), 0.5, 0.3).dtype == torch.float32


def test_the_width_at_the_end_shrinks_by_the_same_factor_again() -> None:
    squared, earlier = (
        torch.tensor(values) for values in ([0.04, 0.04, 0.04, 0.0, 0.0], [0.04, 0.16, 0.01, 0.04, 0.0])
    )
    assert width_at_the_end(squared, earlier) == pytest.approx([0.04, 0.01, 0.04, 0.0, 0.0])


def test_the_last_step_uses_the_width_of_the_last_two_steps() -> None:
    """Computed from the states of the trajectory; without the corrector their estimates are those of the steps."""
    world, x = mixture(), points()
    angles = [PI_2, 1.1, 0.7, 0.4, 0.0]
    *states, last = trajectory(world, x, Multistep(corrector=False), grid=angles)
    estimates = [state.estimate for state in states if state.estimate is not None]
    earlier, squared = (widths(estimates[k - 1].noise, estimates[k].noise, angles[k - 1], angles[k]) for k in (2, 3))
    assert (earlier > 1.5 * squared).any()  # some widths shrink, so that their extrapolation matters
    weights = gaussian_weights(0.4, 0.0, width_at_the_end(squared, earlier))
    assert torch.allclose(last.x, weights.apply(states[-1].x, estimates[-len(weights.image) :]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "evaluations"), [(2, 2), (3, 2), (4, 4)])
def test_evaluations_of_a_runge_kutta_start(order: int, evaluations: int) -> None:
    result = sample(mixture(), points(), Multistep(order, start="runge-kutta"), 8)
    assert result.nfe == 8 + (order - 1) * (evaluations - 1)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert sample(mixture(), points()[:0], "multistep", 5).images.shape == points()[:0].shape


def test_gaussian_weights_are_exact_for_gaussian_data() -> None:
    mean = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(1, 4, 4)
    for width, (b, a) in product((1e-6, 0.15, 3.0), ((0.9, 0.4), (0.4, 0.0), (PI_2, 0.3))):
        world, x = GaussianData(mean, width**2), points(5).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        size = [math.sqrt(math.sin(angle) ** 2 + (width * math.cos(angle)) ** 2) for angle in (b, a)]
        wanted = math.cos(a) * mean + (x - math.cos(b) * mean) * size[1] / size[0]
        weights = gaussian_weights(b, a, torch.tensor([width**2], dtype=torch.float64))
        assert weights.apply(x, [world(x, b)]) == pytest.approx(wanted, abs=1e-12)


def test_the_last_step_is_exact_for_gaussian_data_of_the_estimated_width() -> None:
    world = GaussianData(torch.zeros(1, 4, 4, dtype=torch.float64), 0.15**2)
    x = 0.2 * noise(range(3), (1, 4, 4), dtype=torch.float64)
    size = [math.sqrt(math.sin(angle) ** 2 + (0.15 * math.cos(angle)) ** 2) for angle in (0.3, 0.28, 0.0)]
    before, after = (world(x * size[k] / size[0], angle) for k, angle in ((0, 0.3), (1, 0.28)))
    squared = widths(before.noise, after.noise, 0.3, 0.28)
    ended = gaussian_weights(0.28, 0.0, squared).apply(x * size[1] / size[0], [after])
    assert ended == pytest.approx(x * size[2] / size[0], abs=1e-12)


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    means = torch.rand(16, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    world, x = MixtureData(means, 0.15), torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    whole = sample(world, x, "multistep", 6).images
    assert sample(world, x[2:4], "multistep", 6).images == pytest.approx(whole[2:4], abs=1e-13)


@pytest.mark.parametrize(("form", "clock"), [*product(("both", "image"), CLOCKS)])
def test_one_step_over_the_whole_arc_ends_in_the_image_estimate(form: str, clock: str) -> None:
    got = step_weights(form, clock, PI_2, 0.0, (PI_2,), 55.4)
    assert got.image == pytest.approx((1.0,), abs=1e-13)
    assert got.noise == pytest.approx((-1.0,) if form == "both" else (0.0,), abs=1e-13)
    assert got.x == (1.0 if form == "both" else 0.0)


@pytest.mark.parametrize(("form", "clock", "order"), [*product(("both", *FORMS), CLOCKS, (1, 2, 3, 4))])
def test_order_of_convergence_in_every_form(form: str, clock: str, order: int) -> None:
    world, x, (b, a) = mixture(), points(), (1.2, 0.4)
    fine = fine_solution(b, a)
    counts = (64, 96, 128, 192)
    rule = Multistep(order, form, clock, corrector=False, start="runge-kutta", finish="level")
    errors = [float((run(rule, world, x, uniform(n, b, a)) - fine).abs().mean()) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_corrector_keeps_the_order_and_reduces_the_error_without_evaluations(order: int) -> None:
    world, x, (b, a) = mixture(), points(), (PI_2, 0.0)
    fine = fine_solution(b, a)
    counts, errors = (48, 64, 96, 128), {}
    for corrector in (False, True):
        rule = Multistep(
            order, "velocity", "angle", corrector=corrector, share=None, start="runge-kutta", finish="level"
        )
        errors[corrector] = [float((run(rule, world, x, uniform(n, b, a)) - fine).abs().mean()) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors[True]), 1)[0]
    assert slope > order - 0.25  # above it where the corrector's error is the smaller part
    if order != 3:  # at order 3 the leading terms of the predictor's error cancel on this mixture
        assert all(with_it < 0.25 * without for without, with_it in zip(errors[False], errors[True], strict=True))
    for corrector in (False, True):
        rule = Multistep(order, corrector=corrector)
        assert sample(world, x, rule, 12).nfe == 12


def test_order_of_convergence_of_starts_and_finishes() -> None:
    """A falling finish has a last step of order 1, so the order is 2. A level finish has order 3 from a rising start,
    and 4 from a Runge-Kutta start. So has the default finish, which is nearly exact on a narrow mixture."""
    world, x = mixture(), points()
    fine = fine_solution(PI_2, 0.0)
    counts = (64, 96, 128, 192)
    starts = {"start": "runge-kutta"}
    for options, order in (
        ({"finish": "falling", "width": 0.0}, 2),
        ({"finish": "level"}, 3),
        ({}, 3),
        ({"finish": "level", **starts}, 4),
        (starts, 4),
    ):
        rule = Multistep(**options)
        errors = [float((run(rule, world, x, uniform(n, PI_2, 0.0)) - fine).abs().mean()) for n in counts]
        # the corrector's error is one order higher, and raises the slope at few steps
        assert order - 0.25 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < order + 0.5


@pytest.mark.parametrize("form", ["both", "velocity", "noise", "image"])
def test_the_image_finish_ends_in_the_last_image_estimate(form: str) -> None:
    """Earlier states are those of the level finish; a grid that ends above 0 ends in the mix of both estimates."""
    world, x, angles = mixture(), points(), [1.4, 1.0, 0.6, 0.3, 0.0]
    level, image = (
        list(Multistep(form=form, finish=finish, share=None)(world, x, angles, torch.randn_like))
        for finish in ("level", "image")
    )
    for expected, state in zip(level[:-1], image[:-1], strict=True):
        assert torch.equal(state.x, expected.x)
    last = image[-2].estimate
    assert last is not None
    assert torch.equal(image[-1].x, last.image)
    assert not torch.allclose(level[-1].x, last.image, atol=1e-3)
    *_, end = Multistep(form=form, finish="image", share=None)(world, x, [*angles[:-1], 0.1], torch.randn_like)
    torch.testing.assert_close(end.x, math.cos(0.1) * last.image + math.sin(0.1) * last.noise, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("b", "a"), [(1.4, 1.0), (0.8, 0.3), (0.4, 0.0)])
def test_order_1_equals_euler_cold_and_ddim(b: float, a: float) -> None:
    x, image, noise = 0.9, 0.7, -1.3

    def pixel(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64)

    def move(rule: Sampler) -> float:
        return float(run(rule, lambda x, angle: Estimate(pixel(image), pixel(noise)), pixel(x), [b, a]))

    for form, twin in (("velocity", Gradient(EULER)), ("image", Cold()), ("noise", Gradient(EULER, "noise"))):
        assert move(Multistep(1, form)) == pytest.approx(move(twin), abs=1e-13)
    # `both` moves x by as much as DDIM moves the point that the estimates agree on
    agreed = math.cos(b) * image + math.sin(b) * noise
    assert move(Multistep(1)) - x == pytest.approx(move(DDIM()) - agreed, abs=1e-13)


def test_constant_estimates_are_integrated_exactly() -> None:
    image, noise = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.6, -1.1))
    for form, order in product(("both", "image"), (1, 2, 3, 4)):
        for width in (0.0, None):  # rounding errors of the noise give no width
            rule = Multistep(order, form, width=width)
            end = run(rule, lambda x, angle: Estimate(image, noise), noise, uniform(6, PI_2, 0.0))
            assert float(end) == pytest.approx(0.6, abs=1e-12)


def test_the_default_beats_euler_heun_rotation_and_ddim_in_10_evaluations() -> None:
    """Median distance to the exact end per pixel, on a mixture of 64 pictures."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(64, 1, 8, 8, generator=generator, dtype=torch.float64).round() * 2 - 1
    world = MixtureData(means, 0.15)
    x = torch.randn(64, 1, 8, 8, generator=generator, dtype=torch.float64)
    fine = sample(world, x, "rk4", grid=PI_2 * (1 - np.linspace(0, 1, 401)) ** 1.5).images

    def error(*settings: object, **options: object) -> float:
        images = sample(world, x, *settings, **options).images  # type: ignore[arg-type]
        return float((images - fine).flatten(1).norm(dim=1).median()) / 8

    default = error("multistep", 10, "octave")
    assert default < 0.2 * min(error("euler", 10), error("heun", 5), error("rotation", 10), error("ddim", 10, "time"))
    for worse in ({"share": None}, {"corrector": False}):
        assert default < 0.9 * error("multistep", 10, "octave", **worse), worse


def test_estimated_widths_reduce_the_error_on_real_digits() -> None:
    """At 5 evaluations the last step spans the width of the data; from 8 on the estimated width is accurate."""
    digits = to_float(open_data(DataSpec(source="digits", size=8, channels=1)).batch(range(300)).images).double()
    world, x = MixtureData(digits, 0.15), noise(range(32), (1, 8, 8), dtype=torch.float64)
    fine = sample(world, x, "adaptive", pair="dormand-prince", tolerance=1e-5).images

    def error(steps: int, **options: Any) -> float:
        return float((sample(world, x, "multistep", steps, **options).images - fine).flatten(1).norm(dim=1).median())

    assert error(5) < 0.5 * error(5, width=0.0)
    assert error(8) == pytest.approx(error(8, width=0.15), rel=0.1)


def moments(rule: Sampler, denoise: Callable, angles: Sequence[float]) -> list[tuple[float, float]]:
    """Exact mean and variance at every angle, for a sampler that is linear in the first x and in its fresh noise.

    Image 0 starts at 0 and draws 0, image 1 starts at 1, and image 2 + k draws 1 in draw k.
    """
    steps = len(angles) - 1
    x = torch.zeros(2 + steps, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0
    draws = count(2)

    def draw(like: Tensor) -> Tensor:
        fresh = torch.zeros_like(like)
        fresh[next(draws)] = 1.0
        return fresh

    exact = []
    for state in rule(denoise, x, angles, draw):
        values = state.x.flatten()
        exact.append((float(values[0]), float((values[1:] - values[0]).square().sum())))
    return exact


@pytest.mark.parametrize(("order", "eta"), [(1, 0.4), (1, 1.0), (2, 0.4), (2, 1.0), (3, 1.0)])
def test_fresh_noise_keeps_the_marginals(order: int, eta: float) -> None:
    mean, deviation = 0.3, 0.4
    world = GaussianData(
        torch.full((1, 1, 1), mean, dtype=torch.float64), torch.tensor([[deviation**2]], dtype=torch.float64)
    )
    worst = []
    counts = (20, 40, 80, 160)
    for steps in counts:
        angles = grid("octave", steps, dimensions=64).tolist()
        means, variances = np.array(moments(Multistep(order, eta=eta), world, angles)).T
        np.testing.assert_allclose(means, mean * np.cos(angles), rtol=0, atol=1e-9)
        worst.append(np.abs(variances / ((deviation * np.cos(angles)) ** 2 + np.sin(angles) ** 2) - 1.0).max())
    slope = -np.polyfit(np.log(counts), np.log(worst), 1)[0]
    assert slope > (0.85 if order == 1 else 1.5)
    assert worst[-1] < (0.05 if order == 1 else 0.005)


@pytest.mark.parametrize(("b", "a"), [(PI_2, 1.2), (1.0, 0.7), (0.3, 0.1), (0.3, 0.0)])
def test_order_1_at_eta_1_equals_ddpm(b: float, a: float) -> None:
    image = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    x = torch.full((1, 1, 1, 1), -0.4, dtype=torch.float64)

    def denoise(x: Tensor, angle: float) -> Estimate:
        return Estimate(image, (x - math.cos(angle) * image) / math.sin(angle))

    for z in (torch.tensor(0.0), torch.tensor(1.7)):
        multistep, ddpm = (
            list(rule(denoise, x, [b, a], z.to(x).expand_as))[-1].x for rule in (Multistep(1, eta=1.0), DDPM("small"))
        )
        assert float(multistep) == pytest.approx(float(ddpm), abs=1e-7 if b == PI_2 else 1e-12)


def test_invalid_options_raise() -> None:
    world, x = mixture(), points()
    for options, message in (
        ({"order": 5}, "order of multistep is 1, 2, 3 or 4, got 5"),
        ({"order": True}, "order of multistep"),
        ({"order": 2.0}, "order of multistep is 1, 2, 3 or 4, got 2.0"),
        ({"form": "noises"}, "unknown form 'noises'"),
        ({"clock": "sigma"}, "unknown clock 'sigma'"),
        ({"start": "heun"}, "unknown start 'heun'"),
        ({"finish": "none"}, "unknown finish 'none'"),
        ({"finish": False}, "unknown finish 'False'"),
        ({"form": False}, "unknown form 'False'"),
        ({"eta": 1.5}, "eta is 0"),
        ({"share": 1.5}, "share is 0 .* to 1 .*, got 1.5"),
        ({"share": math.nan}, "share is 0"),
        ({"width": -0.1}, "width is a number of at least 0, in pixels of .-1, 1., got -0.1"),
        ({"width": math.inf}, "width is a number"),
        ({"finish": "gaussian", "form": "image"}, "finish='gaussian' needs form='both' and eta=0"),
        ({"finish": "gaussian", "eta": 0.5}, "finish='gaussian' needs form='both' and eta=0"),
        ({"corrector": 7}, "corrector is true or false, got 7"),
        ({"eta": 0.5, "corrector": True}, "corrector cannot"),
        ({"eta": 0.5, "form": "both"}, "eta above 0 needs form='image', got 'both'"),
        ({"eta": 0.5, "start": "runge-kutta"}, "a Runge-Kutta start has neither fresh noise nor tuned weights"),
        ({"offsets": (StepWeights(0.0, (), ()),), "start": "runge-kutta"}, "a Runge-Kutta start has neither"),
    ):
        with pytest.raises(InputError, match=message):
            Multistep(**options)
    with pytest.raises(InputError, match="order 4 takes at least 4 steps, got 3"):
        Sampling("multistep", 3, options={"order": 4, "free_start": False}).plan(world)
    with pytest.raises(InputError, match="order 4 takes at least 3 steps, got 2"):
        Sampling("multistep", 2, options={"order": 4}).plan(world)
    with pytest.raises(InputError, match="free_start is true or false, got 2"):
        Multistep(free_start=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no option 'offsets'"):
        Sampling("multistep", 3, options={"offsets": ()}).plan(world)
    with pytest.raises(InputError, match="the noise form is not defined at pi/2"):
        sample(world, x, "multistep", 5, form="noise")
    assert sample(world, x, "multistep", 1).images.isfinite().all()
    assert sample(world, x, "multistep", 2).images.isfinite().all()
