"""Objectives: each against its own formula, the identities between them, and objectives of other packages."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.estimate import Estimate
from quarterarc.heads import HEADS, Noise, head
from quarterarc.objectives import NORMS, OBJECTIVES, Losses, Objective, WeightedErrors, objective, options_of
from quarterarc.objectives.bound import step_term
from quarterarc.schedules import Schedule, schedule

TABLE = schedule("linear", 100)
TIMES = torch.tensor([1.0, 2.0, 40.0, 99.0, 100.0], dtype=torch.float64)
COUNT = len(TIMES)
WITH_NORM = [name for name in OBJECTIVES if "norm" in options_of(name)]


class Batch:
    """True images and noise, points between them, and estimates with errors of scale `spread`, which take gradients."""

    def __init__(
        self,
        table: Schedule = TABLE,
        times: Tensor = TIMES,
        dtype: torch.dtype = torch.float64,
        spread: float = 0.3,
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            return torch.randn(len(times), 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype)

        self.table, self.times = table, times
        self.angle = table.angle(times)
        self.image = ((draw().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        self.noise = draw()
        self.x = arc.mix(self.image, self.noise, self.angle)
        self.image_hat = (self.image + spread * draw()).requires_grad_()
        self.noise_hat = (self.noise + spread * draw()).requires_grad_()
        self.fraction = draw().sigmoid().requires_grad_()

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.image_hat, self.noise_hat, self.fraction)

    def losses(self, objective: Objective, estimate: Estimate | None = None) -> Losses:
        return objective(estimate or self.estimate, self.image, self.noise, self.x, self.times, self.table)

    def squares(self) -> dict[str, Tensor]:
        """Mean squares over the pixels of each image, of every error that the papers use."""
        c, s = (part.reshape(-1, 1, 1, 1) for part in (self.angle.cos(), self.angle.sin()))
        image, noise = self.image_hat - self.image, self.noise_hat - self.noise
        errors = {
            "image": image,
            "noise": noise,
            "velocity": c * noise - s * image,
            "residual": self.x - c * self.image_hat - s * self.noise_hat,
        }
        return {name: (error**2).mean((1, 2, 3)).detach() for name, error in errors.items()}


def test_image_and_noise_errors_equal_velocity_error_and_residual() -> None:
    square = Batch().squares()
    torch.testing.assert_close(
        square["image"] + square["noise"], square["velocity"] + square["residual"], rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 10.0])
def test_equation_12_equals_weighted_velocity_error_and_residual(gamma: float) -> None:
    batch = Batch()
    square = batch.squares()
    total = batch.losses(objective("both+gradient", gamma=gamma)).total.detach()
    torch.testing.assert_close(total, (1 + gamma) * square["velocity"] + square["residual"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["noise", "image", "velocity", "both", "both+gradient"])
def test_objectives_match_their_formulas(name: str) -> None:
    batch = Batch()
    square = batch.squares()
    expected = {
        "noise": square["noise"],
        "image": square["image"],
        "velocity": square["velocity"],
        "both": square["image"] + square["noise"],
        "both+gradient": square["image"] + square["noise"] + 0.7 * square["velocity"],
    }[name]
    losses = batch.losses(objective(name, **({"gamma": 0.7} if name == "both+gradient" else {})))
    torch.testing.assert_close(losses.total.detach(), expected, rtol=1e-12, atol=0)


def test_gamma_is_1_by_default_as_in_the_paper() -> None:
    assert objective("both+gradient") == objective("both+gradient", gamma=1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_hold_one_number_per_image_and_gradients_in_the_total_only(name: str) -> None:
    batch = Batch()
    losses = batch.losses(objective(name))
    for field in fields(Losses):
        value = getattr(losses, field.name)
        assert value.shape == (COUNT,)
        assert value.requires_grad == (field.name == "total")
        if field.name != "total":
            torch.testing.assert_close(value, batch.squares()[field.name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_means_over_pixels(norm: str) -> None:
    batch = Batch(spread=1.5)
    error = (batch.noise_hat - batch.noise).detach()
    assert (error.abs() > 1).any()  # both branches of Huber's loss, whose threshold is 1
    assert (error.abs() < 1).any()
    expected = {
        "mse": (error**2).mean((1, 2, 3)),
        "l2": (error**2).mean((1, 2, 3)).sqrt(),
        "l1": error.abs().mean((1, 2, 3)),
        "huber": torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean((1, 2, 3)),
    }[norm]
    losses = batch.losses(objective("noise", norm=norm))
    torch.testing.assert_close(losses.total.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", WITH_NORM)
def test_logged_errors_are_mean_squares_in_any_norm(name: str, norm: str) -> None:
    batch = Batch()
    losses, squares = batch.losses(objective(name, norm=norm)), batch.squares()
    for field in ("image", "noise", "velocity", "residual"):
        torch.testing.assert_close(getattr(losses, field), squares[field], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("error", "value"), [(0.5, 0.125), (1.0, 0.5), (2.0, 1.5), (-10.0, 9.5)])
def test_huber_loss_is_quadratic_up_to_1_and_linear_with_slope_1_beyond(error: float, value: float) -> None:
    errors = torch.full((1, 2, 3, 3), error, dtype=torch.float64, requires_grad=True)
    loss = NORMS["huber"](errors)
    assert loss.item() == pytest.approx(value, rel=1e-15)
    loss.sum().backward()
    assert errors.grad is not None
    slope = max(-1.0, min(error, 1.0))
    torch.testing.assert_close(errors.grad * errors[0].numel(), torch.full_like(errors, slope), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_a_perfect_estimate_has_zero_loss_and_a_finite_gradient(norm: str, dtype: torch.dtype) -> None:
    batch = Batch(dtype=dtype)
    image_hat, noise_hat = batch.image.clone().requires_grad_(), batch.noise.clone().requires_grad_()
    for name in ("noise", "both", "both+gradient", "mean"):
        losses = batch.losses(objective(name, norm=norm), Estimate(image_hat, noise_hat))
        assert losses.total.max() < 1e-15
        losses.total.sum().backward()
    for leaf in (image_hat, noise_hat):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-3


def test_mean_compares_the_posterior_means_of_a_step() -> None:
    batch = Batch()
    t = batch.times.long()
    level, before, beta = (torch.tensor(row) for row in (TABLE.alpha_bar[t], TABLE.alpha_bar[t - 1], TABLE.beta[t]))
    image_weight = (before.sqrt() * beta / (1 - level)).reshape(-1, 1, 1, 1)
    x_weight = ((1 - beta).sqrt() * (1 - before) / (1 - level)).reshape(-1, 1, 1, 1)
    mu_tilde, mu_hat = (image_weight * image + x_weight * batch.x for image in (batch.image, batch.image_hat))
    expected = ((mu_hat - mu_tilde) ** 2).mean((1, 2, 3)).detach()
    total = batch.losses(objective("mean")).total.detach()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_mean_of_vlb_over_all_steps_is_the_bound_without_its_prior(variance: str) -> None:
    times = torch.arange(1, 101, dtype=torch.float64)
    batch = Batch(times=times)
    # the same image at every step: its bound is the sum of the terms
    batch.image = batch.image[:1].expand(100, -1, -1, -1)
    batch.x = arc.mix(batch.image, batch.noise, batch.angle)
    total = batch.losses(objective("vlb", variance=variance)).total.detach()
    terms = step_term(batch.estimate, batch.image, batch.x, batch.angle, TABLE.angle(times - 1), TABLE, variance)
    assert float(total.mean()) == pytest.approx(float(terms.detach().sum()) / math.log(2), rel=1e-12)


def gradients(batch: Batch, objective: Objective) -> list[Tensor]:
    """Gradients of the summed total by image, noise and variance estimates; zeros for an unused estimate."""
    leaves = (batch.image_hat, batch.noise_hat, batch.fraction)
    computed = torch.autograd.grad(batch.losses(objective).total.sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, computed, strict=True)]


def test_hybrid_is_the_noise_error_plus_a_thousandth_of_vlb() -> None:
    batch = Batch()
    noise, vlb, hybrid = (batch.losses(objective(name)).total.detach() for name in ("noise", "vlb", "hybrid"))
    torch.testing.assert_close(hybrid, noise + 0.001 * vlb, rtol=1e-13, atol=0)


def test_hybrid_trains_the_mean_by_the_noise_error_and_the_variance_by_vlb() -> None:
    batch = Batch()
    noise, vlb, hybrid = (gradients(batch, objective(name)) for name in ("noise", "vlb", "hybrid"))
    for mean in (0, 1):  # the image and the noise estimates
        assert torch.equal(hybrid[mean], noise[mean])
    torch.testing.assert_close(hybrid[2], 0.001 * vlb[2], rtol=1e-12, atol=1e-18)
    assert vlb[0].abs().max() > 0
    assert hybrid[2].abs().max() > 0


def test_hybrid_detaches_the_mean_of_a_noise_head() -> None:
    # the image estimate is a function of the noise estimate
    batch = Batch()
    c, s = (part.reshape(-1, 1, 1, 1) for part in (batch.angle.cos(), batch.angle.sin()))
    gradients = []
    for name in ("noise", "hybrid"):
        estimate = Estimate((batch.x - s * batch.noise_hat) / c, batch.noise_hat, batch.fraction)
        total = batch.losses(objective(name), estimate).total.sum()
        gradients.append(torch.autograd.grad(total, batch.noise_hat)[0])
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name: str) -> None:
    batch = Batch()
    chosen = objective(name, power=0.0) if name == "flow-map" else objective(name)  # whose weight has no gradient

    def total(image: Tensor, noise: Tensor, fraction: Tensor) -> Tensor:
        return batch.losses(chosen, Estimate(image, noise, fraction)).total

    leaves = (batch.image_hat, batch.noise_hat, batch.fraction)
    if name == "hybrid":  # detached estimates have no gradient of vlb: only the variance has the whole derivative
        image, noise = (leaf.detach() for leaf in leaves[:2])
        assert torch.autograd.gradcheck(lambda fraction: total(image, noise, fraction), leaves[2:])
    else:
        assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize(("name", "unused"), [("noise", "image_hat"), ("image", "noise_hat"), ("mean", "noise_hat")])
def test_an_unused_estimate_may_be_infinite(name: str, unused: str) -> None:
    batch = Batch()
    setattr(batch, unused, torch.full_like(batch.x, math.inf).requires_grad_())
    total = batch.losses(objective(name)).total
    assert total.isfinite().all()
    total.sum().backward()
    for leaf in (batch.image_hat, batch.noise_hat):
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_finite_at_both_ends_of_the_arc_in_float32(name: str) -> None:
    table = schedule("arc", 100)
    batch = Batch(table, torch.tensor([1.0, 100.0], dtype=torch.float64), torch.float32)
    losses = batch.losses(objective(name))
    assert losses.total.dtype == torch.float32
    assert losses.total.isfinite().all()
    for grad in gradients(batch, objective(name)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_images_may_be_on_another_device_than_times(name: str) -> None:
    # "meta" holds no numbers, but raises for tensors of two devices as an accelerator does
    x = torch.empty(COUNT, 2, 3, 3, device="meta")
    variances = [{"variance": kind} for kind in ("small", "large", "learned")]
    for options in variances if "variance" in options_of(name) else [{}]:
        losses = objective(name, **options)(Estimate(x, x, x), x, x, x, TIMES, TABLE)
        assert losses.total.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nosie", {}, r"unknown objective 'nosie'; did you mean 'noise'\?"),
        ("both", {"gamma": 2.0}, r"the objective 'both' has no option 'gamma' \(it has norm\)"),
        ("both+gradient", {"gamma": -1.0}, "gamma is at least 0, got -1.0"),
        ("both+gradient", {"gamma": math.nan}, "gamma is at least 0, got nan"),
        ("both+gradient", {"gamma": "one"}, "cannot use the options .*'one'"),
        ("vlb", {"variance": "lerned"}, r"unknown variance 'lerned'; did you mean 'learned'\?"),
        ("hybrid", {"variance": "lerned"}, "unknown variance 'lerned'"),
    ],
)
def test_unusable_names_and_options_raise(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        objective(name, **options)


@pytest.mark.parametrize("name", WITH_NORM)
def test_unknown_norms_raise(name: str) -> None:
    with pytest.raises(InputError, match="unknown norm 'l3'"):
        objective(name, norm="l3")


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (1.0, -1.0, 0.0), (math.nan, 1.0, 0.0)])
def test_weights_of_errors_are_positive(weights: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="weights of the errors are at least 0"):
        WeightedErrors(*weights)


def test_a_learned_variance_needs_a_head_that_learns_one() -> None:
    batch = Batch()
    with pytest.raises(InputError, match="'learned' needs a head that learns one"):
        batch.losses(objective("hybrid"), Estimate(batch.image_hat, batch.noise_hat))


@dataclass(frozen=True)
class Fourth:
    """An objective as a user writes it: the mean fourth power of the error of the noise."""

    weight: float = 1.0

    def __call__(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        total = self.weight * ((estimate.noise - noise) ** 4).flatten(1).mean(1)
        return Losses.of(total, estimate, image, noise, x, schedule.angle(times))


def test_an_import_path_is_an_objective() -> None:
    batch = Batch()
    losses = batch.losses(objective(f"{__name__}:Fourth", weight=2.0))
    torch.testing.assert_close(losses.total, 2 * ((batch.noise_hat - batch.noise) ** 4).mean((1, 2, 3)))
    torch.testing.assert_close(losses.velocity, batch.squares()["velocity"], rtol=1e-12, atol=0)
    assert losses.total.requires_grad
    assert not losses.velocity.requires_grad


class NotCallable:
    pass


def failing() -> Objective:
    raise RuntimeError("a reason\nof two lines")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os:system", "is a builtin_function_or_method"),
        ("subprocess:run", "standard library"),
        (f"{__name__}:NotCallable", "has no method __call__"),
        (f"{__name__}:TABLE", "is a Schedule: a class or function is expected"),
        (f"{__name__}:failing", "cannot use the options {}: RuntimeError: a reason of two lines"),
    ],
)
def test_an_import_path_of_other_or_failing_code_is_no_objective(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objective(path)


def test_a_registered_name_is_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES))
    OBJECTIVES.register("fourth")(Fourth)
    assert objective("fourth", weight=3.0) == Fourth(3.0)


def zeros(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


def test_denoiser_loss_mixes_estimates_and_compares() -> None:
    batch = Batch()
    denoise = Denoiser(zeros, TABLE, Noise())
    losses = denoise.loss("noise", batch.image, batch.noise, batch.times)
    torch.testing.assert_close(losses.total, (batch.noise**2).mean((1, 2, 3)), rtol=1e-13, atol=0)
    by_hand = batch.losses(objective("image"), denoise(batch.x, batch.angle))
    losses = denoise.loss("image", batch.image, batch.noise, batch.times)
    assert torch.equal(losses.total, by_hand.total)


@pytest.mark.parametrize("name", HEADS)
def test_denoiser_loss_uses_the_objective_of_its_head_by_default(name: str) -> None:
    batch = Batch()
    reader = head(name, TABLE)

    def network(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return x.new_full((len(x), reader.channels(2), *x.shape[2:]), 0.5)

    denoise = Denoiser(network, TABLE, reader)
    losses = denoise.loss(None, batch.image, batch.noise, batch.times)
    assert torch.equal(losses.total, denoise.loss(reader.objective, batch.image, batch.noise, batch.times).total)
    expected = {"gated": "both"}.get(name, name)  # the papers train each head by the error of its own output
    assert reader.objective == expected


def test_denoiser_loss_raises_for_an_objective_that_returns_no_losses() -> None:
    batch = Batch()
    denoise = Denoiser(zeros, TABLE, Noise())

    def summed(
        estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, times: Tensor, schedule: Schedule
    ) -> Losses:
        losses = objective("noise")(estimate, image, noise, x, times, schedule)
        return Losses(losses.total.sum(), losses.image, losses.noise, losses.velocity, losses.residual)

    for wrong in (summed, lambda *arguments: torch.zeros(COUNT)):
        with pytest.raises(InputError, match=r"does not return quarterarc.objectives.Losses .* shape \(5,\)"):
            denoise.loss(wrong, batch.image, batch.noise, batch.times)  # type: ignore[arg-type]
