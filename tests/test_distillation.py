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
from quarterarc.arc import through
from quarterarc.closed_form import GaussianData
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.heads import head
from quarterarc.samplers import Multistep
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints
from quarterarc.training.distillation import Distillation
from quarterarc.training.distilling import distill, distillation_recipe
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.teachers import IMAGES, student_of

SHAPE = (1, 2, 2)
DATA = GaussianData(torch.zeros(SHAPE, dtype=torch.float64), 0.25)
WEIGHTS = ("model.safetensors", "raw.safetensors", "optimizer.safetensors")


def uniform(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


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
    chosen = Distillation(teacher=DATA, steps=6)
    start, end = chosen.angles(uniform(4000), math.pi / 2, 0.2)
    grid = torch.tensor(chosen.plan.angles)
    assert len(grid) == 7
    assert set(start.tolist()) == set(grid[:-1].tolist())
    assert set(end.tolist()) == set(grid[1:].tolist())
    assert bool((end < start).all())
    assert float((end == 0.0).double().mean()) > 0.5
    late, _ = chosen.angles(uniform(4000), math.pi / 2, 0.5)
    assert not set(late.tolist()) & set(grid[1:-1].tolist())


def test_the_first_stage_compares_with_the_teachers_own_trajectories() -> None:
    """The loss of the map through the states of `multistep` is 0, and that of another one is not."""
    chosen = Distillation(teacher=DATA, steps=6, pairs=3, power=0.0)
    noise = random(10, *SHAPE)
    start, end = chosen.angles(uniform(10), math.pi / 2, 0.0)
    angles = chosen.plan.angles.tolist()
    states = [state.x for state in Multistep()(DATA, noise[:4], angles, torch.randn_like)]
    seen = list[Any]()

    def of_states(x: Tensor, angle: Tensor, labels: Tensor | None = None, to: Any = None) -> Estimate:
        seen.append(labels)
        ends = torch.stack([states[angles.index(float(a))][row % 4] for row, a in enumerate(to)])
        starts = torch.stack([states[angles.index(float(b))][row % 4] for row, b in enumerate(angle)])
        torch.testing.assert_close(x, starts)
        return Estimate(*through(x, angle, ends, to))

    labels = torch.arange(10)
    losses = chosen.losses(of_states, noise, noise, start, end, labels, 0.0)
    assert float(losses.total.abs().max()) < 1e-20
    assert seen[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    other = chosen.losses(lambda x, angle, labels, to: Estimate(x, x), noise, noise, start, end, labels, 0.0)
    assert float(other.total.min()) > 1e-4


def test_the_target_of_the_second_stage_converges_in_the_share() -> None:
    """For the exact map: a midpoint step along the arc has order 3 on Gaussian data, and so has the target's error."""
    image, noise = DATA.draw(200), random(200, *SHAPE, seed=1)
    start, end = (torch.full((200,), angle, dtype=torch.float64) for angle in (1.3, 0.2))
    sizes = []
    for share in (0.2, 0.1, 0.05):
        chosen = Distillation(teacher=DATA, first_share=share, last_share=share, power=0.0, stage=0.0)
        sizes.append(float(chosen.losses(exact, image, noise, start, end, None, 0.5).total.mean().sqrt()))
    for large, small in pairwise(sizes):
        assert math.log2(large / small) == pytest.approx(3.0, abs=0.2)
    assert sizes[-1] < 1e-5


def test_the_options_of_distillation_are_checked(tiny_run: Path) -> None:
    for options, message in (
        ({"stage": 1.5}, "share of the run in 0..1, got 1.5"),
        ({"steps": 0}, "steps of distillation is a whole number from 1, got 0"),
        ({"diagonal": 2.0}, "diagonal of the objective 'flow-map' lies in 0..1"),
    ):
        with pytest.raises(InputError, match=message):
            Distillation(teacher=DATA, **options)
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
    assert f"<code>quarterarc distill --out {made} --resume</code>" in page
    # the trained span has an effect: a step of the map differs from one of its diagonal
    x = torch.randn(2, *denoise.shape or ())
    assert not torch.equal(denoise(x, 1.2, to=0.1).image, denoise(x, 1.2).image)


def test_an_interrupted_distillation_continues_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "map"
    shutil.copytree(made, run)
    for folder in checkpoints(run)[1:]:
        shutil.rmtree(folder)
    images = (run / IMAGES).read_bytes()
    qa.train(None, run, resume=True, device="cpu", progress=False)
    assert (run / IMAGES).read_bytes() == images
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
        (["--out", "x"], "distillation needs a teacher: the folder of a trained run"),
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
    assert not (tmp_path / "map" / IMAGES).exists()
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


def test_what_cannot_be_a_teacher(tiny_run: Path) -> None:
    teacher = load(tiny_run)
    for wrong, message in (
        (replace(teacher, head=head("mean", teacher.schedule)), "has the head 'mean', which belongs to one step"),
        (replace(teacher, network=torch.nn.Identity()), "is a Identity: a flow map starts from a Denoiser"),
        (replace(teacher, shape=None), "does not declare the shape of its images"),
    ):
        with pytest.raises(InputError, match=message):
            distillation_recipe(wrong)
