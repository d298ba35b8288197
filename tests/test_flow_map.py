"""Flow maps: two points determine an arc, the identities of exact maps, and the samplers that jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from quarterarc.arc import Angle, mix, rotate, through
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Traits, call, traits
from quarterarc.estimate import Estimate
from quarterarc.flow_map import SolvedMap
from quarterarc.sampling.plans import Sampling
from quarterarc.wrappers import Clipped, Evaluator, Guided, Projected, Replayed

SHAPE = (1, 4, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian() -> GaussianData:
    """Correlated pixels of very different variances."""
    root = random(16, 16, seed=1) * torch.logspace(-0.5, 0, 16, dtype=torch.float64)
    return GaussianData(random(*SHAPE, seed=2) / 4, root @ root.T / 16 + 0.05 * torch.eye(16, dtype=torch.float64))


def mixture() -> MixtureData:
    return MixtureData(random(5, *SHAPE, seed=3), 0.3)


WORLDS: dict[str, Callable[[], Any]] = {"gaussian": gaussian, "mixture": mixture}


@pytest.mark.parametrize("per_image", [False, True])
def test_two_points_determine_an_arc(per_image: bool) -> None:
    image, noise = random(3, *SHAPE), random(3, *SHAPE, seed=1)
    b: Angle = torch.tensor([1.2, 0.9, math.pi / 2], dtype=torch.float64) if per_image else 1.2
    a: Angle = torch.tensor([0.1, 0.0, 0.4], dtype=torch.float64) if per_image else 0.1
    found = through(mix(image, noise, b), b, mix(image, noise, a), a)
    for value, expected in zip(found, (image, noise), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_a_shrinking_jump_becomes_the_estimate_at_the_point() -> None:
    """Of first order in the length of the jump."""
    data, x, b = gaussian(), random(3, *SHAPE), 0.8
    at = data(x, b)
    errors = []
    for length in (1e-2, 1e-3):
        image, noise = through(x, b, data.flow(x, b, b - length), b - length)
        errors.append(float(max((image - at.image).abs().max(), (noise - at.noise).abs().max())))
    assert math.log10(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.05)


def test_the_solved_flow_converges_to_the_closed_form_with_order_four() -> None:
    data, x = gaussian(), random(3, *SHAPE)
    exact = data.flow(x, 1.4, 0.3)
    errors = [float((SolvedMap(data, steps).flow(x, 1.4, 0.3) - exact).abs().max()) for steps in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.4)
    mixed = torch.tensor([1.4, 1.0, 0.5], dtype=torch.float64)
    each = SolvedMap(data, 64).flow(x, mixed, 0.3)
    torch.testing.assert_close(each, data.flow(x, mixed, 0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_jumps_compose(world: str) -> None:
    """Semigroup: X(X(x, b -> m), m -> a) = X(x, b -> a)."""
    solved, x = SolvedMap(WORLDS[world](), 400), random(3, *SHAPE)
    middle = mix(*pair(solved(x, 1.3, to=0.8)), 0.8)
    ends = mix(*pair(solved(middle, 0.8, to=0.2)), 0.2), mix(*pair(solved(x, 1.3, to=0.2)), 0.2)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)


def pair(estimate: Estimate) -> tuple[Tensor, Tensor]:
    return estimate.image, estimate.noise


@pytest.mark.parametrize("world", WORLDS)
def test_the_eulerian_identity(world: str) -> None:
    """cos d (v - F) - sin d (x + dF/db) = 0, with the total derivative of F along the flow."""
    solved, x, b, a = SolvedMap(WORLDS[world](), 400), random(3, *SHAPE), 1.1, 0.4
    d, h = b - a, 1e-4
    ahead, behind = (solved.flow(x, b, b + side) for side in (h, -h))
    change = (solved(ahead, b + h, to=a).velocity(b + h) - solved(behind, b - h, to=a).velocity(b - h)) / (2 * h)
    v, f = solved(x, b).velocity(b), solved(x, b, to=a).velocity(b)
    torch.testing.assert_close(math.cos(d) * (v - f), math.sin(d) * (x + change), rtol=0, atol=1e-6)
    assert (v - f).abs().max() > 0.05  # the premise: the flow is curved


@pytest.mark.parametrize("world", WORLDS)
def test_the_lagrangian_identity(world: str) -> None:
    """sin d x + cos d F - sin d dF/da = v(X, a)."""
    solved, x, b, a = SolvedMap(WORLDS[world](), 400), random(3, *SHAPE), 1.1, 0.4
    d, h = b - a, 1e-4
    change = (solved(x, b, to=a + h).velocity(b) - solved(x, b, to=a - h).velocity(b)) / (2 * h)
    f = solved(x, b, to=a).velocity(b)
    end = solved.flow(x, b, a)
    torch.testing.assert_close(
        math.sin(d) * x + math.cos(d) * f - math.sin(d) * change, solved(end, a).velocity(a), rtol=0, atol=1e-6
    )


def test_a_step_by_the_conditional_velocity_is_exact() -> None:
    image, noise, b, m = random(3, *SHAPE), random(3, *SHAPE, seed=1), 1.3, 0.7
    x = mix(image, noise, b)
    v = qa.velocity(image, noise, b)
    torch.testing.assert_close(rotate(x, v, m - b)[0], mix(image, noise, m), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["rotation", "ddim", "jump"])
@pytest.mark.parametrize("steps", [1, 3])
def test_samplers_that_jump_follow_the_flow_exactly(name: str, steps: int) -> None:
    """With any number of steps, where each one of the denoiser itself would have an error."""
    data, x = gaussian(), random(3, *SHAPE)
    solved = SolvedMap(data, 256)
    made = qa.sample(solved, x, name, steps, "angle")
    exact = data.flow(x, math.pi / 2, 0.0)
    torch.testing.assert_close(made.images, exact, rtol=0, atol=1e-6)
    if name != "jump":
        assert (qa.sample(data, x, name, steps, "angle").images - exact).abs().max() > 0.05


def test_other_samplers_evaluate_a_flow_map_at_one_angle() -> None:
    data, x = gaussian(), random(3, *SHAPE)
    cases: list[tuple[str, dict[str, Any]]] = [("multistep", {}), ("ddpm", {}), ("ddim", {"eta": 0.5}), ("heun", {})]
    for name, options in cases:
        images = [
            qa.sample(denoise, x, name, 5, seeds=range(3), **options).images for denoise in (data, SolvedMap(data))
        ]
        assert torch.equal(*images), name


def test_a_jump_with_fresh_noise_lands_at_the_image_each_time() -> None:
    """On Gaussian data each estimate of the image has the data's covariance, for any number of steps."""
    data = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.25)
    x = random(4000, *SHAPE)
    for steps in (1, 3):
        made = qa.sample(SolvedMap(data, 64), x, "jump", steps, "angle", seeds=range(4000), fresh=True).images
        assert float(made.var()) == pytest.approx(0.25, abs=6 * 0.25 * math.sqrt(2 / made.numel()))
        moved = (made / x).std()  # one jump multiplies x by 0.5; fresh noise in between makes other images
        assert (moved < 1e-3) == (steps == 1)


def test_the_default_of_a_flow_map_is_to_jump() -> None:
    solved = SolvedMap(gaussian())
    plan = Sampling().plan(solved)
    assert (plan.name, plan.steps) == ("jump", 4)
    assert Sampling().plan(gaussian()).name == "multistep"
    assert Sampling("multistep", 5).plan(solved).name == "multistep"
    with pytest.raises(InputError, match=r"'jump' needs a flow map.*quarterarc distill.*'multistep'"):
        qa.sample(gaussian(), random(2, *SHAPE), "jump")
    with pytest.raises(InputError, match="steps=0"):
        SolvedMap(gaussian(), 0)


def test_wrappers_pass_the_end_of_a_step_on() -> None:
    ends = list[Any]()

    class Map:
        traits = Traits(maps=True, classes=2)

        def __call__(self, x: Tensor, angle: Angle, labels: Tensor | None = None, to: Angle | None = None) -> Estimate:
            ends.append(to)
            return Estimate(x, x)

    x, labels = random(2, *SHAPE), torch.tensor([0, 1])
    wrapped: list[Any] = [
        Clipped(Map()),
        Projected(Map()),
        Guided(Map(), 2.0),
        Evaluator(Map(), labels),
        Replayed(Map()),
    ]
    for wrapper in wrapped:
        assert traits(wrapper).maps
        call(wrapper, x, 1.0, labels, 0.5)
    each = torch.tensor([0.5, 0.25], dtype=torch.float64)
    call(Guided(Map(), 2.0), x, 1.0, labels, each)
    assert ends[:5] == 5 * [0.5]
    assert ends[5].tolist() == [0.5, 0.25, 0.5, 0.25]
    replayed = Replayed(Map())
    replayed(x, 1.0, to=0.5)
    replayed.rewind()
    ends.clear()
    replayed(x, 1.0, to=0.5)
    assert ends == []
    replayed.rewind()
    replayed(x, 1.0, to=0.25)
    assert ends == [0.25]
