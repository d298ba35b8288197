"""Heads: the output of a perfect network is read as exactly the true image and noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.estimate import Estimate
from quarterarc.heads import HEADS, Both, Gated, Head, Image, LearnedVariance, Mean, Noise, head
from quarterarc.schedules import Schedule, schedule

SCHEDULE = schedule("arc", 50)
PLAIN = list(HEADS)
ANGLES = [SCHEDULE.angle(1.0), 0.3, math.pi / 4, 1.3, SCHEDULE.angle(49.0)]
ENDS = {"image": 0.0, "noise": math.pi / 2}


def data(dtype: torch.dtype = torch.float64, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image, noise = torch.randn(2, count, 2, 3, 4, generator=generator, dtype=torch.float64)
    return image.to(dtype), noise.to(dtype)


def posterior_mean(image: Tensor, x: Tensor, t: int, table: Schedule) -> Tensor:
    """Ho et al. 2020, Eq. 7, in the paper's notation."""
    alpha_bar, before, beta = float(table.alpha_bar[t]), float(table.alpha_bar[t - 1]), float(table.beta[t])
    alpha = alpha_bar / before  # not 1 - beta, which rounds where beta is close to 1
    return math.sqrt(before) * beta / (1 - alpha_bar) * image + math.sqrt(alpha) * (1 - before) / (1 - alpha_bar) * x


def oracle(name: str, image: Tensor, noise: Tensor, angle: float, gate: float = 0.7) -> Tensor:
    """The output of a perfect network for a head."""
    gates = torch.full_like(image[:, :1], gate)
    if name == "mean":
        a = SCHEDULE.angle(SCHEDULE.time(angle) - 1.0)
        # an independent route: the mean of a Gaussian x_a = cos a image + sin a z given x_b = ratio x_a + ...
        ratio, prior = math.cos(angle) / math.cos(a), math.sin(a) ** 2
        gain = ratio * prior / (ratio**2 * prior + 1 - ratio**2)
        return math.cos(a) * image + gain * (arc.mix(image, noise, angle) - math.cos(angle) * image)
    return {
        "noise": noise,
        "image": image,
        "velocity": math.cos(angle) * noise - math.sin(angle) * image,
        "both": torch.cat([image, noise], 1),
        "gated": torch.cat([image, noise, gates], 1),
    }[name]


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("name", PLAIN)
def test_a_perfect_output_is_read_as_image_and_noise(name: str, angle: float) -> None:
    image, noise = data()
    x = arc.mix(image, noise, angle)
    estimate = head(name, SCHEDULE).read(oracle(name, image, noise, angle), x, angle)
    # rounding is divided by the smaller of sine and cosine, 0.03 at the outer angles, and for `mean` by the weight of
    # the image, at least the square of that
    tolerance = 1e-12
    torch.testing.assert_close(estimate.image, image, rtol=0, atol=tolerance)
    torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=tolerance)
    assert estimate.variance_fraction is None


@pytest.mark.parametrize("t", [1, 2, 25, 49, 50])
@pytest.mark.parametrize("of", ["arc", "linear", "cosine"])
def test_head_mean_inverts_the_posterior_mean_of_its_schedule(of: str, t: int) -> None:
    table = schedule(of, 50)
    image, noise = data()
    angle = table.angle(float(t))
    x = arc.mix(image, noise, angle)
    estimate = head("mean", table).read(posterior_mean(image, x, t, table), x, angle)
    torch.testing.assert_close(estimate.image, image, rtol=0, atol=1e-9)  # (1 - alpha_bar) cancels in the expected mean
    assert estimate.residual(x, angle).abs().max() < 1e-9


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "both"])
def test_heads_of_one_estimate_agree_on_x_for_every_output(name: str) -> None:
    image, noise = data()
    reader, generator = head(name, SCHEDULE), torch.Generator().manual_seed(0)
    for angle in ANGLES:
        output = torch.randn(3, reader.channels(2), 3, 4, generator=generator, dtype=torch.float64)
        x = arc.mix(image, noise, angle)
        residual = reader.read(output, x, angle).residual(x, angle)
        assert residual.abs().max() < 1e-12  # x - x after a division by no less than 0.03


def test_head_both_returns_both_outputs_and_their_residual() -> None:
    image, noise = data()
    x = arc.mix(image, noise, 0.8)
    estimate = Both().read(torch.cat([image + 0.1, noise], 1), x, 0.8)
    torch.testing.assert_close(estimate.image, image + 0.1, rtol=0, atol=0)
    torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=0)
    expected = torch.full_like(x, -0.1 * math.cos(0.8))
    torch.testing.assert_close(estimate.residual(x, 0.8), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_estimates_at_the_ends_are_exact_where_the_head_is_defined(name: str, end: str, dtype: torch.dtype) -> None:
    reader = head(name, SCHEDULE)
    if not (reader.at_image if end == "image" else reader.at_noise):
        return
    image, noise = data(dtype)
    # a few roundings of numbers up to 3; the weight of the image in the mean of the last step is only 0.03
    angle, rounding = ENDS[end], (1000 if name == "mean" else 30) * torch.finfo(dtype).eps
    x = arc.mix(image, noise, angle)
    for angles in (angle, torch.full((3,), angle, dtype=torch.float64)):
        estimate = reader.read(oracle(name, image, noise, angle), x, angles)
        assert estimate.image.dtype == dtype
        torch.testing.assert_close(estimate.image, image, rtol=0, atol=rounding)
        torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=rounding)


def test_noise_is_undefined_at_noise_and_image_and_mean_at_the_image() -> None:
    heads = {name: head(name, SCHEDULE) for name in HEADS.names()}
    assert {name for name, reader in heads.items() if not reader.at_noise} == extended("noise")
    undefined = extended("image", "mean")
    assert {name for name, reader in heads.items() if not reader.at_image} == undefined
    assert {name for name, reader in heads.items() if not reader.agrees} == extended("both")


def extended(*names: str) -> set[str]:
    return {name + suffix for name in names for suffix in ("", "+variance", "+log-variance", "+tangent")}


@pytest.mark.parametrize("plain", list(HEADS))
def test_jump_and_tangent_are_read_by_the_same_head(plain: str) -> None:
    reader, inner = head(plain + "+tangent", SCHEDULE), head(plain, SCHEDULE)
    image, noise = data()
    x = arc.mix(image, noise, 0.8)
    jump, tangent = oracle(plain, image, noise, 0.8), oracle(plain, noise, image, 0.8)
    estimate = reader.read(torch.cat([jump, tangent], 1), x, 0.8)
    assert torch.equal(estimate.image, inner.read(jump, x, 0.8).image)
    assert estimate.tangent is not None
    assert torch.equal(estimate.tangent.noise, inner.read(tangent, x, 0.8).noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", [-1e4, -20.0, 20.0, 1e4])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.8, math.pi / 2 - 1e-3, math.pi / 2 - 1e-6, math.pi / 2])
def test_saturated_gates_and_their_gradients_are_finite(angle: float, gate: float, dtype: torch.dtype) -> None:
    image, noise = data(dtype)
    x = arc.mix(image, noise, angle)
    output = oracle("gated", image, noise, angle, gate).requires_grad_()
    estimate = Gated().read(output, x, angle)
    # the smaller of p and q is 3e-7: rounding in one estimate is multiplied by at most 1/3e-7 / (2 angle), and by its
    # own factor of the angle: errors are near the square root of 3e6 roundings
    tolerance = 3e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(estimate.image, image, rtol=0, atol=tolerance)
    torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=tolerance)
    (estimate.image**2 + estimate.noise**2).sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_gate_0_gives_the_velocity_of_head_both() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 4, 3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    gated = torch.cat([output, torch.zeros_like(x[:, :1])], 1)
    for angle in (0.0, *ANGLES, math.pi / 2):
        expected = Both().read(output, x, angle).velocity(angle)
        torch.testing.assert_close(Gated().read(gated, x, angle).velocity(angle), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gate", [-3.0, 0.0, 1.5])
def test_a_gate_weighs_the_velocities_of_both_estimates(gate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 4, 3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    gated = torch.cat([output, torch.full_like(x[:, :1], gate)], 1)
    for angle in ANGLES:
        by_image = Image().read(output[:, :2], x, angle).velocity(angle)
        by_noise = Noise().read(output[:, 2:], x, angle).velocity(angle)
        weight = math.sin(angle) ** 2 / (math.sin(angle) ** 2 + math.exp(-gate) * math.cos(angle) ** 2)
        expected = weight * by_image + (1 - weight) * by_noise
        torch.testing.assert_close(Gated().read(gated, x, angle).velocity(angle), expected, rtol=0, atol=1e-12)


def test_velocity_of_head_both_weighs_the_velocities_by_sin2_and_cos2() -> None:
    # v_hat = sin^2 (velocity of the image estimate alone) + cos^2 (velocity of the noise estimate alone)
    generator = torch.Generator().manual_seed(0)
    image, noise, x = torch.randn(3, 3, 2, 3, 4, generator=generator, dtype=torch.float64)
    for angle in ANGLES:
        by_image = Image().read(image, x, angle).velocity(angle)
        by_noise = Noise().read(noise, x, angle).velocity(angle)
        expected = math.sin(angle) ** 2 * by_image + math.cos(angle) ** 2 * by_noise
        torch.testing.assert_close(Estimate(image, noise).velocity(angle), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS.names())
def test_number_of_channels_and_learned_variance(name: str) -> None:
    plain, _, learned = name.partition("+")
    reader = head(name, SCHEDULE)
    assert reader.name == name
    plain_channels = {"both": 6, "gated": 7}.get(plain, 3)
    if learned == "tangent":
        assert reader.channels(3) == 2 * plain_channels
        return
    assert reader.channels(3) == plain_channels + (3 if learned else 0)
    if not learned:
        return
    assert isinstance(reader, LearnedVariance)
    image, noise = data()
    x = arc.mix(image, noise, 0.8)
    variance = torch.rand(x.shape, dtype=torch.float64) * 2 - 1
    estimate = reader.read(torch.cat([oracle(plain, image, noise, 0.8), variance], 1), x, 0.8)
    torch.testing.assert_close(estimate.image, image, rtol=0, atol=1e-12)
    torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=1e-12)
    if learned == "log-variance":  # the output itself
        assert estimate.variance_fraction is None
        assert estimate.log_variance is not None
        assert torch.equal(estimate.log_variance, variance)
        return
    assert estimate.log_variance is None
    assert estimate.variance_fraction is not None
    # output -1 is fraction 0, the posterior variance; output 1 is fraction 1, beta
    torch.testing.assert_close(estimate.variance_fraction * 2 - 1, variance, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", HEADS.names())
def test_one_angle_per_image_equals_image_by_image(name: str) -> None:
    reader = head(name, SCHEDULE)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, reader.channels(2), 3, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    angles = torch.tensor(SCHEDULE.angle([1.0, 7.5, 30.0, 49.0]))
    together = reader.read(output, x, angles)
    for k in range(4):
        alone = reader.read(output[k : k + 1], x[k : k + 1], float(angles[k]))
        for batched, single in ((together.image, alone.image), (together.noise, alone.noise)):
            torch.testing.assert_close(batched[k : k + 1], single, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS.names())
def test_gradients_are_finite_and_estimates_have_the_dtype_of_x(name: str, dtype: torch.dtype) -> None:
    reader = head(name, SCHEDULE)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 3, 3, generator=generator).to(dtype)
    output = torch.randn(4, reader.channels(2), 3, 3, generator=generator).to(dtype).requires_grad_()
    estimate = reader.read(output, x, torch.tensor(SCHEDULE.angle([1.0, 7.5, 30.0, 49.0])))
    assert estimate.image.dtype == estimate.noise.dtype == dtype
    total = (estimate.image**2 + estimate.noise**2).sum()
    further = [estimate.variance_fraction, estimate.log_variance]
    if estimate.tangent is not None:
        further += [estimate.tangent.image, estimate.tangent.noise]
    for values in further:
        if values is not None:
            total = total + (values**2).sum()
    total.backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert (output.grad != 0).any(dim=(0, 2, 3)).all()  # every channel is used


@pytest.mark.parametrize("name", HEADS.names())
def test_images_may_be_on_another_device_than_angles(name: str) -> None:
    # "meta" holds no numbers, but raises for tensors of two devices as an accelerator does
    reader = head(name, SCHEDULE)
    x, output = torch.empty(3, 2, 4, 4, device="meta"), torch.empty(3, reader.channels(2), 4, 4, device="meta")
    for angle in (0.7, torch.tensor(0.7), torch.tensor([0.1, 0.7, 1.3])):
        estimate = reader.read(output, x, angle)
        assert estimate.image.device.type == estimate.noise.device.type == "meta"
        assert estimate.residual(x, angle).dtype == torch.float32


def test_head_mean_steps_to_the_previous_training_step() -> None:
    mean = Mean(SCHEDULE)
    assert float(mean.before(SCHEDULE.angle(7.0))) == pytest.approx(SCHEDULE.angle(6.0), abs=1e-15)
    assert float(mean.before(SCHEDULE.angle(7.5))) == pytest.approx(SCHEDULE.angle(6.5), abs=1e-15)
    assert float(mean.before(SCHEDULE.angle(0.5))) == 0.0


def test_unknown_names_raise_with_all_known_names() -> None:
    for name in ("nose", "noise+varience", "+variance"):
        with pytest.raises(InputError, match="unknown head") as caught:
            head(name, SCHEDULE)
        assert "gated+variance" in str(caught.value)
        assert "gated+log-variance" in str(caught.value)


@pytest.mark.parametrize("name", HEADS.names())
def test_a_network_with_another_number_of_channels_raises(name: str) -> None:
    reader: Head = head(name, SCHEDULE)
    channels = reader.channels(2) + 1

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return x.new_zeros(len(x), channels, *x.shape[2:])

    with pytest.raises(
        InputError, match=f"reads {channels - 1} channels for images of 2, the network has {channels} output channels"
    ):
        Denoiser(network, SCHEDULE, reader)(torch.zeros(1, 2, 3, 3), 0.5)


class Sigma(Head):
    """A head as another package writes it: the network estimates x/cos - image = tan(angle) noise."""

    at_noise = False
    agrees = True

    def read(self, output: Tensor, x: Tensor, angle: arc.Angle) -> Estimate:
        c, s = arc.cos_sin(angle, x)
        return Estimate(x / c - output, output * c / s)


def of_schedule(schedule: Schedule) -> Head:
    return Mean(schedule)


def test_an_import_path_is_a_head_and_its_name() -> None:
    path = f"{__name__}:Sigma"
    reader = head(path, SCHEDULE)
    assert (reader.name, reader.objective, reader.channels(3)) == (path, "both", 3)
    assert reader.schedule is SCHEDULE
    image, noise = data()
    estimate = reader.read(math.tan(0.8) * noise, arc.mix(image, noise, 0.8), 0.8)
    torch.testing.assert_close(estimate.image, image, rtol=0, atol=1e-14)
    torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=1e-14)


def test_a_function_of_the_schedule_is_a_head() -> None:
    reader = head(f"{__name__}:of_schedule", SCHEDULE)
    assert isinstance(reader, Mean)
    assert reader.name == f"{__name__}:of_schedule"
    assert Mean(SCHEDULE).name == "mean"


def test_the_suffix_variance_applies_to_imported_and_registered_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADS, "_entries", dict(HEADS))
    HEADS.register("sigma")(Sigma)
    for name in ("sigma", f"{__name__}:Sigma"):
        reader = head(f"{name}+variance", SCHEDULE)
        assert isinstance(reader, LearnedVariance)
        assert (reader.name, reader.inner.name, reader.channels(3)) == (f"{name}+variance", name, 6)
        assert (reader.at_noise, reader.at_image, reader.agrees) == (False, True, True)
        HEADS.require(f"{name}+variance")
        assert HEADS.lookup(f"{name}+variance")(SCHEDULE).channels(3) == 6


class WithoutRead(Head):
    at_noise = False


class NoHead:
    def __init__(self, schedule: Schedule) -> None: ...


class WithoutSchedule(Noise):
    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("WithoutRead", "does not implement read"),
        ("NoHead", "is not a Head: derive it from quarterarc.heads.Head"),
        ("WithoutSchedule", "cannot be built from a schedule"),
        ("SCHEDULE", "is a Schedule: a class or function is expected"),
        ("nothing", "cannot import the head"),
    ],
)
def test_an_unusable_import_path_raises(entry: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        head(f"{__name__}:{entry}", SCHEDULE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("subprocess:Popen", "standard library"),
        ("os:system", "is a builtin_function_or_method"),
        (f"{__name__}:Tensor", "is defined in another package: write torch:Tensor"),
    ],
)
def test_an_import_path_of_other_code_is_no_head(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        head(path, SCHEDULE)
    assert "\n" not in str(raised.value)
