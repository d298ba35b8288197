"""`python -m benchmarks gpu`: everything that is measured on a GPU, in one command of bounded time.

Each part is a benchmark in a process of its own. All of them build and compile at the same time, which takes minutes on
the CPU; then they take turns on the GPU, one part after another, so that none is measured while another one works. A
part that fails is reported with its error, and the others go on. What has not been measured
when the time limit is reached is left out, and the report lists it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Part", "measure", "parts", "run"]

Row = dict[str, Any]  # not from `benchmarks.report`, which imports torch: this process measures nothing

COMPILING = 0.6
"""Share of the time after which parts that are ready are measured although others still compile."""
_POLL = 0.1  # seconds
_GRACE = 5.0  # seconds in which a process ends after SIGTERM


@dataclass(frozen=True)
class Part:
    """A benchmark, and its options.

    Attributes:
        title: the heading of its table.
        module: a module with a function `run`, which accepts `show`, `add` and `ready` as `benchmarks.training.run`.
        options: further arguments of `run`.
    """

    title: str
    module: str
    options: dict[str, Any]


def parts(device: str, dtype: str, compile: bool) -> list[Part]:
    """The parts, the most important first: training at the batch sizes of docs/benchmarks.md, and sampling."""
    common = {"device": device, "dtype": dtype, "compile": compile}
    training = {**common, "rounds": 6, "steps": 10, "data": None}
    return [
        Part("Training, cifar10", "benchmarks.training", {**training, "cases": ["cifar10"], "batch": 128}),
        Part("Training, small", "benchmarks.training", {**training, "cases": ["small"], "batch": 256}),
        Part(
            "Sampling 1,000 images at 10 evaluations, cifar10",
            "benchmarks.sampling",
            {**common, "cases": ["cifar10"], "count": 1000, "batch": 250, "nfe": 10, "rounds": 4},
        ),
        Part(
            "What a sampler adds to its network, cifar10",
            "benchmarks.overhead",
            {**common, "cases": ["cifar10"], "samplers": ["multistep"], "nfe": 10, "repeats": 20, "batch": 250},
        ),
    ]


def run(
    *, minutes: float, device: str, dtype: str, compile: bool, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure all parts.

    Args:
        minutes: time of the whole command.
        device: "cuda", or "cpu" to try the command.
        dtype: "fp32", or "bf16" for autocast.
        compile: also measure everything compiled.
        show: receives the lines of the tables, as Markdown.

    Returns:
        "minutes" that it took, and "parts", with "title", "rows", and an "error" where a part did not end.
    """
    return measure(parts(device, dtype, compile), 60 * minutes, show)


def measure(
    chosen: Sequence[Part],
    seconds: float,
    show: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Measure these parts within a time in seconds; result as for `run`."""
    start = clock()
    children = [_Child(part) for part in chosen]
    try:
        while any(child.is_busy() for child in children) and clock() - start < COMPILING * seconds:
            time.sleep(_POLL)
        for child in children:
            child.take_turn(lambda: clock() >= start + seconds, show)
    finally:
        for child in children:
            child.end()
    minutes = (clock() - start) / 60
    show(f"\n{minutes:.1f} minutes")
    return {"minutes": minutes, "parts": [child.report() for child in children]}


@dataclass
class _Child:
    """A process that measures a part."""

    part: Part
    lines: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    ready: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(self.part, other))
        self.process.start()
        other.close()

    def is_busy(self) -> bool:
        """Whether the process still prepares what it measures."""
        self._read()
        return not (self.ready or self.over)

    def take_turn(self, is_over: Callable[[], bool], show: Callable[[str], None]) -> None:
        """Let the process measure, until it ends or the time limit is reached, and show its lines."""
        show(f"\n### {self.part.title}\n")
        started, shown = False, 0
        while True:
            late = is_over()
            self._read()
            for text in self.lines[shown:]:
                show(text)
            shown = len(self.lines)
            if self.over:
                break
            if late:
                self.error = "not finished within the time limit" if started else "not measured within the time limit"
                break
            if self.ready and not started:
                started = True
                with suppress(OSError):  # it has ended
                    self.pipe.send(None)
            time.sleep(_POLL)
        if self.error is not None:
            show(f"\n{self.error}")

    def _read(self) -> None:
        try:
            while not self.over and self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "line":
                    self.lines.append(value)
                elif kind == "row":
                    self.rows.append(value)
                elif kind == "ready":
                    self.ready = True
                else:
                    self.over, self.error = True, value
        except (EOFError, OSError):
            self.process.join(_GRACE)
            self.over, self.error = True, f"the process ended with status {self.process.exitcode}"

    def end(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(_GRACE if self.over else 0)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def report(self) -> Row:
        """The part and what was measured of it, as JSON types."""
        failed = {} if self.error is None else {"error": self.error}
        return {"title": self.part.title, "options": self.part.options, "rows": self.rows, **failed}


def _work(part: Part, pipe: Connection) -> None:
    waited = False

    def ready() -> None:
        nonlocal waited
        if not waited:
            waited = True
            pipe.send(("ready", None))
            pipe.recv()

    try:
        import_module(part.module).run(
            **part.options,
            show=lambda text: pipe.send(("line", text)),
            add=lambda row: pipe.send(("row", row)),
            ready=ready,
        )
        pipe.send(("end", None))
    except (EOFError, BrokenPipeError):  # the process that waits for the results has ended
        pass
    except Exception as error:
        pipe.send(("end", f"error: {' '.join(str(error).split())[:200] or type(error).__name__}"))
