"""Distillation: the objective of both stages on exact teachers, and whole runs from a trained teacher."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from conftest import Cli
from quarterarc.app.server import training_of
from quarterarc.arc import through
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, streams
from quarterarc.estimate import Estimate
from quarterarc.evaluation import open_reference
from quarterarc.heads import head
from quarterarc.samplers import Multistep
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import TEACHER_IMAGES, checkpoints
from quarterarc.storage.weights import read_weights
from quarterarc.training import trajectories as trajectories_module
from quarterarc.training.distillation import Distillation
from quarterarc.training.distilling import distill, distillation_recipe
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.teachers import student_of
from quarterarc.training.trajectories import GROUP, Trajectories

SHAPE = (1, 2, 2)
DATA = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.25)
WEIGHTS = ("model.safetensors", "raw.safetensors", "optimizer.safetensors")


def uniform(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def distillation(steps: int = 6, **further: Any) -> Distillation:
    """Distillation of the exact denoiser of the data."""
    trajectories = Trajectories(DATA, steps, 128, 2, batch=10)
    return Distillation(teacher=DATA, trajectories=trajectories, length=100, **further)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(x: Tensor, angle: Tensor, labels: Tensor | None = None, to: Any = None) -> Estimate:
    """The exact flow map of the data."""
    at, end = DATA(x, angle), torch.where(angle == to, angle - 0.1, to)
    jump = through(x, angle, DATA.flow(x, angle, end), end)
    same = (angle == to)[:, None, None, None]
    return Estimate(*(torch.where(same, *pair) for pair in zip((at.image, at.noise), jump, strict=True)))


# --- the objective ------------------------------------------------------------------------------------------------


def test_the_jumps_of_the_first_stage_lie_on_the_trajectory() -> None:
    chosen = distillation(from_noise=0.3, stage=0.5)
    start, end = chosen.angles(uniform(4000), math.pi / 2, 0.2)
    grid = chosen.trajectories.angles
    assert len(grid) == 7
    assert set(start.tolist()) == set(grid[:-1].tolist())
    assert set(end.tolist()) == set(grid[1:].tolist())
    assert bool((end < start).all())
    assert float((end == 0.0).double().mean()) > 0.5
    assert float((start == grid[0]).double().mean()) == pytest.approx(0.3 + 0.7 / 6, abs=0.02)
    late, _ = chosen.angles(uniform(4000), math.pi / 2, 0.5)
    assert not set(late.tolist()) & set(grid[1:-1].tolist())


def test_the_first_stage_compares_with_the_teachers_own_trajectories() -> None:
    """The loss of the map through the states of `multistep` is 0, and that of another one is not."""
    chosen = distillation(power=0.0)
    noise = random(10, *SHAPE)
    start, end = chosen.angles(uniform(10), math.pi / 2, 0.0)
    angles = chosen.trajectories.angles.tolist()
    drawn = [streams(Purpose.TRAJECTORY, 0, group, range(GROUP)) for group in range(2)]
    for stream in drawn:
        stream.uniform(2)
    noises = torch.cat([stream.normal(SHAPE) for stream in drawn])
    states = torch.stack([state.x for state in Multistep()(DATA, noises, angles, torch.randn_like)])
    rows = (torch.special.ndtr(noise.flatten(1)[:, 0]) * 128).long()

    def of_states(x: Tensor, angle: Tensor, labels: Tensor | None = None, to: Any = None) -> Estimate:
        assert labels is None
        starts, ends = (states[[angles.index(float(a)) for a in at], rows] for at in (angle, to))
        torch.testing.assert_close(x, starts)
        return Estimate(*through(x, angle, ends, to))

    losses = chosen.losses(of_states, noise, noise, start, end, torch.arange(10), 0.0)
    assert float(losses.total.abs().max()) < 1e-10
    other = chosen.losses(lambda x, angle, labels, to: Estimate(x, x), noise, noise, start, end, None, 0.0)
    assert float(other.total.min()) > 1e-4


def test_trajectories_are_replaced_after_their_uses_and_do_not_depend_on_what_was_drawn_before() -> None:
    """Groups of 64 that are used twice last 12.8 steps of 10 jumps; a resumed run draws the same bits."""
    choice, starts, ends = uniform(10)[:, 0], torch.zeros(10, dtype=torch.int64), torch.full((10,), 3)

    def of(step: int, window: Trajectories | None = None) -> list[Tensor]:
        window = window or Trajectories(DATA, 3, 128, 2, batch=10)
        return list(window.draw(choice, starts, ends, step)[:2])

    going = Trajectories(DATA, 3, 128, 2, batch=10)
    for step in range(60):
        assert all(map(torch.equal, of(step, going), of(step)))
    first = of(0)
    assert torch.equal(of(12)[0], first[0])
    kept = (of(13)[0] == first[0]).flatten(1).all(1)
    assert torch.equal(kept, choice >= 0.5)  # of two groups, the older one has been replaced
    assert not (of(26)[0] == first[0]).any()
    assert not (of(0, Trajectories(DATA, 3, 128, 2, batch=10, seed=1))[0] == first[0]).any()
    assert not (of(0, Trajectories(DATA, 3, 128, 2, batch=10, rank=1, processes=2))[0] == first[0]).any()
    going.clear()
    assert all(map(torch.equal, of(26, going), of(26)))


def test_a_first_window_that_takes_long_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def messages_of(wait: float) -> list[str]:
        monkeypatch.setattr(trajectories_module, "WAIT", wait)
        caplog.clear()
        window = Trajectories(DATA, 3, 128, 2, batch=10)
        with caplog.at_level("INFO", "quarterarc"):
            for step in range(30):
                window.draw(torch.zeros(1), torch.tensor([0]), torch.tensor([1]), step)
        return caplog.messages

    (message,) = messages_of(0.0)
    assert message.startswith("the next step waits for 128 trajectories of the teacher: about ")
    assert messages_of(1000.0) == []


def test_the_window_of_trajectories_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    group = 4 * GROUP * 4 * math.prod(SHAPE)
    monkeypatch.setattr(trajectories_module, "MOST_BYTES", 3 * group + 1)
    assert Trajectories(DATA, 3, 100_000, batch=8).groups == 3
    monkeypatch.setattr(trajectories_module, "MOST_BYTES", 1)
    assert Trajectories(DATA, 3, batch=8).groups == 1


def test_trajectories_have_the_labels_of_their_classes_and_some_have_none() -> None:
    seen = list[Tensor]()

    class Labelled:
        traits = qa.Traits(shape=SHAPE, classes=3)

        def __call__(self, x: Tensor, angle: Any, labels: Tensor | None = None) -> Estimate:
            assert labels is not None
            seen.append(labels)
            return DATA(x, angle)

    window = Trajectories(Labelled(), 1, 1024, batch=8, unlabelled=0.25)
    choice, ends = uniform(4000)[:, 0], torch.ones(4000, dtype=torch.int64)
    _, _, labels = window.draw(choice, ends - 1, ends, 0)
    assert labels is not None
    counts = torch.cat(seen).bincount()
    assert len(counts) == 4
    assert float(counts[3]) == pytest.approx(256, abs=60)
    assert counts[:3].tolist() == pytest.approx([256] * 3, abs=60)
    assert float((labels == 3).double().mean()) == pytest.approx(float(counts[3]) / 1024, abs=0.05)


@pytest.mark.parametrize("progress", [0.2, 0.8])
def test_reversed_jumps_are_the_same_ones_the_other_way(progress: float) -> None:
    given = (uniform(4000), math.pi / 2, progress)
    start, end = distillation().angles(*given)
    assert torch.equal(torch.stack(distillation(reversed=1.0).angles(*given)), torch.stack((end, start)))
    some, other = distillation(reversed=0.3).angles(*given)
    assert bool((torch.maximum(some, other) == start).all())
    towards_noise = (some < other)[start > end].double()
    assert float(towards_noise.mean()) == pytest.approx(0.3, abs=0.03)
    # whether a jump is reversed does not depend on what the same number decides otherwise
    low = uniform(4000)[:, 2][start > end] < 0.6
    assert float(towards_noise[low].mean()) == pytest.approx(0.3, abs=0.04)


def test_the_first_stage_compares_reversed_jumps_with_the_exact_flow() -> None:
    """`multistep` in 60 steps is near the flow of Gaussian data, whose exact map has no loss in either direction."""
    chosen = distillation(60, power=0.0, reversed=0.5, from_noise=0.0)
    noise = random(200, *SHAPE)
    start, end = chosen.angles(uniform(200), math.pi / 2, 0.0)
    assert 60 < int((start < end).sum()) < 140
    assert float(chosen.losses(exact, noise, noise, start, end, None, 0.0).total.max()) < 1e-4


@pytest.mark.parametrize("angles", [(1.3, 0.2), (0.2, 1.3)])
def test_the_target_of_the_second_stage_converges_in_the_share(angles: tuple[float, float]) -> None:
    """For the exact map: a midpoint step along the arc has order 3 on Gaussian data, and so has the target's error."""
    image, noise = DATA.draw(200), random(200, *SHAPE, seed=1)
    start, end = (torch.full((200,), angle, dtype=torch.float64) for angle in angles)
    sizes = []
    for share in (0.2, 0.1, 0.05):
        chosen = distillation(first_share=share, last_share=share, power=0.0, stage=0.0)
        sizes.append(float(chosen.losses(exact, image, noise, start, end, None, 0.5).total.mean().sqrt()))
    for large, small in pairwise(sizes):
        assert math.log2(large / small) == pytest.approx(3.0, abs=0.2)
    assert sizes[-1] < (1e-5 if start[0] > end[0] else 1e-4)  # towards the noise the flow spreads


def test_the_options_of_distillation_are_checked(tiny_run: Path) -> None:
    for options, message in (
        ({"stage": 1.5}, "teacher.stage of distillation is a share in 0..1, got 1.5"),
        ({"from_noise": -0.1}, "share in 0..1, got -0.1"),
        ({"reversed": 2.0}, "teacher.reversed of distillation is a share in 0..1, got 2"),
        ({"steps": 0}, "steps of distillation is a whole number from 1, got 0"),
        ({"diagonal": 2.0}, "diagonal of the objective 'flow-map' lies in 0..1"),
    ):
        with pytest.raises(InputError, match=message):
            distillation(**options)
    recipe = distillation_recipe(tiny_run)
    assert recipe.teacher is not None
    assert recipe.teacher.source == str(checkpoints(tiny_run)[-1])  # a resumed run has the same teacher
    for fields, message in (
        ({"objective.name": "both"}, "a recipe with a teacher trains a flow map"),
        ({"teacher": None}, "data.source=teacher needs the teacher"),
        ({"teacher.stagee": 1}, "did you mean 'stage'"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe(recipe, fields=fields)


# --- runs ----------------------------------------------------------------------------------------------------------

FIELDS = {
    "training.steps": 6, "training.batch": 8, "training.checkpoint_every": 2, "training.sample_every": 6,
    "teacher.images": 16, "teacher.steps": 2, "training.keep": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow map that was distilled from the tiny run."""
    run = tmp_path_factory.mktemp("distilled") / "map"
    distill(tiny_run, run, fields=FIELDS, device="cpu", progress=False)
    return run


def test_a_new_map_is_its_teacher(tiny_run: Path) -> None:
    teacher = load(tiny_run)
    student = student_of(teacher)
    x = torch.randn(2, *teacher.shape or ())
    estimate, expected = student(x, 0.9, to=0.1), replace(teacher, projection=None)(x, 0.9)
    assert torch.equal(estimate.image, expected.image)
    assert torch.equal(estimate.noise, expected.noise)
    assert student.traits.maps


def test_a_distilled_run_is_a_run(made: Path, tiny_run: Path, cli: Cli, tmp_path: Path) -> None:
    denoise, teacher = load(made), load(tiny_run)
    assert denoise.traits.maps
    assert (denoise.schedule.name, denoise.head.name, denoise.shape) == ("arc", teacher.head.name, teacher.shape)
    sampled = cli("sample", made, "--out", tmp_path / "one", "--seeds", "0-3", "--steps", "1")
    assert "1 network evaluation per image" in sampled.stdout
    about = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert (about["sampler"], about["nfe"]) == ("jump", 1)
    measured = cli("evaluate", made, "--reference", "digits", "--features", "pixels", "--count", "4", "--steps", "2")
    assert measured.returncode == 0, measured.stderr
    assert sorted(path.name for path in (made / "samples").iterdir()) == [
        f"step-00000006-{steps}.png" for steps in (1, 2, 4)
    ]
    page = (made / "index.html").read_text(encoding="utf-8")
    assert [f"<figcaption>{count}" in page for count in ("1 evaluation<", "2 evaluations<", "4 evaluations<")] == [
        True
    ] * 3
    assert f"<code>quarterarc distill --out {made} --resume training.steps=12</code>" in page
    # the trained span has an effect: a step of the map differs from one of its diagonal
    x = torch.randn(2, *denoise.shape or ())
    assert not torch.equal(denoise(x, 1.2, to=0.1).image, denoise(x, 1.2).image)


def test_the_training_images_of_a_map_without_data_are_those_of_its_teacher(
    made: Path, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "map"
    shutil.copytree(made, run)
    stored = read_weights(run / TEACHER_IMAGES)["images"]
    reference = open_reference(checkpoints(run)[-1], progress=False)
    assert reference.images is not None
    assert torch.equal(torch.cat([batch for _, batch in reference.images.batches(5, lambda number: True)]), stored)
    bits = cli("evaluate", run, "--metrics", "bits-per-dim", "--terms", "2", "--count", "3")
    assert bits.returncode == 0, bits.stderr
    shown = training_of(run, (1, 8, 8))
    assert shown is not None
    assert torch.equal(shown.picture(3), stored[3])
    (run / TEACHER_IMAGES).unlink()
    for words in (["--metrics", "bits-per-dim"], ["--reference", run, "--features", "pixels"]):
        wrong = cli("evaluate", run, *words)
        assert wrong.returncode == 2
        assert "was distilled without data, and the images of its teacher (teacher-images.safetensors)" in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
    assert training_of(run, (1, 8, 8)) is None


def test_a_map_that_goes_both_ways_encodes_in_steps(made: Path, tiny_run: Path, tmp_path: Path) -> None:
    distill(tiny_run, tmp_path / "map", fields={**FIELDS, "teacher.reversed": 0.5}, device="cpu", progress=False)
    denoise, images = load(tmp_path / "map"), torch.rand(3, 1, 8, 8) * 2 - 1
    assert denoise.traits.reverses
    assert not load(made).traits.reverses
    noise = qa.encode(denoise, images, steps=2, progress=False)
    largest = denoise.largest_angle
    middle = qa.rotate(images, denoise(images, 0.0, to=largest / 2).velocity(0.0), largest / 2)[0]
    expected = qa.rotate(middle, denoise(middle, largest / 2, to=largest).velocity(largest / 2), largest / 2)[0]
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)
    again = qa.decode(denoise, noise, steps=2, progress=False)
    torch.testing.assert_close(again, qa.sample(denoise, noise, "jump", steps=2).images, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="by a flow map that goes both ways"):
        qa.encode(load(made), images, steps=2)
    with pytest.raises(InputError, match=r"teacher\.reversed=0\.5 trains both ways"):
        load(made)(images, 0.5, to=1.0)
    with pytest.raises(InputError, match="decoded in steps by a flow map"):
        qa.decode(load(tiny_run), noise, steps=2)
    with pytest.raises(InputError, match="steps are a whole number from 1, got 0"):
        qa.decode(denoise, noise, steps=0)


def test_an_interrupted_distillation_continues_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "map"
    shutil.copytree(made, run)
    for folder in checkpoints(run)[1:]:
        shutil.rmtree(folder)
    images = (run / TEACHER_IMAGES).read_bytes()
    qa.train(None, run, resume=True, device="cpu", progress=False)
    assert (run / TEACHER_IMAGES).read_bytes() == images
    assert [path.name for path in checkpoints(run)] == [path.name for path in checkpoints(made)]
    for name in WEIGHTS:
        assert (checkpoints(run)[-1] / name).read_bytes() == (checkpoints(made)[-1] / name).read_bytes()


def test_the_command_distils_and_resumes(tiny_run: Path, made: Path, cli: Cli, tmp_path: Path) -> None:
    words = [f"{name}={value}" for name, value in FIELDS.items()]
    done = cli("distill", tiny_run, "--out", tmp_path / "map", *words)
    assert done.returncode == 0, done.stderr
    assert "distilled: " in done.stdout
    for name in WEIGHTS:
        assert (checkpoints(tmp_path / "map")[-1] / name).read_bytes() == (checkpoints(made)[-1] / name).read_bytes()
    more = cli("distill", "--out", tmp_path / "map", "--resume", "training.steps=8")
    assert more.returncode == 0, more.stderr
    assert checkpoints(tmp_path / "map")[-1].name == "step-00000008"
    for arguments, message in (
        (["--out", "x"], "distillation needs a teacher: a run folder"),
        ([tiny_run], "distillation needs --out RUN"),
        ([tmp_path / "none", "--out", "x"], "none"),
        ([tiny_run, "--out", tmp_path / "map"], "already contains a run"),
        ([tiny_run, "--out", tmp_path / "g", "teacher.guidance=2"], "has no classes, so that guidance does not apply"),
    ):
        wrong = cli("distill", *arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr
        assert not (tmp_path / "g").exists()


def test_a_guided_teacher_with_classes_and_data_of_its_own(tiny: Sequence[str], tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    qa.train(read_recipe("digits", [*tiny, "data.labels=true", "training.steps=2"]), teacher, progress=False)
    fields = {**FIELDS, "training.steps": 2, "teacher.guidance": 2.0, "teacher.stage": 0.0}
    distill(teacher, tmp_path / "map", data="digits", fields=fields, device="cpu", progress=False)
    assert not (tmp_path / "map" / TEACHER_IMAGES).exists()
    denoise = load(tmp_path / "map")
    assert denoise.classes == 10
    assert qa.generate(denoise, range(3), steps=1, labels=[1, 2, 3], progress=False).isfinite().all()
    config = json.loads((checkpoints(tmp_path / "map")[-1] / "config.json").read_text())
    assert config["recipe"]["teacher"]["guidance"] == 2.0
    with pytest.raises(InputError, match=r"the teacher has 10 classes, and the data no labels"):
        distill(teacher, tmp_path / "no", data="digits", fields={**fields, "data.labels": False}, progress=False)
    own = distill(load(teacher), tmp_path / "object", fields={**FIELDS, "training.steps": 2}, progress=False)
    assert load(own).traits.maps
    with pytest.raises(InputError, match="given as an object in Python: give it again"):
        qa.train(None, tmp_path / "object", resume=True, fields={"training.steps": 4}, progress=False)


def test_what_cannot_be_a_teacher(tiny_run: Path, tmp_path: Path) -> None:
    teacher = load(tiny_run)
    with pytest.raises(InputError, match=r"got a Guided: give the Denoiser that it wraps; .* 'teacher\.guidance'"):
        distill(qa.Guided(teacher, 2.0), tmp_path / "map")  # type: ignore[arg-type]
    for wrong, message in (
        (replace(teacher, head=head("mean", teacher.schedule)), "has the head 'mean', which belongs to one step"),
        (replace(teacher, network=torch.nn.Identity()), "is a Identity: a flow map starts from a Denoiser"),
        (replace(teacher, shape=None), "does not declare the shape of its images"),
    ):
        with pytest.raises(InputError, match=message):
            distillation_recipe(wrong)
