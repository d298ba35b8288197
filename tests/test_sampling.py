"""Sampling: any denoiser, sampler and grid; one random stream per seed; counted NFE; requests, plans and results."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from quarterarc import arc
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.data.pixels import to_uint8
from quarterarc.denoiser import Denoiser, Traits
from quarterarc.estimate import Estimate
from quarterarc.evaluation.sets import SampledSet
from quarterarc.grids import GRIDS, PUBLISHED, grid
from quarterarc.heads import HEADS, head
from quarterarc.samplers import DDIM, Gradient, Multistep, Tableau, described, sampler
from quarterarc.sampling import Plan, Result, Sampling, generate, sample, trajectory, write_samples
from quarterarc.sampling.plans import DEFAULT_STEPS
from quarterarc.schedules import Schedule, schedule
from quarterarc.storage.pictures import contact_sheet
from quarterarc.wrappers import Clipped, Guided, Projected

PI_2 = math.pi / 2
SHAPE = (1, 3, 2)
WORLD = GaussianData(torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(SHAPE), 0.2)
STOCHASTIC: list[tuple[str, dict[str, Any]]] = [
    ("ddpm", {}),
    ("ddpm", {"variance": "large"}),
    ("ddim", {"eta": 0.5}),
    ("multistep", {"eta": 0.5}),
]
NFE = {"heun": 2, "midpoint": 2, "rk4": 4}  # per step; the samplers of ONCE have 1
ONCE = ["ddpm", "ddim", "cold", "cold-naive", "cold-improved", "euler", "rotation", "multistep"]
EVERY = [*NFE, *ONCE]  # all but adaptive, which chooses its own steps


def noise(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def bare(x: Tensor, angle: float) -> Estimate:
    return WORLD(x, angle)


class Network:
    """The Gaussian denoiser as a network with one of the heads; it records the angles of its evaluations."""

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


def headed(name: str, table_name: str = "arc", steps: int = 1000) -> Denoiser:
    """The Gaussian denoiser behind a head and a schedule."""
    table = schedule(table_name, steps)
    return Denoiser(Network(name, table), table, head(name, table), shape=SHAPE)


@pytest.mark.parametrize("name", EVERY)
def test_a_bare_function_is_sampled_on_the_default_grid_of_the_sampler(name: str) -> None:
    result = sample(bare, noise(), name, 5)
    assert result.images.shape == (4, *SHAPE)
    assert result.images.isfinite().all()
    expected = grid("octave", 5, dimensions=math.prod(SHAPE)) if name == "multistep" else grid("angle", 5)
    np.testing.assert_array_equal(result.angles, expected)


def test_the_default_is_multistep_in_ten_steps_on_the_octave_grid() -> None:
    result = sample(bare, noise())
    np.testing.assert_array_equal(result.angles, grid("octave", 10, dimensions=math.prod(SHAPE)))
    assert result.nfe == DEFAULT_STEPS == 10
    assert torch.equal(result.images, sample(bare, noise(), "multistep", 10, "octave").images)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", EVERY)
def test_nfe_is_the_number_of_network_calls(name: str, steps: int) -> None:
    evaluations = NFE.get(name, 1)
    assert sampler(name).evaluations == evaluations
    assert sample(bare, noise(), name, steps).nfe == evaluations * steps
    assert sample(Clipped(bare), noise(), name, steps).nfe == evaluations * steps
    network = headed("velocity")
    assert sample(network, noise(), name, steps).nfe == evaluations * steps
    assert isinstance(network.network, Network)
    assert len(network.network.angles) == evaluations * steps


def with_labels(x: Tensor, angle: arc.Angle, labels: Tensor | None = None) -> Estimate:
    """A denoiser whose image estimate is the label."""
    assert labels is not None
    image = labels.to(x).reshape(-1, 1, 1, 1).expand_as(x)
    c, s = arc.cos_sin(angle, x)
    return Estimate(image, (x - c * image) / s)


with_labels.traits = Traits(classes=5)  # type: ignore[attr-defined]


def test_labels_reach_the_denoiser_and_guidance_takes_two_evaluations() -> None:
    labels = torch.tensor([3, 1, 4, 1])
    result = sample(with_labels, noise(), "rotation", 6, labels=labels)
    torch.testing.assert_close(
        result.images, labels.double().reshape(-1, 1, 1, 1).expand(4, *SHAPE), rtol=0, atol=1e-13
    )
    assert result.nfe == 6
    guided = sample(Guided(with_labels, 2.5), noise(), "rotation", 6, labels=labels)
    torch.testing.assert_close(guided.images, 5.0 + 2.5 * (result.images - 5.0), rtol=0, atol=1e-12)
    assert guided.nfe == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_images_have_the_dtype_of_the_noise(name: str, dtype: torch.dtype) -> None:
    assert sample(bare, noise(dtype=dtype), name, 3, seeds=range(4)).images.dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_images_are_on_the_device_of_the_noise(name: str) -> None:
    # like an accelerator, the device "meta" raises for operations between devices
    table = schedule("arc", 100)
    denoise = Clipped(Denoiser(lambda x, time, labels: x + time, table, head("velocity", table)))
    start = torch.empty(3, *SHAPE, device="meta")
    assert sample(denoise, start, name, 3).images.device.type == "meta"


def test_the_noise_is_not_changed_and_no_gradient_is_recorded() -> None:
    start = noise()
    before = start.clone()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def trainable(x: Tensor, angle: float) -> Estimate:
        return Estimate(scale * x, x)

    for name in EVERY:
        assert not sample(trainable, start, name, 2).images.requires_grad
        assert torch.equal(start, before)
    for _ in trajectory(trainable, start, "ddim", 2):
        assert torch.is_grad_enabled()  # the caller's gradient mode holds between two states


@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_of_an_image_depends_on_its_seed_alone(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    start = noise(dtype=dtype)

    def images(rows: Sequence[int], seeds: Any) -> Tensor:
        return sample(WORLD, start[list(rows)], name, 4, seeds=seeds, **options).images

    together = images(range(4), [7, 3, 9, 2**40])
    assert torch.equal(images(range(4), [7, 3, 9, 2**40]), together)
    assert torch.equal(images([2, 0], [9, 7]), together[[2, 0]])  # another order, a smaller batch
    assert torch.equal(images([3], np.array([2**40])), together[3:])
    other = images(range(4), [7, 4, 9, 2**40])
    assert torch.equal(other[[0, 2, 3]], together[[0, 2, 3]])
    assert not torch.equal(other[1], together[1])


def test_without_seeds_noise_is_drawn_from_torch_s_global_generator() -> None:
    torch.manual_seed(0)
    first, second = (sample(WORLD, noise(), "ddpm", 4).images for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(sample(WORLD, noise(), "ddpm", 4).images, first)
    assert not torch.equal(first, second)


def test_seeds_do_not_change_the_images_of_a_deterministic_sampler() -> None:
    for name in ("ddim", "rotation", "heun", "cold"):
        assert torch.equal(
            sample(WORLD, noise(), name, 4, seeds=range(4)).images, sample(WORLD, noise(), name, 4).images
        )


@pytest.mark.parametrize("name", EVERY)
def test_a_trajectory_ends_in_the_sample(name: str) -> None:
    states = list(trajectory(WORLD, noise(), name, 5, seeds=range(4)))
    result = sample(WORLD, noise(), name, 5, seeds=range(4))
    assert len(states) == (7 if name == "multistep" else 6)  # with a free first step
    assert [state.angle for state in states] == result.angles.tolist()
    assert torch.equal(states[0].x, noise())
    assert torch.equal(states[-1].x, result.images)
    assert all(state.estimate is not None for state in states[:-1])
    assert states[-1].estimate is None


@pytest.mark.parametrize("name", GRIDS)
def test_named_grids_start_at_the_end_of_the_denoiser_s_schedule(name: str) -> None:
    denoise = headed("velocity", "linear", 100)
    result = sample(denoise, noise(), "ddim", 7, name)
    np.testing.assert_array_equal(
        result.angles, grid(name, 7, denoise.largest_angle, denoise.schedule, dimensions=noise()[0].numel())
    )
    if name in PUBLISHED:
        assert result.angles[0] < denoise.schedule.end
    else:
        assert result.angles[0] == denoise.schedule.end < PI_2


def test_explicit_grids_may_start_and_end_anywhere_on_the_arc() -> None:
    angles = [1.2, 0.9, 0.4]
    result = sample(WORLD, noise(), "rk4", grid=angles)
    np.testing.assert_array_equal(result.angles, angles)
    fine = sample(WORLD, noise(), "rk4", grid=np.linspace(1.2, 0.4, 65)).images
    torch.testing.assert_close(fine, WORLD.flow(noise(), 1.2, 0.4), rtol=0, atol=1e-8)  # order 4, steps of 1/80
    assert sample(WORLD, noise(), "ddim", 2, angles).nfe == 2
    with pytest.raises(InputError, match="the grid's 3 angles make 2 steps, but steps=5 was given"):
        sample(WORLD, noise(), "ddim", 5, angles)


@pytest.mark.parametrize("name", ["noise", "noise+variance"])
@pytest.mark.parametrize("table_name", ["arc", "jsd"])
def test_a_noise_head_starts_at_the_last_angle_below_pi_2_and_logs_it(
    table_name: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = schedule(table_name, 100)
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
    # the network's time is float32, and its rounding error is divided by the last cosine, 0.016 or 0.1: 1e-5
    torch.testing.assert_close(finer, exact, rtol=0, atol=1e-4)


def test_a_denoiser_of_the_whole_arc_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="quarterarc"):
        assert sample(bare, noise(), "ddim", 4).angles[0] == PI_2
    assert caplog.text == ""


@pytest.mark.parametrize("table_name", ["arc", "linear", "cosine", "jsd"])
@pytest.mark.parametrize("sampler_name", EVERY)
@pytest.mark.parametrize("name", ["image", "mean"])
def test_an_image_head_is_never_evaluated_below_its_smallest_angle(
    name: str, sampler_name: str, table_name: str
) -> None:
    for grid_name in GRIDS:
        denoise = headed(name, table_name, 100)
        result = sample(denoise, noise(), sampler_name, 12, grid_name)
        assert result.images.isfinite().all()
        assert result.angles[-1] == 0.0
        assert isinstance(denoise.network, Network)
        assert min(denoise.network.angles) >= denoise.smallest_angle - 1e-6  # a float32 time
    with pytest.raises(InputError, match=r"the grid evaluates at angle 0.001 but the denoiser is defined from"):
        trajectory(headed(name, table_name, 100), noise(), sampler_name, grid=[1.0, 0.001, 0.0])


@pytest.mark.parametrize("name", HEADS)
def test_every_head_follows_the_same_flow(name: str) -> None:
    denoise = headed(name)
    result = sample(denoise, noise(), "heun", 60, "angle")
    exact = WORLD.flow(noise(), float(result.angles[0]), 0.0)
    # order 2 in steps of 1/40, and float32 times, whose errors 1/sin or 1/cos of the last angle multiplies by 600
    torch.testing.assert_close(result.images, exact, rtol=0, atol=1e-3)


def test_the_exact_denoiser_of_digits_generates_digits() -> None:
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images[:200]).reshape(-1, 1, 8, 8) / 8 - 1
    start = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = sample(MixtureData(digits, 0.05), start, "rk4", 100).images
    nearest = ((images[:, None] - digits) ** 2).flatten(2).mean(2).amin(1).sqrt()
    assert (nearest < 0.07).all()  # 0.05 is the deviation of a pixel; 0.02 is four deviations of the mean of 64


def test_a_plan_describes_its_settings() -> None:
    named = Sampling("ddim", 3, "rho", {"eta": 0.5}).plan(WORLD)
    angles = grid("rho", 3).tolist()
    expected = {
        "streams": 2, "sampler": "ddim", "options": {"eta": 0.5}, "grid": "rho", "steps": 3, "angles": angles
    }  # fmt: skip
    assert named.describe() == expected
    given = Sampling(DDIM(0.5), grid=[1.0, 0.5, 0.0]).plan(WORLD)
    assert given.describe() == {**expected, "grid": "explicit", "steps": 2, "angles": [1.0, 0.5, 0.0]}
    changed = Sampling("ddim", 3, "rho", {"eta": 0.5}, projection="image").plan(WORLD)
    assert changed.describe() == {**named.describe(), "projection": "image"}


def test_a_sampler_given_as_an_object_is_described_by_its_name_and_options() -> None:
    assert described(sampler("heun", form="noise")) == ("heun", {"form": "noise"}, True)
    tableau = Tableau(1, ((), (1.0,)), (0.25, 0.75))
    name, options, exact = described(Gradient(tableau))
    assert (name, options["tableau"]["weights"], exact) == ("quarterarc.samplers.gradient:Gradient", [0.25, 0.75], True)
    assert described(Multistep(order=2)) == ("multistep", {"order": 2}, True)

    @dataclass(frozen=True)
    class Local(DDIM):
        table: Any = None

    name, options, exact = described(Local(table=torch.zeros(1)))
    assert name.endswith("Local")
    assert (options, exact) == ({"table": "tensor([0.])"}, False)


def test_settings_of_the_sampler_and_the_flow_are_in_the_identity_of_sampled_images() -> None:
    def identity(request: Sampling, denoise: Callable[..., Estimate] = WORLD) -> str | None:
        return SampledSet(denoise, range(3), request, about={"recipe_hash": "a"}).identity

    changes = [Sampling(), Sampling(DDIM()), Sampling(DDIM(1.0)), Sampling(projection="image")]
    identities = [identity(request) for request in changes]
    identities += [identity(Sampling(), wrapped) for wrapped in (Clipped(WORLD), Clipped(WORLD, rederive=False))]
    identities += [identity(Sampling(), Clipped(WORLD, high=0.5)), identity(Sampling(), Clipped(Projected(WORLD)))]
    assert None not in identities
    assert len(set(identities)) == len(identities)
    assert identity(Sampling("ddim", options={"eta": 1.0})) == identity(Sampling(DDIM(1.0)))

    class Local(DDIM):
        pass

    assert identity(Sampling(Local())) is None


def test_a_folder_has_the_options_of_a_sampler_that_was_given_as_an_object(tmp_path: Path) -> None:
    def write(request: Sampling) -> None:
        write_samples(Described(bare), tmp_path, range(2), request, progress=False)

    write(Sampling(DDIM(), 2))
    write(Sampling("ddim", 2))
    for request, names in (
        (Sampling(DDIM(0.5), 2), "options"),
        (Sampling("ddim", 2, projection="image"), "projection"),
    ):
        with pytest.raises(InputError, match=rf"other settings \({names}\)"):
            write(request)

    class Local(DDIM):
        pass

    with pytest.raises(InputError, match="give another --out"):
        write(Sampling(Local(), 2))


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
        ({"labels": [0, 0, 0]}, "got 4 images but 3 labels"),
        ({"labels": 3}, r"labels are whole numbers of shape \(B,\), got torch\.int64 of shape \(\)"),
        ({"seeds": 3}, "seeds are a list or a range of whole numbers, one per image, got 3"),
        ({"seeds": {1, 2, 3, 4}}, "seeds are a list or a range of whole numbers, one per image"),
        ({"grid": "os:getcwd"}, "the grid 'os:getcwd' cannot be called with a quarterarc.grids.GridRequest: "),
    ],
)
def test_invalid_arguments_raise_before_the_first_evaluation(arguments: dict, message: str) -> None:
    def never(x: Tensor, angle: float) -> Estimate:
        raise AssertionError("evaluated")

    for function in (sample, trajectory):
        with pytest.raises(InputError, match=message):
            function(never, noise(), **arguments)


def test_integer_noise_and_grids_outside_the_denoiser_s_range_raise() -> None:
    with pytest.raises(InputError, match=r"noise is a floating point tensor, got torch\.int64"):
        sample(bare, torch.zeros(1, *SHAPE, dtype=torch.int64))
    denoise = headed("noise", "arc", 100)
    with pytest.raises(
        InputError, match=r"the grid starts at angle 1\.5708 but the denoiser is defined up to 1\.55509"
    ):
        trajectory(denoise, noise(), "ddim", grid=[PI_2, 1.0, 0.0])


def test_a_request_stands_in_place_of_the_sampler() -> None:
    request = Sampling("ddim", 4, "time", {"eta": 0.5})
    expected = sample(WORLD, noise(), "ddim", 4, "time", eta=0.5, seeds=range(4)).images
    assert torch.equal(sample(WORLD, noise(), request, seeds=range(4)).images, expected)
    *_, last = trajectory(WORLD, noise(), request, seeds=range(4))
    assert torch.equal(last.x, expected)
    seeds = [5, 6]
    generated = generate(WORLD, seeds, request, shape=SHAPE)
    assert torch.equal(generated, generate(WORLD, seeds, "ddim", 4, "time", eta=0.5, shape=SHAPE))
    for arguments in ({"steps": 5}, {"grid": np.array([1.0, 0.0])}, {"eta": 0.1}, {"guidance": 2.0}):
        with pytest.raises(InputError, match="a Sampling holds steps, grid and options"):
            sample(WORLD, noise(), request, **arguments)


def test_the_projection_and_the_guidance_of_a_request_are_those_of_the_plan() -> None:
    def disagreeing(x: Tensor, angle: float) -> Estimate:
        return Estimate(x.tanh(), x.sin())

    projected = sample(disagreeing, noise(), Sampling("ddim", 4, projection="velocity")).images
    assert torch.equal(projected, sample(Projected(disagreeing, "velocity"), noise(), "ddim", 4).images)
    labels = torch.tensor([3, 1, 4, 1])
    guided = sample(with_labels, noise(), Sampling("rotation", 4, guidance=2.5), labels=labels)
    assert torch.equal(guided.images, sample(Guided(with_labels, 2.5), noise(), "rotation", 4, labels=labels).images)
    assert guided.nfe == 8


def test_old_option_names_are_stored_under_the_new_name() -> None:
    assert Sampling("ddim", 3, options={"churn": 0.5}).plan(WORLD).options == {"eta": 0.5}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Sampling]:
    """The requests that are resolved during a test, one entry per call of `Sampling.plan`."""
    requests: list[Sampling] = []
    resolve = Sampling.plan

    def plan(self: Sampling, *arguments: Any, **options: Any) -> Plan:
        requests.append(self)
        return resolve(self, *arguments, **options)

    monkeypatch.setattr(Sampling, "plan", plan)
    return requests


def test_generate_resolves_its_request_once_for_all_batches(planned: list[Sampling]) -> None:
    generate(WORLD, range(7), "ddim", 3, shape=SHAPE, batch_size=2)
    assert len(planned) == 1


def test_write_samples_resolves_its_request_once_for_all_batches(planned: list[Sampling], tmp_path: Path) -> None:
    described = Described(bare)
    about = write_samples(described, tmp_path / "out", range(7), Sampling("euler", 3), batch_size=2, progress=False)
    assert about is not None
    assert about["count"] == 7
    assert len(planned) == 1


class Described:
    """A denoiser that declares the shape of its images."""

    traits = Traits(shape=SHAPE)

    def __init__(self, inner: Callable[[Tensor, float], Estimate]) -> None:
        self.inner = inner

    def __call__(self, x: Tensor, angle: float, labels: Tensor | None = None) -> Estimate:
        return self.inner(x.double(), angle)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_result_converts_to_pictures(channels: int) -> None:
    images = torch.linspace(-1.2, 1.2, 5 * channels * 6 * 4).reshape(5, channels, 6, 4)
    result = Result(images, 10.0, np.array([1.5, 0.5, 0.0]))
    pixels = to_uint8(images)
    pictures = result.pil()
    assert [picture.size for picture in pictures] == [(4, 6)] * 5
    for picture, expected in zip(pictures, pixels, strict=True):
        array = np.array(picture).reshape(6, 4, channels)
        assert np.array_equal(array, expected.permute(1, 2, 0).numpy())
    sheet = result.sheet(columns=3)
    expected_sheet = contact_sheet(pixels, 3)
    assert sheet.size == (expected_sheet.shape[2], expected_sheet.shape[1])
    png = result._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as notebook:
        assert notebook.format == "PNG"
        assert notebook.tobytes() == result.sheet().tobytes()


def test_a_notebook_shows_the_first_64_images_if_they_can_be_shown() -> None:
    images = torch.rand(70, 1, 3, 2)
    angles = np.array([1.5, 0.0])
    assert Result(images, 1, angles)._repr_png_() == Result(images[:64], 1, angles)._repr_png_()
    assert Result(torch.rand(2, 5, 3, 2), 1, angles)._repr_png_() is None
    assert Result(torch.rand(0, 3, 3, 2), 1, angles)._repr_png_() is None


def test_requests_with_equal_grids_are_equal() -> None:
    assert Sampling(grid=np.array([1.0, 0.0])) == Sampling(grid=np.array([1.0, 0.0]))
    assert Sampling(grid=np.array([1.0, 0.0])) != Sampling(grid=np.array([0.5, 0.0]))


def test_a_number_in_place_of_seeds_raises() -> None:
    with pytest.raises(InputError, match="seeds are a list or a range of whole numbers"):
        generate(WORLD, 4, shape=SHAPE)  # type: ignore[arg-type]


def test_the_repr_of_a_result_fits_in_200_characters() -> None:
    result = sample(WORLD, noise(), "ddim", 4)
    assert (
        repr(result) == "Result(4 images of shape (1, 3, 2), torch.float64 on cpu, 4 evaluations per image in 4 steps)"
    )
    many = Result(torch.empty(50_000, 3, 256, 256, device="meta"), 1234.56789, np.linspace(1.5, 0.0, 1001))
    assert len(repr(many)) < 200
