"""The process of a command: its standard streams, and the one line with which it ends early."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from ..common.text import printable

__all__ = ["drop", "finish_output", "open_closed_streams", "print_line"]


def open_closed_streams() -> None:
    """Open standard streams that are closed (`2>&-`): otherwise their descriptors become those of other files.

    What is printed there, also by libraries, would be written into these files.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))


def finish_output() -> None:
    """Write what is buffered for the standard output.

    Raises:
        BrokenPipeError: if its reader has ended (`quarterarc ... | head`).
        OSError: if it cannot be written, for example to a full disk.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout)
        raise


def print_line(text: str) -> None:
    """Print a line to the error stream, if it has a reader; of the processes of a run only the first one prints."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and not _is_first():
        return
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def _is_first() -> bool:
    if "quarterarc.common.devices" not in sys.modules:  # torch may be half imported, and no process is connected
        return os.environ.get("LOCAL_RANK", "0") == "0"
    from ..common.devices import first_to_report

    return first_to_report()


def drop(stream: TextIO) -> None:
    """Let the rest of a stream vanish: the interpreter writes it at its end, and would report the error again."""
    with suppress(OSError, ValueError):
        _to_nowhere(stream.fileno())


def _to_nowhere(number: int) -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    os.set_inheritable(number, True)
