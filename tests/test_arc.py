"""The arc: points, tangents and rotations, and the conversions from and to other coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.common.errors import InputError

EXACT = 1e-14  # a few roundings of numbers of size 1
ANGLES = [0.0, 1e-8, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-8, math.pi / 2]


def pair(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, count, 2, 4, 3, generator=generator, dtype=torch.float64)
    return image, noise


@pytest.mark.parametrize("angle", ANGLES)
def test_mix_and_velocity_match_their_formulas(angle: float) -> None:
    image, noise = pair()
    x, v = math.cos(angle) * image + math.sin(angle) * noise, math.cos(angle) * noise - math.sin(angle) * image
    torch.testing.assert_close(arc.mix(image, noise, angle), x, rtol=0, atol=EXACT)
    torch.testing.assert_close(arc.velocity(image, noise, angle), v, rtol=0, atol=EXACT)


def test_ends_of_the_arc_are_image_and_noise() -> None:
    image, noise = pair()
    for mixed, expected in (
        (arc.mix(image, noise, 0.0), image),
        (arc.velocity(image, noise, 0.0), noise),
        (arc.mix(image, noise, arc.NOISE_END), noise),
        (arc.velocity(image, noise, arc.NOISE_END), -image),
    ):
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-15)  # cos(pi/2) is 6e-17 in float64


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_maps_image_and_noise_to_point_and_tangent_and_back(angle: float) -> None:
    image, noise = pair()
    x, v = arc.rotate(image, noise, angle)
    torch.testing.assert_close(x, arc.mix(image, noise, angle), rtol=0, atol=0)
    torch.testing.assert_close(v, arc.velocity(image, noise, angle), rtol=0, atol=0)
    for back, expected in zip(arc.rotate(x, v, -angle), (image, noise), strict=True):
        torch.testing.assert_close(back, expected, rtol=0, atol=EXACT)


def test_rotation_moves_points_along_the_arc() -> None:
    image, noise = pair()
    for b, a in ((0.2, 1.4), (1.4, 0.2), (0.0, math.pi / 2)):
        x, v = arc.rotate(arc.mix(image, noise, b), arc.velocity(image, noise, b), a - b)
        torch.testing.assert_close(x, arc.mix(image, noise, a), rtol=0, atol=EXACT)
        torch.testing.assert_close(v, arc.velocity(image, noise, a), rtol=0, atol=EXACT)


@pytest.mark.parametrize("angle", ANGLES)
def test_velocity_is_the_derivative_of_mix(angle: float) -> None:
    image, noise = pair(1)
    by_autograd = torch.autograd.functional.jvp(
        lambda at: arc.mix(image, noise, at),
        torch.tensor(angle, dtype=torch.float64),
        torch.ones((), dtype=torch.float64),
    )[1]
    torch.testing.assert_close(by_autograd, arc.velocity(image, noise, angle), rtol=0, atol=EXACT)
    h = 1e-5
    difference = (arc.mix(image, noise, angle + h) - arc.mix(image, noise, angle - h)) / (2 * h)
    # the central difference has errors of h^2/6 |x| and of rounding / h
    torch.testing.assert_close(difference, arc.velocity(image, noise, angle), rtol=0, atol=1e-9)


@pytest.mark.parametrize("act", [arc.mix, arc.velocity, lambda x, v, by: torch.stack(arc.rotate(x, v, by), 1)])
def test_one_angle_per_image_equals_image_by_image(act: Callable[[Tensor, Tensor, Tensor | float], Tensor]) -> None:
    image, noise = pair()
    angles = torch.tensor([0.1, 0.9, 1.5], dtype=torch.float64)
    together = act(image, noise, angles)
    for k, angle in enumerate(angles.tolist()):
        alone = act(image[k : k + 1], noise[k : k + 1], angle)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=EXACT)
    one = act(image, noise, torch.tensor([0.9], dtype=torch.float64))
    torch.testing.assert_close(one, act(image, noise, 0.9), rtol=0, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "angle", [0.7, torch.tensor(0.7, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64)]
)
def test_results_have_the_dtype_of_the_images(dtype: torch.dtype, angle: float | Tensor) -> None:
    image, noise = (tensor.to(dtype) for tensor in pair())
    exact = arc.mix(image.double(), noise.double(), 0.7)
    for result in (arc.mix(image, noise, angle), arc.velocity(image, noise, angle), *arc.rotate(image, noise, angle)):
        assert result.dtype == dtype
    # two products and a sum, each rounded to the precision of the images
    tolerance = 4 * torch.finfo(dtype).eps * float(exact.abs().max())
    torch.testing.assert_close(arc.mix(image, noise, angle).double(), exact, rtol=0, atol=tolerance)


def test_images_of_any_number_of_dimensions() -> None:
    for shape in ((3,), (3, 5), (3, 2, 2, 2, 2)):
        x = torch.ones(shape, dtype=torch.float64)
        assert arc.mix(x, x, torch.tensor([0.0, 0.1, 0.2])).shape == shape


def test_angles_of_another_shape_than_the_batch_raise() -> None:
    image, noise = pair()
    for angles in (torch.zeros(2), torch.zeros(3, 1)):
        with pytest.raises(InputError, match=r"angles have shape .* give one angle, or one per image, shape \(3,\)"):
            arc.mix(image, noise, angles)


GRID = np.linspace(0.01, math.pi / 2 - 0.01, 201)


def test_other_coordinates_match_their_formulas() -> None:
    np.testing.assert_allclose(arc.alpha_bar(GRID), 1 / (1 + np.tan(GRID) ** 2), rtol=1e-14)
    np.testing.assert_allclose(arc.sigma(GRID), np.sqrt(1 / arc.alpha_bar(GRID) - 1), rtol=1e-11)  # 1/ab - 1 cancels
    np.testing.assert_allclose(arc.log_snr(GRID), -2 * np.log(arc.sigma(GRID)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("convert", "invert"),
    [
        (arc.alpha_bar, arc.alpha_bar_to_angle),
        (arc.sigma, arc.sigma_to_angle),
        (arc.log_snr, arc.log_snr_to_angle),
    ],
)
@pytest.mark.filterwarnings("error")
def test_other_coordinates_round_trip_ends_included(
    convert: Callable[[np.ndarray], np.ndarray], invert: Callable[[np.ndarray], np.ndarray]
) -> None:
    # cos^2 of an angle near 0 rounds at 1e-16, which is 1e-16 / 0.01 of that angle
    np.testing.assert_allclose(invert(convert(GRID)), GRID, rtol=0, atol=2e-14)
    ends = np.array([0.0, math.pi / 2])
    np.testing.assert_allclose(invert(convert(ends)), ends, rtol=0, atol=1e-15)


@pytest.mark.filterwarnings("error")
def test_infinite_coordinates_map_to_the_ends() -> None:
    assert arc.sigma_to_angle(math.inf) == math.pi / 2
    assert arc.log_snr_to_angle(-math.inf) == math.pi / 2
    assert arc.log_snr_to_angle(-2000.0) == math.pi / 2  # exp(1000) is infinite in float64
    assert arc.log_snr_to_angle(math.inf) == 0.0
    assert arc.log_snr(0.0) == math.inf
    assert arc.alpha_bar_to_angle(0.0) == math.pi / 2
    assert arc.alpha_bar_to_angle(1.0) == 0.0
