"""Attempts: one run of a command in a fork of this process, in a process of its own, or in several processes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["FORKS", "Attempt", "Ended", "preload", "start", "start_fork"]

FORKS = {"pair": 2, "four": 4}
"""The number of processes that are forks of this one and connected with each other."""
MARK = "QUARTERARC_CAMPAIGN"
"""The environment variable by which processes of an attempt are found, also those whose parent is dead."""

PRELOADED = (
    "torch", "torch.distributed", "torch.utils.tensorboard", "torch._dynamo", "torch.nn.parallel", "accelerate",
    "accelerate.utils", "pydantic", "filelock", "safetensors.torch", "PIL.Image", "PIL.PngImagePlugin", "jinja2",
    "quarterarc.cli", "quarterarc.cli.train", "quarterarc.cli.sample", "quarterarc.cli.evaluate",
    "quarterarc.cli.experiment", "quarterarc.cli.tune", "quarterarc.cli.demo", "quarterarc.training.api",
    "quarterarc.sampling.folders", "quarterarc.sampling.tuning", "quarterarc.evaluation.measure",
    "quarterarc.evaluation.sources", "quarterarc.experiments.run", "quarterarc.experiments.demo",
    "quarterarc.experiments.zhang2023.steps", "quarterarc.likelihood.evaluation",
)  # fmt: skip


def preload() -> None:
    """Import what commands import, in one thread, so that forks of this process start at once."""
    for name in PRELOADED:
        import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"{threads} threads after the imports: forks of this process would not be safe")


@dataclass
class Ended:
    """The end of a process.

    Attributes:
        status: its exit status; None after a signal.
        signal: the signal that ended it, or 0.
        cpu: seconds of processor time.
        memory: largest resident memory in bytes.
    """

    status: int | None
    signal: int = 0
    cpu: float = 0.0
    memory: int = 0


@dataclass
class Attempt:
    """A running command.

    Attributes:
        mark: the value of `MARK` in its environment.
        pids: the processes that this one started: a fork, a process of its own, a launcher, or two or four forks.
        how: "fork", "fresh", "pair" (two forks), "four" (four forks) or "launcher".
        log: the file of its output.
        ended: the processes of `pids` that have ended.
    """

    mark: str
    pids: list[int]
    how: str
    log: Path
    ended: dict[int, Ended] = field(default_factory=dict)

    def poll(self) -> bool:
        """Whether all processes of `pids` have ended."""
        for pid in self.pids:
            if pid not in self.ended:
                done, status, used = os.wait4(pid, os.WNOHANG)
                if done:
                    self.ended[pid] = _ended(status, used)
        return len(self.ended) == len(self.pids)

    def wait(self, seconds: float) -> bool:
        """Wait for the end; False if it does not come in this time."""
        until = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def processes(self) -> dict[int, str]:
        """All living processes of the attempt, with their rank as text, "" for others."""
        found = {pid: str(place) for place, pid in enumerate(self.pids) if pid not in self.ended}
        if self.how in ("fork", "fresh", "launcher"):
            found = dict.fromkeys(found, "")
        if self.how in ("fresh", "launcher"):
            found = {**marked(self.mark), **found}
        return found

    def kill(self, target: str = "all") -> None:
        """SIGKILL to all processes, to a rank ("0", "1", ...), or to the process that was started ("launcher")."""
        chosen = self.processes()
        if target == "launcher":
            chosen = dict.fromkeys(self.pids, "")
        elif target != "all":
            chosen = {pid: rank for pid, rank in chosen.items() if rank == target} or chosen
        for pid in chosen:
            if pid not in self.ended:
                send(pid, signal.SIGKILL)

    def end(self, seconds: float = 40.0) -> bool:
        """Wait until nothing is left, as a launcher does: the rest gets SIGTERM; after `seconds` SIGKILL and False.

        Ranks whose launcher was killed end after 30 seconds at the latest (`quarterarc.common.signals.GRACE`).
        """
        until, told = time.monotonic() + seconds, False
        while not self.poll() or (self.how in ("fresh", "launcher") and marked(self.mark)):
            if self.how in FORKS and self.ended and not told:
                told = True
                for pid in self.pids:
                    if pid not in self.ended:
                        send(pid, signal.SIGTERM)
            if time.monotonic() > until:
                self.kill()
                self.wait(5)
                return False
            time.sleep(0.01)
        return True

    @property
    def killed(self) -> bool:
        """Whether a process of `pids` has ended by SIGKILL."""
        return any(end.signal == signal.SIGKILL for end in self.ended.values())

    @property
    def status(self) -> int | None:
        """The largest exit status; None if a signal ended a process."""
        statuses = [end.status for end in self.ended.values()]
        return None if None in statuses else max(status or 0 for status in statuses)

    @property
    def output(self) -> str:
        """What was written to standard output and standard error."""
        return self.log.read_text(encoding="utf-8", errors="backslashreplace") if self.log.exists() else ""


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def marked(mark: str) -> dict[int, str]:
    """The processes whose environment has this mark, with their rank."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
                state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if wanted in variables and state != "Z":
                ranks = [item[5:].decode() for item in variables if item.startswith(b"RANK=")]
                found[int(entry)] = ranks[0] if ranks else ""
    return found


def start(how: str, words: Sequence[str], folder: Path, mark: str, records: Path | None = None) -> Attempt:
    """Start a command.

    Args:
        how: "fork" or "fresh" for one process; "pair" (two forks) or "launcher" (torch.distributed.run) for two, and
            "four" (forks) for four.
        words: the words after `quarterarc`.
        folder: the working folder.
        mark: a text that no other attempt has.
        records: the folder in which each of several processes writes RANK.json with the number of connected processes.
    """
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    if how == "fork":
        return Attempt(mark, [start_fork(words, folder, log)], how, log)
    if how in FORKS:
        port, count = _free_port(), str(FORKS[how])
        pids = []
        for rank in range(FORKS[how]):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            pids.append(start_fork(words, folder, log, environment, after=lambda status: record(records, status)))
        return Attempt(mark, pids, how, log)
    command = [sys.executable, "-m", "quarterarc", *words]
    environment = {**os.environ, MARK: mark}
    if how == "launcher":
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, str(Path(__file__).with_name("rank.py")), str(records or ""), *words]
        environment["ACCELERATE_USE_CPU"] = "true"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    process.returncode = 0  # waited for in Attempt.poll, not by subprocess
    return Attempt(mark, [process.pid], how, log)


def start_fork(
    words: Sequence[str],
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], Any] | None = None,
    after: Callable[[int], Any] | None = None,
) -> int:
    """Fork, run a command in the fork, and return the fork's number.

    Args:
        words: the words after `quarterarc`.
        folder: the working folder.
        log: the file that the output is appended to.
        environment: further variables.
        before: called before the command.
        after: called after it, with its exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, out), (2, out)):
            os.dup2(source, target)
        # with one thread the standard streams can be replaced: their encoding and error handling are those of a shell
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.update(environment or {})
        if before is not None:
            before()
        status = _run(words, after)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _run(words: Sequence[str], after: Callable[[int], Any] | None) -> int:
    """The exit status of a command, and what the interpreter does at its end, before which `after` is called."""
    import atexit

    from quarterarc.cli import main

    sys.argv = ["quarterarc", *words]
    try:
        status = main(list(words))
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    if after is not None:
        after(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return status


def record(folder: Path | None, status: int) -> None:
    """Write RANK.json: the exit status, and the number of processes that are connected."""
    import json

    import torch.distributed

    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    value = {"status": status, "processes": torch.distributed.get_world_size() if connected else 1}
    if folder is not None:
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(value), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _ended(status: int, used: resource.struct_rusage) -> Ended:
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    if os.WIFSIGNALED(status):
        return Ended(None, os.WTERMSIG(status), cpu, memory)
    return Ended(os.WEXITSTATUS(status), 0, cpu, memory)
