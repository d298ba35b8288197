"""Processes that share the jobs of an experiment, and end with the process that started them."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch

from ..common.errors import InputError
from ..common.signals import GRACE, end_with, sigint_blocked, signal_of, stopping_in_order

__all__ = ["in_processes"]

Task = TypeVar("Task")
Item = TypeVar("Item")
ITEM, END, ERROR = "item", "end", "error"
"""What a process sends, each with a value: an item of its task, the end of the task, the exception that ended it."""


def in_processes(
    function: Callable[[Task], Iterable[Item]], tasks: Sequence[Task], count: int
) -> Generator[Item, None, None]:
    """Call a function on each task, in processes of their own.

    The processes end when the iteration ends, also early by an exception: then they get SIGTERM, and SIGKILL after
    `GRACE` seconds. When this process is killed, they stop by themselves.

    Args:
        function: a function of a module, so that a new process can import it; it yields or returns items.
        tasks: its arguments, which can be pickled.
        count: number of processes, among which the threads of this process are divided.

    Returns:
        The items of all tasks, as they arrive; those of one task in order.

    Raises:
        InputError: if a process was killed, for example where memory is short.
        Exception: that of a function, once.
    """
    waiting, workers = deque(tasks), dict[Connection, SpawnProcess]()
    threads = max(1, torch.get_num_threads() // count)
    try:
        while waiting and len(workers) < count:
            connection, process = _start(function, threads)
            workers[connection] = process
            _send(waiting.popleft(), connection, process)
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                try:
                    kind, value = ready.recv()
                except (EOFError, OSError):
                    raise _killed(workers[ready]) from None
                if kind == ITEM:
                    yield value
                elif kind == ERROR:
                    raise value
                elif waiting:
                    _send(waiting.popleft(), ready, workers[ready])
                else:
                    del workers[ready]
                    ready.close()  # the process ends
    finally:
        _end(list(workers.values()))


def _start(function: Callable[[Any], Iterable[object]], threads: int) -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")  # a copy of a process with threads, as by fork, may wait for a lock without end
    own, other = context.Pipe()
    process = context.Process(target=_work, args=(other, function, threads, os.getpid()))
    with sigint_blocked():
        process.start()
    other.close()
    return own, process


def _send(task: object, connection: Connection, process: SpawnProcess) -> None:
    try:
        connection.send(task)
    except OSError:
        raise _killed(process) from None


def _work(connection: Connection, function: Callable[[Any], Iterable[object]], threads: int, parent: int) -> None:
    """Call the function on the tasks of a connection until it is closed or one fails, and send what it yields."""
    try:
        with stopping_in_order(lambda number: None):
            end_with(parent)
            torch.set_num_threads(threads)
            while True:
                task = connection.recv()
                try:
                    for item in function(task):
                        connection.send((ITEM, item))
                except Exception as error:
                    if not isinstance(error, InputError):
                        error.add_note(traceback.format_exc())  # pickling loses it
                    connection.send((ERROR, error))
                    return
                connection.send((END, None))
    except (EOFError, OSError):  # the parent has closed the connection, or was killed
        return
    except KeyboardInterrupt as stopped:
        sys.exit(128 + signal_of(stopped))


def _killed(process: SpawnProcess) -> InputError:
    process.join(GRACE)
    status = process.exitcode or 0
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return InputError(
        f"a process of this experiment ended with {how}: run the same command again to continue, with fewer --jobs if "
        "memory is short"
    )


def _end(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        with suppress(OSError):
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
