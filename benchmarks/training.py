"""`python -m benchmarks training`: whole training steps per second, data included, against diffusers' example.

Ours is a run of `quarterarc.training.trainer.Trainer`, as `train` starts it, on images in memory: its loop takes turns
with that of the example (`benchmarks.example`) in one process. A turn is a few whole steps. Turns alternate, and the
ratio is taken per round of turns, so that other load on the machine affects both alike; its quartiles show how much.
Compilation and the first steps are outside the rounds and given apart. Both networks have the same shape, except for
the last convolution: ours estimates image and noise, the example's the noise alone.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.example import Example, new_accelerator
from benchmarks.network import CASES, Case
from benchmarks.report import Row, environment, now, quartiles, reason
from quarterarc.common.devices import pick_device
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.data import DataSpec, open_data
from quarterarc.data.images import MemoryImages
from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet
from quarterarc.training.batches import Batch
from quarterarc.training.recipe import Recipe
from quarterarc.training.trainer import Trainer

WARMUP = 3
"""Steps of each loop before the first one that is timed; the first one compiles."""
IMAGES = 8192
"""Images that are drawn where none are given."""
STALLS = 5
"""Steps in which synchronisations with the GPU are counted."""


def run(
    *,
    cases: Sequence[str],
    device: str,
    dtype: str,
    compile: bool,
    batch: int | None,
    rounds: int,
    steps: int,
    data: str | None,
    show: Callable[[str], None] = print,
    add: Callable[[Row], object] = lambda row: None,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure the cases.

    Args:
        cases: names in `benchmarks.network.CASES`.
        device: "cpu" or "cuda".
        dtype: "fp32", or "bf16" for autocast.
        compile: also measure both compiled, and against the example as it is; on a GPU in CUDA graphs.
        batch: images per step; the case's own number if None.
        rounds: pairs of turns.
        steps: steps per turn.
        data: a folder of images or a parquet file; None for random pixels.
        show: receives each line of the table as soon as it is measured.
        add: receives each row as soon as it is measured.
        ready: called before the turns of each run of ours, when everything in them is compiled.

    Returns:
        "settings", "environment", and "rows": one per case and pair of loops, with images and steps per second of
        "ours" and of "theirs", the median "ratio" and its quartiles "low" and "high"; or with an "error".

    Raises:
        InputError: for an unknown case, a missing device, or images that cannot be read.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    where = pick_device(device)
    about = {"dtype": dtype, "compiled": compile, "rounds": rounds, "steps": steps, "data": data or "random pixels"}
    machine = environment(where, diffusers=diffusers.__version__)
    show(", ".join(f"{name} {value}" for name, value in (machine | about).items()) + "\n")
    show(HEAD)
    rows: list[Row] = []
    for name in cases:
        size = batch or CASES[name].training
        for row in _measure(name, _images(CASES[name], data, size), _Settings(where, dtype, size, rounds, steps),
                            compile, ready):  # fmt: skip
            rows.append(row)
            add(row)
            show(line(row))
    return {"settings": about, "environment": machine, "rows": rows}


COLUMNS = (
    "network, batch", "ours", "theirs", "ours, images/s", "theirs, images/s", "ratio (quartiles)", "drawing",
    "first steps, s", "stalls", "peak MiB",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def line(row: Row) -> str:
    """A row as a line of the table below `HEAD`; "a / b" are ours / theirs."""
    cells = [f"{row['case']}, {row['batch']}", row["our mode"], row["their mode"]]
    if "error" in row:
        cells.append(row["error"])
    else:
        cells += [f"{row[whose]:,.4g}" for whose in ("ours", "theirs")]
        cells += [f"{row['ratio']:.2f} ({row['low']:.2f}..{row['high']:.2f})", f"{row['drawing']:.1%}"]
        for name, unit in (("warm-up", 1), ("stalls", 1), ("peak", 2**20)):
            pair = [row[f"{whose} {name}"] for whose in ("our", "their")]
            cells.append("-" if None in pair else " / ".join(f"{value / unit:,.4g}" for value in pair))
    return f"| {' | '.join(cells)} |" + " |" * (len(COLUMNS) - len(cells))


@dataclass(frozen=True)
class _Settings:
    device: torch.device
    dtype: str
    batch: int
    rounds: int
    steps: int


def _images(case: Case, data: str | None, least: int) -> Tensor:
    """The images, uint8 (N, C, H, W) on the CPU."""
    channels = case.network["in_channels"]
    if data is None:
        generator = torch.Generator().manual_seed(0)
        shape = (max(IMAGES, least), channels, case.size, case.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    spec = DataSpec(source=data, size=case.size, channels=channels, crop="center", memory="memory")
    opened = open_data(spec)
    assert isinstance(opened, MemoryImages)
    if opened.count < least:
        raise InputError(f"{data} has {opened.count} images, fewer than a batch of {least}: give a smaller --batch")
    return opened.images


def _measure(
    name: str, images: Tensor, settings: _Settings, compile: bool, ready: Callable[[], object]
) -> Iterator[Row]:
    """The rows of a case: ours compiled against the example compiled and as it is, then both as they are."""
    case, theirs, errors = CASES[name], dict[str, _Peer](), dict[str, str]()
    for mode in ("compiled", "eager") if compile else ("eager",):
        try:
            theirs[mode] = _Peer(case, images, settings, mode == "compiled")
        except Exception as error:  # whatever happens in one loop, the others are measured
            errors[mode] = reason(error)
    for ours in ("compiled", "eager") if compile else ("eager",):
        modes = [mode for mode in ("compiled", "eager") if mode in theirs and (ours == "compiled" or mode == "eager")]
        about = {"case": name, "batch": settings.batch, "our mode": ours}
        turns = _Turns(settings, {mode: theirs[mode] for mode in modes}, ready)
        try:
            measured = turns.of_training(recipe_of(case, settings.batch, settings.dtype, ours == "compiled"), images)
        except Exception as error:
            measured = [{"their mode": mode, "error": f"ours: {reason(error)}"} for mode in modes]
        for row in measured:
            yield about | row
        for mode, why in errors.items():
            if ours == "compiled" or mode == "eager":
                yield about | {"their mode": mode, "error": f"theirs: {why}"}


def recipe_of(case: Case, batch: int, dtype: str, compile: bool) -> Recipe:
    """The recipe of our run: everything but the network, batch and precision has its default."""
    network = case.network
    return Recipe(
        data={"source": "memory", "size": case.size, "channels": network["in_channels"], "flip": True},
        network={
            "channels": network["channels"],
            "multipliers": network.get("multipliers", (1, 2, 2, 2)),
            "attention": [case.size // 2],
            "dropout": network.get("dropout", 0.0),
        },
        training={"batch": batch, "precision": dtype, "compile": compile},
    )


class _Peer:
    """A loop of the example, after its first steps.

    Attributes:
        warmup: seconds of the first steps, with compilation.
        peak: bytes of the GPU from the start to the end of the first steps; None on the CPU.
    """

    def __init__(self, case: Case, images: Tensor, settings: _Settings, tuned: bool) -> None:
        network = {**case.network, "out_channels": case.network["in_channels"]}
        with _peak(settings.device) as peak:
            start = now(settings.device)
            model = to_diffusers(UNet(**network))
            self.example = Example(model, images, settings.batch, settings.device, settings.dtype, tuned)
            self.example.steps(WARMUP)
            self.warmup = now(settings.device) - start
        self.peak = peak()
        self.stalls: float | None = None


class _Measured(Exception):
    """Ends a run of ours, without the last checkpoint."""


class _Turns:
    """Turns of our loop and of the example's: whenever a turn of ours ends, our loop waits in its last step.

    Args:
        settings: the rounds.
        theirs: the loops of the example by mode.
        ready: called after the first steps.
    """

    def __init__(self, settings: _Settings, theirs: dict[str, _Peer], ready: Callable[[], object]) -> None:
        self.settings, self.theirs, self.ready = settings, theirs, ready
        self.seconds: dict[str, list[float]] = {mode: [] for mode in ("ours", *theirs)}
        self.drawing = Lock()

    def of_training(self, recipe: Recipe, images: Tensor) -> list[Row]:
        """The row against each loop of the example."""
        device = self.settings.device
        with tempfile.TemporaryDirectory() as folder, _peak(device) as self._peak:
            self._start = now(device)
            run = Path(folder)
            (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")  # as `train` does, before it trains
            trainer = Trainer(recipe, run, new_accelerator(device), progress=False, images=images)
            trainer.previews.early = lambda step: False  # type: ignore[method-assign]  # no turn is to hold a preview
            self._train, self._draw = trainer.learner.step, trainer.batches.of_step
            trainer.learner.step = self._step  # type: ignore[method-assign]
            trainer.batches.of_step = self._of_step  # type: ignore[method-assign]
            self._parameters = sum(weight.numel() for weight in trainer.learner.network.parameters())
            self._turns = self._schedule()
            self._left = next(self._turns)
            try:
                trainer.run_to_end()
            except _Measured:
                return [self._row(mode) for mode in self.theirs]
            raise InputError("the run ended before it was measured")

    def _step(self, parts: Sequence[Batch], step: int) -> tuple[Tensor, Tensor]:
        """A step of ours, and the example's turn, where it is due."""
        results = self._train(parts, step)
        self._left -= 1
        if not self._left:
            with self.drawing:  # the next batch is drawn in the turn of ours
                self._left = next(self._turns, 0)
            if not self._left:
                raise _Measured
        return results

    def _of_step(self, step: int) -> list[Batch]:
        with self.drawing:
            return self._draw(step)

    def _schedule(self) -> Iterator[int]:
        """The numbers of steps of our loop until the next turn of the example."""
        settings = self.settings
        yield WARMUP
        self.warmup = now(settings.device) - self._start
        self.peak = self._peak()
        self.ready()
        for number in range(settings.rounds):
            modes = list(self.theirs)
            if number % 2:
                self._turn_of_theirs(modes)
            start = now(settings.device)
            yield settings.steps
            self.seconds["ours"].append(now(settings.device) - start)
            if not number % 2:
                self._turn_of_theirs(modes[::-1])
        self.draws = [self._seconds_of_draw(number) for number in range(5)]
        self.stalls: float | None = None
        if settings.device.type == "cuda":
            with _stalls() as count:
                yield STALLS
            self.stalls = count() / STALLS
            for peer in self.theirs.values():
                with _stalls() as count:
                    peer.example.steps(STALLS)
                peer.stalls = count() / STALLS

    def _turn_of_theirs(self, modes: Sequence[str]) -> None:
        for mode in modes:
            start = now(self.settings.device)
            self.theirs[mode].example.steps(self.settings.steps)
            self.seconds[mode].append(now(self.settings.device) - start)

    def _seconds_of_draw(self, step: int) -> float:
        start = now(self.settings.device)
        self._draw(step)
        return now(self.settings.device) - start

    def _row(self, mode: str) -> Row:
        settings, peer, ours, theirs = self.settings, self.theirs[mode], self.seconds["ours"], self.seconds[mode]
        step, their_step = (statistics.median(seconds) / settings.steps for seconds in (ours, theirs))
        return {
            "their mode": mode,
            "parameters": self._parameters,
            "ours": settings.batch / step,
            "theirs": settings.batch / their_step,
            "our steps/s": 1 / step,
            "their steps/s": 1 / their_step,
            **quartiles([other / own for own, other in zip(ours, theirs, strict=True)]),
            "drawing": statistics.median(self.draws) / step,
            "our warm-up": self.warmup,
            "their warm-up": peer.warmup,
            "our stalls": self.stalls,
            "their stalls": peer.stalls,
            "our peak": self.peak,
            "their peak": peer.peak,
            "seconds": {"ours": ours, "theirs": theirs},
        }


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """A block whose largest additional memory on a GPU so far, in bytes, the value returns; None on the CPU."""
    if device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield lambda: torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _stalls() -> Iterator[Callable[[], int]]:
    """A block whose synchronisations of host and GPU, as PyTorch reports them, are counted."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchroniz" in str(warning.message) for warning in caught)
        finally:
            torch.cuda.set_sync_debug_mode(before)
