"""Tuned grids: smaller errors on other noise; stored beside the weights, and valid for these weights only."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quarterarc import load, noise, sample
from quarterarc.arc import Angle
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.common.errors import InputError
from quarterarc.common.progress import Bar
from quarterarc.estimate import Estimate
from quarterarc.mean_image import MeanImage
from quarterarc.samplers import Multistep
from quarterarc.samplers.step_weights import StepWeights
from quarterarc.sampling import fitting, tuning
from quarterarc.sampling.fitting import Family, Target, equations, misses
from quarterarc.sampling.plans import Sampling
from quarterarc.sampling.trajectories import run as run_plan
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned, write_tuned
from quarterarc.sampling.tuning import tune, tune_run, usual_images
from quarterarc.storage.runs import newest_checkpoint
from quarterarc.wrappers import Clipped, Evaluator, Replayed


@pytest.fixture(scope="module")
def world() -> MixtureData:
    generator = torch.Generator().manual_seed(0)
    return MixtureData(torch.rand(48, 1, 6, 6, generator=generator, dtype=torch.float64).round() * 2 - 1, 0.15)


@pytest.fixture(scope="module")
def tuned(world: MixtureData) -> TunedGrid:
    return tune(world, 6, shape=(1, 6, 6), images=32, progress=False)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_tuned_grid_has_a_smaller_error_on_other_noise(world: MixtureData, tuned: TunedGrid) -> None:
    assert set(tuned.errors) == {"untuned", "weights"}
    assert tuned.errors[tuned.kept] == min(tuned.errors.values()) < 0.25 * tuned.errors["untuned"]
    assert tuned.steps == tuned.nfe == 6
    assert len(tuned.angles) == 8  # a free first step, and 6 with an evaluation
    # and on noise that was used neither for the fit nor for the comparison
    x = noise(range(64), (1, 6, 6), dtype=torch.float64)
    fine = sample(world, x, "adaptive", tolerance=1e-6).images

    def error(images: torch.Tensor) -> float:
        return float((images - fine).flatten(1).norm(dim=1).median())

    result = sample(world, x, tuned.apply(Multistep()), grid=tuned.angles)
    assert result.nfe == 6
    assert error(result.images) < 0.3 * error(sample(world, x, "multistep", 6).images)


def test_a_grid_is_fitted_to_fewer_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(1, 8, 8), (3, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64), (3, 256, 256)]
    assert [usual_images(shape) for shape in shapes] == [128, 128, 74, 37, 18, 16]
    assert [usual_images((3, 64, 64), classes) for classes in (10, 100, 1000)] == [18, 100, 128]
    fitted = list[int]()

    class Seen(Exception):
        pass

    def noted(denoise: object, noise: torch.Tensor, *more: object) -> Target:
        fitted.append(len(noise))
        raise Seen

    monkeypatch.setattr(Target, "of", noted)
    for given in (None, 24):
        with pytest.raises(Seen):
            tune(GaussianData(torch.zeros(3, 32, 32), 0.25), 2, shape=(3, 32, 32), images=given, progress=False)
    assert fitted == [37, 24]


def test_a_free_first_step_has_a_smaller_error_at_the_same_number_of_evaluations(
    world: MixtureData, tuned: TunedGrid
) -> None:
    without = tune(world, 6, shape=(1, 6, 6), images=32, progress=False, free_start=False)
    assert (without.options, without.first) == ({"free_start": False}, None)
    assert tuned.nfe == without.nfe == tuned.steps == without.steps == 6
    assert tuned.errors["untuned"] < 0.9 * without.errors["untuned"]
    assert tuned.errors["weights"] < 0.8 * without.errors["weights"]


def test_a_free_first_step_is_stored_with_its_grid(run: Path) -> None:
    mean = MeanImage.of(noise([0], (1, 8, 8)))
    plain = TunedGrid("multistep", {}, (1.5, 1.0, 0.6, 0.0), (), {"untuned": 1.0}, "untuned", 3)
    free = TunedGrid("multistep", {}, (1.5, 1.2, 0.8, 0.4, 0.2, 0.0), (), {}, "angles", 4, first=mean)
    checkpoint = newest_checkpoint(run)
    path = write_tuned(checkpoint, [plain, free])
    assert read_tuned(checkpoint) == [plain, free]
    assert "first" not in plain.describe()
    plan = Sampling(steps=4, grid="tuned").plan(load(run))
    assert plan.sampler == Multistep(first=mean)
    x = noise(range(2), (1, 8, 8))
    assert run_plan(plan, x).nfe == 4
    # files of the format before have no free steps, and are read as they were
    stored = json.loads(path.read_text())
    stored |= {"format": 3, "grids": stored["grids"][:1]}
    del stored["checksum"]
    path.write_text(json.dumps(stored))
    assert read_tuned(checkpoint) == [plain]
    for changed in ({"shape": [1, 1, 8, 7]}, {"float32": "AAAA"}, {"float32": "?"}):
        with pytest.raises(ValueError, match=r"mean image|base64|padding"):
            TunedGrid.of({**free.describe(), "first": {**mean.describe(), **changed}})
    with pytest.raises(ValueError, match="not finite"):
        MeanImage.of(torch.full((1, 1, 2, 2), math.nan))
    with pytest.raises(InputError, match="has neither fresh noise nor tuned weights"):
        Multistep(first=mean, start="runge-kutta")
    with pytest.raises(InputError, match="without fresh noise"):
        Multistep(first=mean, eta=0.5)


def test_tuned_angles_alone_have_a_smaller_error(world: MixtureData) -> None:
    tuned = tune(world, 6, shape=(1, 6, 6), images=32, weights=False, progress=False)
    assert set(tuned.errors) == {"untuned", "angles"}
    assert tuned.errors["angles"] < 0.7 * tuned.errors["untuned"]
    assert not tuned.offsets


def test_tuned_weights_are_exact_for_a_linear_flow() -> None:
    """Gaussian data of one variance: every image is the noise times a number, and one weight per step suffices."""
    world = GaussianData(torch.zeros(1, 4, 4, dtype=torch.float64), 0.25)
    tuned = tune(world, 3, shape=(1, 4, 4), images=8, progress=False)
    assert tuned.errors["weights"] < 1e-4 < 1e-3 < tuned.errors["untuned"]


def test_equations_do_not_depend_on_the_parts(world: MixtureData, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(range(8), (1, 6, 6), dtype=torch.float64)
    labels = torch.arange(8) % 2

    class Shifted:
        """Two classes; the second one is brighter."""

        def __call__(self, x: torch.Tensor, angle: Angle, labels: torch.Tensor) -> Estimate:
            brighter = 0.2 * labels.reshape(-1, 1, 1, 1)
            estimate = world(x - torch.as_tensor(angle).cos().reshape(-1, 1, 1, 1) * brighter, angle)
            return Estimate(estimate.image + brighter, estimate.noise)

    target = Target.of(Shifted(), x, labels)
    family = Family(Sampling(steps=3).plan(world, (1, 6, 6)), (1, 6, 6), weights=True)
    vector = family.begin()
    whole = equations(target, family, vector, 0.1)
    monkeypatch.setattr(fitting, "NUMBERS", len(vector) * 36 * 3)  # three images at a time
    for parts, expected in zip(equations(target, family, vector, 0.1), whole, strict=True):
        np.testing.assert_allclose(parts, expected, rtol=1e-6, atol=1e-9)


def test_the_bar_shows_how_far_the_fine_trajectories_are(world: MixtureData) -> None:
    class Recorded(Bar):
        """A bar that keeps its notes."""

        def note(self, **values: str) -> None:
            notes.append(int(values["fine_trajectories"].removesuffix("%")))

    notes: list[int] = []
    x = noise(range(4), (1, 6, 6), dtype=torch.float64)
    watched = Target.of(world, x, bar=Recorded())
    assert torch.equal(watched.end, Target.of(world, x).end)
    assert notes[0] == 0
    assert notes[-1] > 90
    assert len({*notes}) > 5


def test_the_gradient_is_that_of_the_logarithm_of_the_errors(
    world: MixtureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the derivative of sum log(error^2 + floor^2), at nonzero offsets."""
    monkeypatch.setattr(fitting, "MOVE", 1e-6)  # so small that one-sided differences are as exact as central ones
    monkeypatch.setattr(fitting, "NUDGE", 1e-6)
    target = Target.of(world, noise(range(8), (1, 6, 6), dtype=torch.float64))
    family = Family(Sampling(steps=3).plan(world, (1, 6, 6)), (1, 6, 6), weights=True)
    vector, floor = family.begin() + 0.01, 0.1

    def objective(vector: np.ndarray) -> float:
        missed = misses(target, family, vector)
        assert missed is not None
        return float(np.log((missed**2).sum(1) + floor**2).sum()) / 2

    _, gradient = equations(target, family, vector, floor)
    steps = 1e-5 * np.eye(len(vector))
    central = [(objective(vector + step) - objective(vector - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, central, rtol=0, atol=3e-4 * np.abs(central).max())


def test_a_replayed_denoiser_is_evaluated_only_where_a_run_differs(world: MixtureData) -> None:
    counted = Evaluator(world)
    replayed, x = Replayed(counted), noise(range(4), (1, 6, 6), dtype=torch.float64)

    def run(angles: list[float]) -> torch.Tensor:
        replayed.rewind() if counted.nfe else None
        return sample(replayed, x, "multistep", grid=angles).images

    first = run([1.5, 1.0, 0.5, 0.0])
    assert counted.nfe == 3
    assert torch.equal(run([1.5, 1.0, 0.5, 0.0]), first)
    assert counted.nfe == 3
    later = run([1.5, 1.0, 0.4, 0.0])
    assert counted.nfe == 4  # the first two evaluations are the same
    assert torch.equal(later, sample(world, x, "multistep", grid=[1.5, 1.0, 0.4, 0.0]).images)


def test_samplers_other_than_multistep_have_their_angles_tuned(world: MixtureData) -> None:
    tuned = tune(world, 4, "heun", shape=(1, 6, 6), images=16, progress=False)
    assert set(tuned.errors) == {"untuned", "angles"}
    assert tuned.nfe == 8
    assert not tuned.offsets


def test_the_untuned_grid_is_kept_if_it_has_the_smaller_error(
    world: MixtureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "fit", lambda target, family, vector, rounds, bar: vector * 0.7)  # a fit that fails
    tuned = tune(world, 3, "heun", shape=(1, 6, 6), images=8, progress=False)
    assert tuned.errors["untuned"] < 0.9 * tuned.errors["angles"]
    assert tuned.kept == "untuned"
    assert tuned.angles == tuple(Sampling("heun", 3).plan(world, (1, 6, 6)).angles)


def test_a_runge_kutta_start_has_its_angles_tuned(world: MixtureData) -> None:
    tuned = tune(world, 4, shape=(1, 6, 6), images=8, progress=False, order=2, start="runge-kutta")
    assert set(tuned.errors) == {"untuned", "angles"}
    assert not tuned.offsets


def test_offsets_are_added_to_the_weights_of_the_latest_estimates() -> None:
    total = StepWeights(1.0, (0.1, 0.2, 0.3), (0.0, 0.0, 1.0)) + StepWeights(0.0, (10.0,), (20.0,))
    assert total == StepWeights(1.0, (0.1, 0.2, 10.3), (0.0, 0.0, 21.0))
    assert StepWeights(0.0, (), ()) + StepWeights(1.0, (2.0,), (3.0,)) == StepWeights(1.0, (2.0,), (3.0,))


def test_offsets_of_0_change_nothing(world: MixtureData) -> None:
    x = noise(range(3), (1, 6, 6))
    plain = sample(world, x, "multistep", 5, free_start=False).images
    zero = Multistep(offsets=tuple(StepWeights(0.0, (0.0,) * count, (0.0,) * count) for count in (1, 2, 3, 4, 4)))
    torch.testing.assert_close(sample(world, x, zero, 5).images, plain, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="tuned weights are for 5 steps, got 6"):
        sample(world, x, zero, 6)


def test_offsets_are_applied_with_the_width_of_their_fit(run: Path) -> None:
    zero, angles = (StepWeights(0.0, (0.0,), (0.0,)),) * 4, (1.5, 1.0, 0.6, 0.2, 0.0)
    tuned = TunedGrid("multistep", {}, angles, zero, {"untuned": 1.0}, "weights", 4, 0.0)
    assert tuned.apply(Multistep()) == Multistep(offsets=zero, width=0.0)
    assert replace(tuned, width=None).apply(Multistep(width=0.1)) == Multistep(offsets=zero, width=0.1)
    assert replace(tuned, offsets=(), width=None).apply(Multistep()) == Multistep()
    checkpoint = newest_checkpoint(run)
    write_tuned(checkpoint, [tuned])
    assert read_tuned(checkpoint) == [tuned]


def test_the_better_of_estimated_widths_and_width_0_is_fitted(world: MixtureData) -> None:
    with_widths, without = (tune(world, steps, shape=(1, 6, 6), images=16, progress=False) for steps in (4, 3))
    assert with_widths.width is None
    assert without.width == 0.0
    explicit = tune(world, 3, shape=(1, 6, 6), images=16, progress=False, width=0.0)
    assert explicit.width is None  # the width is in the options
    assert (explicit.angles, explicit.offsets) == (without.angles, without.offsets)


def test_tune_and_sample_on_the_command_line(
    run: Path, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fitting.FINE, "tolerance", 1e-2)  # other tests measure how good a tuned grid is
    done = cli("tune", run, "--nfe", "2,3", "--images", "8", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "2 evaluations (2 steps after a free first one): untuned" in done.stdout
    grids = read_tuned(newest_checkpoint(run))
    assert [grid.steps for grid in grids] == [2, 3]
    out = tmp_path / "made"
    done = cli("sample", run, "--grid", "tuned", "--steps", "3", "--seeds", "0-3", "--out", out)
    assert done.returncode == 0, done.stderr
    about = json.loads((out / "samples.json").read_text())
    assert (about["grid"], about["steps"], about["nfe"], about["sampler"]) == ("tuned", 3, 3, "multistep")
    assert grids[1].first is not None
    assert about["tuned_weights"] == grids[1].fingerprint != replace(grids[1], first=None).fingerprint
    np.testing.assert_allclose(about["angles"], grids[1].angles)
    # the plan has the tuned offsets too
    assert Sampling(steps=3, grid="tuned").plan(load(run)).sampler == grids[1].apply(Multistep())


def test_the_help_of_tune_names_no_option_for_a_grid(cli: Callable) -> None:
    assert "\ngrids:" in (text := cli("tune", "--help").stdout)
    assert "--grid" not in text


def test_a_new_grid_replaces_that_of_the_same_settings(run: Path) -> None:
    checkpoint = newest_checkpoint(run)

    def grid(steps: int, error: float) -> TunedGrid:
        angles = tuple(np.linspace(1.5, 0, steps + 1).tolist())
        offsets = (StepWeights(0.0, (0.25,), (-0.5,)),) * steps
        return TunedGrid("multistep", {"order": 2}, angles, offsets, {"untuned": error}, "untuned", steps)

    write_tuned(checkpoint, [grid(3, 1.0), grid(5, 1.0)])
    write_tuned(checkpoint, [grid(5, 0.5)])
    assert read_tuned(checkpoint) == [grid(3, 1.0), grid(5, 0.5)]


def test_invalid_tuned_grids_raise(run: Path) -> None:
    checkpoint = newest_checkpoint(run)
    good = TunedGrid("multistep", {}, (1.5, 0.7, 0.0), (), {"untuned": 1.0}, "untuned", 2).describe()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"angles": [1.5, 0.7, 0.1]}, "ends at 0.1 instead of 0"),
        ({"angles": [0.7, 1.5, 0.0]}, "descends"),
        ({"angles": []}, "at least two angles"),
        ({"offsets": [{"x": 0.0, "image": [], "noise": []}]}, "1 of 2 steps have weights"),
        ({"offsets": 2 * [{"x": 0.0, "image": [1.0, 1.0], "noise": [1.0, 1.0]}]}, "step 0 has weights for 2 images"),
        ({"offsets": 2 * [{"x": 0.0, "image": [1.0], "noise": []}]}, "step 0 has weights for 1 images and 0 noises"),
        ({"offsets": 2 * [{"x": math.nan, "image": [1.0], "noise": [1.0]}]}, "not finite"),
        ({"nfe": math.inf}, "evaluations is inf"),
    ]
    for changed, message in changes:
        with pytest.raises(ValueError, match=message):
            TunedGrid.of({**good, **changed})
    text = json.dumps({"format": 3, "network": "", "grids": [{**good, "angles": [1.0]}]})
    (checkpoint / "tuned.json").write_text(text)
    with pytest.raises(InputError, match=r"tuned.json does not hold tuned grids .* tune again"):
        read_tuned(checkpoint)


def test_invalid_arguments_and_grids_of_another_network_raise(
    run: Path, world: MixtureData, cli: Callable, tmp_path: Path
) -> None:
    denoise, x = load(run), noise(range(2), (1, 8, 8))
    with pytest.raises(InputError, match="no grid was tuned for this network: run `quarterarc tune`"):
        sample(denoise, x, steps=4, grid="tuned")
    with pytest.raises(InputError, match="a tuned grid belongs to a trained network"):
        sample(world, x[..., :6, :6], steps=4, grid="tuned")
    checkpoint = newest_checkpoint(run)
    tuned = TunedGrid("multistep", {}, (1.5, 0.7, 0.0), (), {"untuned": 1.0}, "untuned", 2)
    write_tuned(checkpoint, [tuned])
    with pytest.raises(InputError, match=r"no grid was tuned for multistep with 7 steps \(tuned: multistep 2 steps\)"):
        sample(denoise, x, steps=7, grid="tuned")
    # another flow of the same network
    with pytest.raises(InputError, match=r"this one is clipped to -1\.0\.\.1\.0: name another grid"):
        sample(Clipped(denoise), x, steps=2, grid="tuned")
    with pytest.raises(InputError, match="projected by 'none': name another grid"):
        sample(load(run, projection=None), x, steps=2, grid="tuned")
    # another head, or other weights, in the same folder
    config = json.loads((checkpoint / "config.json").read_text())
    del config["checksum"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name in ("config.json", "model.safetensors"):
        content = (checkpoint / name).read_bytes()
        changed = content.replace(b'"both"', b'"mean"') if name == "config.json" else content[:-1] + b"\x01"
        assert changed != content
        (checkpoint / name).write_bytes(changed)
        with pytest.raises(InputError, match="tuned for another network or head"):
            read_tuned(checkpoint)
        (checkpoint / name).write_bytes(content)
    (checkpoint / "tuned.json").write_text('{"format": 7}')
    with pytest.raises(InputError, match="does not hold tuned grids of format 4"):
        read_tuned(checkpoint)
    with pytest.raises(InputError, match="give 'multistep' instead of Multistep"):
        sample(denoise, x, Multistep(), 4, "tuned")
    with pytest.raises(InputError, match="one step has no angles to tune"):
        tune(world, 1, shape=(1, 6, 6))
    with pytest.raises(InputError, match="give shape="):
        tune(lambda x, angle: world(x, angle), 4)
    with pytest.raises(InputError, match="'ddpm' draws noise"):
        tune(world, 4, "ddpm", shape=(1, 6, 6), images=8, progress=False)
    with pytest.raises(InputError, match="'adaptive' chooses its own steps"):
        tune(world, 4, "adaptive", shape=(1, 6, 6), images=8, progress=False)
    assert "'adaptive' chooses its own steps" in cli("tune", run, "--sampler", "adaptive", "--nfe", "2").stderr
    assert "rk4 takes 4 evaluations per step" in cli("tune", run, "--sampler", "rk4", "--nfe", "8,7").stderr
    for words in (("--nfe", "five"), ("--nfe", "1"), ("--sampler", "dppm"), ("--images", "2")):
        done = cli("tune", run, *words)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
    assert cli("tune", tmp_path / "none").returncode == 2


def test_tune_by_nfe_stores_the_grids_of_a_run_beside_its_weights(run: Path) -> None:
    settings: dict[str, Any] = {"images": 8, "device": "cpu", "progress": False}
    grids = tune(run, sampler="heun", nfe=[4, 7], **settings)
    assert [(grid.steps, grid.nfe) for grid in grids] == [(2, 4), (3, 6)]
    checkpoint = newest_checkpoint(run)
    assert read_tuned(checkpoint) == grids
    single = tune(str(run), sampler="heun", nfe=4, **settings)
    assert single == grids[0] == tune(run, 2, "heun", **settings)
    assert read_tuned(checkpoint) == grids
    assert tune(run, sampler=Sampling("heun", 2), **settings) == single
    for request, reason in (
        (Sampling("heun", 2, "time"), "leave out grid and projection"),
        (Sampling("heun", 2, guidance=2.0), "guidance needs a network that was trained with labels"),
    ):
        with pytest.raises(InputError, match=reason):
            tune(run, sampler=request, **settings)
    with pytest.raises(InputError, match="nfe is a whole number or a list of them"):
        tune(run, nfe="5")  # type: ignore[arg-type]
    # a loaded denoiser is tuned without a file
    (checkpoint / "tuned.json").unlink()
    assert tune(load(run), sampler="heun", nfe=4, images=8, progress=False) == single
    assert not (checkpoint / "tuned.json").exists()


def test_tune_run_yields_each_grid_as_soon_as_it_is_stored(run: Path) -> None:
    grids = tune_run(run, [4, 6], "heun", images=8, device="cpu", progress=False)
    checkpoint = newest_checkpoint(run)
    for count, grid in enumerate(grids, start=1):
        assert read_tuned(checkpoint)[-1] == grid
        assert len(read_tuned(checkpoint)) == count


def test_numbers_of_numpy_are_numbers_and_text_is_an_error(world: MixtureData) -> None:
    settings: dict[str, Any] = {"shape": (1, 6, 6), "weights": False, "progress": False}
    expected = tune(world, nfe=2, images=8, **settings)
    assert tune(world, nfe=np.int64(2), images=np.int64(8), **settings) == expected  # type: ignore[call-overload]
    assert tune(world, nfe=np.array([2]), images=8, **settings) == [expected]  # type: ignore[call-overload]
    with pytest.raises(InputError, match="at least 8 images and at most 100,000, got '8'"):
        tune(world, nfe=2, images="8", **settings)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"nfe is a whole number or a list of them, .*, got 2\.5"):
        tune(world, nfe=2.5, **settings)  # type: ignore[call-overload]


def test_an_nfe_below_two_steps_raises_before_any_tuning(run: Path, world: MixtureData) -> None:
    nfes: list[int | list[int]] = [[8, 7], 7, []]
    for nfe in nfes:
        with pytest.raises(InputError, match=r"rk4 takes 4 evaluations per step.* at least 8, got"):
            tune(run, sampler="rk4", nfe=nfe)
    with pytest.raises(InputError, match="rk4 takes 4 evaluations per step"):
        tune_run(run, [8, 7], "rk4")  # raises at the call, before the first grid
    assert not (newest_checkpoint(run) / "tuned.json").exists()
    for arguments in ({}, {"steps": 4, "nfe": 4}):
        with pytest.raises(InputError, match=r"give either steps, .* or nfe"):
            tune(world, shape=(1, 6, 6), **arguments)  # type: ignore[call-overload]


def test_the_grids_of_a_run_are_those_of_its_own_image_size(run: Path) -> None:
    """Of another size they would replace its own; for the denoiser itself they can be fitted."""
    with pytest.raises(InputError, match=r"own image shape \(1, 8, 8\), got shape=\(1, 16, 16\): tune the denoiser"):
        tune(run, 2, shape=(1, 16, 16), images=8, progress=False)
    assert not (newest_checkpoint(run) / "tuned.json").exists()
    assert tune(load(run), 2, shape=(1, 16, 16), images=8, progress=False).steps == 2
    tune(run, 2, shape=(1, 8, 8), images=8, progress=False)
    assert len(read_tuned(newest_checkpoint(run))) == 1


def test_a_tuned_grid_stored_with_an_old_option_name_is_found(run: Path) -> None:
    checkpoint = newest_checkpoint(run)
    tuned = TunedGrid("ddim", {"eta": 0.0}, (1.5, 0.7, 0.0), (), {"untuned": 1.0}, "untuned", 2)
    path = write_tuned(checkpoint, [tuned])
    stored = json.loads(path.read_text().replace('"eta"', '"churn"'))
    del stored["checksum"]  # which the files of that version do not have
    path.write_text(json.dumps(stored))
    assert read_tuned(checkpoint) == [tuned]
    for options in ({"eta": 0.0}, {"churn": 0.0}):
        assert Sampling("ddim", 2, "tuned", options).plan(load(run)).angles.tolist() == [1.5, 0.7, 0.0]


def test_fresh_noise_and_orders_are_checked_as_in_sampling(world: MixtureData) -> None:
    with pytest.raises(InputError, match="draws noise"):
        tune(world, 4, shape=(1, 6, 6), images=8, progress=False, eta=0.5)
    tuned = tune(world, 3, shape=(1, 6, 6), images=8, progress=False, order=4)
    assert tuned.first is not None  # of 4 steps
