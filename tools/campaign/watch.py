"""A command under watch: what it opens, writes, connects to and starts, how long it takes, and the verdict on it."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .attempts import Attempt, send, start_fork

__all__ = ["GOOD", "Rules", "Watched", "judge", "remarks", "watched", "watched_twice"]

LIMIT = 10.0
"""Seconds that a command may take before it counts as hanging."""
CTRL_C = 5.0
"""Seconds after which a command that has much work gets SIGINT, as from Ctrl-C; half of it later once more."""
ADDRESSES = 12 * 2**30
"""Address space of a command in bytes: torch alone maps some GB; what exceeds this is out of memory."""
GOOD = ("success", "one-line error", "stopped by Ctrl-C")
"""The verdicts that are promised."""
REMARKS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters, which can command a terminal."""

_CONNECTS = (
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
    "socket.sendto", "socket.sendmsg", "urllib.Request", "ftplib.connect", "http.client.connect", "smtplib.connect",
)  # fmt: skip
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.forkpty", "pty.spawn")
_CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.rmtree", "shutil.move",
)  # fmt: skip
_OURS = ("git", "/sbin/ldconfig", "ldconfig", "uname", "no-compiler", "g++")
"""Programs that quarterarc and the libraries start: the commit in results, libraries, the platform, a compiler."""


@dataclass(frozen=True)
class Rules:
    """What a command may do.

    Attributes:
        write: the folders that it may write to.
        secret: a folder that it may not open either; None if its words may name it.
        network: whether its words ask for a connection, which fails then as without a network.
        memory: the largest resident memory in bytes, beyond that of the process of which it is a fork.
        long: whether its words ask for much work: then it gets SIGINT after `CTRL_C` seconds.
    """

    write: tuple[Path, ...]
    secret: Path | None = None
    network: bool = False
    memory: int = 2 * 2**30
    long: bool = False


@dataclass
class Watched:
    """What a command did.

    Attributes:
        status: the exit status; None after a signal.
        signal: the signal that ended it, or 0.
        hung: whether it was ended after `LIMIT` seconds.
        interrupted: whether it got SIGINT.
        seconds: its time.
        cpu: its processor time in seconds.
        memory: its largest resident memory in bytes, beyond that of the process of which it is a fork.
        output: what it printed.
        events: what it did against the rules, in words.
    """

    status: int | None
    signal: int
    hung: bool
    interrupted: bool
    seconds: float
    cpu: float
    memory: int
    output: str
    events: list[str]


def watched(words: Sequence[str], folder: Path, rules: Rules, limit: float = LIMIT) -> Watched:
    """Run a command in a fork, in a folder, under rules."""
    log, events = folder.with_name(f"{folder.name}.log"), folder.with_name(f"{folder.name}.events")
    for path in (log, events):
        path.unlink(missing_ok=True)
    started, own = time.monotonic(), _resident()
    pid = start_fork(words, folder, log, before=lambda: _watch(events, rules))
    attempt = Attempt("", [pid], "fork", log)
    interrupted = False
    if rules.long and not attempt.wait(CTRL_C):
        send(pid, signal.SIGINT)
        interrupted = True
        if not attempt.wait(CTRL_C / 2):  # in a step of much work
            send(pid, signal.SIGINT)
    hung = not attempt.wait(max(0.0, started + limit - time.monotonic()))
    if hung:
        send(pid, signal.SIGUSR1)  # prints where each thread is
        attempt.wait(0.5)
        attempt.kill()
        attempt.wait(5)
    end = attempt.ended[pid]
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    seconds = time.monotonic() - started
    return Watched(end.status, end.signal, hung, interrupted, seconds, end.cpu, end.memory - own, attempt.output, lines)


def _resident() -> int:
    """The resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def watched_twice(words: Sequence[str], folder: Path, rules: Rules, renew: Callable[[], object]) -> Watched:
    """As `watched`; a command that hangs while other programs share the processors gets more time in a second try.

    It counts as hanging if it does not end then either, or takes more than `LIMIT` seconds of processor time.

    Args:
        words: the words after `quarterarc`.
        folder: the working folder.
        rules: what it may do.
        renew: makes the folder as it was.
    """
    seen = watched(words, folder, rules)
    if not seen.hung or os.getloadavg()[0] < (os.cpu_count() or 1):
        return seen
    renew()
    again = watched(words, folder, rules, 6 * LIMIT)
    again.hung = again.hung or again.cpu > LIMIT
    return again


def judge(seen: Watched, rules: Rules) -> tuple[str, str]:
    """The verdict on a command, one of `GOOD` or a fault, and what it is based on."""
    text = seen.output
    if seen.hung:
        return "hang", f"{seen.seconds:.0f} s, of the processor {seen.cpu:.0f} s: {text[-3000:]}"
    if seen.signal:
        return "ended by a signal", f"{signal.Signals(seen.signal).name}: {text[-500:]}"
    if seen.events:
        events = "; ".join(dict.fromkeys(seen.events))
        return seen.events[0].partition(":")[0], f"{events[:1000]}: {text[-500:]}"
    if "Traceback (most recent call last)" in text:
        return "traceback", text[-1500:]
    if seen.memory > rules.memory:
        return "memory", f"{seen.memory / 2**20:.0f} MiB: {text[-300:]}"
    errors = [line for line in text.splitlines() if re.match(r"quarterarc( \w+)?: error: ", line)]
    if seen.status == 2:
        if len(errors) != 1:
            return "not one line", text[-800:]
        return "one-line error", ""
    if seen.status == 0:
        return ("success", "") if not errors else ("status", f"status 0 after an error: {text[-500:]}")
    if seen.status in (128 + signal.SIGINT, 128 + signal.SIGTERM) and seen.interrupted:
        return "stopped by Ctrl-C", ""
    return "status", f"status {seen.status}: {text[-500:]}"


def remarks(seen: Watched) -> tuple[str, ...]:
    """Blemishes of the output: control characters, lines of other libraries."""
    found = []
    if REMARKS.search(seen.output):
        found.append("control characters in the output")
    if seen.status == 2 and any(
        line.strip() and not line.startswith(("quarterarc", "usage:")) for line in seen.output.splitlines()
    ):
        found.append("further lines beside the error")
    return tuple(found)


def _loads_compiled(words: Any) -> bool:
    """Whether a process is that in which `torch.compile` tries whether it can load what it has compiled."""
    return isinstance(words, list) and words[:2] == [sys.executable, "-c"] and "cdll.LoadLibrary(" in str(words[2])


def _watch(events: Path, rules: Rules) -> None:
    """Set limits and the audit hook, in the fork."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    roots = [os.path.realpath(path) for path in rules.write]
    secret = None if rules.secret is None else os.path.realpath(rules.secret)
    out = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def report(event: str) -> None:
        os.write(out, (event.replace("\n", " ")[:500] + "\n").encode("utf-8", "backslashreplace"))

    def below(path: str | bytes, folders: list[str]) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return any(real == folder or real.startswith(folder + "/") for folder in folders)

    def inside(path: Any) -> bool:
        return not isinstance(path, str | bytes) or below(path, [*roots, "/dev"])

    def spy(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                if not inside(path):
                    report(f"write outside: open {path!r}")
            elif secret is not None and isinstance(path, str | bytes) and below(path, [secret]):
                report(f"read outside: {path!r}")
        elif event in _CHANGES:
            if not all(inside(argument) for argument in arguments if isinstance(argument, str | bytes)):
                report(f"write outside: {event} {arguments!r}")
        elif event in _CONNECTS:
            if not rules.network:
                report(f"connection: {event} {arguments!r}")
            raise ConnectionRefusedError(111, "no network in the campaign")
        elif event in _STARTS:
            program = arguments[0] if isinstance(arguments[0], str) else str((arguments[1] or ["?"])[0])
            if program not in _OURS and not _loads_compiled(arguments[1]):
                report(f"process: {event} {arguments[:2]!r}")  # the environment does not belong into a report

    sys.addaudithook(spy)
