"""The variational bound: closed forms, unbiased subsets of the terms, calibrated standard errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from quarterarc import heads
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, normal, stream
from quarterarc.denoiser import Denoiser, Traits
from quarterarc.estimate import Estimate
from quarterarc.likelihood.moments import Moments
from quarterarc.likelihood.variational import (
    Bound,
    bits_per_dim,
    rate_distortion,
    strata,
)
from quarterarc.schedules import Schedule, schedule
from quarterarc.storage.checkpoints import load

SHAPE = (1, 2, 3)
MEAN = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(SHAPE)
VARIANCES = torch.tensor([0.01, 0.05, 0.1, 0.2, 0.4, 1.0], dtype=torch.float64).reshape(SHAPE)
WORLD = GaussianData(MEAN, VARIANCES)
ARC = schedule("arc", 30)


def levels(count: int, seed: int = 0) -> Tensor:
    """Images of 8-bit levels, float64, including the lowest and the highest level."""
    images = WORLD.draw(count, torch.Generator().manual_seed(seed)).clamp(-1, 1)
    return ((images + 1) * 127.5).round() / 127.5 - 1


def constant(x: Tensor, angle: Tensor) -> Estimate:
    return Estimate(torch.full_like(x, 64 / 127.5 - 1), torch.zeros_like(x))


@pytest.mark.parametrize(("kind", "bits"), [("small", 1.3053849), ("large", 1.7918041)])
@pytest.mark.parametrize("count", [1, 3])
def test_bound_of_constant_images_under_a_perfect_model(kind: str, bits: float, count: int) -> None:
    images = torch.full((count, 1, 1, 2), 64, dtype=torch.uint8)
    bound = bits_per_dim(constant, images, kind, schedule=schedule("linear", 1000), batch_size=128)
    # float32 images are 3e-8 off their level, in a bin of width 0.004 around the mean: a second-order error
    np.testing.assert_allclose(bound.total, bits, atol=1e-7)
    curve = rate_distortion(constant, images[:1], kind, schedule=schedule("linear", 1000))
    np.testing.assert_allclose(curve.distortion, 0, atol=1e-5)


def derived(image: np.ndarray, noise: np.ndarray, table: Schedule, t: int, kind: str) -> np.ndarray:
    """A term of Gaussian data in nats per dimension, from Bayes' rule in precisions and from alpha_bar alone."""
    m, s = MEAN.numpy(), VARIANCES.numpy()
    level, before = table.alpha_bar[t], table.alpha_bar[t - 1]
    x = np.sqrt(level) * image + np.sqrt(1 - level) * noise
    estimate = (m * (1 - level) + np.sqrt(level) * s * x) / (level * s + 1 - level)
    beta = 1 - level / before
    if t == 1:
        third = 1 / (1 / (1 - table.alpha_bar[1]) + (1 - table.beta[2]) / table.beta[2])
        normal_p = Normal(torch.from_numpy(estimate), third**0.5)
        low = torch.from_numpy(np.where(image < -0.999, -np.inf, image - 1 / 255))
        high = torch.from_numpy(np.where(image > 0.999, np.inf, image + 1 / 255))
        return -(normal_p.cdf(high) - normal_p.cdf(low)).log().numpy().mean((1, 2, 3))
    precision = 1 / (1 - before) + (1 - beta) / beta
    of_image, of_x = np.sqrt(before) / (1 - before) / precision, np.sqrt(1 - beta) / beta / precision
    q = Normal(torch.from_numpy(of_image * image + of_x * x), precision**-0.5)
    p = Normal(torch.from_numpy(of_image * estimate + of_x * x), precision**-0.5 if kind == "small" else beta**0.5)
    return kl_divergence(q, p).numpy().mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("of", ["arc", "cosine"])
def test_every_term_equals_the_closed_form_of_gaussian_data(of: str, kind: str) -> None:
    table, images, count = schedule(of, 30), levels(5), 5
    bound = bits_per_dim(WORLD, images, kind, schedule=table, seed=3, batch_size=7)
    expected = np.stack(
        [
            derived(
                images.numpy(),
                normal([stream(3, Purpose.BOUND_NOISE, k, t) for k in range(count)], SHAPE, torch.float64).numpy(),
                table,
                t,
                kind,
            )
            for t in range(1, 31)
        ],
        1,
    ) / math.log(2)
    # the mass of a level as a plain difference of CDFs is accurate to about 1e-13, and so is 1 - alpha_bar
    np.testing.assert_allclose(bound.decoder, expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(bound.terms.mean, expected.mean(0), rtol=1e-9)
    np.testing.assert_allclose(bound.terms.standard_error, expected.std(0, ddof=1) / 5**0.5, rtol=1e-9)
    np.testing.assert_allclose(bound.middle, expected[:, 1:].sum(1), rtol=1e-9)
    last = table.alpha_bar[-1]
    prior = kl_divergence(Normal(math.sqrt(last) * images, math.sqrt(1 - last)), Normal(0.0, 1.0)).mean((1, 2, 3))
    np.testing.assert_allclose(bound.prior, prior / math.log(2), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(bound.total, bound.prior + bound.middle + bound.decoder)


@pytest.fixture(scope="module")
def many() -> tuple[Bound, Bound]:
    """The bound of the same 6 images, repeated 400 times, with all 30 terms and with 6 terms."""
    images = levels(6).repeat(400, 1, 1, 1)
    return tuple(bits_per_dim(WORLD, images, schedule=ARC, terms=terms, batch_size=1000) for terms in (None, 6))  # type: ignore[return-value]


def expected_middle(images: Tensor) -> np.ndarray:
    """The exact expectation over the noise of sum L_{t-1}, t >= 2, small variance, in bits per dimension."""
    total = np.zeros(len(images))
    s = VARIANCES.numpy()
    for t in range(2, ARC.steps + 1):
        level, before = ARC.alpha_bar[t], ARC.alpha_bar[t - 1]
        q = level * s + 1 - level
        # image_hat - image = -(1 - level)/q (image - m) + sqrt(level (1 - level)) s/q noise
        missed = ((1 - level) / q) ** 2 * (images - MEAN).numpy() ** 2 + level * (1 - level) * (s / q) ** 2
        # the weight of the divergence is half the fall of the signal-to-noise ratio (Kingma et al. 2021, Eq. 13)
        total += 0.5 * (before / (1 - before) - level / (1 - level)) * missed.mean((1, 2, 3))
    return total / math.log(2)


def test_mean_over_noise_equals_the_expectation_with_all_and_with_sampled_terms(many: tuple[Bound, Bound]) -> None:
    expected = expected_middle(levels(6))
    for bound in many:
        by_image = bound.middle.reshape(400, 6)
        error = by_image.std(0, ddof=1) / 400**0.5
        assert (np.abs(by_image.mean(0) - expected) < 4.5 * error).all()
        assert abs(by_image.mean() - expected.mean()) < 4.5 * (error**2).mean() ** 0.5 / 6**0.5
    # L_0 is always evaluated, with the same noise
    np.testing.assert_array_equal(many[0].decoder, many[1].decoder)
    assert many[1].terms.mean.shape == (6,)


def test_a_stratum_estimates_the_sum_of_its_terms(many: tuple[Bound, Bound]) -> None:
    whole, sampled = many
    for k, (low, high) in enumerate(zip(sampled.low, sampled.high, strict=True)):
        times = slice(low - 1, high)
        error = math.hypot(
            sampled.terms.standard_error[k], float((whole.terms.standard_error[times] ** 2).sum() ** 0.5)
        )
        assert abs(sampled.terms.mean[k] - whole.terms.mean[times].sum()) <= 4.5 * error


@pytest.mark.parametrize("which", [0, 1])
def test_standard_errors_are_calibrated(which: int, many: tuple[Bound, Bound]) -> None:
    # 40 evaluations of 60 images: their means scatter around the expectation by their standard errors. Images are
    # shuffled, so that the 6 distinct ones are not periodic in an evaluation.
    values = many[which].middle[np.random.default_rng(0).permutation(2400)].reshape(40, 60)
    truth = expected_middle(levels(6)).mean()
    z = np.array([(part.mean() - truth) / Moments.of(part).standard_error for part in values])
    # expected: 59/57 for normal terms; the variance of 40 values has a standard deviation of 0.23, the mean 0.16
    assert 0.45 < z.var() < 1.75
    assert abs(z.mean()) < 0.64


@pytest.mark.parametrize("terms", [None, 5])
def test_bound_of_an_image_is_independent_of_its_batch(terms: int | None) -> None:
    images = levels(7)

    def run(part: Tensor, **options: object) -> Bound:
        return bits_per_dim(WORLD, part, schedule=ARC, terms=terms, seed=1, **options)  # type: ignore[arg-type]

    whole = run(images)
    for size in (1, 2, 3, 20):
        part = run(images, batch_size=size)
        for name in ("prior", "middle", "decoder"):
            # the same draws; reductions may sum in another order
            np.testing.assert_allclose(getattr(part, name), getattr(whole, name), rtol=1e-13)
        np.testing.assert_allclose(part.terms.mean, whole.terms.mean, rtol=1e-13)
        np.testing.assert_allclose(part.terms.standard_error, whole.terms.standard_error, rtol=1e-11)
    alone = run(images[4:5], numbers=[4])
    np.testing.assert_allclose(alone.total, whole.total[4:5], rtol=1e-13)
    added = run(images[:3]) + run(images[3:], numbers=range(3, 7))
    for name, value in whole.describe().items():
        if isinstance(value, float):
            assert added.describe()[name] == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(added.total, whole.total, rtol=1e-13)
    np.testing.assert_allclose(added.error.mean, whole.error.mean, rtol=1e-13)
    assert not np.allclose(run(images, numbers=range(1, 8)).middle, whole.middle)
    assert not np.allclose(bits_per_dim(WORLD, images, schedule=ARC, terms=terms, seed=2).middle, whole.middle)


def test_noise_at_a_time_is_independent_of_the_other_times() -> None:
    images = levels(3)
    whole, part = (bits_per_dim(WORLD, images, schedule=ARC, terms=terms) for terms in (30, 29))
    alone = (part.high - part.low) == 0
    np.testing.assert_allclose(part.terms.mean[alone], whole.terms.mean[part.low[alone] - 1], rtol=1e-13)


@pytest.mark.parametrize("terms", [None, 8])
def test_rate_distortion_curve_is_consistent_with_the_bound(terms: int | None) -> None:
    images = levels(6)
    bound = bits_per_dim(WORLD, images, schedule=schedule("linear", 40), terms=terms)
    curve = rate_distortion(WORLD, images, schedule=schedule("linear", 40), terms=terms)
    # at t = 1 only the decoder term is missing; before the first step the rate is the prior term
    assert curve.rate[0] + bound.decoder.mean() == pytest.approx(curve.total, rel=1e-13)
    assert curve.total == pytest.approx(bound.total.mean(), rel=1e-13)
    assert curve.rate[-1] == pytest.approx(bound.prior.mean(), rel=1e-12)
    np.testing.assert_allclose(-np.diff(curve.rate), bound.terms.mean[1:], rtol=1e-9)
    assert (np.diff(curve.rate) < 0).all()
    off = rate_distortion(lambda x, angle: Estimate(images[:1] + 0.2, x), images[:1], schedule=ARC, batch_size=1)
    np.testing.assert_allclose(off.distortion, 127.5 * 0.2, rtol=1e-12)


def test_distortion_is_the_root_mean_square_over_images() -> None:
    images = levels(2)
    errors = torch.tensor([0.1, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1)
    curve = rate_distortion(lambda x, angle: Estimate(images + errors, x), images, schedule=ARC, batch_size=2)
    np.testing.assert_allclose(curve.distortion, 127.5 * 0.05**0.5, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_strata_partition_the_times_in_order(steps: int) -> None:
    for terms in {min(2, steps), (steps + 2) // 2, max(steps - 1, min(2, steps)), steps}:
        edges = strata(steps, terms)
        assert len(edges) == terms + 1
        assert (edges[0], edges[1], edges[-1]) == (1, 2, steps + 1)
        assert (np.diff(edges) >= 1).all()
    assert np.array_equal(strata(steps), np.arange(1, steps + 2))


def denoiser(name: str, table: Schedule) -> Denoiser:
    """The exact denoiser of the Gaussian data, as a network with this head."""

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        angle = table.angle(time.double() * table.steps / 1000)
        exact = WORLD(x, angle)
        c, s = (value.reshape(-1, 1, 1, 1) for value in (angle.cos(), angle.sin()))
        if name == "mean":
            before = table.angle((time.double() * table.steps / 1000).round() - 1)
            beta = 1 - angle.cos() ** 2 / before.cos() ** 2
            weight = (before.cos() * beta / angle.sin() ** 2).reshape(-1, 1, 1, 1)
            of_x = (angle.cos() / before.cos() * (before.sin() / angle.sin()) ** 2).reshape(-1, 1, 1, 1)
            return weight * exact.image + of_x * x
        outputs = {
            "noise": exact.noise,
            "noise+variance": torch.cat([exact.noise, torch.full_like(x, 0.6)], 1),
            "image": exact.image,
            "velocity": c * exact.noise - s * exact.image,
            "both": torch.cat([exact.image, exact.noise], 1),
        }
        return outputs[name]

    return Denoiser(network, table, heads.head(name, table))


@pytest.mark.parametrize("name", ["noise", "image", "velocity", "both", "mean"])
def test_heads_with_the_same_image_estimate_have_the_same_bound(name: str) -> None:
    table, images = schedule("linear", 25), levels(3)
    expected = bits_per_dim(WORLD, images, "large", schedule=table)
    made = bits_per_dim(denoiser(name, table), images, "large")
    # the network's time is float32, with a relative error of 6e-8, which is divided by beta >= 4e-3
    np.testing.assert_allclose(made.middle, expected.middle, rtol=2e-5)
    np.testing.assert_allclose(made.decoder, expected.decoder, rtol=2e-5)


def test_chain_ends_at_the_last_time_at_which_the_head_is_defined() -> None:
    images = levels(4)
    made = bits_per_dim(denoiser("noise", ARC), images)
    whole = bits_per_dim(WORLD, images, schedule=ARC)
    assert (made.steps, whole.steps) == (29, 30)
    level = float(ARC.alpha_bar[29])
    prior = kl_divergence(Normal(math.sqrt(level) * images, math.sqrt(1 - level)), Normal(0.0, 1.0)).mean((1, 2, 3))
    np.testing.assert_allclose(made.prior, prior / math.log(2), rtol=1e-9)
    np.testing.assert_allclose(made.terms.mean, whole.terms.mean[:29], rtol=1e-5)  # times in float32
    assert (whole.prior < 1e-30).all()


def test_head_undefined_at_the_image_rejects_a_finer_schedule() -> None:
    image_head = denoiser("image", ARC)
    assert np.isfinite(bits_per_dim(image_head, levels(2)).total).all()
    assert np.isfinite(bits_per_dim(image_head, levels(2), schedule=schedule("arc", 15)).total).all()
    with pytest.raises(InputError, match="excludes the first step of the schedule 'arc'"):
        bits_per_dim(image_head, levels(2), schedule=schedule("arc", 60))


def test_learned_variance_is_the_default_if_the_head_has_one() -> None:
    images = levels(3)
    learned = bits_per_dim(denoiser("noise+variance", ARC), images)
    assert learned.variance == "learned"
    small, large = (bits_per_dim(denoiser("noise+variance", ARC), images, kind) for kind in ("small", "large"))
    assert (small.variance, large.variance) == ("small", "large")
    assert bits_per_dim(denoiser("noise", ARC), images).variance == "small"
    assert len({bound.total.mean() for bound in (learned, small, large)}) == 3
    with pytest.raises(InputError, match="'learned' needs a head that learns one"):
        bits_per_dim(WORLD, images, "learned", schedule=ARC)


def test_labels_stay_with_their_images() -> None:
    images, labels = levels(5), torch.tensor([3, 1, 4, 1, 5])

    def labelled(x: Tensor, angle: Tensor, labels: Tensor | None = None) -> Estimate:
        assert labels is not None
        return Estimate(labels.reshape(-1, 1, 1, 1) * torch.ones_like(x), x)

    bound = bits_per_dim(labelled, images, schedule=schedule("arc", 4), labels=labels, batch_size=2)
    squares = ((images - labels.reshape(-1, 1, 1, 1)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(bound.error.mean, float(squares.mean()), rtol=1e-12)


def test_labels_outside_the_classes_are_an_error() -> None:
    class Labelled:
        traits = Traits(classes=2, unlabelled=False)

        def __call__(self, x: Tensor, angle: Tensor, labels: Tensor) -> Estimate:
            return Estimate(labels.reshape(-1, 1, 1, 1) * torch.ones_like(x), x)

    images, table = levels(2), schedule("arc", 4)
    with pytest.raises(InputError, match=r"trained with the labels 0\.\.1, got the label 2"):
        bits_per_dim(Labelled(), images, schedule=table, labels=[0, 2])
    listed, given = (
        bits_per_dim(Labelled(), images, schedule=table, labels=of) for of in ([0, 1], torch.tensor([0, 1]))
    )
    assert np.array_equal(listed.total.mean(), given.total.mean())


def test_memory_mapped_arrays_uint8_and_float_levels_agree_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(5, 1, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    made = [
        bits_per_dim(WORLD, images, schedule=ARC, terms=4, batch_size=2).total
        for images in (mapped, torch.from_numpy(pixels), torch.from_numpy(pixels).float() / 127.5 - 1)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


def test_merged_moments_equal_those_of_the_whole_sample() -> None:
    sample = np.random.default_rng(0).normal(size=(20, 3)) + 1000
    merged = Moments.of(sample[:1]) + Moments.of(sample[1:8]) + Moments.of(sample[8:])
    np.testing.assert_allclose(merged.mean, sample.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.standard_error, sample.std(0, ddof=1) / 20**0.5, rtol=1e-10)
    assert Moments.of(sample[:1]).describe()["standard_error"] == [None] * 3


def test_description_of_a_trained_run_is_json(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    assert denoise.shape is not None
    images = torch.randint(256, (3, *denoise.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    result = bits_per_dim(denoise, images, terms=6).describe()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["bits_per_dim"] > 0
    assert result["standard_error"] > 0
    parts = [result[name]["mean"] for name in ("prior", "middle", "decoder")]
    assert sum(parts) == pytest.approx(result["bits_per_dim"], rel=1e-12)
    assert len(result["by_time"]["mean"]) == 6
    assert json.dumps(bits_per_dim(denoise, images[:1], terms=2).describe(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.zeros(2, 3)}, r"at least 1 image, as an array of shape \(N, C, H, W\), got shape \(2, 3\)"),
        ({"images": torch.zeros(0, 1, 2, 3)}, "at least 1 image"),
        ({"images": torch.zeros(2, 1, 2, 3, dtype=torch.int64)}, "uint8, or floating point"),
        ({"images": torch.rand(2, 1, 2, 3)}, r"as uint8 or as levels k / 127.5 - 1 in \[-1, 1\]: images 0..1"),
        ({"images": torch.full((2, 1, 2, 3), 3.0)}, "have other values in 3..3"),
        (
            {"images": torch.tensor([1.0, math.nan, math.inf, -1.0]).reshape(4, 1, 1, 1)},
            "2 of images 0..3 hold NaN or infinity, first image 1",
        ),
        ({"variance": "fixed"}, r"unknown variance 'fixed' \(known: large, learned, small\)"),
        ({"schedule": None}, "has no schedule, whose steps define the bound"),
        ({"terms": 1}, r"terms must be in 2..30 for the bound of 30 steps, got 1"),
        ({"terms": 31}, r"must be in 2..30 .* got 31"),
        ({"terms": True}, r"must be in 2..30 .* got True"),
        ({"batch_size": 0}, "batch_size .* at least 1 .*, got 0"),
        ({"labels": [0, 0, 0]}, "got 2 images but 3 labels: give one per image"),
        ({"labels": 3}, r"labels are whole numbers of shape \(B,\)"),
        ({"numbers": [1]}, "got 2 images but 1 numbers"),
        ({"numbers": [0, -1]}, "whole numbers from 0, got -1"),
    ],
)
def test_invalid_arguments_raise(options: dict, message: str) -> None:
    given = {"images": levels(2), "schedule": ARC, **options}
    with pytest.raises(InputError, match=message):
        bits_per_dim(WORLD, given.pop("images"), **given)


def test_an_estimate_that_is_not_finite_raises_with_image_and_time() -> None:
    def broken(x: Tensor, angle: Tensor) -> Estimate:
        return Estimate(torch.where(angle.reshape(-1, 1, 1, 1) > 1.0, math.nan, x), x)

    # angle 1 lies between t = 19 and 20 of 30
    with pytest.raises(InputError, match="the bound of image 5 at t = 20 is not finite"):
        bits_per_dim(broken, levels(2), schedule=ARC, numbers=[5, 6], batch_size=2)


def test_adding_bounds_with_other_settings_raises() -> None:
    images = levels(2)
    bound = bits_per_dim(WORLD, images, schedule=ARC)
    with pytest.raises(InputError, match="different seed do not add: 0 and 1"):
        bound + bits_per_dim(WORLD, images, schedule=ARC, seed=1)
    with pytest.raises(InputError, match="bounds of 30 and 4 strata"):
        bound + bits_per_dim(WORLD, images, schedule=ARC, terms=4)
    with pytest.raises(InputError, match="different variance"):
        bound + bits_per_dim(WORLD, images, "large", schedule=ARC)
