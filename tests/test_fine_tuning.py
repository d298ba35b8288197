"""`training.init`: a run that starts from a trained model computes what that model does, and is otherwise a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import quarterarc as qa
from conftest import TINY, Cli
from quarterarc.denoiser import Denoiser
from quarterarc.estimate import Estimate
from quarterarc.experiments.arms import decisive
from quarterarc.networks import UNet, build_network
from quarterarc.storage.runs import checkpoints
from quarterarc.training.initial import Start, _labels, read_start, recipe_from
from quarterarc.training.network import recipe_network
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.trainer import Trainer
from test_teachers import pipeline


def network(out: int, classes: int | None = None, **further: Any) -> UNet:
    """A network with weights in every layer, also where new networks have zeros."""
    torch.manual_seed(1)
    unet = UNet(1, out, 8, (1, 2), 1, (1,), classes=classes, **further)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return unet.eval()


def model(
    head: str, schedule: str = "arc", classes: int | None = None, names: tuple[str, ...] = (), **further: Any
) -> Denoiser:
    table = qa.schedule(schedule)
    reads = qa.head(head, table)
    declared = {key: further.pop(key) for key in ("unlabelled", "time_shift", "maps") if key in further}
    unet = network(reads.channels(1), classes, **further)
    return Denoiser(unet, table, reads, (1, 8, 8), classes, class_names=names, **declared)


def images(labels: bool = False) -> Any:
    pixels = (torch.arange(8 * 64).reshape(8, 1, 8, 8) * 37 % 251).to(torch.uint8)
    return (pixels, torch.arange(8) % 2) if labels else pixels


def begun(old: Denoiser, tmp_path: Path, *fields: str, labels: bool = False) -> Denoiser:
    """The denoiser of a run before its first step, which starts from the saved model."""
    tmp_path.mkdir(exist_ok=True)
    source = qa.save(old, tmp_path / "old")
    recipe = read_recipe(
        "digits", [*TINY, "data.source=memory", "data.size=8", f"data.labels={str(labels).lower()}",
                   f"training.init={source}", *fields]
    )  # fmt: skip
    start = read_start(recipe)
    assert start is not None
    run = tmp_path / "run"
    run.mkdir()
    recipe = recipe_from(recipe, start)
    trainer = Trainer(recipe, run, Accelerator(cpu=True), progress=False, images=images(labels), start=start)
    assert trainer.learner.average is not None
    return replace(trainer.denoise, network=trainer.learner.average)


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
ANGLES = torch.tensor([0.3, 0.9, 1.5], dtype=torch.float64)


def assert_same(one: Estimate, other: Estimate, parts: tuple[str, ...] = ("image", "noise")) -> None:
    for part in parts:  # the sums of one bias are in another order
        assert torch.allclose(getattr(one, part), getattr(other, part), rtol=1e-5, atol=2e-5), part


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["arc", "linear", "cosine"])
def test_the_same_head_starts_exactly_on_any_schedule(schedule: str, tmp_path: Path) -> None:
    old = model("velocity", schedule, time_shift=-1.0)
    new = begun(old, tmp_path, "head=velocity")
    assert new.schedule.name == "arc"
    assert (new.clock is None) == (schedule == "arc")
    assert_same(new(X, ANGLES), old(X, ANGLES))
    assert bool(new(X, torch.pi / 2).image.isfinite().all())  # beyond the angles of the other schedule
    again = qa.load(qa.save(new, tmp_path / "again"))
    assert_same(again(X, ANGLES), old(X, ANGLES))


@torch.no_grad()
@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("noise", "noise+variance", ("image", "noise")),
        ("noise+variance", "noise", ("image", "noise")),
        ("velocity", "velocity", ("image", "noise")),
        ("noise", "both", ("noise",)),
        ("image", "both", ("image",)),
        ("both", "noise", ("noise",)),
        ("both", "image", ("image",)),
    ],
)
def test_outputs_that_both_heads_have_are_kept(before: str, after: str, kept: tuple[str, ...], tmp_path: Path) -> None:
    old = model(before)
    new = begun(old, tmp_path, f"head={after}")
    assert_same(new(X, ANGLES), old(X, ANGLES), kept)


@torch.no_grad()
def test_a_noise_head_becomes_both_whose_noise_projection_is_the_noise_head(tmp_path: Path) -> None:
    old = model("noise")
    new = begun(old, tmp_path, "head=both")
    at = ANGLES[1]
    assert_same(new(X, at).projected(X, at, "noise"), old(X, at))


@torch.no_grad()
@pytest.mark.parametrize(("before", "after", "part"), [("noise", "both", "image"), ("noise", "velocity", "velocity")])
def test_outputs_that_x_enters_are_fitted_to_the_images(before: str, after: str, part: str, tmp_path: Path) -> None:
    """Nearer to the truth than a new network, whose outputs are 0."""
    new = begun(model(before), tmp_path, f"head={after}")
    image = qa.to_float(images())
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    angle = torch.linspace(0.1, 1.5, 8).double()
    x = qa.mix(image, noise, angle)
    truth = image if part == "image" else qa.velocity(image, noise, angle)
    estimate = new(x, angle)
    output = estimate.image if part == "image" else estimate.velocity(angle)
    assert float((output - truth).square().mean()) < 0.9 * float(truth.square().mean())
    again = begun(model(before), tmp_path / "again", f"head={after}")
    assert all(map(torch.equal, new.network.state_dict().values(), again.network.state_dict().values()))  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_gate_starts_at_the_velocity_of_both(tmp_path: Path) -> None:
    old = model("both")
    new = begun(old, tmp_path, "head=gated")
    assert_same(new(X, ANGLES), old(X, ANGLES).projected(X, ANGLES))


# --- labels, and further inputs of the network ----------------------------------------------------------------------


@torch.no_grad()
def test_labels_are_matched(tmp_path: Path) -> None:
    """No labels before or now: the network without labels. Names decide, then numbers; other classes are new."""
    plain, labelled = model("velocity"), model("velocity", classes=2)
    first, second = (torch.full((3,), label) for label in range(2))
    new = begun(plain, tmp_path / "a", "head=velocity", labels=True)
    for labels in (None, first, second):
        assert_same(new(X, ANGLES, labels), plain(X, ANGLES))
    assert_same(begun(labelled, tmp_path / "b", "head=velocity")(X, ANGLES), labelled(X, ANGLES))
    new = begun(labelled, tmp_path / "c", "head=velocity", labels=True)
    for labels in (None, first, second):
        assert_same(new(X, ANGLES, labels), labelled(X, ANGLES, labels))
    three = model("velocity", classes=3)
    new = begun(three, tmp_path / "d", "head=velocity", labels=True)  # as many classes would be the same ones
    for labels in (None, first, second):
        assert_same(new(X, ANGLES, labels), three(X, ANGLES))


@torch.no_grad()
def test_classes_of_the_same_name_are_the_same() -> None:
    old = model("velocity", classes=3, names=("cat", "dog", "owl"))
    given = old.network.labels.weight  # type: ignore[attr-defined]
    new = replace(old, classes=2, class_names=("owl", "fox"))
    unlabelled, rows = _labels(old, new, given)
    assert torch.equal(unlabelled, given[3])
    assert torch.equal(rows, given[[2, 3, 3]])
    untrained = replace(old, unlabelled=False)  # its embedding of "no label" is that of no image
    assert torch.equal(_labels(untrained, new, given)[0], given[:3].mean(0))


@torch.no_grad()
def test_spans_and_augmentation_come_and_go_without_effect(tmp_path: Path) -> None:
    plain = model("velocity")
    augmented = begun(plain, tmp_path / "a", "head=velocity", "data.augment=0.1")
    assert augmented.network.augmentation is not None  # type: ignore[attr-defined]
    assert_same(augmented(X, ANGLES), plain(X, ANGLES))
    flow_map = begun(plain, tmp_path / "b", "head=velocity", "objective={name: flow-map}")
    assert flow_map.maps
    assert_same(flow_map(X, ANGLES, to=torch.zeros_like(ANGLES)), plain(X, ANGLES))
    a_map = model("velocity", spans=True, maps=True)
    assert_same(begun(a_map, tmp_path / "c", "head=velocity")(X, ANGLES), a_map(X, ANGLES))


# --- runs ------------------------------------------------------------------------------------------


def test_a_run_continues_without_its_source_with_the_same_bits(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    """The network is that of the source, of another size and schedule; recorded; resume reads the source no more."""
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    words = ["train", "digits", "--device", "cpu", f"training.init={source}", "data.size=12", "schedule=linear",
             *[word for word in TINY if not word.startswith(("network", "training.steps"))]]  # fmt: skip
    done = cli(*words, "training.steps=4", "--out", "whole")
    assert done.returncode == 0, done.stderr
    assert f"the weights start from the moving average in {source / 'checkpoints/step-00000006'}" in done.stderr
    assert "the network is that of" in done.stderr
    assert cli(*words, "training.steps=2", "--out", "parts").returncode == 0
    shutil.rmtree(source)
    resumed = cli(*words, "training.steps=4", "--out", "parts", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    one, other = (checkpoints(Path(run))[-1] for run in ("whole", "parts"))
    for name in ("model.safetensors", "raw.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for name in ("whole", "parts"):
        config = json.loads((checkpoints(Path(name))[-1] / "config.json").read_text())
        assert config["init"]["source"] == str(source / "checkpoints/step-00000006")
        assert config["denoiser"]["clock"] == {"name": "arc", "steps": 1000}
    again = cli("train", "--out", "parts", "--resume", "training.steps=5")
    assert again.returncode == 0, again.stderr
    assert qa.load("parts").clock is not None
    lost = cli(*words, "--out", "new")
    assert lost.returncode == 2
    assert f"there is no trained model at training.init={source}" in lost.stderr
    assert not Path("new").exists()


def test_a_pipeline_is_fine_tuned(tmp_path: Path, cli: Cli) -> None:
    folder = pipeline(
        tmp_path / "theirs", block_out_channels=(8, 12), attention_head_dim=4
    )  # a width that is no multiple of the first
    old = qa.load(folder)
    done = cli("train", "digits", "--device", "cpu", f"training.init={folder}", "head=noise", "--out", "run",
               *[word for word in TINY if not word.startswith(("network", "training.steps"))],
               "training.steps=1", "optimizer.learning_rate=1e-12")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert_same(qa.load("run")(X, ANGLES), old(X, ANGLES))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("training.init=nowhere",), "there is no trained model at training.init=nowhere: give the folder of a run"),
        (("training.init=",), "training.init"),
        (("training.init=RUN", "data.channels=3"), "makes images of 1 channel, and the data have 3"),
        (("training.init=RUN", "head=mean"), "give head=both"),
        (("training.init=RUN", "network.name=tests"), "network"),
        (("training.init=RUN", "teacher.source=RUN", "objective.name=flow-map"), "leave out training.init"),
    ],
)
def test_what_cannot_be_fine_tuned_is_one_line(
    fields: tuple[str, ...], message: str, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    words = [word.replace("RUN", str(tiny_run)) for word in fields]
    done = cli("train", "digits", "--device", "cpu", "--out", "run", *TINY, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("quarterarc: error: ")
    assert not Path("run").exists()


def test_networks_of_other_kinds_start_from_the_same_network_only(tmp_path: Path) -> None:
    table = qa.schedule("arc")
    arguments = {"in_channels": 1, "out_channels": 1, "size": 8, "channels": 8, "multipliers": [1], "blocks": 1}
    old = Denoiser(
        build_network({"name": "ddpm++", "arguments": arguments}), table, qa.head("velocity", table), (1, 8, 8)
    )
    same = {"name": "ddpm++", "arguments": {name: arguments[name] for name in ("channels", "multipliers", "blocks")}}
    recipe = read_recipe({"data": {"source": "memory", "size": 8, "channels": 1}, "network": same, "head": "velocity"})
    start = Start(old, "old")
    assert recipe_from(recipe, start) == recipe
    fresh = replace(old, network=recipe_network(recipe, 1, 1, None))
    data = qa.open_data(recipe.data, images=images())
    with torch.no_grad():
        assert_same(start.begin(fresh, data, 0)(X, ANGLES), old(X, ANGLES))
        other = replace(fresh, head=qa.head("both", table))
        with pytest.raises(qa.InputError, match=r"differs from the recipe's network in the head: .* head=velocity"):
            start.begin(other, data, 0)


def test_the_home_folder_is_expanded(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell does it within a field."""
    monkeypatch.setenv("HOME", str(tiny_run.parent))
    start = read_start(read_recipe("digits", [f"training.init=~/{tiny_run.name}"]))
    assert start is not None
    assert start.record["source"] == str(checkpoints(tiny_run)[-1])


def test_fine_tuning_changes_no_key_of_an_experiment() -> None:
    recipe = read_recipe("digits")
    assert "init" not in decisive(recipe)["training"]
    changed = read_recipe("digits", ["training.init=somewhere"])
    assert decisive(changed)["training"]["init"] == "somewhere"
