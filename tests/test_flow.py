"""The probability flow: densities against closed forms, probes without bias, and ways there and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from quarterarc import heads
from quarterarc.arc import NOISE_END
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.estimate import Estimate
from quarterarc.likelihood.flow import (
    FlowLikelihood,
    dequantise,
    evaluate_flow_bits_per_dim,
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


def test_the_likelihood_of_gaussian_data() -> None:
    exact = MultivariateNormal(MEAN.flatten(), COVARIANCE).log_prob(IMAGES.flatten(1)).numpy()
    made = log_likelihood(WORLD, IMAGES, probes=None)
    np.testing.assert_allclose(bits(made.log_density), bits(exact), atol=1e-4)
    assert (made.probe_error == 0).all()


def test_the_likelihood_of_a_mixture() -> None:
    points = torch.cat([MIXTURE.draw(4, torch.Generator().manual_seed(0)), torch.zeros(1, *SHAPE), IMAGES[:1]])
    made = log_likelihood(MIXTURE, points, probes=None, tolerance=1e-6)
    np.testing.assert_allclose(bits(made.log_density), bits(exact_mixture(points)), atol=1e-4)


def test_a_smaller_tolerance_is_a_smaller_error_and_costs_more() -> None:
    points = MIXTURE.draw(4, torch.Generator().manual_seed(0))
    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        made = log_likelihood(MIXTURE, points, probes=None, tolerance=tolerance)
        errors.append(np.abs(bits(made.log_density - exact_mixture(points))).max())
        costs.append(made.nfe.mean())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert costs[0] < costs[1] < costs[2]


def test_a_probe_is_exact_where_pixels_do_not_mix() -> None:
    # z^T J z = trace J for signs z and diagonal J, which no other law of z gives
    world = GaussianData(MEAN, torch.linspace(0.02, 2, 6, dtype=torch.float64).reshape(SHAPE))
    exact = log_likelihood(world, IMAGES, probes=None, tolerance=1e-4)
    for probes in (1, 3):
        made = log_likelihood(world, IMAGES, probes=probes, tolerance=1e-4)
        # step sizes differ with the number of columns in the state, so both are as close as the solver
        np.testing.assert_allclose(bits(made.log_density), bits(exact.log_density), atol=2e-3)
    assert made.probe_error.max() < 1e-12


def test_probes_have_no_bias_and_their_errors_are_calibrated() -> None:
    points = MIXTURE.draw(12, torch.Generator().manual_seed(2))
    exact = exact_mixture(points)
    made = log_likelihood(MIXTURE, points, probes=100, tolerance=1e-4)
    z = (made.log_density - exact) / made.probe_error
    # 12 standard normals: their mean square scatters by 0.41, their mean by 0.29
    assert 0.15 < (z**2).mean() < 2.6
    assert abs(z.mean()) < 1.3
    alone = log_likelihood(MIXTURE, points, probes=1, tolerance=1e-4)
    assert np.isnan(alone.probe_error).all()
    spread = made.probe_error * 10  # of one probe
    assert 0.2 < (((alone.log_density - exact) / spread) ** 2).mean() < 3.5
    assert not np.allclose(alone.log_density, log_likelihood(MIXTURE, points, probes=1, seed=1).log_density)


@pytest.mark.parametrize("probes", [None, 1, 2])
def test_an_image_does_not_depend_on_its_batch(probes: int | None) -> None:
    def run(points: Tensor, **options: object) -> FlowLikelihood:
        return log_likelihood(MIXTURE, points, probes=probes, seed=3, **options)  # type: ignore[arg-type]

    # far from and close to the data, so that step sizes differ
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
def test_encoding_is_the_flow_to_the_noise_and_decoding_is_its_inverse(tolerance: float) -> None:
    noise = encode(WORLD, IMAGES, tolerance=tolerance, batch_size=4)
    assert noise.shape == IMAGES.shape
    # each of some ten to thirty steps may miss by the tolerance, relative to values of 1 to 3 too, and going back down
    # squeezes errors by up to 10
    assert (noise - WORLD.flow(IMAGES, 0.0, NOISE_END)).abs().max() < 50 * tolerance
    assert (decode(WORLD, noise, tolerance=tolerance) - IMAGES).abs().max() < 50 * tolerance


def test_encoded_images_of_a_mixture_come_back_and_are_standard_normal() -> None:
    points = MIXTURE.draw(200, torch.Generator().manual_seed(0))
    noise = encode(MIXTURE, points, batch_size=200)
    assert (decode(MIXTURE, noise, batch_size=200) - points).abs().max() < 1e-2  # modes part, and errors grow there
    assert (decode(MIXTURE, noise, batch_size=200) - points).abs().median() < 1e-4
    # 1200 values: mean scatters by 0.029, variance by 0.041
    assert abs(float(noise.mean())) < 0.13
    assert abs(float(noise.var()) - 1) < 0.18


def test_the_flow_of_uint8_images_and_of_their_levels_is_the_same() -> None:
    pixels = torch.randint(256, (2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(encode(WORLD, pixels), encode(WORLD, pixels.float() / 127.5 - 1))
    assert encode(WORLD, pixels).dtype == torch.float32


def denoiser(name: str, table: Schedule) -> Denoiser:
    """The Gaussian world as a network with this head, in float64."""

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        said = WORLD(x, table.angle(time.double() * table.steps / 1000))
        return said.noise if name == "noise" else said.image

    return Denoiser(network, table, heads.head(name, table))


def spectrum() -> tuple[Tensor, Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(COVARIANCE)
    return values, vectors, (IMAGES - MEAN).flatten(1) @ vectors


def test_a_flow_that_ends_below_pi_2_has_its_noise_there() -> None:
    table = schedule("arc", 20)
    made = log_likelihood(denoiser("noise", table), IMAGES, probes=None, tolerance=1e-6)
    end = table.angle(19.0)
    values, _, _ = spectrum()
    growth = 0.5 * ((math.cos(end) ** 2 * values + math.sin(end) ** 2) / values).log().sum()
    x = WORLD.flow(IMAGES, 0.0, end)
    exact = Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1) + growth
    # the network is told the time in float32
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)


def test_below_its_smallest_angle_a_denoiser_is_asked_there() -> None:
    table = schedule("arc", 20)
    made = log_likelihood(denoiser("image", table), IMAGES, probes=None, tolerance=1e-6)
    low = table.angle(1.0)
    values, vectors, centred = spectrum()
    c, s = math.cos(low), math.sin(low)
    q = c**2 * values + s**2
    # there v = slope (x - cos low mean) - sin low mean along each eigenvector: solved up to `low`
    slope, shift = s * c * (1 - values) / q, MEAN.flatten() @ vectors
    fixed = c * shift + s * shift / slope
    x = fixed + (centred + shift - fixed) * (slope * low).exp()
    end = (x - c * shift) / q.sqrt()
    exact = Normal(0.0, 1.0).log_prob(end).sum(1) + (slope * low - 0.5 * q.log()).sum()
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)


def test_dequantised_points_fill_their_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(40, -1, -1, -1)
    images = pixels.double() / 127.5 - 1
    made = dequantise(images, 0, range(40))
    place = (made + 1) * 128 - pixels
    assert ((place >= 0) & (place < 1)).all()
    # 10240 uniform numbers: mean scatters by 0.0029, variance by 0.0007
    assert abs(float(place.mean()) - 0.5) < 0.012
    assert abs(float(place.var()) - 1 / 12) < 0.003
    assert torch.equal(dequantise(images[:2], 0, [7, 3]), made[[7, 3]])
    assert not torch.equal(dequantise(images[:2], 1, [7, 3]), made[[7, 3]])


def test_bits_of_8_bit_images_are_those_of_the_mass_of_their_levels() -> None:
    # within a level a wide density is all but flat: the mean over u of -log2 density is -log2 mass
    world = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.09)
    pixels = torch.tensor([40, 90, 127, 128, 160, 230], dtype=torch.uint8).reshape(1, *SHAPE).expand(300, -1, -1, -1)
    made = flow_bits_per_dim(world, pixels, tolerance=1e-6, batch_size=300)
    low = pixels[0].double() / 128 - 1
    normal = Normal(torch.zeros((), dtype=torch.float64), 0.3)
    exact = float(-(normal.cdf(low + 1 / 128) - normal.cdf(low)).log2().mean())
    error = made.bits_per_dim.std(ddof=1) / 300**0.5
    assert abs(made.bits_per_dim.mean() - exact) < 4.5 * error + 1e-4
    assert error < 2e-3
    said = made.describe()
    assert said["bits_per_dim"] == pytest.approx(made.bits_per_dim.mean(), rel=1e-13)
    assert said["standard_error"] == pytest.approx(error, rel=1e-10)


def test_labels_and_probes_stay_with_their_images() -> None:
    scales = torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)

    def labelled(x: Tensor, angle: Tensor, labels: Tensor) -> Estimate:
        # pixels of independent variance by label: one probe is exact
        c, s = (each.reshape(-1, 1, 1, 1) for each in (angle.cos(), angle.sin()))
        variance = scales[labels].reshape(-1, 1, 1, 1)
        q = c**2 * variance + s**2
        return Estimate(c * variance / q * x, s / q * x)

    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    made = log_likelihood(labelled, IMAGES, labels=labels, tolerance=1e-6, batch_size=4)
    exact = Normal(0.0, scales[labels].sqrt().reshape(-1, 1, 1, 1)).log_prob(IMAGES).flatten(1).sum(1)
    np.testing.assert_allclose(bits(made.log_density), bits(exact.numpy()), atol=1e-4)
    noise = encode(labelled, IMAGES, labels=labels, tolerance=1e-6)
    assert (noise - IMAGES / scales[labels].sqrt().reshape(-1, 1, 1, 1)).abs().max() < 1e-4


def test_a_trained_run_has_numbers_that_are_json(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    assert denoise.shape is not None
    images = torch.randint(256, (2, *denoise.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    said = evaluate_flow_bits_per_dim(denoise, images, tolerance=1e-2)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["bits_per_dim"] > 0
    assert said["nfe"] > 6
    assert json.dumps(evaluate_flow_bits_per_dim(denoise, images[:1], tolerance=0.1), allow_nan=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(2, 3)}, r"images of shape \(N, C, H, W\), at least one"),
        (
            {"images": torch.zeros(2, *SHAPE, dtype=torch.uint8)},
            "floating images, got torch.uint8: see flow_bits_per_dim",
        ),
        ({"images": torch.full((2, *SHAPE), math.nan)}, "2 of images 0..1, first number 0"),
        ({"probes": 0}, "probes is at least 1, or None"),
        ({"tolerance": 0.0}, r"tolerance lies in \(0, 1\), got 0.0"),
        ({"tolerance": math.nan}, r"tolerance lies in \(0, 1\), got nan"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"labels": torch.zeros(3)}, "3 labels: give one an image"),
        ({"numbers": [0]}, "1 numbers: give one an image"),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict, message: str) -> None:
    given = {"images": IMAGES[:2], **given}
    with pytest.raises(InputError, match=message):
        log_likelihood(WORLD, given.pop("images"), **given)


def test_a_denoiser_that_autograd_cannot_see_through_is_refused() -> None:
    with pytest.raises(InputError, match="autograd sees no velocity that depends on x"):
        log_likelihood(torch.no_grad()(WORLD.__call__), IMAGES)
    with pytest.raises(InputError, match="the denoiser's velocity at angle 0 is not finite"):
        encode(lambda x, angle: Estimate(x / 0.0, x), IMAGES)
    with pytest.raises(
        InputError, match=r"the flow is too steep near angle 0\.\d+ for a tolerance of 1e-05|not finite"
    ):
        encode(lambda x, angle: Estimate(torch.zeros_like(x), 100 * x**3), IMAGES)  # infinite before pi/2
    with pytest.raises(InputError, match="8-bit images: give uint8"):
        flow_bits_per_dim(WORLD, IMAGES)


def test_parts_of_different_evaluations_do_not_add() -> None:
    with pytest.raises(InputError, match="different probes do not add: 1 and None"):
        log_likelihood(WORLD, IMAGES[:1], tolerance=0.1) + log_likelihood(WORLD, IMAGES[:1], probes=None, tolerance=0.1)
