"""The objective of flow maps: the bias of its target is of first order in the step share; training by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from quarterarc.arc import mix, velocity
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.heads import head
from quarterarc.objectives import FlowMap, MapObjective, objective
from quarterarc.schedules import schedule
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe

SHAPE = (1, 2, 2)
DATA = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.25)


class ExactMap:
    """The exact map of independent Gaussian pixels, with a parameter that moves its velocity."""

    def __init__(self) -> None:
        self.offset = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, angle: Any, labels: Tensor | None = None, to: Any = None) -> Estimate:
        on_diagonal = (angle == to)[:, None, None, None]
        at = DATA(x, angle)
        safe = torch.where(angle == to, angle - 0.1, to)
        image, noise = qa.arc.through(x, angle, DATA.flow(x, angle, safe), safe)
        image, noise = torch.where(on_diagonal, at.image, image), torch.where(on_diagonal, at.noise, noise)
        c, s = (value[:, None, None, None] for value in (angle.cos(), angle.sin()))
        return Estimate(image - s * self.offset, noise + c * self.offset)  # F moves by the offset


def uniform(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact_bias(share: float, b: float, a: float) -> float:
    """E[q | x_b] per x_b of the exact map of Gaussian data, in closed form: a multiple of x_b.

    The flow multiplies x by g(b, a) = sqrt(V(a)/V(b)), V = 0.25 cos^2 + sin^2. Given x_b, image and noise have the
    means of the estimate, so x_m has the mean that the arc through the estimate has at m.
    """

    def g(start: float, end: float) -> float:
        values = [0.25 * math.cos(angle) ** 2 + math.sin(angle) ** 2 for angle in (start, end)]
        return math.sqrt(values[1] / values[0])

    m = b - share * (b - a)
    total = 0.25 * math.cos(b) ** 2 + math.sin(b) ** 2
    mean_m = (0.25 * math.cos(b) * math.cos(m) + math.sin(b) * math.sin(m)) / total
    return (g(m, a) * mean_m - g(b, a)) / (b - m)


def test_the_bias_of_the_target_is_of_first_order_in_the_share() -> None:
    biases = [abs(exact_bias(share, 1.1, 0.2)) for share in (0.02, 0.01, 0.005)]
    for large, small in pairwise(biases):
        assert math.log2(large / small) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_the_target_has_the_expectation_that_the_closed_form_predicts(share: float) -> None:
    """The regression of q on x_b, over random images and noise; the premise of learning from single examples."""
    count, b, a = 400_000, 1.1, 0.2
    generator = torch.Generator().manual_seed(1)
    image = DATA.draw(count, generator)
    noise = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    exact, chosen = ExactMap(), FlowMap(first_share=share, last_share=share, power=0.0)
    start, end = (torch.full((count,), angle, dtype=torch.float64) for angle in (b, a))
    losses = chosen.losses(exact, image, noise, start, end, None, 0.0)
    x = mix(image, noise, b)
    # with power 0 the weight is 1, and the gradient of the loss by F of an example is q over the number of pixels
    assert losses.total.shape == (count,)
    seen = []

    def watched(x: Tensor, angle: Any, labels: Any = None, to: Any = None) -> Estimate:
        estimate = exact(x, angle, to=to)
        seen.append((estimate, angle))
        return estimate

    with torch.enable_grad():
        again = chosen.losses(watched, image, noise, start, end, None, 0.0)
        q = torch.autograd.grad(again.total.sum(), seen[0][0].image)[0] * 4 / -math.sin(b)
    slope = float((q * x).sum() / x.square().sum())
    error = float((q - slope * x).std() / math.sqrt(x.numel()) / x.std())
    assert slope == pytest.approx(exact_bias(share, b, a), abs=5 * error)
    assert error < 0.005


def test_on_the_diagonal_it_is_the_loss_of_the_velocity() -> None:
    count = 50
    image, noise = DATA.draw(count), torch.randn(count, *SHAPE, dtype=torch.float64)
    start = torch.linspace(0.1, 1.4, count, dtype=torch.float64)
    exact = ExactMap()
    with torch.no_grad():
        exact.offset.fill_(0.3)
    error = exact(mix(image, noise, start), start, to=start).velocity(start) - velocity(image, noise, start)
    losses = FlowMap(power=0.0).losses(exact, image, noise, start, start, None, 0.5)
    expected = error.square().flatten(1).mean(1)
    torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(losses.total.sum(), exact.offset)[0],
        torch.autograd.grad(expected.sum(), exact.offset)[0],
    )
    table = schedule("arc", 100)
    times = torch.arange(10.0, 60.0, dtype=torch.float64)
    at = table.angle(times)
    x = mix(image, noise, at)
    ordinary = FlowMap(power=0.0)(exact(x, at, to=at), image, noise, x, times, table)
    torch.testing.assert_close(ordinary.total, FlowMap(power=0.0).losses(exact, image, noise, at, at, None, 0.0).total)


def test_the_drawn_jumps() -> None:
    chosen = FlowMap(diagonal=0.25, end_mean=-3.0)
    start, end = chosen.angles(uniform(40_000), math.pi / 2, 0.0)
    on_diagonal = start == end
    assert float(on_diagonal.double().mean()) == pytest.approx(0.25, abs=0.011)  # five standard errors
    assert bool(((start - end)[~on_diagonal] >= 0.999e-3).all())
    assert float(end.min()) >= 0.0
    assert float(start.max()) <= math.atan(80.0)
    logs = start.tan().log()
    middle = logs[(start > 1.1e-3) & (start < 1.55)]
    assert float(middle.median()) == pytest.approx(-0.9, abs=0.06)
    limited, _ = chosen.angles(uniform(4000), 1.2, 0.0)
    assert float(limited.max()) == 1.2
    assert FlowMap().share(0.0) == 1.0
    assert FlowMap().share(1.0) == pytest.approx(0.05)
    assert FlowMap(first_share=0.1, last_share=0.1).share(0.3) == pytest.approx(0.1)


def test_the_options_are_checked() -> None:
    assert isinstance(objective("flow-map", diagonal=0.5), MapObjective)
    assert not isinstance(objective("both"), MapObjective)
    for name, value in (("diagonal", 1.5), ("last_share", 0.0), ("power", "x"), ("start_width", -1.0)):
        with pytest.raises(InputError, match=f"{name} of the objective 'flow-map' lies in"):
            objective("flow-map", **{name: value})
    with pytest.raises(InputError, match="has no head 'mean'"):
        read_recipe("digits", ["objective=flow-map", "head=mean"])
    with pytest.raises(InputError, match=r"has no head 'both\+variance'"):
        read_recipe("digits", ["objective=flow-map", "head=both+variance"])


def test_a_flow_map_is_trained_resumed_and_sampled(tmp_path: Path, tiny: Sequence[str]) -> None:
    fields = [*tiny, "objective=flow-map", "data.labels=true", "network.dropout=0.1"]
    train(read_recipe("digits", fields), tmp_path / "whole", progress=False)
    train(read_recipe("digits", [*fields, "training.steps=4"]), tmp_path / "parts", progress=False)
    train(read_recipe("digits", fields), tmp_path / "parts", progress=False, resume=True)
    names = ("model.safetensors", "raw.safetensors", "optimizer.safetensors")
    newest = [checkpoints(tmp_path / run)[-1] for run in ("whole", "parts")]
    # the share of the run decides the step share, so that only runs of the same length have the same weights
    assert newest[0].name == newest[1].name == "step-00000006"
    train(read_recipe("digits", fields), tmp_path / "again", progress=False)
    for name in names:
        assert (newest[0] / name).read_bytes() == (checkpoints(tmp_path / "again")[-1] / name).read_bytes()
    denoise = load(tmp_path / "whole")
    assert denoise.traits.maps
    made = qa.generate(denoise, range(3), steps=1, labels=[1, 2, 3], progress=False)
    assert made.isfinite().all()
    guided = qa.generate(denoise, range(3), steps=2, labels=[1, 2, 3], guidance=2.0, progress=False)
    assert not torch.equal(made, guided)


# --- the tangent -----------------------------------------------------------------------------------------------------

START = torch.tensor([0.4, 0.9, 1.4], dtype=torch.float64)
END = torch.tensor([0.1, 0.9, 0.0], dtype=torch.float64)  # the second jump lies on the diagonal


def draws() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = DATA.draw(len(START), generator)
    return image, torch.randn(image.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_the_step_along_an_exact_tangent_deviates_from_the_flow_by_the_share(progress: float) -> None:
    """It has the expectation of the step of one image and noise, and s times its standard deviation."""
    image, noise = draws()
    flow_map = FlowMap()
    x, share = mix(image, noise, START), flow_map.share(progress)
    plain = DATA(x, START)
    part = share * (START - END)

    def middle(estimate: Estimate) -> Tensor:
        *pair, x_middle = flow_map.step(estimate, image, noise, x, START, part, None, progress)
        assert pair == [image, noise]
        return x_middle

    along_one, exact = middle(plain), qa.rotate(x, plain.velocity(START), -part)[0]
    assert (along_one - exact).abs().max() > (1e-3 if progress < 0.9 else 1e-4)
    along_both = middle(dataclasses.replace(plain, tangent=plain))
    torch.testing.assert_close(along_both - exact, share * (along_one - exact), rtol=0.0, atol=1e-14)


def test_the_tangent_has_the_loss_of_the_velocity_on_every_example() -> None:
    image, noise = draws()
    x = mix(image, noise, START)
    outputs = torch.randn(len(START), 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs.requires_grad_()
    estimate = head("both+tangent", schedule("arc")).read(outputs, x, START)
    given = (image, noise, x, START, torch.full_like(x, 0.1), 0.2 * (START - END))
    flow_map = FlowMap(tangent=3.0, power=0.0)
    jumps = flow_map.compare(dataclasses.replace(estimate, tangent=None), *given).total
    error = Estimate(outputs[:, 2:3], outputs[:, 3:]).velocity(START) - velocity(image, noise, START)
    total = flow_map.compare(estimate, *given).total
    torch.testing.assert_close(total - jumps, 3.0 * error.square().flatten(1).mean(1))
    (gradient,) = torch.autograd.grad((total - jumps).sum(), outputs)
    assert gradient[:, :2].abs().max() == 0.0
    assert gradient[:, 2:].flatten(1).abs().amax(1).min() > 0.0


@pytest.mark.parametrize("name", ["both+tangent", "velocity+tangent"])
def test_a_map_with_a_tangent_is_trained_saved_and_sampled(tmp_path: Path, tiny: Sequence[str], name: str) -> None:
    fields = ["objective=flow-map", f"head={name}", "training.steps=2"]
    train(read_recipe("digits", [*tiny, *fields]), tmp_path / "run", progress=False)
    denoise = load(tmp_path / "run")
    assert denoise(torch.randn(2, 1, 8, 8), 1.0, to=0.5).tangent is not None
    for sampler in (None, "multistep"):
        assert qa.generate(denoise, range(2), steps=2, sampler=sampler, progress=False).isfinite().all()
    with pytest.raises(InputError, match="belongs to a flow map from scratch"):
        qa.distill(tmp_path / "run", tmp_path / "map", progress=False)


def test_the_tangent_is_for_flow_maps_from_scratch() -> None:
    with pytest.raises(InputError, match="is for flow maps from scratch"):
        read_recipe("digits", ["head=both+tangent"])


def test_jumps_stay_where_a_head_is_defined(tmp_path: Path, tiny: Sequence[str]) -> None:
    """A head that estimates the image alone has no velocity at 0; these options draw nearly all angles below 0.001."""
    fields = [*tiny, "objective.name=flow-map", "objective.options.start_mean=-8", "objective.options.end_mean=-8"]
    run = train(read_recipe("digits", [*fields, "head=image"]), tmp_path / "run", progress=False)
    assert qa.generate(load(run), range(2), steps=2, progress=False).isfinite().all()


def test_dropout_is_the_same_in_both_evaluations(tmp_path: Path, tiny: Sequence[str]) -> None:
    """With an exact data point and share 1 the target of a jump to the same end is the jump itself, if masks agree."""
    from accelerate import Accelerator

    from quarterarc.training.trainer import Trainer

    recipe = read_recipe("digits", [*tiny, "objective=flow-map", "network.dropout=0.5"])
    learner = Trainer(recipe, tmp_path, Accelerator(cpu=True), progress=False).learner
    for weight in learner.network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    learner.network.train()
    denoise = learner._same_dropout()
    x, angle = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7, dtype=torch.float64)
    first, second = (denoise(x, angle, None, to=angle).image for _ in range(2))
    assert torch.equal(first, second)
    learner.network.eval()
    assert not torch.allclose(first, denoise(x, angle, None, to=angle).image)
