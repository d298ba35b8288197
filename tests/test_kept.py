"""Nothing is lost, and nothing wrong is accepted: damaged files, and permissions of new ones."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quarterarc.common.errors import InputError
from quarterarc.evaluation.image_files import open_set
from quarterarc.evaluation.sets import SampledSet
from quarterarc.evaluation.sources import open_model
from quarterarc.sampling.folders import write_samples
from quarterarc.sampling.plans import Sampling
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned, write_tuned
from quarterarc.storage import training_state
from quarterarc.storage.checkpoints import load
from quarterarc.storage.checksums import DamagedFile
from quarterarc.storage.files import replace_file
from quarterarc.storage.pictures import write_png
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.log import Log, read_log
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.trainer import Diverged

Tiny = tuple[str, ...]


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return shutil.copytree(tiny_run, tmp_path / "copied")


def flip(path: Path, place: int) -> None:
    """Flip the lowest bit of a byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- checksums ---------------------------------------------------------------------------------------------------


def damage(checkpoint: Path, name: str) -> None:
    """Flip a bit of a value: of the step in config.json, or of the last weight in a file of weights."""
    content = (checkpoint / name).read_bytes()
    flip(checkpoint / name, content.index(b'"step": ') + 8 if name == "config.json" else len(content) - 5)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_a_checkpoint_names_the_file(name: str, copied: Path) -> None:
    newest = checkpoints(copied)[-1]
    damage(newest, name)
    for used in (newest, copied):
        with pytest.raises(DamagedFile, match=rf"step-00000006/{name} is damaged") as raised:
            load(used)
        assert "\n" not in str(raised.value)


def test_a_flipped_bit_in_tuned_json_names_the_file(copied: Path) -> None:
    newest = checkpoints(copied)[-1]
    path = write_tuned(newest, [TunedGrid("euler", {}, (1.5, 0.25, 0.0), (), {"untuned": 1.0}, "untuned", 2)])
    assert len(read_tuned(newest)) == 1
    flip(path, path.read_bytes().index(b"0.25") + 3)
    with pytest.raises(InputError, match=r"tuned\.json is damaged"):
        read_tuned(newest)


def test_checkpoints_without_checksums_load_and_resume(copied: Path, tiny: Tiny) -> None:
    """Those of version 0.1 have none."""
    for checkpoint in checkpoints(copied):
        config = json.loads((checkpoint / "config.json").read_text())
        del config["checksum"], config["checksums"], config["data_identity"], config["data_content"]
        (checkpoint / "config.json").write_text(json.dumps(config))
    load(copied)
    more = read_recipe("digits", [*tiny, "training.steps=8"])
    assert train(more, copied, resume=True, progress=False).name == "step-00000008"


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("flipped", "raw.safetensors"),
        ("flipped", "config.json"),
        ("truncated", "optimizer.safetensors"),
        ("removed", "raw.safetensors"),
        ("removed", "config.json"),
    ],
)
def test_resuming_continues_from_the_newest_checkpoint_that_can_be_read(
    how: str, name: str, copied: Path, tiny_run: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names the damaged file, nothing is deleted, and the run ends with the same bits."""
    newest = checkpoints(copied)[-1]
    if how == "flipped":
        damage(newest, name)
    elif how == "truncated":
        os.truncate(newest / name, 100)
    else:
        (newest / name).unlink()
    kept = {path.name: path.read_bytes() for path in newest.iterdir()}
    with caplog.at_level(logging.WARNING, "quarterarc"):
        resumed = train(read_recipe("digits", tiny), copied, resume=True, progress=False)
    for file in ("model.safetensors", "raw.safetensors", "optimizer.safetensors"):
        assert (resumed / file).read_bytes() == (checkpoints(tiny_run)[-1] / file).read_bytes()
    assert resumed == newest
    if (how, name) != ("removed", "config.json"):  # without which it was no complete checkpoint
        assert name in caplog.text
        assert "continuing from the older checkpoint" in caplog.text
        aside = copied / "checkpoints" / f"{newest.name}.damaged"
        assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept
    assert len((copied / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(copied: Path, tiny: Tiny) -> None:
    log = (copied / "metrics.jsonl").read_bytes()
    for checkpoint in checkpoints(copied):
        damage(checkpoint, "raw.safetensors")
    with pytest.raises(InputError, match=r"cannot be resumed: .*000006/raw.* damaged.*\(and so are the 2 other"):
        train(read_recipe("digits", tiny), copied, resume=True, progress=False)
    assert len(checkpoints(copied)) == 3
    assert (copied / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("removed", ["checkpoints", "checkpoints/step-*", "checkpoints/*/config.json"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(
    removed: str, resume: bool, copied: Path, tiny: Tiny
) -> None:
    for path in copied.glob(removed):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="has no complete checkpoint to continue from, but had some") as raised:
        train(read_recipe("digits", tiny), copied, resume=resume, progress=False)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_run_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path, tiny: Tiny) -> None:
    recipe = read_recipe("digits", [*tiny, "training.steps=4", "training.checkpoint_every=4"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"st')
    assert train(recipe, tmp_path, resume=True, progress=False).name == "step-00000004"


def test_the_recipe_is_written_before_images_are_read(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, texts = tmp_path / "run", list[str]()

    def fails(*arguments: object, **options: object) -> None:
        texts.append((run / "recipe.yaml").read_text())
        raise InputError("no images")

    monkeypatch.setattr("quarterarc.training.trainer.open_data", fails)
    recipe = read_recipe("digits", tiny)
    with pytest.raises(InputError, match="no images"):
        train(recipe, run, progress=False)
    assert not run.exists()
    run.mkdir()
    with pytest.raises(InputError, match="no images"):
        train(recipe, run, progress=False)
    assert texts == [recipe.to_yaml()] * 2
    assert not (run / "recipe.yaml").exists()


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_a_checkpoint_with_moments_that_are_not_finite_is_not_kept(
    kind: str, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def broken(self: torch.optim.AdamW, *arguments: object) -> None:
        step(self)
        state = next(iter(self.state.values()))
        if state["step"] == 4:
            state[kind].view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(Diverged, match=r"not finite after step 4: the moments.*the last good checkpoint is .*0002"):
        train(read_recipe("digits", tiny), tmp_path, progress=False)


@pytest.mark.parametrize(
    "field", ["optimizer.learning_rate=0.001", "optimizer.clip=0.5", "training.precision=bf16", "training.steps=7"]
)
def test_what_the_message_about_a_divergence_advises_is_accepted(field: str, copied: Path) -> None:
    name, _, value = field.partition("=")
    fields = {"training.steps": 7, name: yaml.safe_load(value)}
    train(None, copied, fields=fields, resume=True, progress=False)
    changes = copied / "changes.jsonl"
    recorded = [json.loads(line) for line in changes.read_text().splitlines()] if changes.exists() else []
    assert [(change["step"], change["field"]) for change in recorded] == ([] if "steps" in field else [(6, name)])


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # of TensorBoard, whose folder is gone
@pytest.mark.parametrize("how", ["removed", "renamed"])
@pytest.mark.parametrize(
    ("when", "step"), [("logged", 4), ("before saving", 2), ("before saving", 4), ("before saving", 6), ("saved", 6)]
)
def test_a_run_folder_that_is_gone_is_not_made_again(
    when: str, step: int, how: str, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, save = tmp_path / "run", Log.write, training_state.save

    def at(now: str, number: int) -> None:
        if (now, number) == (when, step):
            shutil.rmtree(run) if how == "removed" else run.rename(tmp_path / "elsewhere")

    def logged(self: Log, number: int, *arguments: Any) -> None:
        write(self, number, *arguments)
        at("logged", number)

    def saved(to: Path, config: dict[str, Any], *arguments: Any) -> Path:
        at("before saving", config["step"])
        checkpoint = save(to, config, *arguments)
        at("saved", config["step"])
        return checkpoint

    monkeypatch.setattr(Log, "write", logged)
    monkeypatch.setattr("quarterarc.training.trainer.save", saved)
    with pytest.raises(InputError, match="run was removed or renamed during training"):
        train(read_recipe("digits", tiny), run, progress=False)
    assert not run.exists()
    monkeypatch.undo()
    if how == "renamed":
        assert train(None, tmp_path / "elsewhere", resume=True, progress=False).name == "step-00000006"


def test_the_log_does_not_go_beyond_a_first_checkpoint_that_is_not_complete(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow or full disk; a log that goes beyond it is what shows that checkpoints are gone."""

    def full(run: Path, *arguments: Any) -> Path:
        time.sleep(1)  # longer than the steps to the next line of the log
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = read_recipe("digits", tiny)
    monkeypatch.setattr("quarterarc.training.trainer.save", full)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, tmp_path, progress=False)
    assert [line["step"] for line in read_log(tmp_path)] == [2]
    monkeypatch.undo()
    assert train(recipe, tmp_path, resume=True, progress=False).name == "step-00000006"


def test_the_log_is_on_the_disk_before_a_checkpoint(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, save = list[int](), training_state.save

    def checked(run: Path, config: dict[str, Any], *arguments: Any) -> Path:
        assert config["step"] in synced
        return save(run, config, *arguments)

    monkeypatch.setattr(Log, "sync", lambda log: synced.append(read_log(tmp_path)[-1]["step"]))
    monkeypatch.setattr("quarterarc.training.trainer.save", checked)
    train(read_recipe("digits", tiny), tmp_path, progress=False)
    assert synced == [2, 4, 6]


def test_a_full_disk_while_the_log_is_written_costs_no_line(copied: Path, tiny_run: Path, tiny: Tiny) -> None:
    """Half a line at the end of the log is repaired on resume."""
    shutil.rmtree(checkpoints(copied)[-1])
    log = copied / "metrics.jsonl"
    os.truncate(log, log.stat().st_size - 40)
    train(read_recipe("digits", tiny), copied, resume=True, progress=False)
    speed = "images_per_second"
    assert [{**line, speed: 0} for line in read_log(copied)] == [{**line, speed: 0} for line in read_log(tiny_run)]


# --- sample folders ----------------------------------------------------------------------------------------------


def test_the_evaluations_of_images_that_a_killed_process_sampled_are_counted(tiny_run: Path, tmp_path: Path) -> None:
    denoise, heun = load(tiny_run), Sampling("heun", 2)
    made = write_samples(denoise, tmp_path / "made", range(3), heun, progress=False)
    assert made is not None
    assert made["nfe"] == 4
    about = tmp_path / "made" / "samples.json"
    before = {**json.loads(about.read_text()), "complete": False}
    del before["nfe"], before["images_per_second"], before["device"]  # all images, and no description of them
    about.write_text(json.dumps(before))
    again = write_samples(denoise, tmp_path / "made", range(3), heun, progress=False)
    assert again is not None
    assert again["nfe"] == 4
    images = SampledSet(denoise, range(3), heun)
    assert images.sampling is not None
    assert images.sampling["nfe"] == 4  # also if the features of all batches were computed before


def test_damaged_samples_are_made_again_and_other_files_stay(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    denoise, request, out = load(tiny_run), Sampling("euler", 2), tmp_path / "out"
    write_samples(denoise, out, range(8), request, batch_size=1)
    good = {path.name: path.read_bytes() for path in out.glob("0*.png")}
    os.truncate(out / "000001.png", 30)
    os.truncate(out / "000002.png", 0)
    write_png(out / "000003.png", torch.zeros(1, 4, 4, dtype=torch.uint8))
    write_png(out / "000004.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    flip(out / "000005.png", 45)
    (out / "000006.png").write_bytes(good["000006.png"] + b"more")
    others = {name: out / name for name in ("notes.txt", "photo.png", "1.png")}
    for name, path in others.items():
        path.write_text(name)
    with caplog.at_level(logging.WARNING, "quarterarc"):
        about = write_samples(denoise, out, range(8), request, batch_size=1)
    assert {path.name: path.read_bytes() for path in out.glob("0*.png")} == good
    assert "6 images damaged or of another size (seeds 1-6), sampled again" in caplog.text
    assert "also holds 3 other files, which stay: 1.png, notes.txt, photo.png" in caplog.text
    assert about is not None
    assert (about["count"], about["seeds"]) == (8, "0-7")
    assert {name: path.read_text() for name, path in others.items()} == {name: name for name in others}
    assert open_set(out).count == 8
    os.truncate(out / "000007.png", 30)
    about = write_samples(denoise, out, range(2), request)
    assert "1 image damaged or of another size (seeds 7), left out of samples.json" in caplog.text
    assert about is not None
    assert about["seeds"] == "0-6"


def test_images_are_on_the_disk_before_samples_json_calls_them_complete(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = set[str]()

    def flush(path: Path) -> None:
        assert "true" not in (tmp_path / "samples.json").read_text()
        flushed.add(path.name)

    monkeypatch.setattr("quarterarc.sampling.folders.flush", flush)
    write_samples(load(tiny_run), tmp_path, range(3), Sampling("euler", 2))
    assert flushed == {"000000.png", "000001.png", "000002.png", "contact-sheet.png", tmp_path.name}


def test_a_run_is_the_same_by_every_path(
    copied: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "link").symlink_to(copied)
    identities = set()
    for path in ("copied", "./copied", "copied/", "link", str(copied)):
        done = cli("sample", path, "--out", "made", "--seeds", "0-1", "--steps", "2")
        assert done.returncode == 0, done.stderr
        model = open_model(path, "cpu")
        identities.add(SampledSet(model.denoise, range(2), about=model.about).identity)
    assert len(identities) == 1


# --- permissions -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_permissions_of_the_umask(umask: int, tmp_path: Path, tiny: Tiny) -> None:
    run = tmp_path / "run"
    train(read_recipe("digits", [*tiny, "training.steps=2"]), run, progress=False)
    modes = {path: path.stat().st_mode & 0o777 for path in [run, *run.rglob("*")] if path.name != ".lock"}
    assert len(modes) > 8
    assert not {path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o640)
    with replace_file(path) as beside:
        beside.write_text("after")
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
