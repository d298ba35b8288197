"""Files written on a thread, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

__all__ = ["Background"]


class Background:
    """One thread that writes files in order. Its errors are raised in the main thread, by the next call of a method.

    At most one piece of work is under way, which bounds the memory of what is waiting to be written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._work: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece of work, once the one before has ended."""
        self.wait()
        self._work = self._thread.submit(work)

    def offer(self, work: Callable[[], Callable[[], object]]) -> None:
        """Begin a piece of work unless one is under way, without waiting; `work` returns it."""
        self.check()
        if self._work is None:
            self._work = self._thread.submit(work())

    def check(self) -> None:
        """Raise the error of work that has failed; returns at once."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the work that is under way, and raise its error."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the work that is under way; its error is raised unless there is one already."""
        self._thread.shutdown()
        if error is None:
            self.wait()
