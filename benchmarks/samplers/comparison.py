"""The comparison itself: rows of ours and of peers, their ratios, and the command's `run`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers

import quarterarc as qa
from benchmarks.report import Row, environment
from benchmarks.samplers.ours import (
    CANDIDATE,
    EVALUATED,
    FINE,
    GRIDS,
    NFE_FINE,
    OURS,
    ROUGH,
    TUNED,
    Ours,
)
from benchmarks.samplers.peers import PEERS, Peer
from benchmarks.samplers.subjects import PURE_NOISE, Solution, Subject, Trained, World
from benchmarks.samplers.tables import figure as draw
from benchmarks.samplers.tables import headline, tables
from benchmarks.samplers.tuned_peers import TunedPeers
from benchmarks.worlds import CIFAR_CENTRES, WORLDS, mixture
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.common.progress import progress_bar
from quarterarc.sampling.tuning import FIRST_SEED
from quarterarc.storage.files import check_writable, make_folder

Tick = Callable[[str], None]
"""Advances the progress bar by a cell; receives a description of the next cell."""


def run(
    *,
    worlds: Sequence[str] | None,
    trained: Path | None,
    data: Path | None,
    nfe: Sequence[int],
    images: int | None,
    count: int,
    features: str | None,
    weights: Path | None,
    device: str,
    batch: int,
    seed: int,
    tune: bool,
    quick: bool,
    figure: Path | None,
    show: Callable[[str], None] = print,
) -> Row:
    """Measure all samplers on each world and on a trained run, and show the tables as Markdown.

    Args:
        worlds: names in `WORLDS`; None for all of them, or for none where `trained` is given.
        trained: a run folder or checkpoint.
        data: CIFAR-10's images, a parquet file or folder; without them the worlds of all names leave out theirs.
        nfe: numbers of evaluations per image, at least 4.
        images: images per world; the world's own number if None, or 6 if `quick`.
        count: images of the trained run.
        features: features of the trained run's images; `digits` for gray and `inception` for coloured images if None.
        weights: weights of the features; their own if None.
        device: device of the trained run.
        batch: images per batch of the feature network.
        seed: seed of the first image's noise.
        tune: also tune multistep's grid and weights to each world, and the tuned peers, each for NFE up to the
            world's largest.
        quick: NFE 5 and 10, the first world only, and few settings per peer.
        figure: an SVG file for the chart of error against NFE.
        show: receives the tables of each subject.

    Returns:
        "settings", "environment" and "subjects", one per world or run, with "ours", "adaptive", "peers", "tuned_peers"
        and "ratios".

    Raises:
        InputError: for an unknown world, one whose data is not given, numbers out of range, or an unfit run.
    """
    if figure is not None:
        check_writable(figure)
    worlds = _worlds(worlds, data, show) if worlds is not None or trained is None else ()
    if not worlds and trained is None:
        raise InputError("there is nothing to measure on: name a world, or a trained run with --run")
    if seed < 0:
        raise InputError(f"--seed is a whole number from 0, got {seed}")
    if min(nfe) < 4:
        raise InputError(f"multistep of order 4 takes 4 evaluations, got --nfe {min(nfe)}: give 4 or more")
    if quick:
        nfe, worlds = (5, 10), list(worlds)[:1]
    diffusers.utils.logging.set_verbosity_error()  # it warns of settings that it changes itself
    subjects: list[Subject] = [_world(name, data, images or (6 if quick else None), seed) for name in worlds]
    if trained is not None:
        subjects.append(Trained(trained, count, seed, features, weights, device, batch))
    request = _Request(OURS, tuple(map(_few, PEERS)) if quick else PEERS, tuple(sorted(set(nfe))), tune)
    with progress_bar(request.cells * len(subjects), "cell", "compare", leave=False) as bar:

        def tick(cell: str) -> None:
            bar.note(cell=cell)
            bar.update()

        rows = [_measured(subject, request, tick) for subject in subjects]
    show(headline(rows))
    for row in rows:
        show(tables(row))
    if figure is not None:
        make_folder(figure.parent)
        figure.write_text(draw(rows) + "\n", encoding="utf-8")
    settings = {"seed": seed, "tune": tune, "quick": quick, "pure_noise": PURE_NOISE}
    return {"settings": settings, "environment": environment(diffusers=diffusers.__version__), "subjects": rows}


def _worlds(worlds: Sequence[str] | None, data: Path | None, show: Callable[[str], None]) -> Sequence[str]:
    """The names of the worlds, checked; None stands for all that can be made with this data."""
    if worlds is None:
        left_out = [name for name in WORLDS if data is None and WORLDS[name].centres in CIFAR_CENTRES]
        if left_out:
            show(f"Without --data, a parquet file of CIFAR-10, these worlds are left out: {', '.join(left_out)}.\n")
        return [name for name in WORLDS if name not in left_out]
    for name in worlds:
        if name not in WORLDS:
            raise unknown_name("world", name, WORLDS)
        if data is None and WORLDS[name].centres in CIFAR_CENTRES:
            raise InputError(f"the world '{name}' has images of CIFAR-10: give their parquet file with --data")
    return worlds


def _world(name: str, data: Path | None, images: int | None, seed: int) -> World:
    """A world with its own number of images, or this one."""
    setting = WORLDS[name]
    setting = setting if images is None else setting._replace(images=images)
    return World(name, mixture(setting.centres, setting.width, data), setting, seed)


@dataclass(frozen=True)
class _Request:
    """The rows and columns that are measured on every subject."""

    ours: tuple[Ours, ...]
    peers: tuple[Peer, ...]
    nfes: tuple[int, ...]
    tune: bool

    @property
    def cells(self) -> int:
        """An upper bound of the number of cells per subject."""
        return (len(self.ours) * len(GRIDS) + len(self.peers)) * len(self.nfes) + len(ROUGH + FINE) + 4 * len(self.nfes)


def _few(peer: Peer) -> Peer:
    """The peer with its first four choices on the linear schedule: enough for a check."""
    linear = [choice for choice in peer.choices if choice.settings.get("beta_schedule", "linear") == "linear"]
    spacings = [choice for choice in linear if not any(name.startswith("use_") for name in choice.settings)]
    return replace(peer, choices=tuple(spacings[:4]))


def _measured(subject: Subject, request: _Request, tick: Tick) -> Row:
    """All measurements on one subject."""
    started = time.process_time()
    if request.tune and isinstance(subject, World):
        _tune(subject, request.nfes, tick)
    ours = _ours(subject, request.ours, request.nfes, tick)
    peers = _peers(subject, request.peers, request.nfes, tick)
    tuned_peers = _tuned_peers(subject, request.nfes, tick) if isinstance(subject, World) and subject.peers else []
    default = _default(subject)
    tuned = [(TUNED.label, "tuned")] if subject.tuned else []
    heads = list(dict.fromkeys([default, CANDIDATE, (EVALUATED.label, CANDIDATE[1]), *tuned]))
    row: Row = {
        "name": subject.name,
        **subject.describe(),
        "nfe": list(request.nfes),
        "measures": subject.about,
        "default": list(default),
        "ours": ours,
        "adaptive": _adaptive(subject, tick),
        "peers": peers,
        "tuned_peers": tuned_peers,
        "ratios": {measure: _ratios(ours, peers, tuned_peers, heads, measure) for measure in subject.measures},
    }
    if isinstance(subject, Trained):
        fine = _solve(subject, EVALUATED, CANDIDATE[1], NFE_FINE)  # the flow itself
        assert fine is not None
        row["at_100"] = {"row": ", ".join(CANDIDATE), "nfe": fine.nfe, **subject.measure(fine)}
    return row | {"cpu_seconds": round(time.process_time() - started, 1)}


def _tune(world: World, nfes: Sequence[int], tick: Tick) -> None:
    """Tune grids, and the tuned peers, to a world, on the same noise, which is not that of the measurements."""
    images = world.setting.tuned_on
    seeds = range(FIRST_SEED, FIRST_SEED + images)
    world.peers = TunedPeers.of(world.mixture, qa.noise(seeds, world.mixture.shape, dtype=world.noise.dtype))
    world.tuned = []
    for nfe in nfes:
        if nfe <= world.setting.largest_tuned:
            tick(f"{world.name}: tune {nfe}")
            world.tuned.append(qa.tune(world.denoise, nfe, TUNED.sampler, images=images, progress=False))


def _default(subject: Subject) -> tuple[str, str]:
    """The library's default sampler and grid."""
    plan = qa.Sampling().plan(subject.denoise, subject.noise.shape[1:])
    return plan.name, plan.grid


# rows of ours


def _ours(subject: Subject, ours: Sequence[Ours], nfes: Sequence[int], tick: Tick) -> list[Row]:
    """One row per sampler and grid: its measures by NFE; None where no number of steps gives exactly that NFE."""
    rows = []
    for entry in ours:
        for grid in _grids(subject, entry):
            cells = []
            for nfe in nfes:
                tick(f"{subject.name}: {entry.label}, {grid}")
                solution = _solve(subject, entry, grid, nfe)
                cells.append(None if solution is None else {"nfe": solution.nfe, **subject.measure(solution)})
            rows.append({"row": entry.label, "grid": grid, "cells": cells})
    return rows


def _grids(subject: Subject, ours: Ours) -> list[str]:
    """The sampler's default grid, those of `GRIDS`, and "tuned" if a grid was tuned for the sampler."""
    request = qa.Sampling(ours.sampler, 8, options=ours.options)
    default = request.plan(subject.denoise, subject.noise.shape[1:]).grid
    tuned = ["tuned"] if ours == TUNED and subject.tuned else []
    return list(dict.fromkeys([default, *GRIDS, *tuned]))


def _solve(subject: Subject, ours: Ours, grid: str, nfe: int) -> Solution | None:
    """Images by a sampler of ours at exactly this NFE; None if no number of steps gives it."""
    sampler = qa.sampler(ours.sampler, **ours.options)
    steps, rest = divmod(nfe, sampler.evaluations)
    if rest:
        return None
    if grid == "tuned":
        key = (ours.sampler, dict(ours.options), steps)
        tuned = next((grid for grid in subject.tuned if (grid.sampler, grid.options, grid.steps) == key), None)
        if tuned is None:
            return None
        result = qa.sample(subject.denoise, subject.noise, tuned.apply(sampler), grid=tuned.angles)
    else:
        result = qa.sample(subject.denoise, subject.noise, sampler, steps, grid)
    return Solution(result.images, float(result.angles[0]), result.nfe) if result.nfe == nfe else None


def _adaptive(subject: Subject, tick: Tick) -> list[Row]:
    """One row per pair and tolerance of the adaptive sampler."""
    rows = []
    for pair, tolerance in ROUGH + (FINE if isinstance(subject, World) else ()):
        tick(f"{subject.name}: adaptive, {pair}")
        result = qa.sample(subject.denoise, subject.noise, "adaptive", tolerance=tolerance, pair=pair)
        measures = subject.measure(Solution(result.images, float(result.angles[0]), result.nfe))
        rows.append({"pair": pair, "tolerance": tolerance, "nfe": result.nfe, **measures})
    return rows


# rows of peers


def _peers(subject: Subject, peers: Sequence[Peer], nfes: Sequence[int], tick: Tick) -> list[Row]:
    """One row per peer: by NFE and measure the best value and its settings; None if no choice runs at that NFE.

    `steady` is the one setting with the smallest geometric mean over the NFE from 5 to 20, with its values: an upper
    bound of what a user with one fixed setting gets.
    """

    def solutions(peer: Peer) -> Callable[[int], Labelled]:
        return lambda nfe: ((choice.label, solution) for choice, solution in subject.solutions(peer, nfe))

    return [_peer_row(subject, peer.name, solutions(peer), nfes, tick) for peer in peers]


def _tuned_peers(world: World, nfes: Sequence[int], tick: Tick) -> list[Row]:
    """One row per tuned peer, like those of `_peers`, for the NFE that grids are tuned for."""

    def solutions(name: str) -> Callable[[int], Labelled]:
        return lambda nfe: world.solutions_of_tuned(name, nfe) if nfe <= world.setting.largest_tuned else iter(())

    return [_peer_row(world, name, solutions(name), nfes, tick) for name in ("GITS", "AMED")]


Labelled = Iterator[tuple[str, Solution]]
"""Images by the settings of a peer, with each setting in short."""


def _peer_row(
    subject: Subject, name: str, solutions: Callable[[int], Labelled], nfes: Sequence[int], tick: Tick
) -> Row:
    """The row of a peer, of its solutions by NFE."""
    cells: list[Row | None] = []
    by_settings: dict[str, dict[int, Row]] = {}
    for nfe in nfes:
        tick(f"{subject.name}: {name}")
        results = [
            {"settings": label, "start": solution.start, "nfe": solution.nfe, **subject.measure(solution)}
            for label, solution in solutions(nfe)
        ]
        best = {measure: _best(results, measure) for measure in subject.measures} if results else None
        cells.append(None if best is None else best | {"tried": len(results)})
        for result in results:
            by_settings.setdefault(str(result["settings"]), {})[nfe] = result
    steady = {measure: _steady(by_settings, nfes, measure) for measure in subject.measures}
    return {"row": name, "cells": cells, "steady": steady}


def _best(results: Sequence[Row], measure: str) -> Row:
    best = min(results, key=lambda result: result[measure])
    return {"value": best[measure], **{name: best[name] for name in ("settings", "start", "nfe")}}


def _steady(by_settings: dict[str, dict[int, Row]], nfes: Sequence[int], measure: str) -> Row | None:
    """The settings with the smallest geometric mean over the NFE from 5 to 20, of those that ran at most of them."""
    middle = {name: [row for nfe, row in rows.items() if 5 <= nfe <= 20] for name, rows in by_settings.items()}
    most = max(map(len, middle.values()), default=0)
    if most == 0:
        return None

    def mean(name: str) -> float:
        return statistics.fmean(math.log(max(row[measure], 1e-300)) for row in middle[name])

    best = min((name for name, rows in middle.items() if len(rows) == most), key=mean)
    rows = by_settings[best]
    return {"settings": best, "values": [rows[nfe][measure] if nfe in rows else None for nfe in nfes]}


# ratios


def _ratios(
    ours: Sequence[Row],
    peers: Sequence[Row],
    tuned_peers: Sequence[Row],
    heads: Sequence[tuple[str, str]],
    measure: str,
) -> list[Row]:
    """By NFE: a row of ours, and the best of all rows of ours, over the best peer; below 1 ours is better."""
    columns = range(len(peers[0]["cells"]))
    lines = {
        f"{name}, {grid}": [row for row in ours if (row["row"], row["grid"]) == (name, grid)] for name, grid in heads
    }
    best = [_smallest((row["row"], _peer_value(row, measure, column)) for row in peers) for column in columns]
    steady = [_smallest((row["row"], _steady_value(row, measure, column)) for row in peers) for column in columns]
    rows = [_ratio_row(label, "best peer", rows, best, measure) for label, rows in lines.items()]
    rows.append(_ratio_row("best of ours", "best peer", ours, best, measure))
    rows += [_ratio_row(label, "best peer, one setting each", rows, steady, measure) for label, rows in lines.items()]
    if tuned_peers:
        best = [_smallest((row["row"], _peer_value(row, measure, column)) for row in tuned_peers) for column in columns]
        rows += [_ratio_row(label, "best tuned peer", rows, best, measure) for label, rows in lines.items()]
    return rows


Named = tuple[str | None, float | None]


def _ratio_row(label: str, against: str, ours: Sequence[Row], peers: Sequence[Named], measure: str) -> Row:
    values = []
    for column, (_, peer) in enumerate(peers):
        _, own = _smallest((row["row"], _own_value(row, measure, column)) for row in ours)
        values.append(own / peer if own is not None and peer is not None and peer > 0.0 else None)
    return {"row": f"{label} / {against}", "values": values, "against": [name for name, _ in peers]}


def _smallest(values: Iterable[tuple[str, float | None]]) -> Named:
    """The name and value of the smallest value; (None, None) if there is none."""
    numbers = [(value, name) for name, value in values if value is not None]
    if not numbers:
        return None, None
    value, name = min(numbers)
    return name, value


def _own_value(row: Row, measure: str, column: int) -> float | None:
    cell = row["cells"][column]
    return None if cell is None else float(cell[measure])


def _peer_value(row: Row, measure: str, column: int) -> float | None:
    cell = row["cells"][column]
    return None if cell is None else float(cell[measure]["value"])


def _steady_value(row: Row, measure: str, column: int) -> float | None:
    steady: dict[str, Any] | None = row["steady"][measure]
    return None if steady is None else steady["values"][column]
