"""The second pair of outputs of a flow map (`benchmarks.tangent`): its loss, its step, and a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import quarterarc as qa
from benchmarks.tangent import Pairs, TwoPairs, WithTangent
from quarterarc.arc import mix, rotate, velocity
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.objectives import FlowMap
from quarterarc.training.recipe_text import read_recipe

SHAPE = (1, 2, 2)
DATA = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.25)
START = torch.tensor([0.4, 0.9, 1.4], dtype=torch.float64)
END = torch.tensor([0.1, 0.9, 0.0], dtype=torch.float64)  # the second lies on the diagonal
FIELDS = ("head=benchmarks.tangent:TwoPairs", "objective.name=benchmarks.tangent:WithTangent")


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = DATA.draw(len(START), generator)
    return image, torch.randn(image.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_a_step_that_follows_an_exact_tangent_deviates_from_the_flow_by_the_share(progress: float) -> None:
    """Its expectation is that of the step of one image and noise, and its standard deviation s times as large."""
    image, noise = draws()
    chosen = WithTangent(follows=True)
    x, share = mix(image, noise, START), chosen.share(progress)
    exact = DATA(x, START)
    pairs = Pairs(exact.image, exact.noise, tangent=exact)
    part = share * (START - END)
    *same, middle = chosen.step(pairs, image, noise, x, START, part, None, progress)
    assert same == [image, noise]
    single = FlowMap().step(pairs, image, noise, x, START, part, None, progress)[2]
    expected = rotate(x, exact.velocity(START), -part)[0]
    torch.testing.assert_close(middle - expected, share * (single - expected), rtol=0.0, atol=1e-14)
    assert torch.equal(WithTangent().step(pairs, image, noise, x, START, part, None, progress)[2], single)


def test_the_loss_of_the_second_pair_is_that_of_the_velocity_on_every_example() -> None:
    image, noise = draws()
    x = mix(image, noise, START)
    outputs = torch.randn(len(START), 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs.requires_grad_()
    pairs = TwoPairs().read(outputs, x, START)
    ends, part = 0.1 * torch.ones_like(x), 0.2 * (START - END)
    given = (pairs, image, noise, x, START, ends, part)
    total = WithTangent(tangent=3.0, power=0.0).compare(*given).total - FlowMap(power=0.0).compare(*given).total
    error = Estimate(outputs[:, 2:3], outputs[:, 3:]).velocity(START) - velocity(image, noise, START)
    torch.testing.assert_close(total, 3.0 * error.square().flatten(1).mean(1))
    (gradient,) = torch.autograd.grad(total.sum(), outputs)
    assert gradient[:, :2].abs().max() == 0.0
    assert gradient[:, 2:].flatten(1).abs().amax(1).min() > 0.0


def test_a_map_with_two_pairs_is_trained_and_sampled(tmp_path: Path, tiny: Sequence[str]) -> None:
    fields = ("training.steps=2", *FIELDS, "objective.options.follows=true")
    run = tmp_path / "run"
    qa.train(read_recipe("digits", (*tiny, *fields)), run, progress=False)
    images = qa.generate(qa.load(run), range(3), steps=1, progress=False)
    assert images.shape == (3, 1, 8, 8)
    assert images.isfinite().all()


def test_another_head_is_an_error(tmp_path: Path, tiny: Sequence[str]) -> None:
    with pytest.raises(InputError, match="needs a head with a second pair"):
        qa.train(read_recipe("digits", (*tiny, "training.steps=2", FIELDS[1])), tmp_path / "run", progress=False)
