"""Sampling: any denoiser, any sampler, any grid; draws that depend on an image's own seed; NFE that is counted."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc import arc
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.estimate import Estimate
from quarterarc.grids import GRIDS, grid
from quarterarc.heads import HEADS, head
from quarterarc.samplers import DDIM, sampler
from quarterarc.sampling.plans import DEFAULT_STEPS, Sampling
from quarterarc.sampling.trajectories import sample, trajectory
from quarterarc.schedules import Schedule, schedule
from quarterarc.wrappers import Clipped, Guided

PI_2 = math.pi / 2
SHAPE = (1, 3, 2)
WORLD = GaussianData(torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(SHAPE), 0.2)
STOCHASTIC: list[tuple[str, dict[str, Any]]] = [
    ("ddpm", {}),
    ("ddpm", {"variance": "large"}),
    ("ddim", {"eta": 0.5}),
    ("multistep", {"eta": 0.5}),
]
NFE = {"heun": 2, "midpoint": 2, "rk4": 4}  # a step; the others of this list ask once
ONCE = ["ddpm", "ddim", "cold", "cold-naive", "cold-improved", "euler", "rotation", "multistep"]
EVERY = [*NFE, *ONCE]  # that follows the grid it is given


def noise(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def bare(x: Tensor, angle: float) -> Estimate:
    return WORLD(x, angle)


class Network:
    """The Gaussian world as a network, which keeps the angles that it was asked for."""

    def __init__(self, name: str, table: Schedule) -> None:
        self.name, self.table = name, table
        self.angles: list[float] = []

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        angle = float(self.table.angle(time.double() * self.table.steps / 1000))
        self.angles.append(angle)
        estimate, x_weight = WORLD(x, angle), 0.0
        if self.name == "mean":
            a = self.table.angle(max(self.table.time(angle) - 1.0, 0.0))
            ratio = math.cos(angle) / math.cos(a)
            x_weight = ratio * (math.sin(a) / math.sin(angle)) ** 2
            return (math.cos(a) - x_weight * math.cos(angle)) * estimate.image + x_weight * x
        return {
            "noise": estimate.noise,
            "image": estimate.image,
            "velocity": estimate.velocity(angle),
            "both": torch.cat([estimate.image, estimate.noise], 1),
            "gated": torch.cat([estimate.image, estimate.noise, x[:, :1]], 1),
        }[self.name]


def told(name: str, of: str = "arc", steps: int = 1000) -> Denoiser:
    table = schedule(of, steps)
    return Denoiser(Network(name, table), table, head(name, table), shape=SHAPE)


@pytest.mark.parametrize("name", EVERY)
def test_any_callable_samples(name: str) -> None:
    result = sample(bare, noise(), name, 5)
    assert result.images.shape == (4, *SHAPE)
    assert result.images.isfinite().all()
    expected = grid("octave", 5, dimensions=math.prod(SHAPE)) if name == "multistep" else grid("angle", 5)
    np.testing.assert_array_equal(result.angles, expected)


def test_ten_steps_of_multistep_on_its_own_grid_unless_told_otherwise() -> None:
    made = sample(bare, noise())
    np.testing.assert_array_equal(made.angles, grid("octave", 10, dimensions=math.prod(SHAPE)))
    assert made.nfe == DEFAULT_STEPS == 10
    assert torch.equal(made.images, sample(bare, noise(), "multistep", 10, "octave").images)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", EVERY)
def test_evaluations_are_counted(name: str, steps: int) -> None:
    each = NFE.get(name, 1)
    assert sampler(name).evaluations == each
    assert sample(bare, noise(), name, steps).nfe == each * steps
    assert sample(Clipped(bare), noise(), name, steps).nfe == each * steps
    network = told("velocity")
    assert sample(network, noise(), name, steps).nfe == each * steps
    assert isinstance(network.network, Network)
    assert len(network.network.angles) == each * steps  # the network was really asked that often


def with_labels(x: Tensor, angle: arc.Angle, labels: Tensor | None = None) -> Estimate:
    """A world whose image is the label itself."""
    assert labels is not None
    image = labels.to(x).reshape(-1, 1, 1, 1).expand_as(x)
    c, s = arc.cos_sin(angle, x)
    return Estimate(image, (x - c * image) / s)


with_labels.classes = 0  # type: ignore[attr-defined]


def test_labels_reach_the_denoiser_and_guidance_costs_two() -> None:
    labels = torch.tensor([3, 1, 4, 1])
    result = sample(with_labels, noise(), "rotation", 6, labels=labels)
    torch.testing.assert_close(
        result.images, labels.double().reshape(-1, 1, 1, 1).expand(4, *SHAPE), rtol=0, atol=1e-13
    )
    assert result.nfe == 6
    guided = sample(Guided(with_labels, 2.5), noise(), "rotation", 6, labels=labels)
    torch.testing.assert_close(guided.images, 2.5 * result.images, rtol=0, atol=1e-12)
    assert guided.nfe == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_the_dtype_of_the_noise_is_kept(name: str, dtype: torch.dtype) -> None:
    assert sample(bare, noise(dtype=dtype), name, 3, seeds=range(4)).images.dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_the_device_of_the_noise_is_kept(name: str) -> None:
    # "meta" has no numbers, but is as strict as any accelerator about tensors of two devices
    table = schedule("arc", 100)
    denoise = Clipped(Denoiser(lambda x, time, labels: x + time, table, head("velocity", table)))
    start = torch.empty(3, *SHAPE, device="meta")
    assert sample(denoise, start, name, 3).images.device.type == "meta"


def test_the_noise_is_left_alone_and_nothing_is_recorded() -> None:
    start = noise()
    before = start.clone()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def trainable(x: Tensor, angle: float) -> Estimate:
        return Estimate(scale * x, x)

    for name in EVERY:
        assert not sample(trainable, start, name, 2).images.requires_grad
        assert torch.equal(start, before)
    for _ in trajectory(trainable, start, "ddim", 2):
        assert torch.is_grad_enabled()  # the caller's own mode between two states


@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_depends_on_its_own_seed_alone(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    start = noise(dtype=dtype)

    def make(places: Sequence[int], seeds: Any) -> Tensor:
        return sample(WORLD, start[list(places)], name, 4, seeds=seeds, **options).images

    together = make(range(4), [7, 3, 9, 2**40])
    assert torch.equal(make(range(4), [7, 3, 9, 2**40]), together)
    assert torch.equal(make([2, 0], [9, 7]), together[[2, 0]])  # another order, a smaller batch
    assert torch.equal(make([3], np.array([2**40])), together[3:])
    other = make(range(4), [7, 4, 9, 2**40])
    assert torch.equal(other[[0, 2, 3]], together[[0, 2, 3]])
    assert not torch.equal(other[1], together[1])


def test_without_seeds_the_noise_is_torch_s_own() -> None:
    torch.manual_seed(0)
    first, second = (sample(WORLD, noise(), "ddpm", 4).images for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(sample(WORLD, noise(), "ddpm", 4).images, first)
    assert not torch.equal(first, second)


def test_a_deterministic_sampler_has_no_use_for_seeds() -> None:
    for name in ("ddim", "rotation", "heun", "cold"):
        assert torch.equal(
            sample(WORLD, noise(), name, 4, seeds=range(4)).images, sample(WORLD, noise(), name, 4).images
        )


@pytest.mark.parametrize("name", EVERY)
def test_a_trajectory_is_the_sample_and_what_led_to_it(name: str) -> None:
    states = list(trajectory(WORLD, noise(), name, 5, seeds=range(4)))
    result = sample(WORLD, noise(), name, 5, seeds=range(4))
    assert len(states) == 6
    assert [state.angle for state in states] == result.angles.tolist()
    assert torch.equal(states[0].x, noise())
    assert torch.equal(states[-1].x, result.images)
    assert all(state.estimate is not None for state in states[:-1])
    assert states[-1].estimate is None


@pytest.mark.parametrize("name", GRIDS)
def test_named_grids_are_the_denoiser_s(name: str) -> None:
    denoise = told("velocity", "linear", 100)
    result = sample(denoise, noise(), "ddim", 7, name)
    np.testing.assert_array_equal(
        result.angles, grid(name, 7, denoise.largest_angle, denoise.schedule, dimensions=noise()[0].numel())
    )
    assert result.angles[0] == denoise.schedule.end < PI_2


def test_explicit_grids_may_start_and_end_anywhere_on_the_arc() -> None:
    angles = [1.2, 0.9, 0.4]
    result = sample(WORLD, noise(), "rk4", grid=angles)
    np.testing.assert_array_equal(result.angles, angles)
    fine = sample(WORLD, noise(), "rk4", grid=np.linspace(1.2, 0.4, 65)).images
    torch.testing.assert_close(fine, WORLD.flow(noise(), 1.2, 0.4), rtol=0, atol=1e-8)  # fourth order, steps of 1/80
    assert sample(WORLD, noise(), "ddim", 2, angles).nfe == 2
    with pytest.raises(InputError, match="the grid's 3 angles make 2 steps, but steps=5 was given"):
        sample(WORLD, noise(), "ddim", 5, angles)


@pytest.mark.parametrize("name", ["noise", "noise+variance"])
@pytest.mark.parametrize("of", ["arc", "jsd"])
def test_a_noise_head_starts_at_the_last_angle_below_pure_noise_and_says_so(
    of: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = schedule(of, 100)
    network = Network("noise", table)

    def with_variance(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return torch.cat([network(x, time, labels), torch.zeros_like(x)], 1)

    denoise = Denoiser(with_variance if "+" in name else network, table, head(name, table))
    with caplog.at_level(logging.INFO, logger="quarterarc"):
        result = sample(denoise, noise(), "ddim", 20)
    assert f"up to angle {table.angles[99]:.6g}" in caplog.text
    assert result.angles[0] == table.angles[99] < PI_2
    assert max(network.angles) <= table.angles[99] + 1e-6
    exact = WORLD.flow(noise(), table.angles[99], 0.0)
    assert (result.images - exact).abs().max() < 0.15  # first order, 20 steps
    finer = sample(denoise, noise(), "rk4", 40).images
    # the network is asked by a float32 time, of which dividing by the last cosine, 0.016 or 0.1, makes 1e-5
    torch.testing.assert_close(finer, exact, rtol=0, atol=1e-4)


def test_a_denoiser_of_the_whole_arc_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="quarterarc"):
        assert sample(bare, noise(), "ddim", 4).angles[0] == PI_2
    assert caplog.text == ""


@pytest.mark.parametrize("of", ["arc", "linear", "cosine", "jsd"])
@pytest.mark.parametrize("sampler_name", EVERY)
@pytest.mark.parametrize("name", ["image", "mean"])
def test_a_head_that_is_not_defined_at_the_image_is_never_asked_there(name: str, sampler_name: str, of: str) -> None:
    for way in GRIDS:
        denoise = told(name, of, 100)
        result = sample(denoise, noise(), sampler_name, 12, way)
        assert result.images.isfinite().all()
        assert result.angles[-1] == 0.0
        assert isinstance(denoise.network, Network)
        assert min(denoise.network.angles) >= denoise.smallest_angle - 1e-6  # a float32 time
    with pytest.raises(InputError, match=r"the grid evaluates at angle 0.001 but the denoiser is defined from"):
        trajectory(told(name, of, 100), noise(), sampler_name, grid=[1.0, 0.001, 0.0])


@pytest.mark.parametrize("name", HEADS)
def test_every_head_of_one_world_leads_to_its_flow(name: str) -> None:
    denoise = told(name)
    result = sample(denoise, noise(), "heun", 60, "angle")
    exact = WORLD.flow(noise(), float(result.angles[0]), 0.0)
    # second order in steps of 1/40, and times in float32, which 1/sin or 1/cos of the last angle multiplies by 600
    torch.testing.assert_close(result.images, exact, rtol=0, atol=1e-3)


def test_real_digits_come_out_of_their_exact_denoiser() -> None:
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images[:200]).reshape(-1, 1, 8, 8) / 8 - 1
    start = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = sample(MixtureData(digits, 0.05), start, "rk4", 100).images
    nearest = ((made[:, None] - digits) ** 2).flatten(2).mean(2).amin(1).sqrt()
    assert (nearest < 0.07).all()  # the root mean square of 64 normal deviations of 0.05, and four of its own


def test_a_plan_says_enough_to_do_it_again() -> None:
    named = Sampling("ddim", 3, "rho", {"eta": 0.5}).plan(WORLD)
    angles = grid("rho", 3).tolist()
    expected = {"sampler": "ddim", "options": {"eta": 0.5}, "grid": "rho", "steps": 3, "angles": angles}
    assert named.describe() == expected
    given = Sampling(DDIM(0.5), grid=[1.0, 0.5, 0.0]).plan(WORLD)
    expected = {"sampler": "DDIM", "options": {}, "grid": "explicit", "steps": 2, "angles": [1.0, 0.5, 0.0]}
    assert given.describe() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "rk5"}, r"unknown sampler 'rk5'; did you mean 'rk4'\?"),
        ({"sampler": "ddim", "etta": 1.0}, "the sampler 'ddim' has no option 'etta'"),
        ({"sampler": "ddim", "eta": 2.0}, r"eta lies in 0\.\.1"),
        ({"sampler": DDIM(), "eta": 1.0}, r"options \(eta\) go with a sampler's name"),
        ({"grid": "tme"}, r"unknown grid 'tme'; did you mean 'time'\?"),
        ({"steps": 0}, "at least 1, got 0"),
        ({"steps": 1001, "grid": "time"}, "1001 steps on a schedule that has 1000"),
        ({"grid": [0.5, 1.0]}, "descends strictly"),
        ({"grid": [2.0, 1.0]}, "stays within"),
        ({"grid": [1.0]}, "at least two angles"),
        ({"seeds": [1, 2]}, "got 4 images but 2 seeds"),
        ({"seeds": [1, 2, 3, -4]}, "seeds are whole numbers from 0"),
        ({"labels": torch.zeros(3)}, "got 4 images but 3 labels"),
    ],
)
def test_bad_input_is_refused_before_the_first_state(arguments: dict, message: str) -> None:
    def never(x: Tensor, angle: float) -> Estimate:
        raise AssertionError("asked")

    for ask in (sample, trajectory):
        with pytest.raises(InputError, match=message):
            ask(never, noise(), **arguments)


def test_noise_that_is_no_noise_and_grids_beyond_the_denoiser_are_refused() -> None:
    with pytest.raises(InputError, match=r"noise is a floating point tensor, got torch\.int64"):
        sample(bare, torch.zeros(1, *SHAPE, dtype=torch.int64))
    denoise = told("noise", "arc", 100)
    with pytest.raises(
        InputError, match=r"the grid starts at angle 1\.5708 but the denoiser is defined up to 1\.55509"
    ):
        trajectory(denoise, noise(), "ddim", grid=[PI_2, 1.0, 0.0])
