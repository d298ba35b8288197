"""Adapters for models of other families: the same data in every convention gives the same estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import quarterarc as qa
from quarterarc import Estimate, GaussianData, InputError, MixtureData
from quarterarc.arc import NOISE_END
from quarterarc.heads import Head, Image, Noise, Velocity
from quarterarc.interop import EDM, FlowMatching, ScoreVE, ScoreVP, TrigFlow
from quarterarc.samplers import EULER, FORMS, HEUN, MIDPOINT, RK4, Gradient, Tableau
from quarterarc.sampling.mean_images import mean_image
from quarterarc.schedules import Schedule

Adapter = EDM | ScoreVE | ScoreVP | FlowMatching | TrigFlow
SHAPE = (2, 3, 3)
ROUNDING = 1e-12  # float64, numbers of order one


@pytest.fixture(scope="module")
def world() -> GaussianData:
    torch.manual_seed(0)
    root = torch.randn(18, 18, dtype=torch.float64) / 6
    # variances of at least 0.05: a singular covariance amplifies rounding by 1/sin^2 near the image
    covariance = root @ root.T + 0.05 * torch.eye(18, dtype=torch.float64)
    return qa.GaussianData(torch.randn(SHAPE, dtype=torch.float64) / 2, covariance)


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, *SHAPE, dtype=torch.float64)


def moments(world: GaussianData, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p image + q noise, independent of the arc: shapes (B, D) and (B, D, D)."""
    p, q = p[:, None], q[:, None]
    eye = torch.eye(18, dtype=torch.float64)
    return p * world.mean.flatten(), p[..., None] ** 2 * world.covariance + q[..., None] ** 2 * eye


def score(world: GaussianData, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """grad log N(x; moments), shape of x."""
    mean, covariance = moments(world, p, q)
    return -torch.linalg.solve(covariance, x.flatten(1) - mean).reshape(x.shape)


def denoised(world: GaussianData, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """E[image | x] by regression: m + p S (p^2 S + q^2)^-1 (x - p m)."""
    gain = p[:, None] * (-score(world, x, p, q).flatten(1) @ world.covariance)
    return world.mean + gain.reshape(x.shape)


def noise_of(world: GaussianData, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return -q[:, None, None, None] * score(world, x, p, q)


def velocity_field(world: GaussianData, x: Tensor, t: Tensor) -> Tensor:
    return noise_of(world, x, 1 - t, t) - denoised(world, x, 1 - t, t)


def adapters(world: GaussianData, d: float = 0.7) -> dict[str, Adapter]:
    one = torch.ones_like
    return {
        "edm": EDM(lambda x, sigma: denoised(world, x, one(sigma), sigma)),
        "score-ve": ScoreVE(lambda x, sigma: score(world, x, one(sigma), sigma)),
        "score-vp": ScoreVP(lambda x, a: score(world, x, a.sqrt(), (1 - a).sqrt())),
        "flow": FlowMatching(lambda x, t: velocity_field(world, x, t)),
        "flow-reversed": FlowMatching(lambda x, t: -velocity_field(world, x, 1 - t), noise_at=0),
        "trigflow": TrigFlow(
            lambda y, t: (
                (
                    -t.sin()[:, None, None, None] * denoised(world, d * y, t.cos(), d * t.sin())
                    + d * t.cos()[:, None, None, None] * noise_of(world, d * y, t.cos(), d * t.sin())
                )
                / d
            ),
            sigma_data=d,
        ),
    }


NAMES = ["edm", "score-ve", "score-vp", "flow", "flow-reversed", "trigflow"]


def gap(one: Estimate, other: Estimate) -> float:
    return max(float((one.image - other.image).abs().max()), float((one.noise - other.noise).abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("angle", [0.02, 0.3, math.pi / 4, 1.2, 1.55])
def test_every_convention_gives_the_exact_estimate(world: GaussianData, x: Tensor, name: str, angle: float) -> None:
    assert gap(adapters(world)[name](x, angle), world(x, angle)) < ROUNDING


@pytest.mark.parametrize("name", NAMES)
def test_one_angle_per_image_is_passed_as_one_level_per_image(world: GaussianData, x: Tensor, name: str) -> None:
    angles = torch.tensor([0.1, 0.5, 1.0, 1.5], dtype=torch.float64)
    assert gap(adapters(world)[name](x, angles), world(x, angles)) < ROUNDING


@pytest.mark.parametrize("head", [Noise(), Image(), Velocity()])
def test_a_network_of_step_numbers_is_a_denoiser(world: GaussianData, x: Tensor, head: Head) -> None:
    # noise, image or velocity by index 0..T-1 of a beta table, as in diffusers
    beta = np.linspace(1e-3, 0.05, 200)
    alpha_bar = torch.tensor(np.cumprod(1 - beta))

    def network(x: Tensor, index: Tensor, labels: Tensor | None) -> Tensor:
        assert float(index) == round(float(index)), "evaluated between the steps"
        a = alpha_bar[int(index)].expand(len(x))
        p, q = a.sqrt(), (1 - a).sqrt()
        image, noise = denoised(world, x, p, q), noise_of(world, x, p, q)
        p, q = p[:, None, None, None], q[:, None, None, None]
        return {"noise": noise, "image": image, "velocity": p * noise - q * image}[head.name]

    schedule = Schedule.from_beta(beta)
    denoise = qa.Denoiser(network, schedule, head, time_shift=-1.0, time_scale=1.0)
    for t in (1, 2, 57, 200):
        assert gap(denoise(x, schedule.angle(float(t))), world(x, schedule.angle(float(t)))) < ROUNDING


@pytest.mark.parametrize("name", ["flow", "flow-reversed", "trigflow"])
@pytest.mark.parametrize("angle", [0.0, NOISE_END])
def test_velocity_fields_are_exact_at_both_ends(world: GaussianData, x: Tensor, name: str, angle: float) -> None:
    denoise = adapters(world)[name]
    assert qa.denoiser.angle_range(denoise) == (0.0, NOISE_END)
    assert gap(denoise(x, angle), world(x, angle)) < ROUNDING


@pytest.mark.parametrize("name", ["edm", "score-ve", "score-vp"])
def test_below_the_smallest_level_the_noise_is_constant_and_the_image_tends_to_x(
    world: GaussianData, x: Tensor, name: str
) -> None:
    denoise = adapters(world)[name]
    assert torch.equal(denoise(x, 0.0).image, x)
    # the noise estimate of the smallest level, and agreement with x at every angle below it
    for angle in (0.0, 0.0005, 0.001):
        estimate = denoise(x, angle)
        assert torch.isfinite(estimate.noise).all()
        assert estimate.residual(x, angle).abs().max() < ROUNDING


@pytest.mark.parametrize("name", ["edm", "score-ve", "score-vp"])
def test_angles_of_infinite_sigma_raise(world: GaussianData, x: Tensor, name: str) -> None:
    denoise = adapters(world)[name]
    assert 1.5 < denoise.largest_angle < NOISE_END
    denoise(x, denoise.largest_angle)
    with pytest.raises(InputError, match="is defined at angles"):
        denoise(x, NOISE_END)
    # the default grid starts at the largest angle of the model
    assert qa.sample(denoise, x, "rotation", steps=3).angles[0] == denoise.largest_angle


def test_the_model_is_called_with_one_level_per_image_in_the_dtype_of_x(x: Tensor) -> None:
    calls = []

    def model(x: Tensor, level: Tensor) -> Tensor:
        calls.append((x.dtype, level.dtype, tuple(level.shape), float(level[0])))
        return torch.zeros_like(x)

    half = x.float()
    for adapter, level in (
        (EDM(model), math.tan(0.5)),
        (ScoreVE(model), math.tan(0.5)),
        (ScoreVP(model), math.cos(0.5) ** 2),
        (FlowMatching(model), math.tan(0.5) / (1 + math.tan(0.5))),
        (FlowMatching(model, noise_at=0), 1 / (1 + math.tan(0.5))),
        (TrigFlow(model, sigma_data=0.5), math.atan(2 * math.tan(0.5))),
    ):
        estimate = adapter(half, 0.5)
        assert estimate.image.dtype == estimate.noise.dtype == torch.float32
        x_dtype, dtype, shape, value = calls.pop()
        assert (x_dtype, dtype, shape) == (torch.float32, torch.float32, (4,))
        assert value == pytest.approx(level, rel=1e-6)  # float32


def test_a_network_is_called_in_its_own_dtype(x: Tensor) -> None:
    network = torch.nn.Conv2d(2, 2, 1)  # float32

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == t.dtype == torch.float32
            return self.inner(x)

    assert FlowMatching(Model())(x, 0.4).image.dtype == torch.float64


def rows_of_classes(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """A velocity by an embedding with one row per class, and none for "no label"."""
    return x - torch.linspace(-1, 1, 3, dtype=x.dtype)[labels].reshape(-1, 1, 1, 1)


def test_a_model_without_the_label_no_label_is_tuned(caplog: pytest.LogCaptureFixture) -> None:
    declared = FlowMatching(rows_of_classes, shape=(1, 2, 2), classes=3, unlabelled=False)
    assert qa.tune(declared, 2, images=8, progress=False).steps == 2
    with pytest.raises(InputError, match="needs a denoiser that was trained with dropped labels"):
        qa.Guided(declared)
    mean = mean_image(declared)
    assert mean is not None
    assert len(mean.images) == 3
    assert "no free start is tried" not in caplog.text
    undeclared = FlowMatching(rows_of_classes, shape=(1, 2, 2), classes=3)
    with caplog.at_level("INFO", "quarterarc"):
        tuned = qa.tune(undeclared, 2, images=8, progress=False)
    assert (tuned.steps, tuned.first) == (2, None)
    assert "no free start is tried, because the mean image could not be measured (IndexError" in caplog.text


def test_guidance_evaluates_with_the_label_and_with_no_label(world: GaussianData, x: Tensor) -> None:
    def model(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return velocity_field(world, x, t) * (1 + labels[:, None, None, None])

    labels = torch.tensor([0, 1, 2, 0])
    denoise = FlowMatching(model, classes=3)
    guided = qa.Guided(denoise, scale=2.5)(x, 0.7, labels)
    conditional, none = denoise(x, 0.7, labels), denoise(x, 0.7, torch.full_like(labels, 3))
    expected = none.image + 2.5 * (conditional.image - none.image)
    assert (guided.image - expected).abs().max() < ROUNDING
    assert qa.sample(qa.Guided(denoise, 2.5), x, "euler", 4, labels=labels).nfe == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EDM(torch.zeros_like, smallest_sigma=0.0),
            "largest_sigma < inf, got 0.0 and 80.0",
        ),
        (
            lambda: ScoreVE(torch.zeros_like, largest_sigma=math.inf),
            "largest_sigma < inf, got 0.002 and inf",
        ),
        (
            lambda: ScoreVP(torch.zeros_like, smallest_alpha_bar=0.0),
            "largest_alpha_bar < 1, got 0.0",
        ),
        (lambda: FlowMatching(torch.zeros_like, noise_at=2), "0 or 1"),
        (lambda: TrigFlow(torch.zeros_like, sigma_data=0.0), "above 0"),
        (lambda: EDM(lambda x, sigma: x[:, :1])(torch.zeros(1, 2, 3, 3), 0.5), r"returned shape \(1, 1, 3, 3\)"),
    ],
)
def test_unusable_settings_and_outputs_raise_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- the form `noise`, the form of EDM's steps ---------------------------------------------------------------------


def edm_heun(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Karras et al. 2022, Algorithm 1 with sigma(t) = t and s(t) = 1."""
    ones = torch.ones(len(x), dtype=x.dtype)
    for b, a in pairwise(sigmas):
        d = (x - denoise(x, b * ones)) / b
        moved = x + (a - b) * d
        if a != 0:
            d_a = (moved - denoise(moved, a * ones)) / a
            moved = x + (a - b) * (d + d_a) / 2
        x = moved
    return x


@pytest.fixture(scope="module")
def mixture() -> MixtureData:
    torch.manual_seed(2)
    return qa.MixtureData(torch.randn(6, *SHAPE, dtype=torch.float64), 0.3)


def mixture_by_sigma(mixture: MixtureData) -> Callable[[Tensor, Tensor], Tensor]:
    """D(x', sigma) of a mixture, which is not linear in x, unlike that of Gaussian data."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        q = (mixture.h**2 + sigma**2)[:, None]
        distances = ((x.flatten(1)[:, None] - mixture.means.flatten(1)) ** 2).sum(2)
        mean = ((-distances / (2 * q)).softmax(1) @ mixture.means.flatten(1)).reshape(x.shape)
        return mean + mixture.h**2 / q[..., None, None] * (x - mean)

    return denoise


@pytest.mark.parametrize("steps", [1, 2, 7, 18])
def test_heun_in_the_form_noise_equals_edm_heun(mixture: MixtureData, x: Tensor, steps: int) -> None:
    model = mixture_by_sigma(mixture)
    # EDM's grid, Eq. 5 with rho = 7
    i = np.arange(steps) / max(steps - 1, 1)
    sigmas = [*((80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7), 0.0]
    expected = edm_heun(model, 80.0 * x, sigmas)
    # the point of the arc of the variance-exploding state 80 x
    start = 80.0 * x * math.cos(math.atan(80.0))
    result = qa.sample(EDM(model), start, "heun", steps, "rho", form="noise")
    assert result.nfe == 2 * steps - 1
    assert (result.images - expected).abs().max() < 1e-10  # the angle of sigma 80 is exact to 1e-12
    # the form `velocity`, whose clock is the angle, is another method
    if steps > 1:
        assert (qa.sample(EDM(model), start, "heun", steps, "rho").images - expected).abs().max() > 1e-4


@pytest.mark.parametrize("form", ["noise", "image"])
def test_euler_in_the_forms_noise_and_image_equals_ddim_if_the_estimates_agree(
    mixture: MixtureData, x: Tensor, form: str
) -> None:
    angles = [1.5, 1.2, 0.6, 0.3, 0.0]
    euler = qa.sample(mixture, x, Gradient(EULER, form), grid=angles).images
    assert (euler - qa.sample(mixture, x, "ddim", grid=angles).images).abs().max() < ROUNDING


def solve(mixture: MixtureData, x: Tensor, method: Gradient, steps: int) -> Tensor:
    return qa.sample(mixture, x, method, grid=np.linspace(1.3, 0.2, steps + 1)).images


@pytest.fixture(scope="module")
def exact(mixture: MixtureData, x: Tensor) -> Tensor:
    return solve(mixture, x, Gradient(RK4), 800)  # accurate to 1e-11


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("tableau", [EULER, MIDPOINT, HEUN, RK4], ids=["euler", "midpoint", "heun", "rk4"])
def test_the_order_of_convergence_is_that_of_the_tableau_in_every_form(
    mixture: MixtureData, x: Tensor, exact: Tensor, form: str, tableau: Tableau
) -> None:
    errors = [(solve(mixture, x, Gradient(tableau, form), n) - exact).abs().max() for n in (64, 128)]
    slope = math.log2(errors[0] / errors[1])
    assert tableau.order - 0.2 < slope < tableau.order + 0.4  # the asymptotic slope needs small steps


@pytest.mark.parametrize("form", list(FORMS))
def test_scale_clock_and_weight_of_a_form_describe_one_ode(form: str) -> None:
    # for constant image and noise d(x / scale) = estimate d(clock)
    f = FORMS[form]
    image, noise = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-1.1], dtype=torch.float64)
    estimate = qa.Estimate(image, noise)
    for angle in (0.2, 0.7, 1.4):
        assert f.angle(f.clock(angle)) == pytest.approx(angle, abs=1e-15)
        h = 1e-6
        rise = [qa.mix(image, noise, angle + k * h) / f.scale(angle + k * h) for k in (-1, 1)]
        slope = (rise[1] - rise[0]) / (f.clock(angle + h) - f.clock(angle - h))
        assert float(slope) == pytest.approx(float(f.read(estimate, angle)), abs=1e-7)  # h^2 and rounding / h
        assert f.weight(angle, 0.1) == pytest.approx(f.scale(0.1) * (f.clock(0.1) - f.clock(angle)), rel=1e-13)


def test_unknown_forms_and_undefined_angles_raise(world: GaussianData, x: Tensor) -> None:
    with pytest.raises(InputError, match="unknown form 'noisy'; did you mean 'noise'"):
        qa.sampler("heun", form="noisy")
    with pytest.raises(InputError, match="not defined at pi/2"):
        qa.sample(world, x, "heun", 4, form="noise")
    assert torch.isfinite(qa.sample(world, x, "rk4", 4, form="image").images).all()
