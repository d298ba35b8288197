"""Locks of files and folders, which the operating system releases when the process ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import InputError

__all__ = ["LOCK", "locked", "waiting_lock"]

logger = logging.getLogger("quarterarc")

LOCK = ".lock"
"""The lock file of a run or sample folder; it stays when the lock is released."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: Path, work: str = "training") -> Iterator[None]:
    """Lock a folder for writing.

    Args:
        folder: a run or sample folder.
        work: what a process that holds the lock does, for the message.

    Raises:
        InputError: if another process has locked it.
    """
    from filelock import Timeout

    try:
        with _held(folder / LOCK, 0.0):
            yield
    except Timeout:
        raise InputError(
            f"another process is {work} in {folder}: wait for it, or choose another folder (--out)"
        ) from None


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Wait for the lock of a file or folder that another process may be writing, and hold it."""
    with _held(path.with_name(f".{path.name}.lock"), -1.0):
        yield


@contextmanager
def _held(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of a lock file; without one, after a warning, on a file system that has no locks."""
    from filelock import FileLock

    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # Timeout is an OSError without a number
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks: let no other process write here", path.parent)
    try:
        yield
    finally:
        lock.release()
