"""Leftovers of killed processes: the next command sweeps them, and they never make it refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from quarterarc.common.errors import InputError
from quarterarc.evaluation.resume import partial_results
from quarterarc.storage import temporary
from quarterarc.storage.files import make_folder, replace_file, replace_folder, write_json
from quarterarc.storage.locks import locked, waiting_lock
from quarterarc.storage.runs import checkpoints
from quarterarc.storage.temporary import is_temporary, remove_folder, sweep


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def name_of(path: Path, process: int) -> Path:
    """The temporary path of another process of this machine."""
    return path.with_name(temporary.temporary(path).name.replace(f"-{os.getpid()}", f"-{process}"))


def leave(path: Path) -> Path:
    """Write a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if is_temporary(path))


def test_temporary_files_of_killed_processes_are_deleted_and_those_of_living_ones_stay(
    tmp_path: Path, dead: int
) -> None:
    alive = os.getppid()
    file, folder = tmp_path / "000007.png", tmp_path / "step-00000004"
    leave(name_of(file, dead))
    leave(name_of(folder, dead) / "model.safetensors")
    leave(tmp_path / f".experiment.json.{dead}")  # as in version 0.1
    leave(tmp_path / f".probe-{dead}")
    kept = {leave(name_of(file, alive)), leave(tmp_path / f".experiment.json.{alive}"), leave(tmp_path / ".notes.txt")}
    sweep(tmp_path, tmp_path / "missing")
    assert {*tmp_path.iterdir()} == kept


def test_temporary_files_of_another_machine_stay_for_a_day_unless_the_folder_is_locked(tmp_path: Path) -> None:
    """Their process numbers mean nothing here."""
    fresh, old = (leave(tmp_path / f".{name}.00c0ffee-1") for name in ("fresh", "old"))
    day = time.time() - 25 * 3600
    os.utime(old, (day, day))
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == [fresh]
    leave(name_of(tmp_path / "made", os.getppid()))  # a living process that has got the number of a killed one
    sweep(tmp_path, locked=True)
    assert not [*tmp_path.iterdir()]


def test_writing_a_file_or_folder_sweeps_its_own_leftovers(tmp_path: Path, dead: int) -> None:
    leave(name_of(tmp_path / "result.json", dead))
    leave(name_of(tmp_path / "cell", dead) / "cell.json")
    other = leave(name_of(tmp_path / "letter.txt", dead))  # in a folder of the user only what is ours
    write_json(tmp_path / "result.json", 1)
    with replace_folder(tmp_path / "cell") as beside:
        (beside / "cell.json").write_text("{}")
    assert {*tmp_path.iterdir()} == {tmp_path / "result.json", tmp_path / "cell", other}


def test_checking_that_a_folder_is_writable_leaves_nothing_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, opened = list[str](), tempfile.TemporaryFile

    def spy(**options: Any) -> Any:
        file = opened(**options)
        names.extend(os.listdir(tmp_path))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", spy)
    make_folder(tmp_path)
    assert names == []


def test_a_folder_is_removed_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle leaves a temporary folder, not half a checkpoint."""
    folder = tmp_path / "step-00000002"
    leave(folder / "model.safetensors")
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    remove_folder(folder)
    assert [is_temporary(path) for path in tmp_path.iterdir()] == [True]


def test_training_sweeps_its_run(tiny_run: Path, tmp_path: Path, cli: Cli, dead: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    oldest, newest = checkpoints(run)[0], checkpoints(run)[-1]
    shutil.copytree(oldest, kept := oldest.with_name(f"{oldest.name}.damaged"))  # set aside, for the user to look at
    (oldest / "config.json").unlink()  # half removed
    leave(run / "samples" / f".step-00000002.png.{dead}")
    leave(run / f".recipe.yaml.{dead}")
    leave(name_of(newest / "tuned.json", dead))
    leave(name_of(run / "checkpoints" / "step-00000008", dead) / "model.safetensors")
    done = cli("train", "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert left_in(run) == []
    assert not oldest.exists()
    assert newest.exists()
    assert kept.exists()


def test_sampling_sweeps_its_folder(tiny_run: Path, cli: Cli, tmp_path: Path, dead: int) -> None:
    out = tmp_path / "made"
    leave(out / f".000000.png.{dead}")
    leave(name_of(out / "000001.png", dead))
    leave(out / f".samples.json.{dead}")
    leave(out / f".probe-{dead}")
    done = cli("sample", tiny_run, "--out", out, "--seeds", "0-1", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert left_in(out) == []


def test_evaluation_accepts_a_folder_in_which_a_killed_process_left_a_file(tmp_path: Path, dead: int) -> None:
    folder = tmp_path / "result.json.features"
    leave(folder / f".probe-{dead}")
    leave(folder / "0123" / f".00000001.safetensors.{dead}")
    with pytest.raises(InputError, match="is not quarterarc's"), partial_results(tmp_path / "result.json", "features"):
        pass  # the inner folder is not temporary
    (folder / ".quarterarc").touch()
    with partial_results(tmp_path / "result.json", "features") as partial:
        assert partial is not None
        assert left_in(partial) == []
    assert not folder.exists()
    leave(folder / f".probe-{dead}")
    with partial_results(tmp_path / "result.json", "features"):
        pass


def test_a_folder_of_partial_results_is_removed_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lost its mark before its content, by a kill in between, would be taken for another program's."""
    out = tmp_path / "result.json"

    def killed(path: Path, **arguments: object) -> None:
        if path.exists():
            (path / ".quarterarc").unlink()
            raise KeyboardInterrupt

    def stopped() -> None:
        with partial_results(out, "features") as folder:
            assert folder is not None
            leave(folder / "0")
            monkeypatch.setattr("quarterarc.storage.temporary.shutil.rmtree", killed)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    monkeypatch.undo()
    with partial_results(out, "features"):
        pass
    assert not [*tmp_path.iterdir()]


def test_an_experiment_sweeps_its_folder_and_its_cache(tmp_path: Path, dead: int) -> None:
    from quarterarc.experiments import experiment
    from quarterarc.experiments.lab import Lab
    from quarterarc.experiments.measuring import _new_folder
    from quarterarc.experiments.run import _reserve_folder
    from quarterarc.experiments.scales import scale

    out, lab = tmp_path / "out", Lab(scale("digits"), tmp_path / "cache", progress=False)
    leave(out / f".experiment.json.{dead}")
    leave(out / f".probe-{dead}")
    leave(lab.cache / "cells" / f".0123456789abcdef.{dead}" / "cell.json")
    leave(lab.cache / "references" / f".0123.safetensors.{dead}")
    leave(lab.cache / "features" / "0123" / "4567" / f".00000001.safetensors.{dead}")
    _reserve_folder(out, experiment("schedules"), lab.scale)
    lab.sweep()
    assert json.loads((out / "experiment.json").read_text())["complete"] is False
    assert left_in(tmp_path) == []
    leave(lab.cache / "cells" / "0123" / "picture.png")  # a cell whose removal was stopped
    with _new_folder(lab.cache / "cells" / "0123") as beside:
        write_json(beside / "cell.json", {})
    assert [path.name for path in (lab.cache / "cells" / "0123").iterdir()] == ["cell.json"]


def test_an_experiment_sweeps_an_arm_that_is_trained(tmp_path: Path, dead: int) -> None:
    """A process may have been killed after the last checkpoint, while it deleted an older one."""
    from quarterarc.experiments.arms import Arm
    from quarterarc.experiments.lab import Lab
    from quarterarc.experiments.scales import scale

    lab, arm = Lab(scale("digits"), tmp_path, progress=False), Arm("ours", ())
    recipe, run = arm.recipe(lab.scale, 0), arm.folder(lab.scale, 0, tmp_path)
    for step in range(recipe.training.steps - recipe.training.keep, recipe.training.steps + 1):
        for name in ("config.json", "model.safetensors", "raw.safetensors", "optimizer.safetensors"):
            leave(run / "checkpoints" / f"step-{step:08d}" / name)
    leave(run / "checkpoints" / f".step-00000003.{dead}" / "config.json")
    assert lab._train(arm, 0, run) == ""
    assert left_in(tmp_path) == []
    assert len(checkpoints(run)) == recipe.training.keep


def test_reading_a_run_writes_nothing_into_it(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    """So that runs on read-only file systems, and those that another process is training, can be sampled."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)

    def state() -> dict[Path, int]:  # the time of a folder changes with every file that is created or deleted in it
        return {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}

    with locked(run):
        before = state()
        for words in (
            ("sample", run, "--out", "made", "--seeds", "0-1", "--steps", "2"),
            ("evaluate", run, "--reference", "digits", "--features", "pixels", "--count", "8", "--steps", "2"),
        ):
            done = cli(*words, "--device", "cpu")
            assert done.returncode == 0, done.stderr
        assert state() == before


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Also by SIGKILL: the file stays, and locks nothing."""
    code = """
        import sys, time
        from pathlib import Path
        from quarterarc.storage.locks import locked
        with locked(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="another process is training"), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As some network file systems."""
    import errno
    import fcntl

    def no_locks(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for lock in (locked(tmp_path), waiting_lock(tmp_path / "cell")):
        caplog.clear()
        with lock, replace_file(tmp_path / "file") as beside:
            beside.write_text("written")
        assert "this file system has no locks: let no other process write here" in caplog.text
