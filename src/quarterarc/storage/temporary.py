"""Names of temporary files and folders, and the removal of those that killed processes have left behind.

    .NAME.HOST-PID    beside NAME, until NAME is complete

HOST is the hash of the machine, and on Linux of the PID namespace (a container): only there does PID name a process.
In version 0.1 it was missing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["is_temporary", "remove_folder", "sweep", "sweep_beside", "temporary"]

_NAME = re.compile(r"\.(?:probe-|.+\.(?:(?P<host>[0-9a-f]{8})-)?)(?P<pid>\d+)")
_DAY = 86400.0


def temporary(path: Path) -> Path:
    """The temporary path of this process for a file or folder."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}")


def is_temporary(path: Path) -> bool:
    """Whether a path is a temporary one, which a killed process leaves behind."""
    return _NAME.fullmatch(path.name) is not None


def sweep(*folders: Path, locked: bool = False) -> None:
    """Delete the temporary files and folders of killed processes.

    Those of living processes stay, also of one that has got the number of a killed one, and those of another machine
    for a day after their last change.

    Args:
        folders: the folders, which may be missing or not writable.
        locked: whether this process holds a lock without which nothing is written to the folders: then those of every
            other process are deleted.
    """
    for folder in folders:
        with suppress(OSError):
            for path in [*folder.iterdir()]:
                _remove_abandoned(path, locked)


def sweep_beside(path: Path) -> None:
    """Delete what killed processes have left of the file or folder `path`, by the rules of `sweep`."""
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(f".{path.name}."):
                _remove_abandoned(path.with_name(name), False)


def remove_folder(path: Path) -> None:
    """Delete a folder; if this process is killed meanwhile, none of that name is left in part."""
    beside = temporary(path)
    shutil.rmtree(beside, ignore_errors=True)
    os.rename(path, beside)
    shutil.rmtree(beside)


def _remove_abandoned(path: Path, locked: bool) -> None:
    match = _NAME.fullmatch(path.name)
    if match is None or not _is_abandoned(path, match["host"], int(match["pid"]), locked):
        return
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_abandoned(path: Path, host: str | None, process: int, locked: bool) -> bool:
    if locked:  # a living process has got the number of a killed one
        return (host, process) != (_host(), os.getpid())
    if host in (None, _host()):
        return not _is_alive(process)
    return time.time() - path.lstat().st_mtime > _DAY


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where the signal 0 is Ctrl-C
        return _is_alive_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _is_alive_on_windows(process: int) -> bool:
    """A process that can be opened is alive until it can be waited for."""
    synchronize, access_denied, timeout = 0x00100000, 5, 0x102
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(synchronize, False, process)
    if not handle:
        return bool(ctypes.get_last_error() == access_denied)  # type: ignore[attr-defined]
    try:
        return bool(kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == timeout)
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))


@cache
def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]
