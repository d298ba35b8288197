"""The probability flow: densities against closed forms, unbiased probes, and inversion in both directions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from quarterarc import heads
from quarterarc.arc import NOISE_END
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser, Traits
from quarterarc.estimate import Estimate
from quarterarc.flow_map import SolvedMap
from quarterarc.likelihood.flow import (
    FlowLikelihood,
    dequantise,
    flow_bits_per_dim,
    log_likelihood,
)
from quarterarc.likelihood.inversion import decode, encode
from quarterarc.schedules import Schedule, schedule
from quarterarc.storage.checkpoints import load

SHAPE = (1, 2, 3)
GENERATOR = torch.Generator().manual_seed(0)
ROOT = torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)
COVARIANCE = 0.06 * ROOT @ ROOT.T + 0.01 * torch.eye(6, dtype=torch.float64)
MEAN = torch.linspace(-0.4, 0.4, 6, dtype=torch.float64).reshape(SHAPE)
WORLD = GaussianData(MEAN, COVARIANCE)
MIXTURE = MixtureData(torch.randn(5, *SHAPE, generator=GENERATOR, dtype=torch.float64) * 0.5, 0.15)
IMAGES = WORLD.draw(6, torch.Generator().manual_seed(1))


def bits(nats: np.ndarray) -> np.ndarray:
    return nats / (6 * math.log(2))


def exact_mixture(x: Tensor) -> np.ndarray:
    distances = ((x[:, None] - MIXTURE.means[None]) ** 2).flatten(2).sum(2)
    h = MIXTURE.h
    return (torch.logsumexp(-distances / (2 * h**2), 1) - math.log(5) - 3 * math.log(2 * math.pi * h**2)).numpy()


def test_likelihood_of_gaussian_data_equals_the_closed_form() -> None:
    exact = MultivariateNormal(MEAN.flatten(), COVARIANCE).log_prob(IMAGES.flatten(1)).numpy()
    made = log_likelihood(WORLD, IMAGES, probes=None)
    np.testing.assert_allclose(bits(made.log_density), bits(exact), atol=1e-4)
    assert (made.probe_error == 0).all()


def test_likelihood_of_a_mixture_equals_the_closed_form() -> None:
    points = torch.cat([MIXTURE.draw(4, torch.Generator().manual_seed(0)), torch.zeros(1, *SHAPE), IMAGES[:1]])
    made = log_likelihood(MIXTURE, points, probes=None, tolerance=1e-6)
    np.testing.assert_allclose(bits(made.log_density), bits(exact_mixture(points)), atol=1e-4)


def test_a_smaller_tolerance_gives_a_smaller_error_at_a_higher_cost() -> None:
    points = MIXTURE.draw(4, torch.Generator().manual_seed(0))
    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        made = log_likelihood(MIXTURE, points, probes=None, tolerance=tolerance)
        errors.append(np.abs(bits(made.log_density - exact_mixture(points))).max())
        costs.append(made.nfe.mean())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert costs[0] < costs[1] < costs[2]


def test_one_probe_is_exact_for_a_diagonal_jacobian() -> None:
    # z^T J z = trace J for random signs z and diagonal J; no other distribution of z has this property
    world = GaussianData(MEAN, torch.linspace(0.02, 2, 6, dtype=torch.float64).reshape(SHAPE))
    exact = log_likelihood(world, IMAGES, probes=None, tolerance=1e-4)
    for probes in (1, 3):
        made = log_likelihood(world, IMAGES, probes=probes, tolerance=1e-4)
        # step sizes depend on the number of columns of the state, so that the two agree to the solver's error
        np.testing.assert_allclose(bits(made.log_density), bits(exact.log_density), atol=2e-3)
    assert made.probe_error.max() < 1e-12


def test_probes_are_unbiased_with_calibrated_errors() -> None:
    points = MIXTURE.draw(12, torch.Generator().manual_seed(2))
    exact = exact_mixture(points)
    made = log_likelihood(MIXTURE, points, probes=100, tolerance=1e-4)
    z = (made.log_density - exact) / made.probe_error
    # 12 standard normals: the standard deviation of their mean square is 0.41, of their mean 0.29
    assert 0.15 < (z**2).mean() < 2.6
    assert abs(z.mean()) < 1.3
    alone = log_likelihood(MIXTURE, points, probes=1, tolerance=1e-4)
    assert np.isnan(alone.probe_error).all()
    spread = made.probe_error * 10  # standard deviation of one probe
    assert 0.2 < (((alone.log_density - exact) / spread) ** 2).mean() < 3.5
    assert not np.allclose(alone.log_density, log_likelihood(MIXTURE, points, probes=1, seed=1).log_density)


@pytest.mark.parametrize("probes", [None, 1, 2])
def test_log_density_of_an_image_is_independent_of_its_batch(probes: int | None) -> None:
    def run(points: Tensor, **options: object) -> FlowLikelihood:
        return log_likelihood(MIXTURE, points, probes=probes, seed=3, **options)  # type: ignore[arg-type]

    # points close to and far from the data, so that step sizes differ
    points = torch.cat([MIXTURE.draw(4, torch.Generator().manual_seed(0)), 3 * torch.ones(1, *SHAPE)])
    whole = run(points)
    assert len(set(whole.nfe.tolist())) > 1
    parts = [run(points, batch_size=2), run(points[:2]) + run(points[2:], numbers=range(2, 5))]
    for part in parts:
        # a matrix product rounds differently in batches of another size
        np.testing.assert_allclose(part.log_density, whole.log_density, rtol=1e-9)
        np.testing.assert_array_equal(part.nfe, whole.nfe)
    np.testing.assert_allclose(run(points[4:], numbers=[4]).log_density, whole.log_density[4:], rtol=1e-9)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_encode_equals_the_exact_flow_and_decode_inverts_it(tolerance: float) -> None:
    noise = encode(WORLD, IMAGES, tolerance=tolerance, batch_size=4)
    assert noise.shape == IMAGES.shape
    # the error of each of 10 to 30 steps is at most the tolerance, relative to values of 1 to 3; the flow back to
    # images changes errors by a factor of up to 10
    assert (noise - WORLD.flow(IMAGES, 0.0, NOISE_END)).abs().max() < 50 * tolerance
    assert (decode(WORLD, noise, tolerance=tolerance) - IMAGES).abs().max() < 50 * tolerance


def test_the_exact_map_encodes_in_any_number_of_steps() -> None:
    solved = SolvedMap(WORLD, steps=64)
    for steps in (1, 2, 3):
        noise = encode(solved, IMAGES, steps=steps)
        torch.testing.assert_close(noise, WORLD.flow(IMAGES, 0.0, NOISE_END), rtol=0, atol=1e-5)
        torch.testing.assert_close(decode(solved, noise, steps=steps), IMAGES, rtol=0, atol=1e-4)


def test_encoded_images_of_a_mixture_are_standard_normal_and_decode_to_themselves() -> None:
    points = MIXTURE.draw(200, torch.Generator().manual_seed(0))
    noise = encode(MIXTURE, points, batch_size=200)
    assert (decode(MIXTURE, noise, batch_size=200) - points).abs().max() < 1e-2  # errors grow where the modes separate
    assert (decode(MIXTURE, noise, batch_size=200) - points).abs().median() < 1e-4
    # 1200 values: the standard deviation of the mean is 0.029, of the variance 0.041
    assert abs(float(noise.mean())) < 0.13
    assert abs(float(noise.var()) - 1) < 0.18


def test_encode_of_uint8_images_equals_encode_of_their_float_levels() -> None:
    pixels = torch.randint(256, (2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(encode(WORLD, pixels), encode(WORLD, pixels.float() / 127.5 - 1))
    assert encode(WORLD, pixels).dtype == torch.float32


def denoiser(name: str, table: Schedule) -> Denoiser:
    """The exact denoiser of the Gaussian data, as a network with this head, in float64."""

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        exact = WORLD(x, table.angle(time.double() * table.steps / 1000))
        return exact.noise if name == "noise" else exact.image

    return Denoiser(network, table, heads.head(name, table))


def spectrum() -> tuple[Tensor, Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(COVARIANCE)
    return values, vectors, (IMAGES - MEAN).flatten(1) @ vectors


def test_flow_of_a_noise_head_ends_at_its_largest_angle() -> None:
    table = schedule("arc", 20)
    made = log_likelihood(denoiser("noise", table), IMAGES, probes=None, tolerance=1e-6)
    end = table.angle(19.0)
    values, _, _ = spectrum()
    growth = 0.5 * ((math.cos(end) ** 2 * values + math.sin(end) ** 2) / values).log().sum()
    x = WORLD.flow(IMAGES, 0.0, end)
    exact = Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1) + growth
    # the network's time is float32
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)


def test_below_the_smallest_angle_the_velocity_is_evaluated_at_it() -> None:
    table = schedule("arc", 20)
    made = log_likelihood(denoiser("image", table), IMAGES, probes=None, tolerance=1e-6)
    low = table.angle(1.0)
    values, vectors, centred = spectrum()
    c, s = math.cos(low), math.sin(low)
    q = c**2 * values + s**2
    # below `low`, v = slope (x - cos low mean) - sin low mean along each eigenvector: solved in closed form
    slope, shift = s * c * (1 - values) / q, MEAN.flatten() @ vectors
    fixed = c * shift + s * shift / slope
    x = fixed + (centred + shift - fixed) * (slope * low).exp()
    end = (x - c * shift) / q.sqrt()
    exact = Normal(0.0, 1.0).log_prob(end).sum(1) + (slope * low - 0.5 * q.log()).sum()
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)


def test_dequantised_points_are_uniform_in_their_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(40, -1, -1, -1)
    images = pixels.double() / 127.5 - 1
    made = dequantise(images, 0, range(40))
    place = (made + 1) * 128 - pixels
    assert ((place >= 0) & (place < 1)).all()
    # 10240 uniform numbers: the standard deviation of the mean is 0.0029, of the variance 0.0007
    assert abs(float(place.mean()) - 0.5) < 0.012
    assert abs(float(place.var()) - 1 / 12) < 0.003
    assert torch.equal(dequantise(images[:2], 0, [7, 3]), made[[7, 3]])
    assert not torch.equal(dequantise(images[:2], 1, [7, 3]), made[[7, 3]])


def test_bits_per_dim_equal_the_log_mass_of_the_levels() -> None:
    # a wide density is nearly constant within a level, so that the mean over u of -log2 density is -log2 mass
    world = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.09)
    pixels = torch.tensor([40, 90, 127, 128, 160, 230], dtype=torch.uint8).reshape(1, *SHAPE).expand(300, -1, -1, -1)
    made = flow_bits_per_dim(world, pixels, tolerance=1e-6, batch_size=300)
    low = pixels[0].double() / 128 - 1
    normal = Normal(torch.zeros((), dtype=torch.float64), 0.3)
    exact = float(-(normal.cdf(low + 1 / 128) - normal.cdf(low)).log2().mean())
    error = made.bits_per_dim.std(ddof=1) / 300**0.5
    assert abs(made.bits_per_dim.mean() - exact) < 4.5 * error + 1e-4
    assert error < 2e-3
    result = made.describe()
    assert result["bits_per_dim"] == pytest.approx(made.bits_per_dim.mean(), rel=1e-13)
    assert result["standard_error"] == pytest.approx(error, rel=1e-10)


def test_labels_and_probes_stay_with_their_images() -> None:
    scales = torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)

    def labelled(x: Tensor, angle: Tensor, labels: Tensor) -> Estimate:
        # independent pixels, whose variance depends on the label: one probe is exact
        c, s = (value.reshape(-1, 1, 1, 1) for value in (angle.cos(), angle.sin()))
        variance = scales[labels].reshape(-1, 1, 1, 1)
        q = c**2 * variance + s**2
        return Estimate(c * variance / q * x, s / q * x)

    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    made = log_likelihood(labelled, IMAGES, labels=labels, tolerance=1e-6, batch_size=4)
    exact = Normal(0.0, scales[labels].sqrt().reshape(-1, 1, 1, 1)).log_prob(IMAGES).flatten(1).sum(1)
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)
    noise = encode(labelled, IMAGES, labels=labels, tolerance=1e-6)
    assert (noise - IMAGES / scales[labels].sqrt().reshape(-1, 1, 1, 1)).abs().max() < 1e-4


def test_description_of_a_trained_run_is_json(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    assert denoise.shape is not None
    images = torch.randint(256, (2, *denoise.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    result = flow_bits_per_dim(denoise, images, tolerance=1e-2).describe()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["bits_per_dim"] > 0
    assert result["nfe"] > 6
    assert json.dumps(flow_bits_per_dim(denoise, images[:1], tolerance=0.1).describe(), allow_nan=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(2, 3)}, r"at least 1 image, as an array of shape \(N, C, H, W\)"),
        (
            {"images": torch.zeros(2, *SHAPE, dtype=torch.uint8)},
            "floating-point images, got torch.uint8: use flow_bits_per_dim",
        ),
        ({"images": torch.full((2, *SHAPE), math.nan)}, "2 of images 0..1 hold NaN or infinity, first image 0"),
        ({"probes": 0}, "probes must be at least 1, or None"),
        ({"tolerance": 0.0}, r"tolerance lies in \(0, 1\), got 0.0"),
        ({"tolerance": math.nan}, r"tolerance lies in \(0, 1\), got nan"),
        ({"batch_size": 0}, "batch_size .* at least 1"),
        ({"labels": [0, 0, 0]}, "3 labels: give one per image"),
        ({"numbers": [0]}, "1 numbers: give one per image"),
    ],
)
def test_invalid_arguments_raise(given: dict, message: str) -> None:
    given = {"images": IMAGES[:2], **given}
    with pytest.raises(InputError, match=message):
        log_likelihood(WORLD, given.pop("images"), **given)


def test_labels_are_numbers_or_names_within_the_classes() -> None:
    def shifted(x: Tensor, angle: Tensor, labels: Tensor) -> Estimate:
        image, noise = WORLD(x, angle).image, labels.reshape(-1, 1, 1, 1).to(x)
        return Estimate(image, noise.expand_as(x))

    shifted.traits = Traits(classes=2, class_names=("cat", "dog"), unlabelled=False)  # type: ignore[attr-defined]
    functions: list[Any] = [log_likelihood, flow_bits_per_dim, encode, decode]
    for function in functions:
        for labels in ([0, 2], torch.tensor([0, 2]), [-1, 0]):
            with pytest.raises(InputError, match=r"trained with the labels 0\.\.1, got the label (2|-1)"):
                function(shifted, IMAGES[:2], labels=labels, progress=False)
        with pytest.raises(InputError, match="labels are whole numbers of shape"):
            function(shifted, IMAGES[:2], labels=3, progress=False)
    given = torch.tensor([1, 0])
    alike: list[Any] = [[1, 0], np.array([1, 0]), ["dog", "cat"]]
    for same in alike:
        made = encode(shifted, IMAGES[:2], labels=same, progress=False)
        assert torch.equal(made, encode(shifted, IMAGES[:2], labels=given, progress=False))
    densities = [log_likelihood(shifted, IMAGES[:2], labels=same, progress=False) for same in (alike[0], given)]
    assert np.array_equal(densities[0].log_density, densities[1].log_density)


def test_denoisers_without_a_usable_velocity_raise() -> None:
    with pytest.raises(InputError, match="autograd finds no dependence of the velocity on x"):
        log_likelihood(torch.no_grad()(WORLD.__call__), IMAGES)
    with pytest.raises(InputError, match="the denoiser's velocity at angle 0 is not finite"):
        encode(lambda x, angle: Estimate(x / 0.0, x), IMAGES)
    with pytest.raises(
        InputError, match=r"the flow is too steep near angle 0\.\d+ for a tolerance of 1e-05|not finite"
    ):
        encode(lambda x, angle: Estimate(torch.zeros_like(x), 100 * x**3), IMAGES)  # reaches infinity before pi/2
    with pytest.raises(InputError, match="need 8-bit images, as uint8"):
        flow_bits_per_dim(WORLD, IMAGES)


def test_adding_likelihoods_with_other_settings_raises() -> None:
    with pytest.raises(InputError, match="different probes do not add: 1 and None"):
        log_likelihood(WORLD, IMAGES[:1], tolerance=0.1) + log_likelihood(WORLD, IMAGES[:1], probes=None, tolerance=0.1)
