"""Tuned grids: better on noise they were not tuned on, kept with their network, refused for another."""

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
from quarterarc.estimate import Estimate
from quarterarc.samplers import Multistep
from quarterarc.samplers.step_weights import StepWeights
from quarterarc.sampling import fitting
from quarterarc.sampling.fitting import Family, Target, equations, misses
from quarterarc.sampling.plans import Sampling
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned, write_tuned
from quarterarc.sampling.tuning import tune
from quarterarc.storage.runs import newest_checkpoint
from quarterarc.wrappers import Clipped, Evaluator, Replayed


@pytest.fixture(scope="module")
def world() -> MixtureData:
    generator = torch.Generator().manual_seed(0)
    return MixtureData(torch.rand(48, 1, 6, 6, generator=generator, dtype=torch.float64).round() * 2 - 1, 0.15)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_tuned_grid_is_better_on_other_noise(world: MixtureData) -> None:
    found = tune(world, 6, shape=(1, 6, 6), images=32, progress=False)
    assert set(found.errors) == {"untuned", "weights"}
    assert found.errors[found.kept] == min(found.errors.values()) < 0.25 * found.errors["untuned"]
    assert found.steps == found.nfe == 6
    # and on noise that took no part at all
    x = noise(range(64), (1, 6, 6), dtype=torch.float64)
    fine = sample(world, x, "adaptive", tolerance=1e-6).images

    def miss(images: torch.Tensor) -> float:
        return float((images - fine).flatten(1).norm(dim=1).median())

    tuned = sample(world, x, found.apply(Multistep()), grid=found.angles)
    assert miss(tuned.images) < 0.3 * miss(sample(world, x, "multistep", 6).images)


def test_angles_alone_are_better_too(world: MixtureData) -> None:
    found = tune(world, 6, shape=(1, 6, 6), images=32, weights=False, progress=False)
    assert set(found.errors) == {"untuned", "angles"}
    assert found.errors["angles"] < 0.7 * found.errors["untuned"]
    assert not found.offsets


def test_weights_make_a_denoiser_exact_whose_flow_is_linear() -> None:
    """Gaussian data of one variance: every image is the noise times a number, and one weight a step is enough."""
    world = GaussianData(torch.zeros(1, 4, 4, dtype=torch.float64), 0.25)
    found = tune(world, 3, shape=(1, 4, 4), images=8, progress=False)
    assert found.errors["weights"] < 1e-4 < 1e-3 < found.errors["untuned"]


def test_images_taken_in_parts_give_the_same_equations(world: MixtureData, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(range(8), (1, 6, 6), dtype=torch.float64)
    labels = torch.arange(8) % 2

    class Shifted:
        """Two classes, the second of which is brighter."""

        def __call__(self, x: torch.Tensor, angle: Angle, labels: torch.Tensor) -> Estimate:
            brighter = 0.2 * labels.reshape(-1, 1, 1, 1)
            found = world(x - torch.as_tensor(angle).cos().reshape(-1, 1, 1, 1) * brighter, angle)
            return Estimate(found.image + brighter, found.noise)

    trial = Target.of(Shifted(), x, labels)
    family = Family(Sampling(steps=3).plan(world, (1, 6, 6)), (1, 6, 6), weights=True)
    vector = family.begin()
    whole = equations(trial, family, vector, 0.1)
    monkeypatch.setattr(fitting, "NUMBERS", len(vector) * 36 * 3)  # three images at a time
    for one, other in zip(equations(trial, family, vector, 0.1), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_the_gradient_is_that_of_the_logarithm_of_the_errors(
    world: MixtureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the derivative of sum log(error^2 + floor^2), where the added weights are not 0."""
    monkeypatch.setattr(fitting, "MOVE", 1e-6)  # one-sided differences, here as good as two-sided ones
    monkeypatch.setattr(fitting, "NUDGE", 1e-6)
    trial = Target.of(world, noise(range(8), (1, 6, 6), dtype=torch.float64))
    family = Family(Sampling(steps=3).plan(world, (1, 6, 6)), (1, 6, 6), weights=True)
    vector, floor = family.begin() + 0.01, 0.1

    def objective(vector: np.ndarray) -> float:
        missed = misses(trial, family, vector)
        assert missed is not None
        return float(np.log((missed**2).sum(1) + floor**2).sum()) / 2

    _, gradient = equations(trial, family, vector, floor)
    steps = 1e-5 * np.eye(len(vector))
    central = [(objective(vector + step) - objective(vector - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, central, rtol=0, atol=3e-4 * np.abs(central).max())


def test_a_replayed_denoiser_is_asked_again_only_where_a_run_is_new(world: MixtureData) -> None:
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


def test_any_deterministic_sampler_can_be_tuned_but_only_multistep_has_weights(world: MixtureData) -> None:
    found = tune(world, 4, "heun", shape=(1, 6, 6), images=16, progress=False)
    assert set(found.errors) == {"untuned", "angles"}
    assert found.nfe == 8
    assert not found.offsets


def test_the_untuned_grid_is_kept_where_nothing_is_better() -> None:
    """One picture: the velocity is the arc's own, so that rotation is exact whatever the grid."""
    world = MixtureData(torch.zeros(1, 1, 4, 4, dtype=torch.float64) + 0.3, 1e-9)
    found = tune(world, 3, "rotation", shape=(1, 4, 4), images=8, progress=False)
    assert found.kept == "untuned"
    assert found.angles == tuple(Sampling("rotation", 3).plan(world, (1, 4, 4)).angles)


def test_a_runge_kutta_start_has_its_angles_tuned_but_no_weights(world: MixtureData) -> None:
    found = tune(world, 4, shape=(1, 6, 6), images=8, progress=False, order=2, start="runge-kutta")
    assert set(found.errors) == {"untuned", "angles"}
    assert not found.offsets


def test_offsets_are_added_to_the_newest_estimates() -> None:
    total = StepWeights(1.0, (0.1, 0.2, 0.3), (0.0, 0.0, 1.0)) + StepWeights(0.0, (10.0,), (20.0,))
    assert total == StepWeights(1.0, (0.1, 0.2, 10.3), (0.0, 0.0, 21.0))
    assert StepWeights(0.0, (), ()) + StepWeights(1.0, (2.0,), (3.0,)) == StepWeights(1.0, (2.0,), (3.0,))


def test_no_offset_changes_nothing(world: MixtureData) -> None:
    x = noise(range(3), (1, 6, 6))
    plain = sample(world, x, "multistep", 5).images
    zero = Multistep(offsets=tuple(StepWeights(0.0, (0.0,) * count, (0.0,) * count) for count in (1, 2, 3, 4, 4)))
    torch.testing.assert_close(sample(world, x, zero, 5).images, plain, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="tuned weights are for 5 steps, got 6"):
        sample(world, x, zero, 6)


def test_weights_are_applied_with_the_width_they_were_fitted_with(run: Path) -> None:
    zero, angles = (StepWeights(0.0, (0.0,), (0.0,)),) * 4, (1.5, 1.0, 0.6, 0.2, 0.0)
    found = TunedGrid("multistep", {}, angles, zero, {"untuned": 1.0}, "weights", 4, 0.0)
    assert found.apply(Multistep()) == Multistep(offsets=zero, width=0.0)
    assert replace(found, width=None).apply(Multistep(width=0.1)) == Multistep(offsets=zero, width=0.1)
    assert replace(found, offsets=(), width=None).apply(Multistep()) == Multistep()
    checkpoint = newest_checkpoint(run)
    write_tuned(checkpoint, [found])
    assert read_tuned(checkpoint) == [found]


def test_weights_are_fitted_with_widths_or_without_whichever_is_better(world: MixtureData) -> None:
    with_widths, without = (tune(world, steps, shape=(1, 6, 6), images=16, progress=False) for steps in (7, 6))
    assert with_widths.width is None
    assert without.width == 0.0
    told = tune(world, 6, shape=(1, 6, 6), images=16, progress=False, width=0.0)
    assert told.width is None  # its options say so
    assert (told.angles, told.offsets) == (without.angles, without.offsets)


def test_tune_and_sample_on_the_command_line(run: Path, cli: Callable, tmp_path: Path) -> None:
    said = cli("tune", run, "--nfe", "2,3", "--images", "8", "--device", "cpu")
    assert said.returncode == 0, said.stderr
    assert "2 evaluations (2 steps): untuned" in said.stdout
    grids = read_tuned(newest_checkpoint(run))
    assert [one.steps for one in grids] == [2, 3]
    made = tmp_path / "made"
    said = cli("sample", run, "--grid", "tuned", "--steps", "3", "--seeds", "0-3", "--out", made)
    assert said.returncode == 0, said.stderr
    about = json.loads((made / "samples.json").read_text())
    assert (about["grid"], about["nfe"], about["sampler"]) == ("tuned", 3, "multistep")
    np.testing.assert_allclose(about["angles"], grids[1].angles)
    # the plan holds the tuned weights too
    assert Sampling(steps=3, grid="tuned").plan(load(run)).sampler == grids[1].apply(Multistep())


def test_tuning_again_replaces_and_adds(run: Path) -> None:
    checkpoint = newest_checkpoint(run)

    def grid(steps: int, error: float) -> TunedGrid:
        angles = tuple(np.linspace(1.5, 0, steps + 1).tolist())
        offsets = (StepWeights(0.0, (0.25,), (-0.5,)),) * steps
        return TunedGrid("multistep", {"order": 2}, angles, offsets, {"untuned": error}, "untuned", steps)

    write_tuned(checkpoint, [grid(3, 1.0), grid(5, 1.0)])
    write_tuned(checkpoint, [grid(5, 0.5)])
    assert read_tuned(checkpoint) == [grid(3, 1.0), grid(5, 0.5)]


def test_values_that_no_tuning_writes_are_refused(run: Path) -> None:
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


def test_what_it_refuses(run: Path, world: MixtureData, cli: Callable, tmp_path: Path) -> None:
    denoise, x = load(run), noise(range(2), (1, 8, 8))
    with pytest.raises(InputError, match="no grid was tuned for this network: run `quarterarc tune`"):
        sample(denoise, x, steps=4, grid="tuned")
    with pytest.raises(InputError, match="a tuned grid belongs to a trained network"):
        sample(world, x[..., :6, :6], steps=4, grid="tuned")
    checkpoint = newest_checkpoint(run)
    found = TunedGrid("multistep", {}, (1.5, 0.7, 0.0), (), {"untuned": 1.0}, "untuned", 2)
    write_tuned(checkpoint, [found])
    with pytest.raises(InputError, match=r"no grid was tuned for multistep with 7 steps \(tuned: multistep 2 steps\)"):
        sample(denoise, x, steps=7, grid="tuned")
    # another flow of the same network
    with pytest.raises(InputError, match="this one is clipped: name another grid"):
        sample(Clipped(denoise), x, steps=2, grid="tuned")
    with pytest.raises(InputError, match="projected by 'none': name another grid"):
        sample(load(run, projection=None), x, steps=2, grid="tuned")
    # another head or other weights under the same name
    for name in ("config.json", "model.safetensors"):
        content = (checkpoint / name).read_bytes()
        changed = content.replace(b'"both"', b'"mean"') if name == "config.json" else content[:-1] + b"\x01"
        assert changed != content
        (checkpoint / name).write_bytes(changed)
        with pytest.raises(InputError, match="tuned for another network or head"):
            read_tuned(checkpoint)
        (checkpoint / name).write_bytes(content)
    (checkpoint / "tuned.json").write_text('{"format": 7}')
    with pytest.raises(InputError, match="does not hold tuned grids of format 3"):
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
        said = cli("tune", run, *words)
        assert said.returncode == 2
        assert len(said.stderr.strip().splitlines()) == 1
    assert cli("tune", tmp_path / "none").returncode == 2
