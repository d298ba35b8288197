"""Denoisers: the arguments of the network, the range of angles, the traits, and the wrappers."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from quarterarc import arc
from quarterarc.arc import mix
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser, Traits, angle_range, call, traits
from quarterarc.estimate import PROJECTIONS, Estimate
from quarterarc.heads import HEADS, head
from quarterarc.schedules import SCHEDULES, schedule
from quarterarc.wrappers import Clipped, Evaluator, Guided, Projected

ARC = schedule("arc", 500)
SHAPE = (2, 3, 3)
WORLD = GaussianData(torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(SHAPE), 0.3)


def points(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Recorder:
    """A network that records its arguments and returns a constant."""

    def __init__(self, channels: int = 2) -> None:
        self.channels = channels
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        self.calls.append((x, time, labels))
        return torch.full((len(x), self.channels, *x.shape[2:]), 0.25, dtype=x.dtype)


class Convolution(nn.Module):
    """A network with weights that records the dtypes of input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1)
        self.dtypes: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        y: Tensor = self.layer(x)
        self.dtypes.append((x.dtype, y.dtype))
        return y


@pytest.mark.parametrize("t", [0, 1, 7.5, 250, 499, 500])
def test_the_network_is_called_with_the_time_of_the_angle_in_0_to_1000(t: float) -> None:
    network, x = Recorder(), points()
    denoise = Denoiser(network, ARC, head("velocity", ARC))
    labels = torch.tensor([3, 1, 2])
    denoise(x, ARC.angle(t), labels)
    first, time, passed = network.calls[0]
    assert torch.equal(first, x)
    assert time.dtype == torch.float32
    assert time.shape == ()
    assert float(time) == pytest.approx(t * 2, abs=1e-4)  # 1000 in float32
    assert passed is labels
    several = torch.tensor([0.0, ARC.angle(t), math.pi / 2], dtype=torch.float64)
    denoise(x, several)
    torch.testing.assert_close(network.calls[1][1], torch.tensor([0, t * 2, 1000.0]), rtol=1e-6, atol=1e-4)
    assert network.calls[1][2] is None


def test_time_shift_and_time_scale_follow_the_numbering_of_a_network() -> None:
    network, x = Recorder(), points()
    from_zero = Denoiser(network, schedule("linear"), head("noise", ARC), time_shift=-1.0)
    from_zero(x, schedule("linear").angle(1.0))
    from_zero(x, schedule("linear").angle(1000.0))
    from_zero(x, 0.0)  # below the first step the time is clamped at the first
    replace(from_zero, schedule=schedule("linear", 500), time_scale=1.0)(x, schedule("linear", 500).angle(500.0))
    times = [float(time) for _, time, _ in network.calls]
    assert times == pytest.approx([0.0, 999.0, 0.0, 499.0], abs=1e-3)


@pytest.mark.parametrize("name", HEADS.names())
@pytest.mark.parametrize("of", SCHEDULES)
def test_the_range_of_angles_is_that_in_which_the_head_is_defined(of: str, name: str) -> None:
    table = schedule(of, 100)
    reader = head(name, table)
    network = Recorder(reader.channels(2))
    denoise = Denoiser(network, table, reader)
    noise_head, image_head = name.startswith("noise"), name.split("+")[0] in ("image", "mean")
    expected = table.angles[99] if noise_head and of in ("arc", "jsd") else table.end
    assert denoise.largest_angle == expected
    assert denoise.smallest_angle == (table.angles[1] if image_head else 0.0)
    assert angle_range(denoise) == (denoise.smallest_angle, denoise.largest_angle)
    for angle in angle_range(denoise):
        estimate = denoise(points(), angle)
        assert estimate.image.isfinite().all()
        assert estimate.noise.isfinite().all()
    outside = [1.6, -0.01]
    if noise_head and of in ("arc", "jsd"):
        outside.append(math.pi / 2)
    if image_head:
        outside.append(table.angles[1] / 2)
    for angle in outside:
        for angles in (angle, torch.tensor([0.5, 0.5, angle], dtype=torch.float64)):
            with pytest.raises(InputError, match=re.escape(f"'{reader.name}' on the schedule '{of}' is defined")):
                denoise(points(), angles)


def test_the_error_shows_range_and_angles() -> None:
    denoise = Denoiser(Recorder(), ARC, head("velocity", ARC))
    with pytest.raises(InputError, match=r"defined at angles 0\.\.1\.5708, got 1\.6: use"):
        denoise(points(), 1.6)
    with pytest.raises(InputError, match=r"defined at angles 0\.\.1\.5708, got 0\.5\.\.1\.6: use"):
        denoise(points(), torch.tensor([0.5, 1.6, 0.7]))


def test_a_bare_function_is_defined_on_the_whole_arc() -> None:
    assert angle_range(lambda x, angle: WORLD(x, angle)) == (0.0, math.pi / 2)
    assert angle_range(WORLD) == (0.0, math.pi / 2)


def test_a_function_with_traits_declares_its_range() -> None:
    def denoise(x: Tensor, angle: arc.Angle) -> Estimate:
        return WORLD(x, angle)

    denoise.traits = Traits(smallest_angle=0.1, largest_angle=1.5)  # type: ignore[attr-defined]
    assert angle_range(denoise) == (0.1, 1.5)


@pytest.mark.parametrize("declared", [{"largest_angle": 1.5}, 3, Traits])
def test_traits_of_another_type_raise(declared: object) -> None:
    def denoise(x: Tensor, angle: arc.Angle) -> Estimate:
        return WORLD(x, angle)

    denoise.traits = declared  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"the attribute 'traits' .*: declare traits = quarterarc\.Traits"):
        traits(denoise)


def test_single_attributes_of_version_0_1_are_read_with_a_warning() -> None:
    def denoise(x: Tensor, angle: arc.Angle) -> Estimate:
        return WORLD(x, angle)

    denoise.largest_angle, denoise.classes = 1.5, 7  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match=r"largest_angle, classes .* declare traits"):
        assert traits(denoise) == Traits(largest_angle=1.5, classes=7)


def test_pi_over_2_in_float32_is_accepted() -> None:
    denoise = Denoiser(Recorder(), ARC, head("velocity", ARC))
    assert denoise(points(), torch.full((3,), math.pi / 2)).image.isfinite().all()


def test_the_network_computes_in_its_dtype_and_the_estimate_has_the_dtype_of_x() -> None:
    network = Convolution()
    denoise = Denoiser(network, ARC, head("velocity", ARC))
    estimate = denoise(points(), 0.5)
    assert network.dtypes[-1] == (torch.float32, torch.float32)
    assert estimate.image.dtype == estimate.noise.dtype == torch.float64
    cast = replace(denoise, precision=torch.bfloat16)(points().float(), 0.5)
    assert network.dtypes[-1] == (torch.float32, torch.bfloat16)
    assert cast.image.dtype == torch.float32
    torch.testing.assert_close(cast.image.double(), estimate.image, rtol=0, atol=0.1)  # 8 bits of each product
    network.double()
    denoise(points().float(), 0.5)
    assert network.dtypes[-1][0] == torch.float64
    assert denoise.to("cpu").device == torch.device("cpu")


def test_a_network_without_weights_computes_in_the_dtype_of_x() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            return torch.zeros_like(x)

    for network in (Zero(), lambda x, time, labels: torch.zeros_like(x)):
        denoise = Denoiser(network, ARC, head("velocity", ARC))
        assert denoise(points(), 0.5).image.dtype == torch.float64
        assert denoise.to("cpu").device == torch.device("cpu")


def exact(name: str) -> Denoiser:
    """The exact denoiser of Gaussian data as a network of a head."""

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        angle = ARC.angle(time.double() / 2)
        estimate = WORLD(x, angle)
        return {
            "noise": estimate.noise,
            "image": estimate.image,
            "velocity": estimate.velocity(angle),
            "both": torch.cat([estimate.image, estimate.noise], 1),
        }[name]

    return Denoiser(network, ARC, head(name, ARC), shape=SHAPE, classes=7)


@pytest.mark.parametrize("name", ["noise", "image", "velocity", "both"])
def test_all_heads_give_the_same_exact_estimate(name: str) -> None:
    x, angles = points(), torch.tensor(ARC.angle([1.0, 150.0, 499.0]))
    by_head, expected = exact(name)(x, angles), WORLD(x, angles)
    # times are passed in float32: 1000 is accurate to 6e-5, an angle to 1e-7, and the outer angles divide by 0.003
    torch.testing.assert_close(by_head.image, expected.image, rtol=0, atol=1e-4)
    torch.testing.assert_close(by_head.noise, expected.noise, rtol=0, atol=1e-4)


def wild(x: Tensor, angle: arc.Angle) -> Estimate:
    """Estimates outside [-1, 1] that do not agree on x."""
    return Estimate(3 * x, x.flip(0), variance_fraction=torch.ones_like(x))


def test_clipping_with_rederive_agrees_on_x() -> None:
    x = points()
    for angle in (0.2, 1.3, torch.tensor([0.2, 0.7, 1.3], dtype=torch.float64)):
        estimate = Clipped(wild)(x, angle)
        torch.testing.assert_close(estimate.image, (3 * x).clamp(-1, 1), rtol=0, atol=0)
        assert estimate.residual(x, angle).abs().max() < 1e-14
        torch.testing.assert_close(estimate.variance_fraction, torch.ones_like(x))


def test_clipping_without_rederive_keeps_the_noise() -> None:
    x = points()
    estimate = Clipped(wild, low=-0.5, high=0.25, rederive=False)(x, 0.7)
    torch.testing.assert_close(estimate.image, (3 * x).clamp(-0.5, 0.25), rtol=0, atol=0)
    torch.testing.assert_close(estimate.noise, x.flip(0), rtol=0, atol=0)


def test_clipping_within_the_range_changes_nothing() -> None:
    x = points() / 10
    estimate, clipped = WORLD(x, 0.5), Clipped(WORLD, low=-9, high=9)(x, 0.5)
    torch.testing.assert_close(clipped.image, estimate.image, rtol=0, atol=0)
    torch.testing.assert_close(clipped.noise, estimate.noise, rtol=0, atol=1e-14)


def test_clipping_at_angle_0_keeps_the_noise_estimate() -> None:
    x = 3 * points()
    for angle in (0.0, torch.tensor([0.0, 0.7, 0.0], dtype=torch.float64)):
        estimate = Clipped(wild)(x, angle)
        assert estimate.noise.isfinite().all()
        torch.testing.assert_close(estimate.noise[0], x.flip(0)[0], rtol=0, atol=0)


def labelled(x: Tensor, angle: arc.Angle, labels: Tensor | None = None) -> Estimate:
    """Estimates that depend on x, angle and label."""
    assert labels is not None
    own = labels.to(x).reshape(-1, 1, 1, 1) + 1
    c, s = (arc.spread(torch.as_tensor(part), x) for part in arc.cos_sin(angle, x[:, :1, :1, :1].flatten()))
    c, s = (part.reshape(-1, 1, 1, 1) for part in (c, s))
    return Estimate(own * c * x, own**2 * s * x, variance_fraction=own.expand_as(x))


labelled.traits = Traits(classes=7)  # type: ignore[attr-defined]


@pytest.mark.parametrize("angle", [0.6, torch.tensor(0.6), torch.tensor([0.6]), torch.tensor([0.2, 0.6, 1.2])])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_from_unconditional_to_conditional(angle: float | Tensor, scale: float) -> None:
    x, labels = points(), torch.tensor([0, 3, 5])
    angle = angle.double() if isinstance(angle, Tensor) else angle
    conditional, unconditional = labelled(x, angle, labels), labelled(x, angle, torch.full((3,), 7))
    estimate = Guided(labelled, scale)(x, angle, labels)
    for name in ("image", "noise"):
        with_label, without = getattr(conditional, name), getattr(unconditional, name)
        expected = without + scale * (with_label - without)
        torch.testing.assert_close(getattr(estimate, name), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(estimate.variance_fraction, conditional.variance_fraction)


def test_guidance_without_labels_or_classes_raises() -> None:
    x = points()
    for guided, labels in ((Guided(labelled), None), (Guided(WORLD), torch.zeros(3).long())):
        with pytest.raises(InputError, match="guidance needs labels and a denoiser that was trained with classes"):
            guided(x, 0.5, labels)


def test_a_network_trained_with_all_labels_raises_without_labels() -> None:
    # its embedding of "no label" was never trained
    x, labels = points(), torch.tensor([0, 3, 5])
    always = Denoiser(Recorder(), ARC, head("noise", ARC), classes=7, unlabelled=False)
    always(x, 0.5, labels)
    with pytest.raises(InputError, match=r"one of the labels 0\.\.6 for every image: give labels"):
        always(x, 0.5)
    with pytest.raises(InputError, match=r"trained with dropped labels \(training.drop_labels\)"):
        Guided(always)
    with pytest.raises(InputError, match="the guidance scale is a finite number, got nan"):
        Guided(WORLD, float("nan"))
    sometimes = Denoiser(Recorder(), ARC, head("noise", ARC), classes=7)
    sometimes(x, 0.5)
    Guided(sometimes)(x, 0.5, labels)


@pytest.mark.parametrize(
    ("wrap", "cost"),
    [
        (lambda inner: inner, 1),
        (Clipped, 1),
        (Guided, 2),
        (lambda inner: Clipped(Guided(inner)), 2),
        (lambda inner: Guided(Clipped(inner)), 2),
    ],
)
def test_nfe_counts_the_evaluations_of_the_network(wrap: Callable, cost: int) -> None:
    counted = Evaluator(wrap(exact("velocity")))
    for _ in range(3):
        counted(points(), 0.5, torch.zeros(3).long())
    assert counted.nfe == 3 * cost


def test_wrappers_have_the_traits_of_the_inner_denoiser() -> None:
    inner = exact("noise")
    for wrapped in (Clipped(inner), Guided(inner), Evaluator(inner), Evaluator(Clipped(Guided(inner)))):
        assert angle_range(wrapped) == angle_range(inner)
        declared = traits(wrapped)
        assert declared.schedule is ARC
        assert declared.shape == SHAPE
        assert declared.classes == 7


def test_wrappers_can_be_copied_and_pickled() -> None:
    # both create the object before its attributes, when there is no inner denoiser yet
    x = points()
    for wrapped in (Clipped(WORLD), Evaluator(Clipped(WORLD))):
        for duplicate in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
            torch.testing.assert_close(duplicate(x, 0.5).image, wrapped(x, 0.5).image, rtol=0, atol=0)


def test_labels_are_passed_only_if_there_are_any() -> None:
    x = points()
    torch.testing.assert_close(call(wild, x, 0.5, None).image, 3 * x)
    assert call(labelled, x, 0.5, torch.zeros(3).long()).image.shape == x.shape


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1, math.pi / 2])
def test_projected_estimates_agree_on_x(angle: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image, noise, x, image_hat, noise_hat = torch.randn(5, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    x = mix(image, noise, angle)  # the true image and noise agree on x, the estimates do not
    estimate = Estimate(image_hat, noise_hat)
    for keep in PROJECTIONS:
        projected = estimate.projected(x, angle, keep)
        undefined = (keep == "image" and angle == 0.0) or (keep == "noise" and angle == math.pi / 2)
        if not undefined:
            torch.testing.assert_close(projected.residual(x, angle), torch.zeros_like(x), rtol=0, atol=1e-14)
        assert projected.image.isfinite().all()
        assert projected.noise.isfinite().all()
    nearest = estimate.projected(x, angle)
    torch.testing.assert_close(nearest.velocity(angle), estimate.velocity(angle), rtol=0, atol=1e-14)
    assert torch.equal(estimate.projected(x, angle, "image").image, image_hat)
    assert torch.equal(estimate.projected(x, angle, "noise").noise, noise_hat)

    def error(estimate: Estimate) -> Tensor:
        return (estimate.image - image).square() + (estimate.noise - noise).square()

    # Pythagoras: the squared error falls by the squared residual, per pixel
    decrease = error(estimate) - error(nearest)
    torch.testing.assert_close(decrease, estimate.residual(x, angle).square(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", [0.1, 0.8, 1.5])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_moved_estimates_have_the_same_residual(angle: float, share: float) -> None:
    x, by, image, noise = torch.randn(4, 2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = Estimate(image, noise)
    after = before.moved(by, angle, share)
    torch.testing.assert_close(after.residual(x + by, angle), before.residual(x, angle), rtol=0, atol=1e-12)
    if share == 0.0:
        assert torch.equal(after.image, image)
    if share == 1.0:
        assert torch.equal(after.noise, noise)


@pytest.mark.parametrize("angle", [0.1, 0.8, 1.5])
def test_moved_is_exact_for_gaussian_data(angle: float) -> None:
    deviation = 0.6
    world = GaussianData(torch.full((1, 2, 2), 0.3, dtype=torch.float64), deviation**2)
    x, by = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = world(x, angle).moved(by, angle, deviation**2 / (deviation**2 + math.tan(angle) ** 2))
    exact = world(x + by, angle)
    torch.testing.assert_close(moved.image, exact.image, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.noise, exact.noise, rtol=0, atol=1e-12)


def test_a_denoiser_projects_the_estimates_of_heads_that_may_disagree() -> None:
    generator = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 1, 2, 2, generator=generator), torch.randn(2, 2, 2, 2, generator=generator)
    table = schedule("arc", 10)
    for name in ("both", "velocity", "gated"):
        channels = torch.cat([output, output[:, :1]], 1)[:, : head(name, table).channels(1)]
        plain = Denoiser(lambda x, time, labels, channels=channels: channels, table, head(name, table))
        projected = replace(plain, projection="velocity")
        if name == "both":
            torch.testing.assert_close(projected(x, 0.7).image, plain(x, 0.7).projected(x, 0.7).image)
            assert not torch.equal(projected(x, 0.7).image, plain(x, 0.7).image)
            torch.testing.assert_close(Projected(plain)(x, 0.7).noise, projected(x, 0.7).noise)
        else:
            assert torch.equal(projected(x, 0.7).image, plain(x, 0.7).image)
    with pytest.raises(InputError, match="unknown projection 'both'"):
        plain(x, 0.7).projected(x, 0.7, "both")
