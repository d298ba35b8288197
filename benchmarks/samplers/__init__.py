"""`quarterarc bench samplers`: our samplers beside diffusers' schedulers; same denoiser, noise and NFE, in one run.

On exact worlds (mixtures around scikit-learn's digits and around patches of its two photographs) the true solution is
known as finely as wished, so a sampler is measured by its distance to it, from the sampler's own starting angle. On a
trained network (`--run`) it is measured by the Frechet distance of its images to the data, and by its distance to the
network's own fine solution.

A peer's number in a cell is the best over all documented settings of its scheduler listed in `PEERS`, chosen by the
measured error itself. Ours are rows of fixed settings. So the comparison favours the peers: nobody who samples can
choose by an error that only a benchmark knows. Two conditions limit the choice: a peer starts at (nearly) pure noise,
cos(starting angle) <= 0.05, for it is given nothing else; and it asks the denoiser exactly as often as the column says.
Schedulers are told the velocity, by which they lose least to their float32 arithmetic near pure noise; PNDM, whose
method depends on it, the noise as well. On a trained network, where a Frechet distance takes many images, only the two
settings of a scheduler compete that come nearest to the fine solution of 16 images, and as the network's estimates need
not agree, the nearest is told the noise and (where it takes it) the image as well.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.samplers.ours import CANDIDATE, FINE, GRIDS, LARGEST_TUNED, NFE_FINE, OURS, ROUGH, TUNED, TUNED_ON, Ours
from benchmarks.samplers.peers import PEERS, Choice, Peer, angles_of, solve_by_peer
from benchmarks.samplers.subjects import PURE_NOISE, WIDTH, WORLDS, Row, Solution, Subject, Trained, World
from benchmarks.samplers.tables import figure, tables
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.storage.files import check_writable, make_folder, write_json

if TYPE_CHECKING:
    from tqdm import tqdm

    from quarterarc.closed_form import MixtureData
    from quarterarc.sampling.tuned_grids import TunedGrid

__all__ = [
    "CANDIDATE",
    "NFE_FINE",
    "OURS",
    "PEERS",
    "PURE_NOISE",
    "TUNED",
    "WIDTH",
    "WORLDS",
    "Choice",
    "Ours",
    "Peer",
    "Row",
    "Solution",
    "World",
    "add_arguments",
    "angles_of",
    "main",
    "run",
    "solve_by_peer",
]

NFE = (4, 5, 6, 8, 10, 15, 20, 50)


def _ours(subject: Subject, ours: Sequence[Ours], nfes: Sequence[int], tick: Callable[[str], None]) -> list[Row]:
    """One row a sampler and grid: its measures by NFE, None where its steps do not come out at that NFE."""
    rows = []
    for each in ours:
        for grid in _grids(subject, each):
            cells = []
            for nfe in nfes:
                tick(f"{subject.name}: {each.label}, {grid}")
                made = _solve(subject, each, grid, nfe)
                cells.append(None if made is None else {"nfe": made.nfe, **subject.measure(made)})
            rows.append({"row": each.label, "grid": grid, "cells": cells})
    return rows


def _grids(subject: Subject, ours: Ours) -> list[str]:
    """The sampler's own default, the two that all are measured on, and what was tuned."""
    from quarterarc.sampling.plans import plan

    own = plan(subject.denoise, ours.sampler, 8, shape=subject.noise.shape[1:], **ours.options).grid
    tuned = ["tuned"] if ours == TUNED and subject.tuned else []
    return list(dict.fromkeys([own, *GRIDS, *tuned]))


def _solve(subject: Subject, ours: Ours, grid: str, nfe: int) -> Solution | None:
    """What a sampler of ours makes with exactly this NFE; None where no number of steps gives it."""
    from quarterarc.samplers import sampler
    from quarterarc.sampling.trajectories import sample

    rule = sampler(ours.sampler, **ours.options)
    steps, rest = divmod(nfe, rule.evaluations)
    if rest:
        return None
    if grid == "tuned":
        fitted = [each for each in subject.tuned if (each.sampler, each.options, each.steps) == (*_key(ours), steps)]
        if not fitted:
            return None
        made = sample(subject.denoise, subject.noise, fitted[0].apply(rule), grid=fitted[0].angles)
    else:
        made = sample(subject.denoise, subject.noise, rule, steps, grid)
    return Solution(made.images, float(made.angles[0]), made.nfe) if made.nfe == nfe else None


def _key(ours: Ours) -> tuple[str, dict[str, Any]]:
    return ours.sampler, dict(ours.options)


def _tune(world: World, nfes: Sequence[int], tick: Callable[[str], None]) -> list[TunedGrid]:
    """Grids for the candidate, fitted to a world on other noise than it is measured on."""
    from quarterarc.sampling.tuning import tune

    grids = []
    for nfe in nfes:
        tick(f"{world.name}: tune {nfe}")
        grids.append(tune(world.denoise, nfe, TUNED.sampler, images=TUNED_ON, progress=False))
    return grids


def _default(subject: Subject) -> tuple[str, str]:
    """The sampler and grid that `sample` takes when it is told neither."""
    from quarterarc.sampling.plans import plan

    chosen = plan(subject.denoise, shape=subject.noise.shape[1:])
    return chosen.name, chosen.grid


def _adaptive(subject: Subject, tick: Callable[[str], None]) -> list[Row]:
    from quarterarc.sampling.trajectories import sample

    rows = []
    for pair, tolerance in ROUGH + (FINE if isinstance(subject, World) else ()):
        tick(f"{subject.name}: adaptive, {pair}")
        made = sample(subject.denoise, subject.noise, "adaptive", tolerance=tolerance, pair=pair)
        measured = subject.measure(Solution(made.images, float(made.angles[0]), made.nfe))
        rows.append({"pair": pair, "tolerance": tolerance, "nfe": made.nfe, **measured})
    return rows


def _peers(subject: Subject, peers: Sequence[Peer], nfes: Sequence[int], tick: Callable[[str], None]) -> list[Row]:
    """One row a peer: by NFE and measure the best value and the settings that gave it; None where none can be run.

    `steady` is the one setting that is best from 5 to 20 NFE together, by the geometric mean, with its values: what a
    user who keeps to one setting could get at most.
    """
    rows = []
    for peer in peers:
        cells: list[Row | None] = []
        errors: dict[str, dict[int, Row]] = {}
        for nfe in nfes:
            tick(f"{subject.name}: {peer.name}")
            tried = [
                {"settings": choice.label, "start": made.start, "nfe": made.nfe, **subject.measure(made)}
                for choice, made in subject.contest(peer, nfe)
            ]
            cells.append({m: _winner(tried, m) for m in subject.measures} | {"tried": len(tried)} if tried else None)
            for row in tried:
                errors.setdefault(str(row["settings"]), {})[nfe] = row
        steady = {m: _steady(errors, nfes, m) for m in subject.measures}
        rows.append({"row": peer.name, "cells": cells, "steady": steady})
    return rows


def _steady(errors: dict[str, dict[int, Row]], nfes: Sequence[int], measure: str) -> Row | None:
    """The setting with the least geometric mean over the NFE from 5 to 20, of those that were run at most of them."""
    there = {name: [row for nfe, row in rows.items() if 5 <= nfe <= 20] for name, rows in errors.items()}
    most = max(map(len, there.values()), default=0)
    if most == 0:
        return None

    def mean(name: str) -> float:
        return statistics.fmean(math.log(max(row[measure], 1e-300)) for row in there[name])

    best = min((name for name, rows in there.items() if len(rows) == most), key=mean)
    return {"settings": best, "values": [errors[best][nfe][measure] if nfe in errors[best] else None for nfe in nfes]}


def _winner(tried: Sequence[Row], measure: str) -> Row:
    best = min(tried, key=lambda row: row[measure])
    return {"value": best[measure], **{name: best[name] for name in ("settings", "start", "nfe")}}


def _ratios(ours: Sequence[Row], peers: Sequence[Row], heads: Sequence[tuple[str, str]], measure: str) -> list[Row]:
    """By NFE: a row of ours, and the best of all rows of ours, over the best peer; below 1 ours is better."""
    count = len(peers[0]["cells"])
    best = [
        min(
            ((row["cells"][i][measure]["value"], row["row"]) for row in peers if row["cells"][i] is not None),
            default=(math.nan, None),
        )
        for i in range(count)
    ]
    lines = {f"{name}, {grid}": [row for row in ours if (row["row"], row["grid"]) == (name, grid)]
             for name, grid in heads}  # fmt: skip
    lines["best of ours"] = list(ours)
    steady = [
        min(
            (
                (value, row["row"])
                for row in peers
                if row["steady"][measure] is not None and (value := row["steady"][measure]["values"][i]) is not None
            ),
            default=(math.nan, None),
        )
        for i in range(count)
    ]
    rows = []
    for against, rivals in (("best peer", best), ("best peer, one setting each", steady)):
        for label, chosen in lines.items():
            if label == "best of ours" and rivals is steady:
                continue  # it is chosen cell by cell too
            values = [_ratio(min(_values(chosen, i, measure), default=None), rivals[i][0]) for i in range(count)]
            names = [name for _, name in rivals]
            rows.append({"row": f"{label} / {against}", "values": values, "against": names})
    return rows


def _values(rows: Iterable[Row], place: int, measure: str) -> list[float]:
    return [row["cells"][place][measure] for row in rows if row["cells"][place] is not None]


def _ratio(ours: float | None, best: float) -> float | None:
    return ours / best if ours is not None and best > 0.0 else None


def _measured(subject: Subject, plan: _Plan, bar: tqdm[Any]) -> Row:
    """All that is measured on one subject."""

    def tick(what: str) -> None:
        bar.set_description(what, refresh=False)
        bar.update()

    started = time.process_time()
    if plan.tune and isinstance(subject, World):
        subject.tuned = _tune(subject, [nfe for nfe in plan.nfes if nfe <= LARGEST_TUNED], tick)
    ours = _ours(subject, plan.ours, plan.nfes, tick)
    peers = _peers(subject, plan.peers, plan.nfes, tick)
    default = _default(subject)
    heads = list(dict.fromkeys([default, CANDIDATE, *([(TUNED.sampler, "tuned")] if subject.tuned else [])]))
    row: Row = {
        "name": subject.name,
        **subject.describe(),
        "nfe": list(plan.nfes),
        "measures": subject.about,
        "default": list(default),
        "ours": ours,
        "adaptive": _adaptive(subject, tick),
        "peers": peers,
        "ratios": {measure: _ratios(ours, peers, heads, measure) for measure in subject.measures},
    }
    if isinstance(subject, Trained):
        fine = _solve(subject, Ours(CANDIDATE[0]), CANDIDATE[1], NFE_FINE)
        assert fine is not None
        row["at_100"] = {"row": ", ".join(CANDIDATE), "nfe": fine.nfe, **subject.measure(fine)}
    return row | {"cpu_seconds": round(time.process_time() - started, 1)}


@dataclass(frozen=True)
class _Plan:
    """What is run on every subject."""

    ours: tuple[Ours, ...]
    peers: tuple[Peer, ...]
    nfes: tuple[int, ...]
    tune: bool

    @property
    def ticks(self) -> int:
        """An upper bound of the steps of the progress bar."""
        return (len(self.ours) * len(GRIDS) + len(self.peers)) * len(self.nfes) + len(ROUGH + FINE) + 2 * len(self.nfes)


def _few(peer: Peer) -> Peer:
    """The peer with its first four choices on the linear family: enough to see that all works."""
    linear = [choice for choice in peer.choices if choice.settings.get("beta_schedule", "linear") == "linear"]
    spacings = [choice for choice in linear if not any(name.startswith("use_") for name in choice.settings)]
    return replace(peer, choices=tuple(spacings[:4]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), help=f"of {', '.join(WORLDS)} (default: all)")
    parser.add_argument("--run", dest="trained", metavar="RUN", type=Path, help="a trained run to measure on as well")
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE), help=f"default: {' '.join(map(str, NFE))}")
    parser.add_argument("--images", type=int, help="of each world (default: 48)")
    parser.add_argument("--count", type=int, default=200, help="images of the trained run (default: 200)")
    parser.add_argument("--features", help="of the trained run's images (default: digits, or inception for colour)")
    parser.add_argument("--device", default="cpu", help="of the trained run: cpu or cuda (default: cpu)")
    parser.add_argument("--batch", type=int, default=250, help="images at once where features are taken (default: 250)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image's noise (default: 0)")
    parser.add_argument("--tune", action="store_true", help=f"tune multistep to each world too, on {TUNED_ON} images")
    parser.add_argument("--quick", action="store_true", help="few images, numbers and settings: that all works")
    parser.add_argument("--out", type=Path, help="write everything as JSON to this file")
    parser.add_argument("--figure", type=Path, help="draw error against NFE to this SVG file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables as Markdown, write the JSON and the figure; returns 0.

    Raises:
        InputError: on an unknown world, numbers below 1, an unfit run, or without diffusers or scikit-learn.
    """
    for file in filter(None, (args.out, args.figure)):
        check_writable(file)
    report = run(
        args.worlds,
        args.trained,
        nfes=args.nfe,
        images=args.images,
        count=args.count,
        features=args.features,
        device=args.device,
        batch=args.batch,
        seed=args.seed,
        tune=args.tune,
        quick=args.quick,
    )
    for subject in report["subjects"]:
        print(tables(subject))
    if args.out is not None:
        make_folder(args.out.parent)
        write_json(args.out, report)
    if args.figure is not None:
        make_folder(args.figure.parent)
        args.figure.write_text(figure(report["subjects"]) + "\n", encoding="utf-8")
    return 0


def run(
    worlds: Sequence[str] = tuple(WORLDS),
    trained: Path | None = None,
    *,
    nfes: Sequence[int] = NFE,
    images: int | None = None,
    count: int = 200,
    features: str | None = None,
    device: str = "cpu",
    batch: int = 250,
    seed: int = 0,
    tune: bool = False,
    quick: bool = False,
) -> Row:
    """Measure all samplers on each world and on a trained run.

    Args:
        worlds: names in `WORLDS`.
        trained: a run folder or checkpoint.
        nfes: the numbers of evaluations.
        images: of a world; 48 if not given, 6 if quick.
        count: images of the trained run.
        features: of the trained run's images; `digits` for gray ones and `inception` for coloured if not given.
        device: of the trained run.
        batch: images at once where features are taken.
        seed: of the first image's noise.
        tune: whether to tune multistep's grid and weights to each world as well, for NFE up to 20.
        quick: NFE 5 and 10, the world `digits` (unless there is a trained run alone), and few settings a peer.

    Returns:
        "settings", "environment" and "subjects", one a world or run, with "ours", "adaptive", "peers" and "ratios".

    Raises:
        InputError: as `main`.
    """
    for name in worlds:
        if name not in WORLDS:
            raise unknown_name("world", name, WORLDS)
    if min([count, batch, 1 if images is None else images, *nfes]) < 1 or seed < 0:
        raise InputError("--images, --count, --batch and every --nfe are at least 1, and --seed at least 0")
    if not worlds and trained is None:
        raise InputError("there is nothing to measure on: name a world, or a trained run with --run")
    environment = _environment()
    if quick:
        nfes, worlds = (5, 10), list(worlds)[:1]
    plan = _Plan(OURS, tuple(map(_few, PEERS)) if quick else PEERS, tuple(sorted(set(nfes))), tune)
    if plan.nfes[0] < 4:
        raise InputError(f"multistep of order 4 takes 4 evaluations, got --nfe {plan.nfes[0]}: begin at 4")
    from tqdm import tqdm

    subjects: list[Subject] = [World(name, _mixture(name), images or (6 if quick else 48), seed) for name in worlds]
    if trained is not None:
        subjects.append(Trained(trained, count, seed, features, device, batch))
    with tqdm(total=plan.ticks * len(subjects), unit="cell", disable=None, leave=False) as bar:
        rows = [_measured(subject, plan, bar) for subject in subjects]
    settings = {"seed": seed, "tune": tune, "quick": quick, "pure_noise": PURE_NOISE}
    return {"settings": settings, "environment": environment, "subjects": rows}


def _mixture(name: str) -> MixtureData:
    from quarterarc.closed_form import MixtureData

    try:
        return MixtureData(WORLDS[name](), WIDTH)
    except ImportError:
        raise InputError(f"the world {name} needs scikit-learn: pip install 'quarterarc[dev]'") from None


def _environment() -> Row:
    try:
        import diffusers
    except ImportError:
        raise InputError("the benchmark needs diffusers: pip install 'quarterarc[diffusers]'") from None
    import torch

    diffusers.utils.logging.set_verbosity_error()  # it warns of settings that it changes itself
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads()}
