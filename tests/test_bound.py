"""The variational bound: masses that sum to 1, divergences in closed form, and finite gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from quarterarc import arc
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.objectives.bound import discretised_log_likelihood, gaussian_kl, log_variance, prior_term, step_term
from quarterarc.schedules import schedule

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LINEAR = schedule("linear", 1000)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.0019, 0.5, 1.0, 2.5])
def test_masses_of_the_256_levels_sum_to_1(mean: float, std: float) -> None:
    masses = discretised_log_likelihood(LEVELS, number(mean), number(2 * math.log(std))).exp()
    assert float(masses.sum()) == pytest.approx(1, abs=1e-12)
    assert (masses >= 0).all()


def mass(low: float, high: float) -> float:
    """Log of the standard normal mass between two numbers, by Gauss-Legendre; the largest density is factored out."""
    closest = min(max(0.0, low), high)
    low, high = max(low, closest - 40), min(high, closest + 40)  # the mass beyond is negligible
    nodes, weights = np.polynomial.legendre.leggauss(60)
    edges = np.linspace(low, high, 41)
    total = 0.0
    for left, right in pairwise(edges.tolist()):
        z = (left + right) / 2 + (right - left) / 2 * nodes
        total += float(weights @ np.exp((closest - z) * (closest + z) / 2)) * (right - left) / 2
    return math.log(total) - closest**2 / 2 - math.log(2 * math.pi) / 2


@pytest.mark.parametrize("level", [0, 1, 100, 128, 254, 255])
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (0.3, 0.05), (-0.99, 0.01), (3.0, 0.1), (-30.0, 0.5), (0.2, 3.0)]
)
def test_the_mass_of_a_level_is_the_integral_over_its_bin(level: int, mean: float, std: float) -> None:
    y = level / 127.5 - 1
    low = -math.inf if level == 0 else (y - 1 / 255 - mean) / std
    high = math.inf if level == 255 else (y + 1 / 255 - mean) / std
    computed = discretised_log_likelihood(LEVELS[level], number(mean), number(2 * math.log(std)))
    # narrow bins far out are differences of logarithms near z^2 / 2: 1e-16 z^2 / 2 over a width of 0.003 or more
    assert float(computed) == pytest.approx(mass(low, high), rel=1e-10, abs=1e-10)


def test_a_rounded_outer_level_has_an_open_bin() -> None:
    for level in (0, 255):
        exact = discretised_log_likelihood(LEVELS[level], number(0.1), number(-2.0))
        rounded = discretised_log_likelihood(LEVELS[level] * (1 - 1e-7), number(0.1), number(-2.0))
        assert float(rounded) == pytest.approx(float(exact), abs=1e-5)  # its finite edge is moved by 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_var", [-14.0, -9.2, -3.0, 0.0, 2.0])
def test_log_likelihoods_and_gradients_are_finite(dtype: torch.dtype, log_var: float) -> None:
    levels = LEVELS[[0, 1, 64, 127, 254, 255]].to(dtype)
    means = torch.cat([torch.linspace(-3, 3, 241), torch.tensor([-1.0, 1.0, -30.0, 30.0])]).to(dtype)[:, None]
    mean = means.expand(-1, 6).clone().requires_grad_()
    variance = torch.full_like(mean, log_var).requires_grad_()
    computed = discretised_log_likelihood(levels.expand(len(mean), -1), mean, variance)
    assert computed.isfinite().all()
    assert (computed <= 1e-6).all()  # the logarithm of a probability
    computed.sum().backward()
    for leaf in (mean, variance):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    if dtype == torch.float32:
        exact = discretised_log_likelihood(levels.double().expand(len(mean), -1), mean.double(), variance.double())
        # z rounds at 1e-7 |z|; the error of the logarithm is |z| times that, and that over the width of a narrow bin
        width = 2 / 255 * math.exp(-log_var / 2)
        z = (3.0 + mean.abs()) * math.exp(-log_var / 2)
        error = (computed.double() - exact).abs() / (1 + z.double() ** 2)
        assert error.max() < 1e-5 + 2e-7 / width


def test_gradients_equal_finite_differences() -> None:
    mean = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    variance = torch.linspace(-6, 0, 9, dtype=torch.float64).requires_grad_()
    for level in (0, 1, 100, 255):
        assert torch.autograd.gradcheck(lambda m, v: discretised_log_likelihood(LEVELS[level], m, v), (mean, variance))  # noqa: B023


def test_the_divergence_equals_torch_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_q, log_q, mean_p, log_p = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(mean_q, (log_q / 2).exp()), Normal(mean_p, (log_p / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean_q, log_q, mean_p, log_p), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(gaussian_kl(mean_q, log_q, mean_q, log_q), torch.zeros(50, dtype=torch.float64))


def test_the_divergence_is_accurate_for_close_variances() -> None:
    # d^2 / 4 + d^3 / 12 + ... is 2.5e-7 at d = 1e-3, where a difference of numbers near 1 rounds to 1e-7 in float32
    for d in (1e-3, -1e-2):
        exact = 0.5 * (math.expm1(d) - d)
        computed = gaussian_kl(torch.zeros(1), torch.tensor([d]), torch.zeros(1), torch.zeros(1))
        assert float(computed) == pytest.approx(exact, rel=1e-3)


def batch(times: list[int], error: float = 0.0) -> tuple[Estimate, Tensor, Tensor, Tensor, Tensor]:
    """Images of random levels, points at some times, and estimates of the image with a constant error."""
    generator = torch.Generator().manual_seed(0)
    image = LEVELS[torch.randint(256, (len(times), 1, 4, 4), generator=generator)]
    t = torch.tensor(times, dtype=torch.float64)
    b, a = LINEAR.angle(t), LINEAR.angle(t - 1)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return Estimate(image + error, noise), image, arc.mix(image, noise, b), b, a


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_term_is_the_divergence_of_posterior_and_model(kind: str) -> None:
    times = [2, 3, 10, 500, 999, 1000]
    estimate, image, x, b, a = batch(times, error=0.3)
    computed = step_term(estimate, image, x, b, a, LINEAR, kind)
    for k, t in enumerate(times):
        beta, level, before = LINEAR.beta[t], LINEAR.alpha_bar[t], LINEAR.alpha_bar[t - 1]
        posterior = beta * (1 - before) / (1 - level)
        variance = posterior if kind == "small" else beta
        means = [
            math.sqrt(before) * beta / (1 - level) * start[k] + math.sqrt(1 - beta) * (1 - before) / (1 - level) * x[k]
            for start in (image, estimate.image)
        ]
        expected = kl_divergence(Normal(means[0], posterior**0.5), Normal(means[1], variance**0.5)).mean()
        # 1 - alpha_bar of the expected variances cancels to 1e-13 or so at t = 2
        assert float(computed[k]) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_the_decoder_term_has_the_variance_of_step_2(kind: str) -> None:
    estimate, image, x, b, a = batch([1], error=0.004)
    computed = step_term(estimate, image, x, b, a, LINEAR, kind)
    # the mean at t = 1 is the image estimate; the variance is that of q(x_1 | x_2, image)
    at_two = LINEAR.beta[2] * (1 - LINEAR.alpha_bar[1]) / (1 - LINEAR.alpha_bar[2])
    expected = -discretised_log_likelihood(image, image + 0.004, number(math.log(at_two))).mean()
    assert float(computed) == pytest.approx(float(expected), rel=1e-10)


def test_terms_of_a_batch_equal_image_by_image() -> None:
    times = [1, 2, 700, 1]
    estimate, image, x, b, a = batch(times, error=0.01)
    together = step_term(estimate, image, x, b, a, LINEAR, "small")
    for k in range(4):
        row = slice(k, k + 1)
        single = Estimate(estimate.image[row], estimate.noise[row])
        alone = step_term(single, image[row], x[row], b[row], a[row], LINEAR, "small")
        torch.testing.assert_close(together[row], alone, rtol=1e-13, atol=0)


def test_the_learned_log_variance_interpolates_posterior_and_beta() -> None:
    estimate, _, x, b, a = batch([2, 500, 1000])
    small, large = (log_variance(estimate, b, a, LINEAR, kind, x) for kind in ("small", "large"))
    for fraction in (0.0, 0.25, 1.0, 1.2):
        learned = Estimate(estimate.image, estimate.noise, torch.full_like(x, fraction))
        computed = log_variance(learned, b, a, LINEAR, "learned", x)
        between = fraction * large + (1 - fraction) * small
        torch.testing.assert_close(computed, between.expand_as(computed), rtol=1e-13, atol=0)
    # at t = 1 from the variance of t = 2 to beta_1
    estimate, _, x, b, a = batch([1])
    for fraction, expected in (
        (0.0, LINEAR.beta[2] * (1 - LINEAR.alpha_bar[1]) / (1 - LINEAR.alpha_bar[2])),
        (1.0, 1e-4),
    ):
        learned = Estimate(estimate.image, estimate.noise, torch.full_like(x, fraction))
        computed = log_variance(learned, b, a, LINEAR, "learned", x).exp()
        torch.testing.assert_close(computed, torch.full_like(computed, expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("t", [2, 5, 50])
def test_the_expected_term_of_gaussian_data_matches_its_closed_form(t: int, kind: str) -> None:
    # image and noise at the nodes of Gauss-Hermite quadrature, which is exact for a quadratic term
    table, mean, variance = schedule("arc", 60), 0.1, 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    image, noise = (
        torch.tensor(values).reshape(-1, 1, 1, 1) for values in np.meshgrid(mean + variance**0.5 * nodes, nodes)
    )
    joint = torch.tensor(np.outer(weights, weights).flatten())
    angle, before = table.angle(float(t)), table.angle(t - 1.0)
    b, a = (torch.full((16,), end, dtype=torch.float64) for end in (angle, before))
    x = arc.mix(image, noise, b)
    world = GaussianData(torch.full((1, 1, 1), mean, dtype=torch.float64), variance)
    computed = float(joint @ step_term(world(x, b), image, x, b, a, table, kind))
    # E|x0 - x0_hat|^2
    error = variance * math.sin(angle) ** 2 / (math.cos(angle) ** 2 * variance + math.sin(angle) ** 2)
    beta = 1 - (math.cos(angle) / math.cos(before)) ** 2
    posterior = beta * math.sin(before) ** 2 / math.sin(angle) ** 2
    of_image = (math.cos(before) * beta / math.sin(angle) ** 2) ** 2 * error
    of_step = posterior if kind == "small" else beta
    expected = 0.5 * (posterior / of_step - 1 - math.log(posterior / of_step) + of_image / of_step)
    assert computed == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("kind", "bits"), [("small", 1.3053849), ("large", 1.7918041)])
def test_the_bound_of_constant_images_with_a_perfect_model(kind: str, bits: float) -> None:
    t = torch.arange(1, 1001, dtype=torch.float64)
    b, a = LINEAR.angle(t), LINEAR.angle(t - 1)
    image = torch.full((1000, 1, 1, 1), 64 / 127.5 - 1, dtype=torch.float64)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = step_term(Estimate(image, noise), image, arc.mix(image, noise, b), b, a, LINEAR, kind)
    total = prior_term(image[:1], LINEAR) + terms.sum()
    assert float(total) / math.log(2) == pytest.approx(bits, abs=1e-7)


def test_the_prior_term_equals_torch_kl_divergence() -> None:
    image = LEVELS[torch.tensor([0, 64, 255, 128])].reshape(2, 1, 1, 2)
    level = float(LINEAR.alpha_bar[-1])
    expected = kl_divergence(Normal(math.sqrt(level) * image, math.sqrt(1 - level)), Normal(0.0, 1.0)).mean((1, 2, 3))
    torch.testing.assert_close(prior_term(image, LINEAR), expected, rtol=1e-10, atol=0)
    for name in ("arc", "jsd"):
        assert prior_term(image, schedule(name)).abs().max() < 1e-30  # cos(pi/2) is 6e-17 in float64
    assert prior_term(image.float(), LINEAR).dtype == torch.float32


@pytest.mark.parametrize("of", ["arc", "linear", "cosine", "jsd"])
@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("kind", ["small", "large", "learned"])
def test_terms_and_gradients_are_finite_for_every_estimate(kind: str, steps: int, of: str) -> None:
    table = schedule(of, steps)
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    b, a = table.angle(t), table.angle(t - 1)
    image = LEVELS.float()[torch.tensor([0, 255, 0, 17])].expand(steps, 1, 1, 4)
    x = arc.mix(image, torch.randn(image.shape, generator=generator), b)
    for error in (0.0, 0.3, -2.0, 5.0):
        fraction = torch.full_like(image, 0.4).requires_grad_()
        estimates = [(image + error).requires_grad_(), torch.zeros_like(image), fraction]
        terms = step_term(Estimate(*estimates), image, x, b, a, table, kind)
        assert terms.isfinite().all()
        terms.sum().backward()
        for leaf in (estimates[0], estimates[2]) if kind == "learned" else (estimates[0],):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


def test_unknown_and_missing_variances_raise() -> None:
    estimate, image, x, b, a = batch([5])
    with pytest.raises(InputError, match=r"unknown variance 'fixed' \(known: large, learned, small\)"):
        step_term(estimate, image, x, b, a, LINEAR, "fixed")
    with pytest.raises(InputError, match="'learned' needs a head that learns one"):
        step_term(estimate, image, x, b, a, LINEAR, "learned")
