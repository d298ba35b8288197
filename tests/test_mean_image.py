"""The mean image: the estimate at pure noise, known without an evaluation, by which N evaluations make N + 1 steps."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quarterarc import Sampling, edit, generate, load, noise, sample
from quarterarc.arc import Angle
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser, Traits, traits
from quarterarc.estimate import Estimate
from quarterarc.grids import GridRequest
from quarterarc.heads import head
from quarterarc.mean_image import MeanImage
from quarterarc.samplers import Multistep
from quarterarc.sampling import mean_images
from quarterarc.sampling.mean_images import mean_image, with_mean_image
from quarterarc.sampling.trajectories import run as run_plan
from quarterarc.sampling.tuning import tune
from quarterarc.schedules import schedule
from quarterarc.storage.checkpoints import save
from quarterarc.storage.runs import MEAN, newest_checkpoint
from quarterarc.storage.weights import save_tensors
from quarterarc.wrappers import Clipped, Evaluator, Guided, Known, Projected

SHAPE = (1, 6, 6)


@pytest.fixture(scope="module")
def world() -> MixtureData:
    generator = torch.Generator().manual_seed(0)
    return MixtureData(torch.rand(48, *SHAPE, generator=generator, dtype=torch.float64).round() * 2 - 1, 0.15)


class Classes:
    """A Gaussian for each of two classes, and label 2 for images without one."""

    means = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    traits = Traits(shape=(1, 4, 4), classes=2)

    def __call__(self, x: torch.Tensor, angle: Angle, labels: torch.Tensor | None = None) -> Estimate:
        labels = torch.full((len(x),), 2) if labels is None else labels
        worlds = [GaussianData(mean, 0.25)(x, angle) for mean in self.means]
        image, noise = (torch.stack([getattr(world, key) for world in worlds]) for key in ("image", "noise"))
        return Estimate(image[labels, range(len(x))], noise[labels, range(len(x))])


def test_the_mean_of_the_data_is_the_estimate_of_gaussian_data_at_pi_2() -> None:
    mean = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 4, 4)
    world, x = GaussianData(mean, 0.25), noise(range(3), (1, 4, 4), dtype=torch.float64)
    known, expected = MeanImage.of(mean[None]).estimate(x, math.pi / 2), world(x, math.pi / 2)
    torch.testing.assert_close(known.image, expected.image, rtol=0, atol=1e-15)
    torch.testing.assert_close(known.noise, expected.noise, rtol=0, atol=1e-15)
    # below pi/2 the noise is the one that agrees with the mean on x
    assert float(MeanImage.of(mean[None]).estimate(x, 1.5).residual(x, 1.5).abs().max()) < 1e-15


def test_exact_worlds_declare_the_mean_of_their_data(world: MixtureData) -> None:
    gaussian = GaussianData(world.means[0], 0.1)
    for exact in (world, gaussian):
        declared, x = traits(exact).mean_image, noise(range(2), SHAPE, dtype=torch.float64)
        assert declared is not None
        assert declared.dtype == "float64"
        torch.testing.assert_close(declared.estimate(x, math.pi / 2).image, exact(x, math.pi / 2).image)
        read = MeanImage.read(json.loads(json.dumps(declared.describe())))
        assert read == declared
        torch.testing.assert_close(read.images, declared.images, rtol=0, atol=0)
    assert traits(MixtureData(torch.randn(5, 3), 0.1)).mean_image is None  # of points of the plane, not images


def test_by_default_the_first_step_is_not_evaluated(world: MixtureData) -> None:
    x = noise(range(32), SHAPE, dtype=torch.float64)
    for steps in (1, 2, 5, 10):
        free = sample(world, x, steps=steps)
        evaluated = sample(world, x, "multistep", steps + 1, free_start=False)
        assert (free.nfe, evaluated.nfe) == (steps, steps + 1)
        # the same images as with one more evaluation: on an exact world the mean is what that evaluation returns
        torch.testing.assert_close(free.images, evaluated.images, rtol=0, atol=1e-12)
        assert free.angles.tolist() == evaluated.angles.tolist()
    fine = sample(world, x, "adaptive", tolerance=1e-6).images

    def error(free_start: bool) -> float:
        images = sample(world, x, "multistep", 6, free_start=free_start).images
        return float((images - fine).flatten(1).norm(dim=1).median())

    assert error(True) < 0.9 * error(False)


def test_the_plan_counts_and_records_the_evaluated_steps(world: MixtureData) -> None:
    plan, plain = Sampling(steps=5).plan(world), Sampling(steps=5, options={"free_start": False}).plan(world)
    mean = traits(world).mean_image
    assert mean is not None
    assert (plan.steps, len(plan.angles), plain.steps, len(plain.angles)) == (5, 7, 5, 6)
    assert plan.describe()["mean_image"] == mean.fingerprint
    assert plan.describe()["options"] == {}
    assert "mean_image" not in plain.describe()
    assert Sampling().plan(world).steps == 10
    other = MixtureData(world.means.flip(0)[:9], 0.15)
    assert Sampling(steps=5).plan(other).describe()["mean_image"] != mean.fingerprint


@pytest.mark.parametrize(
    "options",
    [{"eta": 0.5, "order": 2}, {"start": "runge-kutta", "order": 2}, {"free_start": False}],
    ids=["fresh noise", "runge-kutta", "turned off"],
)
def test_the_first_step_is_evaluated_where_it_cannot_be_free(world: MixtureData, options: dict[str, object]) -> None:
    plan = Sampling("multistep", 4, options=options).plan(world)
    assert (plan.steps, len(plan.angles), plan.sampler.free) == (4, 5, 0)


def test_the_first_step_is_evaluated_on_grids_that_are_not_its_own(world: MixtureData) -> None:
    angles = Sampling(steps=4, options={"free_start": False}).plan(world).angles
    x = noise(range(2), SHAPE, dtype=torch.float64)
    assert sample(world, x, "multistep", grid=angles).nfe == 4  # explicit
    assert sample(world, x, "multistep", grid=angles, free_start=True).nfe == 3
    assert Sampling(steps=4).plan(world, start=1.2).steps == len(Sampling(steps=4).plan(world, start=1.2).angles) - 1
    uniform = Sampling("multistep", 4, "uniform").plan(world)  # of DDIM's code, which begins below pi/2
    assert uniform.sampler.free == 0
    with pytest.raises(InputError, match="the grid begins below pi/2"):
        Sampling("multistep", 4, "uniform", {"free_start": True}).plan(world)
    # a grid of all steps of a schedule has no room for another one
    table = schedule("arc", 6)
    network = Denoiser(lambda x, time, labels: torch.cat([0 * x, x], 1), table, head("both", table), SHAPE)
    declared = replace(network, mean_image=MeanImage.of(torch.zeros(1, *SHAPE)))
    for steps, free in ((5, 1), (6, 0)):
        plan = Sampling("multistep", steps, "time").plan(declared)
        assert (plan.steps, plan.sampler.free) == (steps, free)
    with pytest.raises(InputError, match="has no room for another step"):
        Sampling("multistep", 6, "time", {"free_start": True}).plan(declared)
    with pytest.raises(InputError, match="a free start takes at least one more step"):
        sample(world, x, "multistep", grid=[math.pi / 2, 0.0], free_start=True)


@pytest.mark.parametrize("steps", [0, -1, "5", [3], True, 2.5])
def test_steps_that_are_no_whole_number_above_0_are_an_error(world: MixtureData, steps: object) -> None:
    with pytest.raises(InputError, match="steps"):
        Sampling(steps=steps).plan(world)  # type: ignore[arg-type]


def ten_steps(request: GridRequest) -> np.ndarray:
    """A grid that has 10 steps alone."""
    return {10: np.linspace(request.start, 0.0, 11)}[request.steps]


def test_a_grid_by_import_path_is_asked_for_the_given_steps_alone(world: MixtureData) -> None:
    plan = Sampling("multistep", 10, f"{__name__}:ten_steps").plan(world)
    assert (plan.steps, plan.sampler.free) == (10, 0)


def test_labels_outside_the_classes_are_an_error() -> None:
    declares, x = Classes(), noise(range(2), (1, 4, 4))
    declares.traits = replace(Classes.traits, mean_image=MeanImage.of(Classes.means))
    for labels in ([0, 3], torch.tensor([-1, 0])):
        with pytest.raises(InputError, match=r"was trained with the labels 0\.\.1, got the label (3|-1)"):
            sample(declares, x, steps=2, labels=labels)
    # a world without classes does not use labels
    world, x = GaussianData(torch.zeros(1, 4, 4), 0.25), noise(range(2), (1, 4, 4))
    assert torch.equal(sample(world, x, steps=2, labels=[0, 3]).images, sample(world, x, steps=2).images)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_an_inpainting_takes_the_mean_of_its_class_for_the_unknown_pixels(unlabelled: bool) -> None:
    declares = Classes()
    means = Classes.means if unlabelled else Classes.means[:2]
    declares.traits = replace(Classes.traits, unlabelled=unlabelled, mean_image=MeanImage.of(means))
    image, mask = torch.full((1, 4, 4), 0.5), torch.zeros(4, 4)
    mask[:2] = 1.0

    def made(steps: int, **options: Any) -> torch.Tensor:
        result = edit.inpaint(
            declares,
            image,
            mask,
            seeds=range(4),
            method="project",
            sampler="multistep",
            steps=steps,
            labels=0,
            **options,
        )
        assert result.nfe == steps
        return result.images

    longer = made(6, free_start=False)
    torch.testing.assert_close(made(5), longer, rtol=0, atol=1e-5)  # as with one more evaluation


def test_a_declared_mean_image_of_another_shape_is_an_error() -> None:
    for shape in ((2, 1, 4, 4), (3, 1, 4, 5)):
        with pytest.raises(InputError, match=r"has mean images of shape \(3, C, H, W\)"):
            replace(Classes.traits, mean_image=MeanImage.of(torch.zeros(shape)))


def test_a_denoiser_does_not_declare_the_mean_image_of_other_classes(tiny_run: Path) -> None:
    other = replace(load(tiny_run), classes=3)
    assert other.mean_image is not None
    assert other.traits.mean_image is None


def test_images_of_another_size_are_sampled_without_the_mean_image(tiny_run: Path) -> None:
    denoise, x = load(tiny_run), noise(range(2), (1, 16, 16))
    assert Sampling(steps=3).plan(denoise).sampler.free == 1
    expected = sample(denoise, x, "multistep", 3, free_start=False)
    other = replace(denoise, shape=(1, 16, 16))
    assert other.traits.mean_image is None
    for made in (sample(denoise, x, steps=3), sample(other, x, steps=3)):
        assert made.nfe == 3
        assert torch.equal(made.images, expected.images)
    generated = generate(denoise, range(2), steps=3, shape=(1, 16, 16), progress=False)
    assert torch.equal(generated, expected.images)
    with pytest.raises(InputError, match="the images have another shape than the mean"):
        sample(denoise, x, "multistep", 3, free_start=True)
    with pytest.raises(InputError, match=r"takes images of shape \(B, 1, H, W\), got \(1, 8, 8\)"):
        sample(denoise, noise([0], (8, 8)), steps=3)
    tuned = tune(denoise, 2, images=8, weights=False, shape=(1, 16, 16), progress=False)
    assert tuned.first is None or tuned.first.shape[1:] == (1, 16, 16)
    known = Multistep(first=denoise.mean_image)
    with pytest.raises(InputError, match=r"images of shape \(1, 8, 8\) alone, got \(1, 16, 16\)"):
        sample(denoise, x, known, steps=3)


def test_a_known_first_estimate_takes_a_step_of_its_own_from_pure_noise(world: MixtureData) -> None:
    known, x = Multistep(first=traits(world).mean_image), noise(range(2), SHAPE, dtype=torch.float64)
    result = sample(world, x, known, 5)
    assert result.nfe == 5
    assert torch.equal(result.images, sample(world, x, steps=5).images)
    with pytest.raises(InputError, match=r"pure noise, at angle 1\.5708, and the grid starts at 1\.2: start at"):
        sample(world, x, known, grid=[1.2, 0.6, 0.0])


def test_a_mean_image_that_is_not_declared_is_measured_and_not_written(tiny_run: Path, tmp_path: Path) -> None:
    denoise = load(tiny_run)
    for number, changes in enumerate(({"classes": 3}, {"shape": (1, 16, 16)}, {"shape": None})):
        changed = replace(denoise, **changes)  # type: ignore[arg-type]
        again = load(save(changed, tmp_path / str(number)))
        assert again.mean_image == changed.traits.mean_image
        assert (again.mean_image is None) == (number < 2)
    larger = with_mean_image(replace(denoise, shape=(1, 16, 16))).traits.mean_image
    assert larger is not None
    assert larger.shape == (1, 1, 16, 16)


def test_guidance_to_infinity_has_no_mean_image() -> None:
    declares = Classes()
    declares.traits = replace(Classes.traits, mean_image=MeanImage.of(Classes.means))
    assert traits(Guided(declares, 1e300)).mean_image is None


def test_only_a_denoiser_keeps_a_mean_image(world: MixtureData) -> None:
    with pytest.raises(InputError, match="is kept in a Denoiser, got a MixtureData"):
        with_mean_image(world)  # type: ignore[arg-type]


def test_other_samplers_evaluate_at_pi_2(world: MixtureData) -> None:
    for name in ("ddim", "euler", "heun", "rotation", "ddpm"):
        plan = Sampling(name, 4).plan(world)
        assert (plan.sampler.free, len(plan.angles)) == (0, 5)


def test_a_free_start_without_a_mean_image_is_an_error(world: MixtureData) -> None:
    def bare(x: torch.Tensor, angle: Angle) -> Estimate:
        return world(x, angle)

    x = noise(range(2), SHAPE, dtype=torch.float64)
    assert sample(bare, x, steps=4).nfe == 4
    with pytest.raises(InputError, match="does not declare its mean image, or the grid begins below pi/2"):
        sample(bare, x, "multistep", 4, free_start=True)
    with pytest.raises(InputError, match="does not declare its mean image, or the grid begins below pi/2"):
        sample(world, x, "multistep", grid=[1.5, 1.0, 0.5, 0.0], free_start=True)
    for options in ({"eta": 0.5}, {"start": "runge-kutta"}):
        with pytest.raises(InputError, match="use free_start=false"):
            Multistep(free_start=True, **options)


def test_wrappers_declare_the_mean_image_only_where_it_is_theirs() -> None:
    mean = MeanImage.of(Classes.means)
    declares = Classes()
    declares.traits = replace(Classes.traits, mean_image=mean)
    labels = torch.tensor([0, 1, 2, 1])
    x = noise(range(4), (1, 4, 4))
    for wrapped in (declares, Projected(declares, "image"), Guided(declares, 1.75)):
        known = traits(wrapped).mean_image
        assert known is not None
        assert (traits(wrapped).altered is None) == (wrapped is declares)
        expected = wrapped(x, math.pi / 2, labels).image
        torch.testing.assert_close(known.estimate(x, math.pi / 2, labels).image, expected)
    known_pixels = Known(declares, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    for changed in (Clipped(declares), Guided(Clipped(declares), 2.0), known_pixels):
        assert traits(changed).mean_image is None
    result = sample(declares, x, steps=3, labels=labels, guidance=1.75)
    assert result.nfe == 6  # two evaluations per step
    longer = sample(declares, x, "multistep", 4, labels=labels, guidance=1.75, free_start=False)
    torch.testing.assert_close(result.images, longer.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_class_has_its_own_mean_image(guidance: float | None) -> None:
    x = noise(range(8), (1, 4, 4))
    denoise = Classes() if guidance is None else Guided(Classes(), guidance)
    mean = mean_image(denoise)
    assert mean is not None
    scale = 1.0 if guidance is None else guidance
    expected = Classes.means[2] + scale * (Classes.means - Classes.means[2])
    torch.testing.assert_close(mean.images, expected, rtol=0, atol=1e-6)
    for labels in (torch.tensor([1, 0, 0, 1, 1, 0, 1, 0]), *([None] if guidance is None else [])):
        estimate = mean.estimate(x, math.pi / 2, labels)
        torch.testing.assert_close(estimate.image, Evaluator(denoise, labels)(x, math.pi / 2).image)


def test_many_classes_are_measured_in_parts() -> None:
    class Many:
        traits = Traits(shape=(1, 2, 2), classes=100)

        def __call__(self, x: torch.Tensor, angle: Angle, labels: torch.Tensor) -> Estimate:
            assert len(x) <= 7
            return Estimate(labels.reshape(-1, 1, 1, 1).expand(x.shape).float(), x)

    mean = mean_image(Many(), batch=7)
    assert mean is not None
    assert mean.images[:, 0, 0, 0].tolist() == list(range(101))


def test_a_mean_image_of_too_many_numbers_is_not_used(world: MixtureData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_images, "LARGEST", 35)
    assert mean_image(world) is None
    tuned = tune(lambda x, angle: world(x, angle), 2, shape=SHAPE, images=8, progress=False)
    assert tuned.first is None
    assert len(tuned.angles) == 3


def test_a_mean_that_is_not_finite_is_not_used() -> None:
    class Broken:
        traits = Traits(shape=SHAPE)

        def __call__(self, x: torch.Tensor, angle: Angle) -> Estimate:
            return Estimate(x / 0.0, x)

    assert mean_image(Broken()) is None


def test_training_measures_the_mean_image_of_a_checkpoint(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    assert denoise.mean_image is not None
    assert denoise.mean_image == mean_image(denoise)
    x = noise([2_000_000_000 + seed for seed in range(8)], (1, 8, 8))
    torch.testing.assert_close(denoise.mean_image.images[0], denoise(x, math.pi / 2).image.mean(0))
    assert Sampling(steps=4).plan(denoise).steps == 4
    assert len(Sampling(steps=4).plan(denoise).angles) == 6
    preview = generate(with_mean_image(replace(denoise, mean_image=None)), [0, 1], steps=3, progress=False)
    torch.testing.assert_close(preview, generate(denoise, [0, 1], steps=3, progress=False), rtol=0, atol=0)


def test_a_network_that_ends_below_pi_2_has_no_mean_image() -> None:
    for name, kind in (("linear", "both"), ("arc", "noise")):
        table = schedule(name, 100)
        network = Denoiser(lambda x, time, labels: torch.cat([x, x], 1), table, head(kind, table), SHAPE)
        assert with_mean_image(network).mean_image is None


def test_a_mean_image_is_saved_and_read_and_checked(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    denoise = load(tiny_run)
    assert denoise.mean_image is not None
    saved = save(denoise, tmp_path / "saved")
    assert load(saved).mean_image == denoise.mean_image
    assert load(save(replace(denoise, mean_image=None), tmp_path / "without")).mean_image is None
    # an earlier version wrote neither the file nor its checksum
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    path = newest_checkpoint(run) / MEAN
    kept = path.read_bytes()
    path.write_bytes(kept[:-4] + b"abcd")
    with pytest.raises(InputError, match=r"mean\.safetensors is damaged"):
        load(run)
    path.unlink()  # as where the two files of earlier versions were copied
    assert load(run).mean_image is None
    assert "mean.safetensors is missing: the first step of `multistep` is evaluated" in caplog.text
    config = json.loads((path.parent / "config.json").read_text())
    del config["checksums"], config["checksum"]
    (path.parent / "config.json").write_text(json.dumps(config))
    for tensors, found in (
        ({"other": torch.zeros(1, 1, 8, 8)}, "no tensor of this name"),
        ({"mean_image": torch.zeros(2, 1, 8, 8)}, r"shape \(2, 1, 8, 8\)"),
        ({"mean_image": torch.tensor(0.0)}, r"shape \(\)"),
        ({"mean_image": torch.full((1, 1, 8, 8), math.inf)}, "values not finite"),
    ):
        save_tensors(tensors, path)
        with pytest.raises(InputError, match=rf"of shape \(1, 1, 8, 8\), and has .*{found}.*: delete the file"):
            load(run)


def test_mean_images_of_other_values_are_errors() -> None:
    good = MeanImage.of(noise([0], SHAPE))
    with pytest.raises(ValueError, match="not finite"):
        MeanImage.of(torch.full((1, 1, 2, 2), math.nan))
    with pytest.raises(ValueError, match=r"shape \(K, C, H, W\)"):
        MeanImage.of(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="float32 or float64"):
        replace(good, dtype="float16")
    with pytest.raises(ValueError, match="bytes"):
        replace(good, shape=(1, 1, 6, 7))


def test_a_plan_with_guidance_takes_two_evaluations_per_step() -> None:
    x = noise(range(8), (1, 4, 4))
    mean = mean_image(Guided(Classes(), 2.0))
    single = Sampling("multistep", 4, guidance=2.0).plan(Classes())
    plan = replace(single, sampler=Multistep(first=mean))
    assert run_plan(plan, x, labels=[1] * 8).nfe == 6  # three steps with two evaluations each
    assert plan.steps == 3
