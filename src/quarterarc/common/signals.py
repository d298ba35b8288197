"""Signals that end a process in order, and processes that end with the one that started them."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["GRACE", "Terminated", "end_with", "handled", "sigint_blocked", "signal_of", "stopping_in_order"]

GRACE = 30.0
"""Seconds in which a process that was sent SIGTERM ends, before it is killed: the time to write a checkpoint."""

_POLL = 0.5  # seconds between two looks at the parent
_STUCK = 20.0  # seconds after which a signal ends a process that is in a library, where Python cannot handle it
_AT_ONCE = 1.0  # the same after a second Ctrl-C
_APART = 2.0  # seconds between two signals that are two requests: a terminal and a launcher may both send one
_writers = set[int]()
_last_handled = -math.inf


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command in the same way as SIGINT."""


def signal_of(stopped: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an exception of `stopping_in_order`."""
    return signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT


@contextmanager
def stopping_in_order(report: Callable[[signal.Signals], object] | None = None) -> Iterator[None]:
    """A block in which SIGINT raises KeyboardInterrupt and SIGTERM raises `Terminated`, so that `finally` blocks run.

    The second signal ends the process at once. If the process is in a library, which computes, or waits for a process
    of a distributed run that has ended, the first one ends it after twenty seconds, and a second Ctrl-C, two seconds
    later or more, after one. Outside the main thread, which alone can set handlers, nothing changes.

    Args:
        report: of a process that ends after the block, called before a signal ends it while a module is imported, where
            an exception may be lost or become another one. None for a process that goes on.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        handled()
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)
        if report is not None and _is_importing(frame):
            report(signal.Signals(number))
            os._exit(128 + number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        with _ended_if_stuck(report):
            yield
    finally:
        for number, handler in before.items():  # Python's own handler would print a traceback while the process ends
            signal.signal(number, handler if report is None else signal.SIG_DFL)


def handled() -> None:
    """Called by every handler of SIGINT and SIGTERM: the process is able to act on the signal."""
    global _last_handled
    _last_handled = time.monotonic()


@contextmanager
def _ended_if_stuck(report: Callable[[signal.Signals], object] | None) -> Iterator[None]:
    """A block in which a thread ends the process if the main thread does not handle a signal in time.

    Python runs handlers between two of its own instructions, and writes the signal to a socket at once (on Windows,
    `select` waits for sockets alone).
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        requests, last, deadline, number = 0, -math.inf, math.inf, 0
        while True:
            waiting = deadline < math.inf
            if select.select([reader], [], [], 0.05 if waiting else None)[0]:
                received = reader.recv(1)
                if not received:
                    break
                if received[0] in _STOPPING:
                    now, number = time.monotonic(), received[0]
                    requests += now > last + _APART
                    patience = _AT_ONCE if requests > 1 and number == signal.SIGINT else _STUCK
                    last, deadline = now, min(deadline, now + patience)
            if _last_handled >= last - _AT_ONCE:  # a handler may have run before this thread
                deadline = math.inf
            elif time.monotonic() > deadline:
                if report is not None:
                    report(signal.Signals(number))
                os._exit(128 + number)
        reader.close()

    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _writers.add(writer.fileno())
    with suppress(RuntimeError):  # the system allows no further thread
        threading.Thread(target=watch, name="end-if-stuck", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _writers.discard(writer.fileno())
        writer.close()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


_STOPPING = (signal.SIGINT, signal.SIGTERM)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _writers and signal.set_wakeup_fd(-1))  # the socket is the parent's


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """A block in which SIGINT waits. Processes that are started in it never receive it, only the parent does.

    A terminal sends SIGINT to all processes of a command: the parent stops the others, each in order. On Windows, which
    has no masks of signals, they receive it too.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _first_is_python() -> bool:
    try:
        with open("/proc/1/cmdline", "rb") as file:
            return b"python" in file.read()
    except OSError:  # other systems than Linux, where it never does
        return False


def end_with(parent: int) -> None:
    """Send SIGTERM to this process once its parent has ended, and end it after `GRACE` seconds at the latest.

    Args:
        parent: the process identifier of the parent, as seen by this process. It has ended already if it is that of the
            system's first process, which adopts orphans, unless this one runs Python, as in a container.
    """

    def watch() -> None:
        while os.getppid() == parent and (parent != 1 or _first_is_python()):
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    with suppress(RuntimeError):  # the system allows no further thread
        threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
