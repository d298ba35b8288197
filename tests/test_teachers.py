"""Teachers of distillations: where they may be, what they may be, and one line for everything else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import quarterarc as qa
from conftest import TINY, Cli
from quarterarc.interop import load_pipeline
from quarterarc.interop.pipelines import with_own_network
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints
from quarterarc.training.distilling import distill, distillation_recipe, recipe_of_map
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.teachers import identity_of, read_teacher

FIELDS = {
    "training.steps": 4, "training.batch": 8, "training.checkpoint_every": 2, "training.sample_every": 100,
    "training.keep": 9, "teacher.images": 8, "teacher.steps": 2,
}  # fmt: skip
WORDS = [f"{name}={value}" for name, value in FIELDS.items()]


@pytest.fixture(scope="module")
def made(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `teacher`, and the run `map` that was distilled from its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_run, folder / "teacher")
    distill(folder / "teacher/checkpoints/step-00000004", folder / "map", fields=FIELDS, device="cpu", progress=False)
    return folder


def weights(run: Path) -> bytes:
    return (checkpoints(run)[-1] / "model.safetensors").read_bytes()


def test_the_home_folder_is_expanded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not expand it in `teacher.source=~/run`, nor does Python."""
    monkeypatch.setenv("HOME", str(made))
    assert read_teacher("~/teacher").shape == read_teacher(made / "teacher").shape
    assert distillation_recipe("~/teacher") == distillation_recipe(made / "teacher")
    assert qa.load("~/map").maps


# --- a teacher that has moved ---------------------------------------------------------------------------------------


def test_a_distillation_whose_teacher_has_moved_continues(made: Path, tmp_path: Path, cli: Cli) -> None:
    """Of a run folder with the checkpoint that it began with, and not with the newest one."""
    shutil.copytree(made / "map", tmp_path / "map")
    shutil.copytree(made / "teacher", tmp_path / "moved")
    shutil.rmtree(checkpoints(tmp_path / "map")[-1])
    recipe = tmp_path / "map" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(made / "teacher"), "gone"))
    lost = cli("distill", "--out", "map", "--resume")
    assert lost.returncode == 2
    assert "there is no teacher at gone/checkpoints/step-00000004" in lost.stderr
    assert "`quarterarc distill PLACE --out RUN --resume`" in lost.stderr
    done = cli("distill", "moved", "--out", "map", "--resume")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "map") == weights(made / "map")
    (change,) = map(json.loads, (tmp_path / "map" / "changes.jsonl").read_text().splitlines())
    assert (change["step"], change["field"]) == (2, "teacher.source")
    assert change["after"] == "moved/checkpoints/step-00000004"
    # once it is complete, and by the field
    shutil.move("moved", "again")
    field = "teacher.source=again/checkpoints/step-00000004"
    assert cli("distill", "--out", "map", "--resume", field).returncode == 0
    assert "again" in recipe.read_text()
    assert weights(tmp_path / "map") == weights(made / "map")


def test_another_teacher_is_an_error(made: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    before = (tmp_path / "map" / "recipe.yaml").read_text()
    other = made / "teacher" / "checkpoints" / "step-00000006"
    wrong = cli("distill", other, "--out", "map", "--resume", "training.steps=6")
    assert wrong.returncode == 2
    assert f"map was distilled from another teacher: the weights of {other} are not those of" in wrong.stderr
    with pytest.raises(qa.InputError, match=r"distilled from another teacher: the weights of object"):
        distill(load(other), tmp_path / "map", resume=True, device="cpu", progress=False)
    assert (tmp_path / "map" / "recipe.yaml").read_text() == before
    # also one that does not fit the images, which are opened after the teacher
    labelled = made / "labelled"
    fields = (*TINY, "data.labels=true", "training.steps=1")
    qa.train(read_recipe("digits", fields), labelled, device="cpu", progress=False)
    wrong = cli("distill", labelled, "--out", "map", "--resume", "training.steps=6")
    assert "map was distilled from another teacher" in wrong.stderr
    # the same one as an object
    same = load(made / "teacher" / "checkpoints" / "step-00000004")
    distill(same, tmp_path / "map", resume=True, fields={"training.steps": 5}, device="cpu", progress=False)
    assert checkpoints(tmp_path / "map")[-1].name == "step-00000005"
    wrong = cli("distill", other, "--out", made / "teacher", "--resume")
    assert wrong.returncode == 2
    assert "contains a run that has no teacher: resume it by `quarterarc train" in wrong.stderr


def test_the_identity_of_a_teacher_is_its_content(made: Path) -> None:
    one = load(made / "teacher")
    assert identity_of(one) == identity_of(load(made / "teacher", projection=None))
    others = (
        load(made / "teacher/checkpoints/step-00000002"),
        replace(one, time_shift=-1.0),
        replace(one, schedule=qa.schedule("linear", 1000)),
        replace(one, head=qa.head("noise", one.schedule)),
    )
    assert len({identity_of(teacher) for teacher in (one, *others)}) == 5


# --- pipelines of diffusers ------------------------------------------------------------------------------------------


def pipeline(path: Path, prediction: str = "epsilon", **config: Any) -> Path:
    """A random pipeline of 8x8 images."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    unet = diffusers.UNet2DModel(**{**settings, **config})
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(prediction_type=prediction)).save_pretrained(path)
    return path


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pipeline_is_distilled(prediction: str, tmp_path: Path, cli: Cli) -> None:
    folder = pipeline(tmp_path / "pipeline", prediction)
    done = cli("distill", folder, "--out", "map", *WORDS)
    assert done.returncode == 0, done.stderr
    made, teacher = load(tmp_path / "map"), load_pipeline(folder)
    assert (made.shape, made.head.name, made.time_shift) == (teacher.shape, teacher.head.name, -1.0)
    assert made.largest_angle == teacher.largest_angle
    for form in (folder / "unet", qa.load(folder)):  # the network alone, and the pipeline as an object
        assert distillation_recipe(form).head == teacher.head.name
    sampled = cli("sample", "map", "--out", "one", "--seeds", "0-3", "--steps", "1")
    assert "1 network evaluation per image" in sampled.stdout, sampled.stderr
    # it begins as the teacher, and continues with the same bits
    x = torch.randn(2, *made.shape or ())
    begun = with_own_network(teacher)(x, 0.9)
    assert torch.allclose(begun.image, teacher(x, 0.9).image, atol=1e-5)  # the two networks round differently
    before = weights(tmp_path / "map")
    shutil.rmtree(checkpoints(tmp_path / "map")[-1])
    assert cli("distill", "--out", "map", "--resume").returncode == 0
    assert weights(tmp_path / "map") == before


def test_a_class_conditional_pipeline_keeps_its_classes(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "pipeline", num_class_embeds=3)
    assert distillation_recipe(folder).training.drop_labels == 0.0
    distill(folder, tmp_path / "map", fields={**FIELDS, "training.steps": 2}, device="cpu", progress=False)
    made = load(tmp_path / "map")
    assert (made.classes, made.unlabelled) == (3, False)
    assert qa.generate(made, range(3), steps=1, labels=[0, 1, 2], progress=False).isfinite().all()
    with pytest.raises(qa.InputError, match=r"trained with a label for every image: give training.drop_labels=0"):
        distill(folder, tmp_path / "no", fields={**FIELDS, "training.drop_labels": 0.1}, progress=False)
    # the object whose last label means "no label"
    null = distillation_recipe(load_pipeline(folder, null_label=2))
    assert null.training.drop_labels == 0.1
    with pytest.raises(qa.InputError, match=r"the label 1 of this pipeline means 'no label'"):
        distillation_recipe(load_pipeline(folder, null_label=1))


def test_other_pipelines_are_one_line(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    unet, scheduler = ["diffusers", "UNet2DModel"], ["diffusers", "DDIMScheduler"]
    for component, message in (
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "is a text-conditioned pipeline"),
        ({"vqvae": ["diffusers", "VQModel"]}, "is a latent pipeline"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "is a text-conditioned pipeline"),
    ):
        index = {"_class_name": "APipeline", "unet": unet, "scheduler": scheduler, **component}
        (folder / "model_index.json").write_text(json.dumps(index))
        wrong = cli("distill", folder, "--out", "map")
        assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
        assert message in wrong.stderr
        assert not (tmp_path / "map").exists()
    fixed = pipeline(tmp_path / "fixed", resnet_time_scale_shift="scale_shift")
    wrong = cli("distill", fixed, "--out", "map")
    assert wrong.returncode == 2
    assert "the network of this pipeline is evaluated by diffusers" in wrong.stderr
    learned = pipeline(tmp_path / "learned", out_channels=2)
    wrong = cli("distill", learned, "--out", "map")
    assert wrong.returncode == 2
    assert "has the head 'noise+variance', which belongs to one step of DDPM" in wrong.stderr


# --- sections that a map has from its teacher -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("network.channels=64", "network.channels=8, got 64"),
        ("network.dropout=0.1", "network.dropout=0.0, got 0.1"),
        ("network.attention=8", r"network.attention=\[4\], got \[8\]"),
        ("network.name=adm", "network.name=unet, got adm"),
        ("head=velocity", "head=both, got velocity"),
        ("schedule.name=cosine", "schedule.name=arc, got cosine"),
        ("schedule.steps=10", "schedule.steps=1000, got 10"),
    ],
)
def test_a_map_has_network_head_and_schedule_of_its_teacher(
    made: Path, tmp_path: Path, field: str, expected: str
) -> None:
    recipe = distillation_recipe(made / "teacher").model_dump(mode="json")
    if field == "network.name=adm":
        recipe["network"] = {}
    wrong = read_recipe(recipe, [*WORDS, field])
    with pytest.raises(qa.InputError, match=f"a map starts as a copy of its teacher.*{expected}: leave"):
        qa.train(wrong, tmp_path / "map", device="cpu", progress=False)
    assert not (tmp_path / "map").exists()


def test_a_recipe_that_leaves_out_defaults_of_the_network_fits_the_teacher(made: Path, tmp_path: Path) -> None:
    recipe = recipe_of_map(read_recipe(made / "teacher" / "recipe.yaml"), str(made / "teacher"))
    assert "groups" not in recipe.network.arguments
    qa.train(recipe, tmp_path / "map", fields={**FIELDS, "training.steps": 1}, device="cpu", progress=False)
    assert load(tmp_path / "map").maps


def test_a_schedule_without_a_name_is_that_of_the_teacher(made: Path, tmp_path: Path) -> None:
    own = qa.Schedule("own", qa.schedule("cosine", 50).angles[:-3])
    teacher = replace(load(made / "teacher"), schedule=own, clock=None)
    fields = {**FIELDS, "training.steps": 1}
    distill(teacher, tmp_path / "map", fields=fields, device="cpu", progress=False)
    assert load(tmp_path / "map").schedule.steps == own.steps
    distill(teacher, tmp_path / "map", fields={"training.steps": 2}, resume=True, device="cpu", progress=False)
    with pytest.raises(qa.InputError, match=r"schedule.steps=1000, got 10: leave schedule.steps out"):
        distill(teacher, tmp_path / "no", fields={**fields, "schedule.steps": 10}, device="cpu", progress=False)


# --- requests that no teacher or map can meet ------------------------------------------------------------------------


def test_requests_that_no_teacher_or_map_can_meet_are_one_line(made: Path, tmp_path: Path, cli: Cli) -> None:
    teacher, run = made / "teacher", made / "map"
    for arguments, message in (
        (["distill", teacher, "--out", "x", "data.source=digits", "data.labels=true"],
         "has no classes, and the data has labels: give data.labels=false"),
        (["distill", teacher, "--out", run], "already contains a run"),
        (["distill", teacher, "--out", teacher], "already contains a run"),
        (["distill", teacher / "recipe.yaml", "--out", "x"], "is a file: give the run folder"),
        (["distill", tmp_path, "--out", "x"], "contains no complete checkpoint"),
        (["distill", teacher, "--out", "x", "head=mean"], "has no head 'mean', which belongs to one step of DDPM"),
        (["distill", teacher, "--out", "x", "data.size=16"], "makes images of shape (1, 8, 8), and the data have"),
        (["distill", teacher, "--show", "network.channels=64"], "got 64: leave network.channels out"),
        (["sample", run, "--out", "x", "--labels", "3"], "was trained without labels, got the label 3"),
        (["sample", run, "--out", "x", "--grid", "1.5,0.7,0", "--steps", "3"],
         "the grid's 3 angles make 2 steps, but steps=3 was given"),
        (["sample", run, "--out", "x", "--grid", "time", "--steps", "2000"], "2000"),
        (["sample", run, "--out", "x", "--steps", "0"], "at least 1"),
        (["sample", run, "--out", "x", "--grid", "tuned"], "no grid was tuned for this network"),
        (["sample", teacher, "--out", "x", "--sampler", "jump"], "needs a flow map"),
    ):  # fmt: skip
        wrong = cli(*arguments)
        assert wrong.returncode == 2, arguments
        assert message in wrong.stderr.splitlines()[-1]
        assert not (tmp_path / "x").exists()


def test_the_command_that_tune_prints_for_a_map_samples_with_the_tuned_grid(
    made: Path, tmp_path: Path, cli: Cli
) -> None:
    """The default sampler of a map is another one."""
    shutil.copytree(made / "map", tmp_path / "map")
    tuned = cli("tune", "map", "--nfe", "2", "--images", "8", "--device", "cpu")
    assert tuned.returncode == 0, tuned.stderr
    words = (
        tuned.stdout.splitlines()[-1].removeprefix("Sample with ").partition(" (")[0].replace("--steps N", "").split()
    )
    steps = re.search(r"\((\d+) step", tuned.stdout)
    assert steps is not None
    done = cli("sample", "map", "--out", "out", "--seeds", "0", *words, "--steps", steps[1])
    assert done.returncode == 0, done.stderr


def test_a_map_is_sampled_by_every_sampler_and_written_as_no_pipeline(made: Path, tmp_path: Path) -> None:
    """Samplers that cannot jump evaluate it at one angle."""
    denoise = load(made / "map")
    for sampler in ("multistep", "ddpm", "ddim", "heun", "rotation", "cold", "euler"):
        assert qa.generate(denoise, range(2), sampler, 3, progress=False).isfinite().all()
    with pytest.raises(qa.InputError, match="moves away from it"):
        denoise(torch.zeros(1, *denoise.shape or ()), 0.3, to=0.6)
    pytest.importorskip("diffusers")
    with pytest.raises(qa.InputError, match="diffusers"):
        qa.interop.save_pipeline(denoise, tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()
