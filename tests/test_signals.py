"""Signals: a command ends in seconds with one line and the usual status, and none of its processes stays behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Cli
from quarterarc.common.errors import InputError
from quarterarc.experiments.workers import in_processes
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.stopping import Interrupted
from quarterarc.training.trainer import Trainer

NUMBERS = (signal.SIGINT, signal.SIGTERM)
Start = Callable[..., "subprocess.Popen[str]"]


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(group: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == group and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command line in a session of its own, as a terminal does; all its processes end with the test."""
    started = list[subprocess.Popen[str]]()

    def call(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "quarterarc", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        for number in alive(process.pid):
            os.kill(number, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose training does not end during a test."""
    path = tmp_path_factory.mktemp("recipe") / "endless.yaml"
    fields = {
        "name": "endless",
        "data": {"source": "digits", "size": 8, "channels": 1, "limit": 100},
        "schedule": {"name": "arc", "steps": 12},
        "network": {"channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
        "training": {"steps": 10**6, "batch": 4, "log_every": 1, "checkpoint_every": 10**6, "sample_count": 1},
    }
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def experiment(recipe: Path) -> list[str]:
    return ["experiment", "reconstruction", "--scale", str(recipe), "--images", "12", "--device", "cpu", "--cache",
            "cache", "--out", "out", "--jobs", "2"]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["SIGKILL", "SIGINT of a terminal"])
def test_no_process_of_an_experiment_stays_behind(recipe: Path, tmp_path: Path, start: Start, to: str) -> None:
    """A signal to the first process, or to all of them at once; the arms in training write their checkpoints."""
    process = start(*experiment(recipe))
    wait_until(lambda: sum(path.stat().st_size > 0 for path in tmp_path.glob("cache/arms/*/metrics.jsonl")) == 2)
    number = signal.Signals[to.partition(" ")[0]]
    if "terminal" in to:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    wait_until(lambda: not alive(process.pid), 20)
    assert len([*tmp_path.glob("cache/arms/*/checkpoints/step-*/config.json")]) == 2
    assert not [*tmp_path.glob("cache/arms/*/checkpoints/.*")]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, out) == (128 + number, "")
        *progress, last = errors.splitlines()
        assert last == f"quarterarc: stopped by {number.name}: run the same command again to continue"
        assert all(line.startswith("measure: 0 of ") for line in progress)


def test_items_of_a_task_arrive_while_it_goes_on(tmp_path: Path) -> None:
    """Its second item waits for a file that is made when the first one has arrived."""
    arrived = list[str]()
    for item in in_processes(answer, [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c")], 2):
        arrived.append(item)
        if item.startswith("begun"):
            Path(item.removeprefix("begun ")).touch()
    assert sorted(arrived) == sorted(f"{what} {tmp_path / name}" for what in ("begun", "ended") for name in "abc")


def test_an_error_of_a_task_arrives_after_its_items() -> None:
    arriving = in_processes(answer, ["/nowhere/at/all"], 1)
    assert next(arriving) == "begun /nowhere/at/all"
    with pytest.raises(FileNotFoundError, match="nowhere") as raised:
        next(arriving)
    assert "in answer" in raised.value.__notes__[0]  # the place in the process


def answer(path: str) -> Iterator[str]:
    """Two items, in a process of its own."""
    yield f"begun {path}"
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(path)
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"ended {path}"


def test_a_killed_process_of_an_experiment_ends_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example by the kernel, where memory is short."""
    monkeypatch.setattr("quarterarc.experiments.workers.get_context", lambda name: DyingContext)
    with pytest.raises(InputError, match=r"ended with signal 9: run the same command again to continue, with fewer"):
        list(in_processes(sorted, ["a task"], 2))


class DyingContext:
    """A context of multiprocessing whose processes are killed once they have a task."""

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(target: object, args: tuple[Any, ...]) -> SpawnProcess:
        return multiprocessing.get_context("spawn").Process(target=die, args=args[:1])


def die(connection: Connection) -> None:
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("command", "stopped", "again"),
    [
        (("sample", "RUN", "--out", "made"), "sampling.folders.check_finite", "run the same command again to continue"),
        (("evaluate", "RUN", "--reference", "digits", "--features", "digits", "--out", "result.json"),
         "evaluation.features.as_features", "run the same command again"),
        (("tune", "RUN", "--images", "16"), "sampling.tuning.first_noise", "run the same command again"),
        (("demo", "--out", "demo"), "experiments.demo.train", "run the same command again to continue"),
        (("train", "digits", "--out", "new"), "training.trainer.open_data", "continue with --resume"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_signal_ends_a_command_with_one_line(
    tiny_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals,
    command: tuple[str, ...], stopped: str, again: str,
) -> None:  # fmt: skip
    """At a moment inside of the work; the handlers of the process are the same ones afterwards."""
    before = [signal.getsignal(each) for each in NUMBERS]
    monkeypatch.setattr(f"quarterarc.{stopped}", lambda *arguments, **options: signal.raise_signal(number))
    done = cli(*(tiny_run if word == "RUN" else word for word in command))
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1] == f"quarterarc: stopped by {number.name}: {again}"
    assert "Traceback" not in done.stderr
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = """
        import os, signal
        from quarterarc.common.signals import stopping_in_order
        with stopping_in_order():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_during_an_import_ends_the_process_in_the_same_way(tmp_path: Path, number: signal.Signals) -> None:
    """Libraries turn an exception in their imports into others, or go on without it."""
    library = f"""
        import os
        try:
            os.kill(os.getpid(), {number})
            for _ in range(9): pass
        except BaseException as error:
            raise ImportError("half of it") from error
    """
    (tmp_path / "torch.py").write_text(textwrap.dedent(library))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "quarterarc", "sample", "run", "--out", "made"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"quarterarc: stopped by {number.name}: run the same command again to continue\n"


def test_a_signal_during_the_last_step_stops_what_follows_training(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment or the demo goes on after training: it would lose the signal, and its process would be killed."""
    monkeypatch.setattr(Trainer, "_preview", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"SIGTERM; saved .*step-00000002"):
        train(read_recipe("digits", [*tiny, "training.steps=2"]), tmp_path / "run", progress=False)


# --- the standard streams ------------------------------------------------------------------------------------------


def test_a_closed_stream_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """What libraries print to the descriptor of a closed stream would be written into the file."""
    code = f"""
        import os, sys
        from quarterarc.cli.process import open_closed_streams
        open_closed_streams()
        with open({str(tmp_path / "file")!r}, "w"):
            os.write(2, b"a warning")
            print("an error", file=sys.stderr, flush=True)
            print(sys.stdin.read(), file=sys.stdout, flush=True)
    """
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(closed, timeout=60).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("words", [("train", "digits", "--show"), ("--version",), ("train", "--help")])
def test_a_reader_that_ends_is_no_error(words: tuple[str, ...], tmp_path: Path) -> None:
    """As in `quarterarc ... | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "quarterarc", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "quarterarc", "train", "digits", "--show"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"quarterarc: error: [^\n]*No space left on device\n", done.stderr), done.stderr


# --- what a system may not allow -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "RUN", "--out", "made", "--seeds", "0-1"),
        ("train", "digits", "--out", "new", "training.steps=2"),
        ("evaluate", "RUN", "--reference", "digits", "--features", "pixels", "--count", "8"),
    ],
    ids=lambda command: command[0],
)
def test_without_further_threads_a_command_ends_in_one_line_or_succeeds(
    tiny_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    done = cli(*(tiny_run if word == "RUN" else word for word in command))
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    if done.returncode:
        assert done.returncode == 2
        assert errors == ["quarterarc: error: the system allows no further thread: raise the limit (ulimit -u), or end "
                          "processes"]  # fmt: skip
    else:
        assert errors == []


def test_without_further_open_files_a_command_ends_in_one_line(
    tiny_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("quarterarc.storage.pictures.replace_file", no_file)
    done = cli("sample", tiny_run, "--out", "made", "--seeds", "0-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "quarterarc: error: the system allows no further open file: raise the limit (ulimit -n)\n"


def test_a_signal_ends_a_process_that_waits_in_a_library() -> None:
    """Such as for a process of a distributed run that has ended: Python runs no handler there."""
    code = """
        import ctypes, os, signal, threading
        from quarterarc.common import signals
        signals._STUCK = 0.3
        def report(number):
            os.write(2, f"stopped by {number.name}".encode())
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        with signals.stopping_in_order(report):
            lock, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)  # waits without end
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.stderr == "stopped by SIGTERM"
    assert done.returncode == 143


@pytest.mark.parametrize(("pause", "expected"), [(0.8, "second"), (0.01, "first")])
def test_a_second_ctrl_c_ends_a_process_that_computes_in_a_library(pause: float, expected: str) -> None:
    """Two signals at once, from the terminal and from a launcher, are one request."""
    code = f"""
        import ctypes, os, signal, threading, time
        from quarterarc.common import signals
        signals._STUCK, signals._APART, signals._AT_ONCE = 2.5, 0.4, 0.1
        begun = time.monotonic()
        def report(number):
            early = time.monotonic() < begun + 2.0
            os.write(2, f"{{number.name}} {{'second' if early else 'first'}}".encode())
        def press():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep({pause})
        threading.Timer(0.1, press).start()
        with signals.stopping_in_order(report):
            lock, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)  # waits without end
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, f"SIGINT {expected}")


def test_a_process_whose_parent_ended_before_it_looked_ends() -> None:
    code = """
        import time
        from quarterarc.common.signals import Terminated, end_with, stopping_in_order
        with stopping_in_order():
            try:
                end_with(1)  # that of an orphan
                time.sleep(50)
            except Terminated:
                print("ended in order")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=40)
    assert done.stdout == "ended in order\n"
