"""Losses: each objective by its own formula, and the identities between them."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.objectives.bound import step_term
from quarterarc.objectives.losses import NORMS, OBJECTIVES, Losses, Objective
from quarterarc.schedules import Schedule, schedule

TABLE = schedule("linear", 100)
TIMES = torch.tensor([1.0, 2.0, 40.0, 99.0, 100.0], dtype=torch.float64)
COUNT = len(TIMES)


class Batch:
    """True images and noise, points between them, and estimates that are off; leaves that want a gradient."""

    def __init__(self, table: Schedule = TABLE, times: Tensor = TIMES, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            return torch.randn(len(times), 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype)

        self.table, self.times = table, times
        self.angle = table.angle(times)
        self.image = ((draw().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        self.noise = draw()
        self.x = arc.mix(self.image, self.noise, self.angle)
        self.image_hat = (self.image + 0.3 * draw()).requires_grad_()
        self.noise_hat = (self.noise + 0.3 * draw()).requires_grad_()
        self.fraction = draw().sigmoid().requires_grad_()

    def losses(self, objective: Objective) -> Losses:
        estimate = Estimate(self.image_hat, self.noise_hat, self.fraction)
        return objective(estimate, self.image, self.noise, self.x, self.times, self.table)

    def squares(self) -> dict[str, Tensor]:
        """Mean squares over the pixels of each image, of every error that the papers speak of."""
        c, s = (part.reshape(-1, 1, 1, 1) for part in (self.angle.cos(), self.angle.sin()))
        image, noise = self.image_hat - self.image, self.noise_hat - self.noise
        errors = {
            "image": image,
            "noise": noise,
            "velocity": c * noise - s * image,
            "residual": self.x - c * self.image_hat - s * self.noise_hat,
        }
        return {name: (error**2).mean((1, 2, 3)).detach() for name, error in errors.items()}


def test_image_and_noise_errors_are_velocity_error_and_residual() -> None:
    square = Batch().squares()
    torch.testing.assert_close(
        square["image"] + square["noise"], square["velocity"] + square["residual"], rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 10.0])
def test_equation_12_is_velocity_error_and_residual(gamma: float) -> None:
    batch = Batch()
    square = batch.squares()
    total = batch.losses(Objective("both+gradient", gamma=gamma)).total.detach()
    torch.testing.assert_close(total, (1 + gamma) * square["velocity"] + square["residual"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["noise", "image", "velocity", "both", "both+gradient"])
def test_objectives_are_their_formulas(name: str) -> None:
    batch = Batch()
    square = batch.squares()
    expected = {
        "noise": square["noise"],
        "image": square["image"],
        "velocity": square["velocity"],
        "both": square["image"] + square["noise"],
        "both+gradient": square["image"] + square["noise"] + 0.7 * square["velocity"],
    }[name]
    assert Objective(name).gamma == 1.0  # the paper's
    losses = batch.losses(Objective(name, gamma=0.7))
    torch.testing.assert_close(losses.total.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.image, square["image"], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.noise, square["noise"], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.gradient, square["velocity"], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.residual, square["residual"], rtol=1e-12, atol=0)
    for field in fields(Losses):
        value = getattr(losses, field.name)
        assert value.shape == (COUNT,)
        assert value.requires_grad == (field.name == "total")


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_means_over_the_pixels(norm: str) -> None:
    batch = Batch()
    error = (batch.noise_hat - batch.noise).detach()
    expected = {
        "mse": (error**2).mean((1, 2, 3)),
        "l2": (error**2).mean((1, 2, 3)).sqrt(),
        "l1": error.abs().mean((1, 2, 3)),
        "huber": torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean((1, 2, 3)),
    }[norm]
    losses = batch.losses(Objective("noise", norm=norm))
    torch.testing.assert_close(losses.total.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.noise, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_a_perfect_estimate_costs_nothing_and_has_a_finite_gradient(norm: str, dtype: torch.dtype) -> None:
    batch = Batch(dtype=dtype)
    image_hat, noise_hat = batch.image.clone().requires_grad_(), batch.noise.clone().requires_grad_()
    for name in ("noise", "both", "both+gradient", "mean"):
        losses = Objective(name, norm=norm)(
            Estimate(image_hat, noise_hat), batch.image, batch.noise, batch.x, batch.times, batch.table
        )
        assert losses.total.max() < 1e-15
        losses.total.sum().backward()
    for leaf in (image_hat, noise_hat):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-3


def test_the_mean_objective_compares_the_means_of_a_step() -> None:
    batch = Batch()
    t = batch.times.long()
    level, before, beta = (torch.tensor(each) for each in (TABLE.alpha_bar[t], TABLE.alpha_bar[t - 1], TABLE.beta[t]))
    of_image = (before.sqrt() * beta / (1 - level)).reshape(-1, 1, 1, 1)
    of_x = ((1 - beta).sqrt() * (1 - before) / (1 - level)).reshape(-1, 1, 1, 1)
    mu_tilde, mu_hat = (of_image * each + of_x * batch.x for each in (batch.image, batch.image_hat))
    expected = ((mu_hat - mu_tilde) ** 2).mean((1, 2, 3)).detach()
    total = batch.losses(Objective("mean")).total.detach()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_mean_of_the_vlb_over_all_steps_is_the_bound_without_its_prior(variance: str) -> None:
    times = torch.arange(1, 101, dtype=torch.float64)
    batch = Batch(times=times)
    # one image under every step: the bound of that image is the sum of its terms
    batch.image = batch.image[:1].expand(100, -1, -1, -1)
    batch.x = arc.mix(batch.image, batch.noise, batch.angle)
    total = batch.losses(Objective("vlb", variance=variance)).total.detach()
    estimate = Estimate(batch.image_hat, batch.noise_hat, batch.fraction)
    terms = step_term(estimate, batch.image, batch.x, batch.angle, TABLE.angle(times - 1), TABLE, variance)
    assert float(total.mean()) == pytest.approx(float(terms.detach().sum()) / math.log(2), rel=1e-12)


def grads(batch: Batch, objective: Objective) -> list[Tensor]:
    total = batch.losses(objective).total.sum()
    leaves = (batch.image_hat, batch.noise_hat, batch.fraction)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def test_the_hybrid_is_the_noise_loss_and_a_thousandth_of_the_bound() -> None:
    batch = Batch()
    noise, vlb, hybrid = (batch.losses(Objective(name)).total.detach() for name in ("noise", "vlb", "hybrid"))
    torch.testing.assert_close(hybrid, noise + 0.001 * vlb, rtol=1e-13, atol=0)


def test_the_hybrid_learns_its_mean_from_the_noise_loss_and_its_variance_from_the_bound() -> None:
    batch = Batch()
    noise, vlb, hybrid = (grads(batch, Objective(name)) for name in ("noise", "vlb", "hybrid"))
    for mean in (0, 1):  # the image and the noise estimates
        assert torch.equal(hybrid[mean], noise[mean])
    torch.testing.assert_close(hybrid[2], 0.001 * vlb[2], rtol=1e-12, atol=1e-18)
    assert vlb[0].abs().max() > 0
    assert hybrid[2].abs().max() > 0


def test_a_noise_head_s_mean_is_detached_from_the_bound_too() -> None:
    # a network whose image estimate comes from its noise estimate
    batch = Batch()
    c, s = (part.reshape(-1, 1, 1, 1) for part in (batch.angle.cos(), batch.angle.sin()))
    found = []
    for name in ("noise", "hybrid"):
        estimate = Estimate((batch.x - s * batch.noise_hat) / c, batch.noise_hat, batch.fraction)
        total = Objective(name)(estimate, batch.image, batch.noise, batch.x, batch.times, TABLE).total.sum()
        found.append(torch.autograd.grad(total, batch.noise_hat)[0])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_the_derivatives(name: str) -> None:
    batch = Batch()

    def total(image: Tensor, noise: Tensor, fraction: Tensor) -> Tensor:
        batch.image_hat, batch.noise_hat, batch.fraction = image, noise, fraction
        return batch.losses(Objective(name)).total

    leaves = (batch.image_hat, batch.noise_hat, batch.fraction)
    if name == "hybrid":  # its gradient leaves out what it detaches: only the variance has the whole derivative
        image, noise = (leaf.detach() for leaf in leaves[:2])
        assert torch.autograd.gradcheck(lambda fraction: total(image, noise, fraction), leaves[2:])
    else:
        assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize(("name", "unasked"), [("noise", "image_hat"), ("image", "noise_hat"), ("mean", "noise_hat")])
def test_an_estimate_that_is_not_asked_for_may_be_infinite(name: str, unasked: str) -> None:
    batch = Batch()
    setattr(batch, unasked, torch.full_like(batch.x, math.inf).requires_grad_())
    total = batch.losses(Objective(name)).total
    assert total.isfinite().all()
    total.sum().backward()
    for leaf in (batch.image_hat, batch.noise_hat):
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_ends_of_the_arc_are_finite_in_float32(name: str) -> None:
    table = schedule("arc", 100)
    batch = Batch(table, torch.tensor([1.0, 100.0], dtype=torch.float64), torch.float32)
    losses = batch.losses(Objective(name))
    assert losses.total.dtype == torch.float32
    assert losses.total.isfinite().all()
    for grad in grads(batch, Objective(name)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_images_may_lie_on_another_device_than_times(name: str) -> None:
    # "meta" has no numbers, but is as strict as any accelerator about tensors of two devices
    x = torch.empty(COUNT, 2, 3, 3, device="meta")
    for variance in ("small", "large", "learned"):
        losses = Objective(name, variance=variance)(Estimate(x, x, x), x, x, x, TIMES, TABLE)
        assert losses.total.device.type == "meta"


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown objective 'nosie'; did you mean 'noise'\?"):
        Objective("nosie")
    with pytest.raises(InputError, match="unknown norm 'l3'"):
        Objective(norm="l3")
    for gamma in (-1.0, math.nan):
        with pytest.raises(InputError, match="gamma is at least 0"):
            Objective(gamma=gamma)
    with pytest.raises(InputError, match=r"unknown variance 'lerned'; did you mean 'learned'\?"):
        Objective("vlb", variance="lerned")
    batch = Batch()
    with pytest.raises(InputError, match="'learned' needs a head that learned one"):
        Objective("hybrid")(
            Estimate(batch.image_hat, batch.noise_hat), batch.image, batch.noise, batch.x, batch.times, batch.table
        )
