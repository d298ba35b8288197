"""Progress of long work: a bar in a terminal or a notebook, lines in a log file.

Both go on while a single step takes long: the time in them shows that the program works.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tqdm import TqdmMonitorWarning, tqdm

from .text import counted, duration, printable

__all__ = ["Bar", "progress_bar", "shown", "working"]

warnings.simplefilter("ignore", TqdmMonitorWarning)  # where the system allows no further thread, bars need none

FIRST, LEAST, MOST, SHARE = 5.0, 10.0, 600.0, 0.1
"""Seconds until the first line of a log file; between two lines a share of the time so far, at least and at most."""
EARLY = (1, 10)
"""Steps of training after which there is a line in any case."""
TICK = 1.0
"""Seconds between two looks at the clock."""


class _Display(Protocol):
    def update(self, n: float) -> None: ...
    def note(self, text: str) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


class Bar:
    """The progress of work, as a context manager; it may be shown nowhere.

    Args:
        display: the bar or the lines; None to show nothing.
    """

    def __init__(self, display: _Display | None = None) -> None:
        self._display = display
        self._ended = threading.Event()
        if display is not None:
            with suppress(RuntimeError):  # the system allows no further thread
                threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def update(self, n: float = 1) -> None:
        """Count further units."""
        if self._display is not None:
            self._display.update(n)

    def note(self, **values: str) -> None:
        """Show values beside the progress, such as the loss, from the next time that it is shown."""
        if self._display is not None:
            self._display.note(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the final state."""
        self._ended.set()
        if self._display is not None:
            self._display.close()

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            assert self._display is not None
            self._display.tick()


def progress_bar(
    total: int | None,
    unit: str,
    description: str,
    show: bool = True,
    *,
    initial: int = 0,
    leave: bool = True,
    early: bool = False,
    form: str | None = None,
) -> Bar:
    """The progress of countable work on the error stream: a bar in a terminal or a notebook, otherwise lines.

    Args:
        total: number of units; None if unknown.
        unit: unit of progress, in the singular: "image".
        description: text before the bar.
        show: whether to show anything.
        initial: units that were done before.
        leave: whether a bar stays after the end.
        early: whether a log file has lines after the first and the tenth unit already, for work whose noted values
            show early whether it goes well, such as the loss of training.
        form: format of the bar (`bar_format` of tqdm).
    """
    if not show or sys.stderr is None:
        return Bar()
    description = printable(description)
    if not (notebook := _in_notebook()) and not sys.stderr.isatty():
        return Bar(_Lines(total, unit, description, initial, early, sys.stderr))
    made: Any = tqdm
    if widgets := notebook and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as made
    options: dict[str, Any] = {"bar_format": form} if form else {}
    bar = made(
        total=total, unit=unit, desc=description, initial=initial, leave=leave, dynamic_ncols=True, smoothing=0.05,
        **options,
    )  # fmt: skip
    return Bar(_Terminal(bar, ticks=not widgets))


def working(description: str, show: bool = True) -> Bar:
    """The progress of work whose parts cannot be counted: the time that it has taken so far."""
    return progress_bar(None, "", description, show, leave=False, form="{desc}: {elapsed}")


def shown(show: bool) -> bool:
    """Whether `progress_bar` shows a bar: `show`, and the error stream is a terminal. For bars of other libraries."""
    return show and sys.stderr is not None and sys.stderr.isatty()


def _in_notebook() -> bool:
    """Whether this process computes the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _Terminal:
    """A bar of tqdm."""

    def __init__(self, bar: Any, ticks: bool) -> None:
        self._bar, self._ticks = bar, ticks

    def update(self, n: float) -> None:
        self._bar.update(n)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def tick(self) -> None:
        if self._ticks:
            self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Lines of a log file: soon, and then at growing intervals, until they are ten minutes apart.

    Args:
        total, unit, description, initial, early: see `progress_bar`.
        file: where the lines are written; nothing stops where that is not possible.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        description: str,
        initial: int,
        early: bool,
        file: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._description, self._file, self._clock = total, unit, description, file, clock
        self._first, self._done, self._note = initial, float(initial), ""
        self._early = [initial + count for count in EARLY] if early else []
        self._started = clock()
        self._next = self._started + FIRST
        self._written = False
        self._lock = threading.Lock()

    def update(self, n: float) -> None:
        with self._lock:
            self._done += n
            early = [count for count in self._early if count <= self._done]
            self._early = self._early[len(early) :]
            if early:
                self._write()
        self.tick()

    def note(self, text: str) -> None:
        self._note = text

    def tick(self) -> None:
        with self._lock:
            if self._clock() >= self._next:
                self._write()

    def close(self) -> None:
        with self._lock:
            if self._written:
                self._write(ended=True)

    def _write(self, ended: bool = False) -> None:
        now, self._written = self._clock(), True
        took = now - self._started
        self._next = now + min(MOST, max(LEAST, SHARE * took))
        parts = [self._count()] if self._unit else []
        if ended:
            parts.append(f"ended after {duration(took)}")
        elif self._total and self._first < self._done < self._total:
            left = took * (self._total - self._done) / (self._done - self._first)
            parts.append(f"{duration(left)} left")
        else:
            parts.append(f"{duration(took)} so far")
        with suppress(OSError, ValueError):  # the file is full, or closed
            self._file.write(f"{self._description}: {', '.join([*parts, *([self._note] if self._note else [])])}\n")
            self._file.flush()

    def _count(self) -> str:
        done = min(round(self._done), self._total or round(self._done))
        if self._total is None:
            return counted(done, self._unit)
        return f"{done:,} of {counted(self._total, self._unit)}"
