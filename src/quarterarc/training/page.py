"""The page of a run: RUN/index.html, one file with curves, contact sheets, recipe and commands, while it trains.

The page is made of files of the run: its log and its contact sheets. Nothing depends on it: it may be deleted, and an
error while it is written is a warning.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import platform
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image

from .. import __version__
from ..common.errors import InputError
from ..common.memory import memory_of
from ..common.text import counted, duration, one_line
from ..data.memory import MEMORY
from ..report import Series, responsive_chart, write_page
from ..storage.files import parse_json, read_regular
from ..storage.runs import NEAREST, sheets
from .beginning import SHEET
from .log import LOGGED
from .recipe import Recipe
from .stopping import Interrupted

__all__ = ["PAGE", "Pace", "RunPage", "machine"]

logger = logging.getLogger("quarterarc")

PAGE = "index.html"
INTERVAL, SHARE = 5.0, 0.01
"""Least seconds between two writes, and the largest share of the time that writing takes."""
SHOWN = 12
"""Steps whose contact sheets are shown, evenly spaced, with the first and the last one."""
POINTS = 300
"""Points of a curve; a longer log is averaged."""
FEW = 20
"""Lines of the log below which the curves show single steps too."""
LARGE, SMALL = 1400, 560
"""Width in pixels to which the newest contact sheet, and an earlier one, are reduced."""


class Pace:
    """The number of steps per second, over about the last minute.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[tuple[float, int]] = deque(maxlen=60)

    def add(self, step: int) -> None:
        """The step that has been completed; the first one, which may compile the network, is not measured."""
        now = self._clock()
        if not self._times or now - self._times[-1][0] >= 1.0:
            self._times.append((now, step))

    @property
    def rate(self) -> float | None:
        """Steps per second; None within the first seconds."""
        if len(self._times) < 2:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / (end - start)


@dataclass(frozen=True)
class _Moment:
    """The state of a run when the page is written.

    Attributes:
        state: "training", "complete", or why it ended.
        step: completed steps.
        rate: steps per second, or None.
        steps: (step, loss, norm of the gradient) of single steps.
        active: whether the run goes on.
    """

    state: str
    step: int
    rate: float | None
    steps: Sequence[tuple[int, float, float]]
    active: bool


class RunPage:
    """The page of a run, written by its first process.

    Args:
        run: the run folder.
        recipe: the recipe.
        about: name and value of what is known about machine, network and data, for the page.
        processes: number of processes.
        clock: seconds; for tests.
        classes: number of classes, for the command that samples them; None without labels.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        about: Sequence[tuple[str, str]] = (),
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        classes: int | None = None,
    ) -> None:
        self.path = run / PAGE
        self._classes = classes
        self._run, self._recipe, self._about, self._processes, self._clock = run, recipe, about, processes, clock
        self._pace = Pace(clock)
        self._steps: list[tuple[int, float, float]] = []
        self._every = 1
        self._next = -1.0
        self._urls: dict[tuple[Any, ...], str] = {}
        self._failed = False

    def add(self, step: int, loss: float, norm: float) -> None:
        """Note the loss and the gradient's norm of a step, whose values have arrived."""
        if step % self._every == 0:
            self._steps.append((step, loss, norm))
        if len(self._steps) > POINTS:
            self._every *= 2
            self._steps = [values for values in self._steps if values[0] % self._every == 0]

    @property
    def images_per_second(self) -> float | None:
        """The recent rate of training; None within the first seconds."""
        return None if self._pace.rate is None else self._pace.rate * self._recipe.training.batch

    def due(self, step: int) -> bool:
        """Whether it is time to write the page; called after every step."""
        self._pace.add(step)
        return self._clock() >= self._next

    def soon(self) -> None:
        """Write the page after the next step."""
        self._next = -1.0

    def at(self, step: int) -> Callable[[], None]:
        """The work of writing the page after this step, for another thread."""
        moment = _Moment("training", step, self._pace.rate, [*self._steps], True)
        self._next = self._clock() + INTERVAL
        return lambda: self._write(moment)

    @contextmanager
    def ending(self, step: Callable[[], int]) -> Iterator[None]:
        """A block that trains; the page is written at its end, with the reason for it.

        Args:
            step: returns the number of completed steps.
        """
        state = "complete"
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            state = "stopped"
            raise
        except InputError as error:
            state = f"stopped by an error: {one_line(error)}"
            raise
        except BaseException as error:
            state = f"stopped by an error: {type(error).__name__}"
            raise
        finally:
            self._write(_Moment(state, step(), self._pace.rate, self._steps, False))

    def _write(self, moment: _Moment) -> None:
        """Write the page; an error is a warning, once, and training goes on."""
        started, spent = self._clock(), time.thread_time()
        try:
            write_page(self.path, "run.html", durable=False, **self._values(moment))
        except Exception as error:  # whatever is wrong with the page or its files is no reason to stop training
            if not self._failed and self._run.is_dir():
                logger.warning("the page %s cannot be written (%s); training goes on", self.path, one_line(error))
            self._failed = True
        if self._next >= 0.0:
            self._next = max(self._next, started + (time.thread_time() - spent) / SHARE)

    def _values(self, moment: _Moment) -> dict[str, Any]:
        """The variables of the template."""
        steps, now, lines = self._recipe.training.steps, datetime.now().astimezone(), _log_of(self._run)
        known = sheets(self._run)
        shown = [(step, known[step]) for step in _spread(sorted(known), SHOWN)]
        urls: dict[tuple[Any, ...], str] = {}
        newest = self._sheet(*shown[-1], LARGE, urls) if shown else None
        earlier = [self._sheet(step, paths, SMALL, urls) for step, paths in shown[:-1]]
        further = [
            {"title": title, "caption": caption, "url": url}
            for name, title, caption in FURTHER
            if (url := self._url(self._run / name, LARGE, urls))
        ]
        self._urls = urls
        interval = max(INTERVAL, self._next - self._clock())
        return {
            "title": f"{self._recipe.name}: {self._run.resolve().name}",
            "state": moment.state,
            "active": moment.active,
            "written": f"{now:%Y-%m-%d %H:%M:%S %Z}",
            "written_iso": now.isoformat(timespec="seconds"),
            "reload": round(2 * interval),
            "stale": round(10 * interval) + 300,
            "step": moment.step,
            "steps": steps,
            "percent": f"{100 * moment.step / steps:.1f}",
            "facts": self._facts(moment, lines),
            "named": self._classes is not None,  # on a narrow screen such pictures scroll: names stay readable
            "newest": newest,
            "earlier": earlier,
            "further": further,
            "charts": _charts(lines, moment.steps, self._recipe.optimizer.clip),
            "commands": self._commands(moment.step),
            "machine": [*self._about, *_memory_used()],
            "recipe": self._recipe.to_yaml(),
            "version": __version__,
            "run": str(self._run),
        }

    def _facts(self, moment: _Moment, lines: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
        training, last = self._recipe.training, lines[-1] if lines else {}
        rate = moment.rate or last.get("images_per_second", 0.0) / training.batch
        facts = [(f"of {counted(training.steps, 'step')}", f"{moment.step:,}")]
        if moment.active:
            left = duration((training.steps - moment.step) / rate) if rate else "not known yet"
            facts.append(("time left", left))
        facts.append(("images per second", _short(rate * training.batch) if rate else "not known yet"))
        loss, norm = moment.steps[-1][1:] if moment.steps else (None, None)
        for name, value in (
            ("loss", last.get("loss", loss)),
            ("held-out loss", last.get("held_out_loss")),
            ("gradient norm", last.get("gradient_norm", norm)),
            ("learning rate", last.get("learning_rate")),
        ):
            if value is not None:
                facts.append((name, _short(value)))
        return facts

    def _commands(self, step: int) -> list[dict[str, str]]:
        recipe, run = self._recipe, shlex.quote(str(self._run))
        program = "quarterarc"
        if self._processes > 1:
            program = f"torchrun --standalone --nproc-per-node {self._processes} -m quarterarc"
        word, few = ("distill", " --steps 1") if recipe.teacher else ("train", " --steps 1" if recipe.is_map else "")
        if recipe.data.source == MEMORY:
            resume = f"quarterarc.train(None, {str(self._run)!r}, data=images, resume=True)"
        else:
            resume = f"{program} {word} --out {run} --resume"
        purpose, steps = "Continue from the newest checkpoint:", recipe.training.steps
        if step >= steps and recipe.data.source != MEMORY:
            purpose, resume = "Train longer:", f"{resume} training.steps={2 * steps}"
        every = f" --labels {'0' if self._classes == 1 else f'0-{self._classes - 1}'}" if self._classes else ""
        return [
            {"purpose": purpose, "text": resume},
            {"purpose": "Sample 64 images:", "text": f"quarterarc sample {run} --out samples --seeds 0-63{every}{few}"},
        ]

    def _sheet(self, step: int, paths: Mapping[str, Path], width: int, urls: dict[tuple[Any, ...], str]) -> Any:
        """The contact sheets of a step."""
        pictures = [
            {"url": url, "caption": caption}
            for caption, path in paths.items()
            if (url := self._url(path, width, urls)) is not None
        ]
        return {"step": f"{step:,}", "pictures": pictures}

    def _url(self, path: Path, width: int, urls: dict[tuple[Any, ...], str]) -> str | None:
        """A picture as a data URL, from the page before if the file is the same; None if it cannot be read."""
        try:
            status = path.stat()
            key = (path, width, status.st_mtime_ns, status.st_size)
            if key not in urls:
                urls[key] = self._urls.get(key) or _embedded(path, width)
            return urls[key]
        except Exception:  # a missing or damaged picture
            return None


FURTHER = (
    (
        SHEET,
        "Training images",
        "As the network receives them, cropped, mirrored and augmented.",
    ),
    (
        NEAREST,
        "Nearest training images",
        "Samples, each followed by the training images nearest to it.",
    ),
)
"""Further pictures of a run folder: file, heading and caption."""


def machine(device: torch.device, processes: int) -> list[tuple[str, str]]:
    """Name and value of what is known about the machine."""
    memory = memory_of(device)
    size = "" if memory is None else f", {memory / 1e9:.0f} GB"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}{size}"
    else:
        threads = counted(torch.get_num_threads(), "thread")
        where = f"{device.type.upper()}{f' ({name})' if (name := _cpu()) else ''}, {threads}{size}"
    return [
        ("device", where),
        ("processes", str(processes)),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("PyTorch", torch.__version__),
    ]


def _cpu() -> str:
    """The model of the processor, or an empty text."""
    with suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return platform.processor()


def _memory_used() -> list[tuple[str, str]]:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return [("largest memory in use", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")]
    return []


def _log_of(run: Path) -> list[dict[str, float]]:
    """The lines of the log that can be read."""
    lines = []
    with suppress(OSError):
        for text in read_regular(run / "metrics.jsonl").decode("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values()):
                    lines.append(line)
    return [line for line in lines if "step" in line]


def _charts(
    lines: Sequence[Mapping[str, float]], steps: Sequence[tuple[int, float, float]], clip: float
) -> list[dict[str, Any]]:
    at = [step for step, _, _ in steps]
    single = [Series("single steps", at, [values[place] for values in steps], faint=True) for place in (1, 2)]
    if len(lines) >= FEW or not steps:
        single = []
    losses = _curves(lines, {"loss": "training loss", "held_out_loss": "held-out loss"}) + single[:1]
    parts = _curves(lines, {name: name for name in LOGGED if name != "loss"})
    norms = _curves(lines, {"gradient_norm": "gradient norm"}) + single[1:]
    errors = (
        "Mean squared errors of the estimates of image and noise, of the velocity derived from them, and of the "
        "residual: the part of x that the two estimates do not explain."
    )
    clipped = f"Before clipping; a longer gradient is scaled down to {clip:g} (optimizer.clip)."
    return [
        _chart(curves, title, label, caption)
        for curves, title, label, caption in (
            (losses, "Loss", "loss", ""),
            (parts, "Errors of the estimates", "mean squared error", errors),
            (norms, "Norm of the gradient", "norm", clipped),
        )
        if curves
    ]


def _chart(curves: Sequence[Series], title: str, label: str, caption: str) -> dict[str, Any]:
    positive = all(value > 0.0 for curve in curves for value in curve.y)
    return {"svg": Markup(responsive_chart(curves, title, "optimiser step", label, log_y=positive)), "caption": caption}


def _curves(lines: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> list[Series]:
    """The columns of a log with these names that have other values than 0, averaged to `POINTS` points."""
    curves = []
    for name, title in names.items():
        values = [(line["step"], line[name]) for line in lines if name in line]
        size = -(-len(values) // POINTS)
        parts = [values[first : first + size] for first in range(0, len(values), size or 1)]
        if any(value for _, value in values):
            means = [[sum(column) / len(part) for column in zip(*part, strict=True)] for part in parts]
            curves.append(Series(title, [step for step, _ in means], [value for _, value in means]))
    return curves


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spaced, with the first and the last one."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _embedded(path: Path, width: int) -> str:
    """A picture as a data URL, reduced to a width."""
    with Image.open(path) as picture:
        if picture.width <= width and os.path.getsize(path) < 2**18:
            return "data:image/png;base64," + base64.b64encode(read_regular(path)).decode("ascii")
        height = max(1, round(picture.height * min(1.0, width / picture.width)))
        small = picture.convert("RGBA" if picture.mode in ("LA", "RGBA") else "RGB")
        small = small.resize((min(width, picture.width), height), Image.Resampling.LANCZOS)
    kind = "png" if small.mode == "RGBA" else "jpeg"
    content = io.BytesIO()
    small.save(content, kind, quality=88)
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
