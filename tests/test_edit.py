"""Editing: known pixels stay, the ends of every range are sampling or the image itself, and exact conditional laws."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quarterarc as qa
from quarterarc import edit
from quarterarc.arc import mix
from quarterarc.edit.keeping import Resampled, back, moves
from quarterarc.edit.plans import slerp
from quarterarc.samplers import SAMPLERS
from quarterarc.samplers.rotation import Rotation

SHAPE = (1, 2, 3)
UNKNOWN = torch.tensor([[False, True, True], [False, False, True]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def gaussian() -> qa.GaussianData:
    root = torch.randn(6, 6, generator=generator(), dtype=torch.float64) / 3
    mean = torch.randn(SHAPE, generator=generator(1), dtype=torch.float64) / 4
    return qa.GaussianData(mean, root @ root.T + 0.02 * torch.eye(6, dtype=torch.float64))


@pytest.fixture(scope="module")
def mixture() -> qa.MixtureData:
    return qa.MixtureData(torch.randn(4, *SHAPE, generator=generator(2), dtype=torch.float64) / 2, 0.2)


@pytest.fixture(scope="module")
def images(gaussian: qa.GaussianData) -> Tensor:
    return gaussian.draw(5, generator(3))


@pytest.mark.parametrize("name", [*SAMPLERS, "resample"])
def test_known_pixels_are_exactly_those_of_the_image(name: str, gaussian: qa.GaussianData, images: Tensor) -> None:
    """Each result has its own image and mask, also in the sub-batches of `adaptive`."""
    denoise: Any = qa.SolvedMap(gaussian, 4) if name == "jump" else gaussian
    masks = torch.stack([UNKNOWN, ~UNKNOWN, UNKNOWN, ~UNKNOWN, UNKNOWN])[:, None]
    how: dict[str, Any] = {"method": "resample"} if name == "resample" else {"sampler": name}
    made = edit.inpaint(denoise, images, masks, seeds=range(5), steps=4, **how).images
    unknown = masks.expand(made.shape)
    assert torch.equal(made[~unknown], images[~unknown])
    assert ((made - images)[unknown].abs() > 1e-6).all()
    alone = edit.inpaint(denoise, images[3], ~UNKNOWN, seeds=[3], steps=4, **how).images
    assert torch.allclose(alone[0], made[3], atol=1e-9)  # float64: the batch changes rounding alone


@pytest.mark.parametrize("name", ["rotation", "ddim", "euler"])
def test_known_pixels_move_along_the_arc_of_their_own_noise(name: str, mixture: qa.MixtureData, images: Tensor) -> None:
    """Rotation and DDIM are exact where image and noise are constant; Euler's method is not."""
    image, angles = images[:1], list(np.linspace(math.pi / 2, 0, 6))
    noise = torch.randn(1, *SHAPE, generator=generator(4), dtype=torch.float64)
    known = qa.wrappers.Known(mixture, image, UNKNOWN[None, None])
    x = torch.where(UNKNOWN, noise, mix(image, noise, angles[0]))
    off = 0.0
    for state in SAMPLERS[name]()(known, x, angles, torch.randn_like):
        off = max(off, float((state.x - mix(image, noise, state.angle))[..., ~UNKNOWN].abs().max()))
    assert off < 1e-12 if name != "euler" else off > 0.01


@pytest.mark.parametrize("method", ["project", "resample"])
def test_a_mask_of_the_whole_image_is_sampling(method: str, gaussian: qa.GaussianData, images: Tensor) -> None:
    everything = torch.ones(2, 3)
    made = edit.inpaint(gaussian, images[0].float(), everything, seeds=range(3), steps=6, method=method, resamplings=1)
    if method == "project":  # `resample` also draws the noise of known pixels
        expected = qa.generate(gaussian, range(3), "ddpm", 6, progress=False)
        assert torch.allclose(made.images, expected, atol=1e-5)  # float32
    assert made.nfe == 6


def test_repaint_returns_as_published() -> None:
    """250 steps, 10 resamplings, jumps of 10 (Lugmayr et al. 2022): 24 parts are sampled 9 times more."""
    made = moves(250, 10, 10)
    assert sum(end > start for start, end in made) == 250 + 24 * 9 * 10
    assert sum(end < start for start, end in made) == 24 * 9
    assert moves(4, 2, 1) == [(0, 1), (1, 2), (2, 1), (1, 2), (2, 3), (3, 2), (2, 3), (3, 4)]
    assert moves(3, 1, 1) == [(0, 1), (1, 2), (2, 3)]
    for steps, jump in ((5, 2), (5, 9), (6, 5)):
        assert all(end > 0 for _, end in moves(steps, 3, jump))


def test_the_forward_process_of_repaint_keeps_the_marginals() -> None:
    """Of x_a = cos a image + sin a noise: x_b has the signal cos b and the variance sin^2 b."""
    a, b, one = 0.4, 1.1, torch.ones((), dtype=torch.float64)
    signal, fresh = back(math.cos(a) * one, a, b, 0 * one), back(0 * one, a, b, one)
    noise = back(math.sin(a) * one, a, b, 0 * one)
    assert float(signal) == pytest.approx(math.cos(b), rel=1e-12)
    assert float(noise**2 + fresh**2) == pytest.approx(math.sin(b) ** 2, rel=1e-12)


def test_resampling_yields_one_state_per_angle_and_counts_all_evaluations(
    gaussian: qa.GaussianData, images: Tensor
) -> None:
    angles = list(np.linspace(math.pi / 2, 0, 5))
    rule = Resampled(Rotation(), images[:1], UNKNOWN[None, None], resamplings=3, jump=1)
    evaluator = qa.wrappers.Evaluator(gaussian)
    states = list(rule(evaluator, torch.zeros(2, *SHAPE, dtype=torch.float64), angles, torch.zeros_like))
    assert [state.angle for state in states] == angles
    assert evaluator.nfe == 4 + 2 * 2  # two of the four steps are repeated twice


def conditional(data: qa.GaussianData, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the unknown pixels given the known ones."""
    covariance, unknown = torch.as_tensor(data.covariance), UNKNOWN.flatten()
    mean, value = data.mean.flatten(), image.flatten()
    gain = covariance[unknown][:, ~unknown] @ torch.linalg.inv(covariance[~unknown][:, ~unknown])
    return (
        mean[unknown] + gain @ (value[~unknown] - mean[~unknown]),
        covariance[unknown][:, unknown] - gain @ covariance[~unknown][:, unknown],
    )


def test_resampling_comes_nearer_to_the_conditional_law_than_projection(
    gaussian: qa.GaussianData, images: Tensor
) -> None:
    """At equal evaluations. Neither is exact: projection adapts too little, and resampling loses variance (measured:
    errors of the mean of 0.83 and 0.62 of that of ignoring the known pixels, variances of 1.0 and 0.65)."""
    count, unknown = 2000, UNKNOWN.flatten()
    mean, covariance = conditional(gaussian, images[0])
    ignored = (gaussian.mean.flatten()[unknown] - mean).norm()
    errors, variances = [], []
    for settings in ({"steps": 82}, {"steps": 10, "method": "resample", "resamplings": 10}):
        made = edit.inpaint(gaussian, images[0], UNKNOWN, seeds=range(count), batch_size=count, **settings)
        assert made.nfe == 82
        pixels = made.images.flatten(1)[:, unknown]
        errors.append(float((pixels.mean(0) - mean).norm() / ignored))
        variances.append(float(pixels.var(0).sum() / covariance.trace()))
    # of 2,000 results the mean deviates by about 0.02 of `ignored`, and the variance by 0.03 of itself
    assert errors[1] + 0.1 < errors[0] < 0.95
    assert errors[1] < 0.75
    assert 0.85 < variances[0] < 1.2
    assert 0.5 < variances[1] < 0.85


def test_the_strength_is_the_share_of_the_angle_at_which_sampling_starts(
    gaussian: qa.GaussianData, images: Tensor
) -> None:
    made = edit.image_to_image(gaussian, images[0].float(), 0.4, seeds=range(3), steps=7)
    assert made.angles[[0, -1]] == pytest.approx([0.4 * math.pi / 2, 0.0])
    assert (len(made.angles), made.nfe) == (8, 7)
    nearer = edit.image_to_image(gaussian, images[0].float(), 0.05, seeds=range(3), steps=7)
    assert (nearer.images - images[0]).abs().mean() < 0.3 * (made.images - images[0]).abs().mean()
    whole = edit.image_to_image(gaussian, images[0].float(), 1, seeds=range(3), steps=7)
    assert torch.allclose(whole.images, qa.generate(gaussian, range(3), steps=7, progress=False), atol=1e-6)  # float32
    given = edit.image_to_image(gaussian, images[0], 0.4, seeds=range(3), grid=made.angles)
    assert torch.allclose(given.images.float(), made.images, atol=1e-5)


def test_the_ends_of_an_interpolation_are_the_images(gaussian: qa.GaussianData, images: Tensor) -> None:
    made = edit.interpolate(gaussian, images[0], images[1], 5, sampler="rk4", steps=40, encode_tolerance=1e-8)
    # the error of 40 steps of order 4 is far below one level, 0.008
    assert torch.allclose(made.images[[0, -1]], images[:2], atol=1e-4)
    assert made.images.shape == (5, *SHAPE)
    assert not torch.allclose(made.images[2], (images[0] + images[1]) / 2, atol=0.01)


def test_the_experiments_go_the_same_way_between_two_noises() -> None:
    """With its guard: the way from a noise to itself divides by the sine of their angle otherwise."""
    from quarterarc.experiments import measures

    assert vars(measures)["slerp"] is slerp


def test_the_way_between_two_noises_is_a_great_circle() -> None:
    a, b = torch.randn(2, 1, 3, 8, 8, generator=generator(), dtype=torch.float64)
    b *= a.norm() / b.norm()
    points = [slerp(a, b, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert torch.allclose(torch.stack([points[0], points[-1]]), torch.stack([a, b]))
    assert [float(point.norm()) for point in points] == pytest.approx([float(a.norm())] * 5)
    steps = [float((after - before).norm()) for before, after in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert torch.equal(slerp(0 * a, 0 * a, 0.3), 0 * a)


def test_variations_go_from_the_image_to_the_samples_of_the_seeds(gaussian: qa.GaussianData, images: Tensor) -> None:
    image = images[0].float()
    same, near, new = (edit.variations(gaussian, image, seeds=range(3), amount=a, steps=20) for a in (0.0, 0.2, 1.0))
    assert torch.allclose(same.images, image.expand(3, *SHAPE), atol=0.01)  # the error of 20 steps is about one level
    assert torch.allclose(new.images, qa.generate(gaussian, range(3), steps=20, progress=False), atol=1e-6)
    assert 0.02 < float((near.images - image).abs().mean()) < 0.6 * float((new.images - image).abs().mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 3, 3)}, r"the image has shape \(1, 3, 3\) \(C, H, W\), but the model makes images"),
        ({"image": torch.zeros(2, *SHAPE)}, r"give \(C, H, W\), or one per result, \(3, C, H, W\)"),
        ({"image": torch.zeros(SHAPE, dtype=torch.int64)}, "uint8 or floating point"),
        ({"image": torch.full(SHAPE, 255.0)}, r"pixels lie in \[-1, 1\]: give uint8, or quarterarc.to_float"),
        ({"image": torch.full(SHAPE, math.nan)}, "the image has pixels that are NaN"),
        ({"mask": torch.zeros(2, 3)}, "the mask marks no pixel, so there is nothing to make"),
        ({"mask": torch.ones(3, 2)}, r"the mask has shape \(3, 2\): give \(H, W\) = \(2, 3\)"),
        ({"seeds": []}, "no seeds were given"),
        ({"seeds": 4}, r"give range\(4\)"),
        ({"method": "magic"}, "magic"),
        ({"method": "resample", "sampler": "multistep"}, "'resample' takes the samplers ddpm, ddim and rotation"),
        ({"method": "resample", "resamplings": 0}, "resamplings is a whole number of at least 1, got 0"),
        ({"grid": [1.5, 0.5]}, "inpainting ends at the image, but the grid ends at angle 0.5"),
        ({"labels": [1, 2, 3]}, "the model was trained without labels"),
        ({"etta": 0.5}, "has no option 'etta'"),
    ],
)
def test_wrong_arguments_of_inpainting(
    change: dict[str, Any], message: str, gaussian: qa.GaussianData, images: Tensor
) -> None:
    given = {"image": images[0], "mask": UNKNOWN, "seeds": range(3), **change}
    with pytest.raises(qa.InputError, match=message):
        edit.inpaint(gaussian, given.pop("image"), given.pop("mask"), **given)


def test_wrong_arguments_of_the_other_edits(gaussian: qa.GaussianData, images: Tensor) -> None:
    image, seeds = images[0], range(2)
    for strength in (0.0, 1.5, math.nan):
        with pytest.raises(qa.InputError, match=r"a strength lies in \(0, 1\]"):
            edit.image_to_image(gaussian, image, strength, seeds=seeds)
    for grid, message in (
        ("tuned", "a tuned grid begins at the noise"),
        ("uniform", "the grid 'uniform' begins at the noise"),
        ([1.5, 0.0], "the grid starts at angle 1.5 instead of 0.785398"),
    ):
        with pytest.raises(qa.InputError, match=message):
            edit.image_to_image(gaussian, image, 0.5, seeds=seeds, grid=grid)
    with pytest.raises(qa.InputError, match=r"an amount lies in \[0, 1\]"):
        edit.variations(gaussian, image, seeds=seeds, amount=2)
    with pytest.raises(qa.InputError, match="at least 2 results"):
        edit.interpolate(gaussian, image, image, 1)
    with pytest.raises(qa.InputError, match="the second image has shape"):
        edit.interpolate(gaussian, image, image[:, :1], 3)


def smooth(count: int, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    """Images with a correlation of neighbours of about 0.95, as photographs have."""
    rows = torch.linspace(-1, 1, shape[-1])
    slopes = torch.randn(count, shape[0], 2, generator=generator(7))
    return (slopes[..., :1, None] * rows[:, None] + slopes[..., 1:, None] * rows).clamp(-1, 1)


@pytest.mark.parametrize("call", [qa.sample, lambda *given: next(qa.trajectory(*given))])
def test_images_with_noise_added_are_no_noise_to_sample_from(call: Any) -> None:
    images = smooth(2)
    denoise = qa.MixtureData(images, 0.1)
    noise = torch.randn(images.shape, generator=generator())
    for angle in (0.0, 0.5, 0.8):
        with pytest.raises(
            qa.InputError, match=r"call quarterarc.edit.image_to_image\(denoise, image, strength, seeds"
        ):
            call(denoise, mix(images, noise, angle), "ddim", 2)
    for x in (noise, 0.7 * noise, noise[:1], qa.noise(range(3), images.shape[1:]), 0 * noise):
        call(denoise, x, "ddim", 2)


def test_a_point_of_the_arc_is_sampled_on_the_grid_from_its_angle() -> None:
    images = smooth(2)
    x = mix(images, torch.randn(images.shape, generator=generator()), 0.5)
    assert qa.sample(qa.MixtureData(images, 0.1), x, "ddim", grid=[0.5, 0.2, 0.0]).nfe == 2


def test_encoded_noise_is_noise_to_sample_from() -> None:
    """Of draws of the data, whose own correlation is 0.9."""
    d = 8 * 8
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    data = qa.GaussianData(
        torch.zeros(1, 8, 8), torch.exp(-torch.cdist(places, places).double() / 10) + 1e-4 * torch.eye(d)
    )
    noise = qa.encode(data, data.draw(16, generator()).float(), tolerance=1e-3, progress=False)
    qa.sample(data, noise, "ddim", 2)


class Shades:
    """A denoiser with two classes, dark and light images, up to the angle 1.5."""

    traits = qa.Traits(shape=(1, 4, 4), classes=2, class_names=("dark", "light"), largest_angle=1.5)

    def __call__(self, x: Tensor, angle: Any, labels: Tensor | None = None) -> qa.Estimate:
        """The data of a class are N(shade, 0.2^2) in each pixel; without a label the shade is 0."""
        numbers = torch.full((len(x),), 2) if labels is None else labels
        shade = torch.tensor([-0.6, 0.6, 0.0])[numbers].reshape(-1, 1, 1, 1)
        moved = x - torch.as_tensor(angle).cos().float().reshape(-1, 1, 1, 1) * shade
        estimate = qa.GaussianData(torch.zeros(1, 4, 4), 0.04)(moved, angle)
        return qa.Estimate(estimate.image + shade, estimate.noise)


@pytest.mark.parametrize("settings", [{}, {"sampler": "adaptive"}, {"method": "resample", "resamplings": 2}])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_labels_and_guidance_of_each_result(settings: dict[str, Any], guidance: float | None) -> None:
    mask = torch.arange(4).expand(4, 4) >= 2
    made = edit.inpaint(
        Shades(),
        torch.zeros(1, 4, 4),
        mask,
        seeds=range(4),
        labels=["dark", "light"] * 2,
        guidance=guidance,
        **settings,
    )
    shades = made.images[..., 2:].mean((1, 2, 3))
    # guidance of 2 is twice as far from the shade without a label; the mean of eight pixels deviates by 0.07
    assert torch.allclose(shades, (guidance or 1.0) * torch.tensor([-0.6, 0.6] * 2), atol=0.3)
    assert (made.images[..., :2] == 0).all()
    if "sampler" not in settings:
        assert made.nfe == (10 if not settings else 18) * (2 if guidance else 1)
