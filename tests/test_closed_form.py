"""Closed-form denoisers: estimates against numerical integration, flows against their ODE."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError

SHAPE = (2, 2, 3)
D = 12
ANGLES = [0.0, 0.2, math.pi / 4, 1.3, math.pi / 2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=generator(9), dtype=torch.float64)


@pytest.fixture(scope="module")
def gaussian() -> GaussianData:
    root = torch.randn(D, D, generator=generator(), dtype=torch.float64) / 3
    mean = torch.randn(SHAPE, generator=generator(1), dtype=torch.float64)
    return GaussianData(mean, root @ root.T + 0.05 * torch.eye(D, dtype=torch.float64))


@pytest.fixture(scope="module")
def mixture() -> MixtureData:
    return MixtureData(torch.randn(4, *SHAPE, generator=generator(2), dtype=torch.float64), 0.4)


@pytest.mark.parametrize("angle", ANGLES)
def test_gaussian_estimates_condition_the_joint_normal(gaussian: GaussianData, angle: float) -> None:
    # (image, noise) is normal and x = H (image, noise): the conditional mean of a joint normal
    eye = np.eye(D)
    prior = np.block([[np.asarray(gaussian.covariance), 0 * eye], [0 * eye, eye]])
    h = np.hstack([math.cos(angle) * eye, math.sin(angle) * eye])
    mean = np.concatenate([gaussian.mean.flatten().numpy(), np.zeros(D)])
    x = points()
    gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T)
    expected = mean + (x.flatten(1).numpy() - h @ mean) @ gain.T
    estimate = gaussian(x, angle)
    # eigenvalues of the inverted matrix are as small as 0.05
    np.testing.assert_allclose(estimate.image.flatten(1), expected[:, :D], rtol=0, atol=1e-12)
    np.testing.assert_allclose(estimate.noise.flatten(1), expected[:, D:], rtol=0, atol=1e-12)


def density(world: MixtureData, images: np.ndarray) -> np.ndarray:
    """The density of a one-pixel mixture."""
    means = world.means.flatten().numpy()
    return np.exp(-((images[:, None] - means) ** 2) / (2 * world.h**2)).mean(1)


@pytest.mark.parametrize("angle", [0.05, 0.4, 1.0, 1.5, math.pi / 2])
@pytest.mark.parametrize("h", [0.1, 0.7])
def test_mixture_estimates_match_numerical_integrals(angle: float, h: float) -> None:
    world = MixtureData(torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1), h)
    x = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64).reshape(-1, 1, 1, 1)
    images = np.linspace(-9, 9, 40001)  # the trapezoid rule is exact to rounding here
    for point, image, noise in zip(
        x, *(part for part in vars(world(x, angle)).values() if part is not None), strict=True
    ):
        noises = (float(point) - math.cos(angle) * images) / math.sin(angle)
        weight = density(world, images) * np.exp(-(noises**2) / 2)
        assert float(image) == pytest.approx((weight * images).sum() / weight.sum(), abs=1e-10)
        assert float(noise) == pytest.approx((weight * noises).sum() / weight.sum(), abs=1e-9)


@pytest.mark.parametrize("angle", [0.1, 0.8, 1.5])
def test_the_noise_estimate_is_the_scaled_score(mixture: MixtureData, angle: float) -> None:
    x = points().requires_grad_()
    q = mixture.h**2 * math.cos(angle) ** 2 + math.sin(angle) ** 2
    squares = (x[:, None] - math.cos(angle) * mixture.means).flatten(2).square().sum(2)
    log_density = torch.logsumexp(-squares / (2 * q), 1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(mixture(x.detach(), angle).noise, -math.sin(angle) * score, rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", ANGLES)
def test_exact_estimates_agree_with_x(gaussian: GaussianData, mixture: MixtureData, angle: float) -> None:
    x = points()
    for world in (gaussian, mixture):
        assert world(x, angle).residual(x, angle).abs().max() < 1e-13


def test_estimates_at_the_ends_are_x_and_the_mean(gaussian: GaussianData, mixture: MixtureData) -> None:
    x = points()
    for world, mean in ((gaussian, gaussian.mean), (mixture, mixture.means.mean(0))):
        clean, pure = world(x, 0.0), world(x, math.pi / 2)
        torch.testing.assert_close(clean.image, x, rtol=0, atol=1e-13)
        torch.testing.assert_close(clean.noise, torch.zeros_like(x), rtol=0, atol=0)
        torch.testing.assert_close(pure.image, mean.expand_as(x), rtol=0, atol=1e-13)
        torch.testing.assert_close(pure.noise, x, rtol=0, atol=1e-13)


def test_a_mixture_of_one_component_is_gaussian() -> None:
    mean, x = points(1)[0], points(7)
    for angle in ANGLES:
        a, b = MixtureData(mean[None], 0.3)(x, angle), GaussianData(mean, 0.09)(x, angle)
        torch.testing.assert_close(a.image, b.image, rtol=0, atol=1e-13)
        torch.testing.assert_close(a.noise, b.noise, rtol=0, atol=1e-13)


def test_scalar_diagonal_and_full_covariances_agree() -> None:
    mean, x = points(1)[0], points()
    variances = torch.rand(SHAPE, generator=generator(), dtype=torch.float64) + 0.1
    for short, full in (
        (variances, torch.diag(variances.flatten())),
        (0.3, torch.full(SHAPE, 0.3, dtype=torch.float64)),
        (torch.tensor(0.3, dtype=torch.float64), 0.3 * torch.eye(D, dtype=torch.float64)),
    ):
        a, b = GaussianData(mean, short), GaussianData(mean, full)
        torch.testing.assert_close(a(x, 0.7).image, b(x, 0.7).image, rtol=0, atol=1e-13)
        torch.testing.assert_close(a.flow(x, 1.2, 0.1), b.flow(x, 1.2, 0.1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", [1.5, 1.0, 0.4, 0.05])
def test_the_flow_solves_the_ode(gaussian: GaussianData, angle: float) -> None:
    x, h = points(), 1e-4
    y = gaussian.flow(x, math.pi / 2, angle)
    before, after = (gaussian.flow(x, math.pi / 2, angle + step) for step in (-h, h))
    further = [gaussian.flow(x, math.pi / 2, angle + step) for step in (-2 * h, 2 * h)]
    slope = (8 * (after - before) - (further[1] - further[0])) / (12 * h)
    # fourth-order differences: h^4 / 30 of the fifth derivative, which is below 1e4, and rounding / h
    torch.testing.assert_close(gaussian(y, angle).velocity(angle), slope, rtol=0, atol=1e-10)


def test_flows_compose_and_invert(gaussian: GaussianData) -> None:
    x = points()
    torch.testing.assert_close(gaussian.flow(x, 0.6, 0.6), x, rtol=0, atol=1e-13)
    once, twice = gaussian.flow(x, 1.4, 0.1), gaussian.flow(gaussian.flow(x, 1.4, 0.8), 0.8, 0.1)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-13)
    torch.testing.assert_close(gaussian.flow(once, 0.1, 1.4), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.5])
def test_the_flow_maps_noise_to_the_distribution_of_the_data(gaussian: GaussianData, a: float) -> None:
    # the flow is affine, x -> offset + F x: it maps N(0, I) to covariance F F^T
    offset = gaussian.flow(torch.zeros(1, *SHAPE, dtype=torch.float64), math.pi / 2, a)
    images = gaussian.flow(torch.eye(D, dtype=torch.float64).reshape(D, *SHAPE), math.pi / 2, a) - offset
    f = images.flatten(1).T
    covariance = torch.as_tensor(gaussian.covariance)
    expected = math.cos(a) ** 2 * covariance + math.sin(a) ** 2 * torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(offset[0], math.cos(a) * gaussian.mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(f @ f.T, expected, rtol=0, atol=1e-12)


def test_one_angle_per_image_equals_image_by_image(gaussian: GaussianData, mixture: MixtureData) -> None:
    x, angles = points(4), torch.tensor([0.0, 0.3, 1.1, math.pi / 2], dtype=torch.float64)
    diagonal = GaussianData(gaussian.mean, 0.3)
    for world in (gaussian, diagonal, mixture):
        together = world(x, angles)
        for k in range(4):
            alone = world(x[k : k + 1], float(angles[k]))
            torch.testing.assert_close(together.image[k : k + 1], alone.image, rtol=0, atol=1e-13)
            torch.testing.assert_close(together.noise[k : k + 1], alone.noise, rtol=0, atol=1e-13)
    flowed = gaussian.flow(x, math.pi / 2, angles)
    for k in range(4):
        expected = gaussian.flow(x[k : k + 1], math.pi / 2, float(angles[k]))
        torch.testing.assert_close(flowed[k : k + 1], expected, rtol=0, atol=1e-13)


def test_a_singular_covariance_is_finite_on_the_whole_arc() -> None:
    mean = points(1)[0]
    ones = torch.ones(D, D, dtype=torch.float64)  # rank one: eigenvalues of -1e-16 by rounding
    for covariance in (ones, 0.0, torch.zeros(SHAPE, dtype=torch.float64)):
        world = GaussianData(mean, covariance)
        x = points()
        for angle in ANGLES:
            estimate = world(world.flow(x, math.pi / 2, angle), angle)
            assert estimate.image.isfinite().all()
            assert estimate.noise.isfinite().all()
        drawn = world.draw(3, generator())
        assert drawn.isfinite().all()
        if covariance is not ones:
            torch.testing.assert_close(world.flow(x, math.pi / 2, 0.0), mean.expand_as(x), rtol=0, atol=0)
            torch.testing.assert_close(world(x, 0.8).image, mean.expand_as(x), rtol=0, atol=0)
            torch.testing.assert_close(drawn, mean.expand_as(drawn), rtol=0, atol=0)


def test_random_images_have_the_moments_of_the_distribution(gaussian: GaussianData, mixture: MixtureData) -> None:
    count = 40_000
    between = mixture.means.flatten(1)
    of_mixture = between.T.cov(correction=0) + mixture.h**2 * torch.eye(D, dtype=torch.float64)
    for world, mean, covariance in (
        (gaussian, gaussian.mean.flatten(), torch.as_tensor(gaussian.covariance)),
        (mixture, between.mean(0), of_mixture),
    ):
        drawn = world.draw(count, generator(5)).flatten(1)
        spread = covariance.diagonal()
        # five standard errors of a mean and, for near-normal data, of a covariance
        assert ((drawn.mean(0) - mean).abs() < 5 * (spread / count).sqrt()).all()
        error = 5 * ((spread[:, None] * spread + covariance**2) / count).sqrt()
        assert ((drawn.T.cov() - covariance).abs() < error).all()


def test_weights_are_probabilities(mixture: MixtureData) -> None:
    x = points()
    for angle in ANGLES:
        weights = mixture.weights(x, angle)
        torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(mixture.weights(x, math.pi / 2), torch.full((5, 4), 0.25).double(), rtol=0, atol=1e-14)


def test_a_mixture_of_real_digits_matches_a_slow_computation() -> None:
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images[:300]).reshape(-1, 1, 8, 8) / 8 - 1
    world = MixtureData(digits, 0.1)
    noise = torch.randn(6, 1, 8, 8, generator=generator(), dtype=torch.float64)
    which = torch.tensor([0, 1, 2, 50, 150, 299])
    x = arc.mix(digits[which], noise, 0.3)
    estimate = world(x, 0.3)
    # one image at a time, with the squares not expanded
    q = 0.01 * math.cos(0.3) ** 2 + math.sin(0.3) ** 2
    for k in range(6):
        squares = torch.stack([((x[k] - math.cos(0.3) * digit) ** 2).sum() for digit in digits])
        weights = torch.softmax(-squares / (2 * q), 0)
        mean = torch.einsum("k,kchw->chw", weights, digits)
        expected = mean + math.cos(0.3) * 0.01 / q * (x[k] - math.cos(0.3) * mean)
        torch.testing.assert_close(estimate.image[k], expected, rtol=0, atol=1e-11)  # exponents near 100
    # digits are so far apart that the posterior at this angle is concentrated on the true one
    assert (world.weights(x, 0.3).argmax(1) == which).all()
    single = world(x.float(), 0.3)
    assert single.image.dtype == torch.float32
    torch.testing.assert_close(single.image.double(), estimate.image, rtol=0, atol=1e-3)


def test_estimates_have_the_dtype_of_x(gaussian: GaussianData, mixture: MixtureData) -> None:
    x = points().float()
    for world in (gaussian, mixture):
        for angle in (0.7, torch.full((5,), 0.7)):
            estimate = world(x, angle)
            assert estimate.image.dtype == estimate.noise.dtype == torch.float32
        assert world.draw(2, generator()).dtype == torch.float64
        assert world.shape == SHAPE
    assert gaussian.flow(x, 1.0, 0.5).dtype == torch.float32


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(3), "covariance has shape"),
        (torch.ones(SHAPE[1:]), "covariance has shape"),
        (torch.triu(torch.ones(D, D)), "not symmetric"),
        (-1.0, "negative eigenvalue"),
        (torch.diag(torch.linspace(-1, 1, D)), "negative eigenvalue"),
    ],
)
def test_unusable_covariances_raise(covariance: Tensor | float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussianData(torch.zeros(SHAPE), covariance)


def test_unusable_mixtures_raise() -> None:
    for h in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="width h is above 0"):
            MixtureData(torch.zeros(2, *SHAPE), h)
    for means in (torch.zeros(0, *SHAPE), torch.zeros(3)):
        with pytest.raises(InputError, match="a mixture needs means"):
            MixtureData(means, 0.1)
