"""Full disks: a real file system with few pages left; then space is made, and the same command completes."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .attempts import Attempt, start_fork
from .folders import broken, differences, snapshot
from .kills import TASKS, Task
from .prepared import Part, Prepared
from .results import Outcome

__all__ = ["Disk", "allowed"]

_TUNE = ("tune", "run", "--nfe", "2", "--images", "8", "--no-weights")
_TASKS = {**TASKS, "tune": Task(_TUNE, _TUNE, ("run",), 0)}
_PAGE = 4096
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_SIZE = 2**26


class Disk(Part):
    """Commands on a full disk."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        super().__init__(prepared, seed)
        self._references: dict[str, tuple[dict[str, Any], int]] = {}

    def case(self, index: int, keep: bool = False) -> Outcome:
        """Run a command on a disk that becomes full, free the disk, run it again, and compare."""
        rng = np.random.default_rng([self.seed, index, 3])
        name = list(_TASKS)[index % len(_TASKS)]
        if name not in self._references:
            self._references[name] = self._in_namespace(partial(self._reference, name))
        reference, pages = self._references[name]
        left = int(rng.integers(pages))
        while (found := self._in_namespace(partial(self._full, name, reference, left))) is None:
            left //= 2  # it was enough
        problems: list[str] = found
        words = " ".join(_TASKS[name].again)
        verdict = "same bits" if not problems else problems[0].partition(":")[0]
        detail = f"{left} of {pages} pages left: {'; '.join(problems)}"[:2000]
        return Outcome(index, name, verdict, not problems, words, detail if problems else "")

    def _reference(self, name: str, folder: Path) -> tuple[dict[str, Any], int]:
        """The result on an empty disk, and the pages that it takes at its end."""
        used = _used(folder)
        problem = self._run(name, folder, again=False)
        if problem is not None:
            raise RuntimeError(f"{name} without a full disk: {problem}")
        return snapshot(folder), _used(folder) - used

    def _full(self, name: str, reference: dict[str, Any], left: int, folder: Path) -> list[str] | None:
        """The problems of a command on a disk with `left` free pages, in words; None if they were enough."""
        ballast = folder / ".." / "ballast"
        usage = os.statvfs(folder)
        with ballast.open("wb") as file:
            file.write(bytes((usage.f_bfree - left) * _PAGE))
        problem = self._run(name, folder, again=False, full=True)
        if problem == "":
            return None
        problems = [] if problem is None else [problem]
        problems += broken(folder)
        ballast.unlink()
        if not problems:
            after = self._run(name, folder, again=True)
            problems += [after] if after is not None else differences(reference, snapshot(folder))
        return problems

    def _run(self, name: str, folder: Path, again: bool, full: bool = False) -> str | None:
        """Run the command; a problem in words, "" if it succeeded on a disk that was to be full."""
        task = _TASKS[name]
        log = self.prepared.base / "disk.log"
        log.unlink(missing_ok=True)  # not on the full disk
        words = task.again if again else task.words
        attempt = Attempt("", [start_fork(words, folder, log)], "fork", log)
        if not attempt.wait(60):
            attempt.kill()
            attempt.wait(5)
            return f"hang: {attempt.output[-800:]}"
        text = attempt.output
        if attempt.status == 0:
            return "" if full else None
        if not full:
            return f"not completed afterwards: status {attempt.status}: {text[-1200:]}"
        errors = [line for line in text.splitlines() if line.startswith("quarterarc: error: ")]
        if attempt.status != 2 or "Traceback" in text:
            return f"traceback or status: status {attempt.status}: {text[-1200:]}"
        if len(errors) != 1 or not any(part in errors[0] for part in ("made", "run/", "tuned")):
            return f"the file is not named: {text[-600:]}"
        return None

    def _in_namespace(self, work: Any) -> Any:
        """The value of `work(folder)` in a fork with a file system of its own, of JSON types or a tuple of them."""
        base = self.prepared.base
        answer, mounted = base / "disk.json", base / "disk"
        mounted.mkdir(exist_ok=True)
        answer.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            try:
                _mount(mounted)
                folder = mounted / "work"
                folder.mkdir()
                for part in ("run", "pics", "mine.yaml"):
                    source = self.prepared.folder / part
                    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
                answer.write_text(json.dumps(work(folder)), encoding="utf-8")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.waitpid(pid, 0)
        if not answer.exists():
            raise RuntimeError("a case on a full disk gave no answer")
        return json.loads(answer.read_text(encoding="utf-8"))


def _used(folder: Path) -> int:
    usage = os.statvfs(folder)
    return usage.f_blocks - usage.f_bfree


def allowed() -> bool:
    """Whether this system lets a process mount a file system of its own, which containers may forbid."""
    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if not pid:
            try:
                _mount(Path(folder))
                os._exit(0)
            except OSError:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _mount(folder: Path) -> None:
    """Mount a file system in memory, visible to this process and its children only.

    Raises:
        OSError: if this is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        user, group = os.getuid(), os.getgid()
        _check(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={_SIZE}".encode()))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "a file system of one's own is not allowed here")
