"""`quarterarc bench samplers`: our samplers beside diffusers' schedulers; same denoiser, noise and NFE, in one run.

On exact worlds (mixtures around scikit-learn's digits and around patches of its two photographs) the true solution is
known as finely as wished, so a sampler is measured by its distance to it, from the sampler's own starting angle. On a
trained network (`--run`) it is measured by the Frechet distance of its images to the data.

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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown_name
from ..files import make_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from ..closed_form import MixtureData
    from ..estimate import Denoise, Estimate
    from ..tuned import TunedGrid

__all__ = ["OURS", "PEERS", "Choice", "Ours", "Peer", "add_arguments", "main", "run", "solve_by_peer"]

NFE = (4, 5, 6, 8, 10, 15, 20, 50)
NFE_FINE = 100
PURE_NOISE = 0.05
"""The largest cosine of a starting angle that counts as pure noise."""

Row = dict[str, Any]
Settings = Mapping[str, Any]


# ours


@dataclass(frozen=True)
class Ours:
    """A sampler of ours, by its name and options."""

    sampler: str
    options: Settings = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As the table says it."""
        return " ".join([self.sampler, *(f"{name} {value}" for name, value in self.options.items())])


OURS = (
    *map(Ours, ("euler", "midpoint", "heun", "rk4", "rotation", "ddim")),
    *(Ours("multistep", {"order": order}) for order in (1, 2, 3, 4)),
    Ours("multistep"),
)
GRIDS = ("angle", "octave")
"""What every sampler of ours is measured on, beside its own default grid."""
CANDIDATE = ("multistep", "octave")
"""Set against the best peer, beside the library's default."""
TUNED = Ours("multistep")
"""Measured on tuned grids too: those that lie beside a trained run, and with `--tune` those fitted to a world."""
LARGEST_TUNED = 20
"""NFE beyond which no grid is tuned: it takes long, and there is little left to gain."""
ROUGH = (("bogacki-shampine", 0.1), ("bogacki-shampine", 0.03))
FINE = (("bogacki-shampine", 0.01), ("bogacki-shampine", 1e-3), ("dormand-prince", 1e-4))
"""Pairs and tolerances of the adaptive sampler, whose NFE cannot be asked for; the fine ones for exact worlds alone."""


# peers


@dataclass(frozen=True)
class Choice:
    """A diffusers scheduler and the settings it is made with; `prediction` is what the denoiser is asked for."""

    scheduler: str
    settings: Settings
    prediction: str = "v_prediction"

    @property
    def label(self) -> str:
        """The settings beside the scheduler's own, in short."""
        words = [_word(name, value) for name, value in self.settings.items() if name not in _UNSAID]
        return " ".join([*filter(None, words), *([] if self.prediction == "v_prediction" else [self.prediction])])

    def make(self, nfe: int) -> Any:
        """The scheduler, ready to be driven for this NFE; None where it cannot be: too few, or not so many exactly."""
        import diffusers

        steps = _STEPS.get(self.scheduler, lambda nfe, settings: nfe)(nfe, self.settings)
        if steps < 1:
            return None
        own = {} if self.scheduler == "IPNDMScheduler" else {**_BETAS, "prediction_type": self.prediction}
        try:
            scheduler = getattr(diffusers, self.scheduler)(**(own | dict(self.settings)))
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ImportError):  # fewer steps than it can take, or beta sigmas without scipy
            return None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it looks for the first time by value, which need not be there only once
        return scheduler if len(scheduler.timesteps) == nfe else None


_BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
_UNSAID = ("clip_sample", "solver_order")
_STEPS: dict[str, Callable[[int, Settings], int]] = {
    "HeunDiscreteScheduler": lambda nfe, settings: (nfe + 1) // 2,  # two a step, but one for the last
    "PNDMScheduler": lambda nfe, settings: nfe - 1 if settings["skip_prk_steps"] else nfe - 9,  # its start
}


def _word(name: str, value: Any) -> str:
    """A setting as the table says it."""
    if name == "skip_prk_steps":
        return "plms" if value else "prk"
    if value is True:
        return (
            name.removeprefix("use_")
            .removesuffix("_sigmas")
            .removesuffix("_lambdas")
            .removeprefix("set_")
            .replace("_", "-")
        )
    if value is False:
        return ""
    words = {"beta_schedule": {"squaredcos_cap_v2": "cosine"}.get(str(value), str(value)), "steps_offset": f"+{value}"}
    return words.get(name, f"clipped {value}" if name == "lambda_min_clipped" else str(value))


def _all(*axes: Sequence[Settings]) -> tuple[Settings, ...]:
    """Every combination of settings, one of each axis."""
    return tuple({name: value for part in parts for name, value in part.items()} for parts in product(*axes))


def _each(name: str, *values: Any) -> tuple[Settings, ...]:
    return tuple({name: value} for value in values)


_FAMILIES = _each("beta_schedule", "linear", "squaredcos_cap_v2")
_SPACINGS = (
    *_each("timestep_spacing", "trailing", "linspace", "leading"),
    {"timestep_spacing": "leading", "steps_offset": 1},
)
_SIGMAS = tuple({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas"))
_LU = ({"use_lu_lambdas": True},)
_ALPHA = _each("set_alpha_to_one", True, False)
_CLIPPED = ({"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},)  # "critical" there, its docs say


def _dpm(order: int, *ends: Settings) -> tuple[Settings, ...]:
    made = _all(_FAMILIES, (*_SPACINGS, *_SIGMAS, *_LU), ends), _all(_CLIPPED, _SPACINGS, ends)
    return tuple({"solver_order": order, **settings} for part in made for settings in part)


@dataclass(frozen=True)
class Peer:
    """What is known by one name in the table: all choices of one scheduler."""

    name: str
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, name: str, scheduler: str, settings: Iterable[Settings], *predictions: str) -> Peer:
        """Every setting with every prediction."""
        asked = predictions or ("v_prediction",)
        return cls(name, tuple(Choice(scheduler, each, prediction) for prediction in asked for each in settings))


PEERS = (
    Peer.of("DDIM", "DDIMScheduler", _all(_FAMILIES, _SPACINGS, _ALPHA, ({"clip_sample": False},))),
    Peer.of(
        "DPM-Solver++ 2M",
        "DPMSolverMultistepScheduler",
        _dpm(2, {}, {"euler_at_final": True}, {"solver_type": "heun"}),
    ),
    Peer.of("DPM-Solver++ 3M", "DPMSolverMultistepScheduler", _dpm(3, {}, {"euler_at_final": True})),
    Peer.of(
        "UniPC",
        "UniPCMultistepScheduler",
        _all(_FAMILIES, (*_SPACINGS, *_SIGMAS), _each("solver_type", "bh2", "bh1"), _each("solver_order", 2, 3)),
    ),
    Peer.of("DEIS", "DEISMultistepScheduler", _all(_FAMILIES, (*_SPACINGS, *_SIGMAS), _each("solver_order", 2, 3))),
    Peer.of("Heun", "HeunDiscreteScheduler", _all(_FAMILIES, (*_SPACINGS, *_SIGMAS))),
    Peer.of("iPNDM", "IPNDMScheduler", ({},)),
    Peer.of(
        "PNDM",
        "PNDMScheduler",
        _all(_FAMILIES, _SPACINGS, _ALPHA, _each("skip_prk_steps", True, False)),
        "v_prediction",
        "epsilon",
    ),
)
"""diffusers' deterministic schedulers, each with the settings it is documented with."""
_NO_IMAGE = ("PNDMScheduler", "IPNDMScheduler")
"""Schedulers that take no image estimate; iPNDM's formula wants the velocity and nothing else."""


def angles_of(scheduler: Any) -> list[float]:
    """The angles at which a scheduler asks its denoiser, in order."""
    count = len(scheduler.timesteps)
    if type(scheduler).__name__ == "IPNDMScheduler":
        return [math.asin(min(1.0, float(beta))) for beta in scheduler.betas[:count]]
    if hasattr(scheduler, "sigmas"):
        return [math.atan(float(sigma)) for sigma in scheduler.sigmas[:count]]
    signal = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    return [math.atan2(math.sqrt(1.0 - level), math.sqrt(level)) for level in signal]


def solve_by_peer(denoise: Denoise, noise: Tensor, scheduler: Any, prediction: str = "v_prediction") -> Tensor:
    """Drive a diffusers scheduler (its times set) with a denoiser on the arc.

    Args:
        denoise: the denoiser.
        noise: where the way begins, at the scheduler's first angle; shape (B, C, H, W).
        scheduler: one of `PEERS`'.
        prediction: what it is made to be told: `v_prediction`, `epsilon` or `sample`.

    Returns:
        The images, in the dtype of the noise.
    """
    import torch

    exploding = type(scheduler).__name__ == "HeunDiscreteScheduler"  # its state is image + sigma noise
    angles = angles_of(scheduler)
    x = noise / math.cos(angles[0]) if exploding else noise
    with torch.no_grad():
        for angle, t in zip(angles, scheduler.timesteps, strict=True):
            estimate = denoise(x * math.cos(angle) if exploding else x, angle)
            x = scheduler.step(_told(estimate, angle, prediction), t, x).prev_sample
    return x


def _told(estimate: Estimate, angle: float, prediction: str) -> Tensor:
    if prediction == "v_prediction":
        return estimate.velocity(angle)
    return estimate.noise if prediction == "epsilon" else estimate.image


# what is measured on


@dataclass(frozen=True)
class Solution:
    """Images, the angle that the way to them began at, and how often the denoiser saw each."""

    images: Tensor
    start: float
    nfe: float


class World:
    """An exact mixture, and the fine solutions from its noise."""

    measures = ("error", "frechet")
    about = {  # noqa: RUF012  (two lines of text)
        "error": "median over images of |x - fine solution| / sqrt(D), both from the sampler's own starting angle",
        "frechet": "Frechet distance on pixels between the sampler's images and the fine solution's, both from the "
        "sampler's own starting angle and the same noise, so that no error at all is a distance of 0",
    }

    def __init__(self, name: str, world: MixtureData, images: int, seed: int) -> None:
        from ..generation import noise

        self.name, self.denoise = name, world
        self.noise = noise(range(seed, seed + images), world.shape, dtype=world.means.dtype)
        self.tuned: list[TunedGrid] = []
        self._fine: dict[float, Tensor] = {}

    def describe(self) -> Row:
        """As JSON types."""
        shape = list(self.denoise.shape)
        return {"shape": shape, "mixture": len(self.denoise.means), "h": self.denoise.h, "images": len(self.noise)}

    def fine(self, start: float) -> Tensor:
        """Where the flow leads from the noise at this angle, to 1e-6 a pixel and better (the median is 1e-7)."""
        from ..samplers import Adaptive
        from ..sampling import sample

        key = round(start, 7)  # a scheduler's float32 angles are the same angle
        if key not in self._fine:
            exact = Adaptive(1e-7, "dormand-prince")
            self._fine[key] = sample(self.denoise, self.noise, exact, grid=[start, 0.0]).images
        return self._fine[key]

    def measure(self, solution: Solution) -> dict[str, float]:
        """Of images made from `noise`."""
        from ..evaluation import frechet_distance

        images, fine = solution.images.flatten(1), self.fine(solution.start).flatten(1)
        distances = (images - fine).square().mean(1).sqrt()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few images: the two sets have the same noise
            return {"error": float(distances.median()), "frechet": frechet_distance(images, fine)}

    def contest(self, peer: Peer, nfe: int) -> Iterator[tuple[Choice, Solution]]:
        """Every choice of a peer that can be run at this NFE, and what it makes."""
        return _contest(self.denoise, self.noise, peer.choices, nfe)


class Trained:
    """A trained network, and the features of its data."""

    measures = ("frechet",)
    SHORTLIST, SCREENED = 2, 16

    def __init__(self, run: Path, images: int, seed: int, features: str | None, device: str, batch: int) -> None:
        from ..devices import pick_device
        from ..evaluation import collect, extractor, open_reference
        from ..generation import noise
        from ..runs import load

        where = pick_device(device)
        self.name, self.denoise = run.name, load(run, where)
        try:
            self.tuned: list[TunedGrid] = self.denoise.tuned() if self.denoise.tuned else []
        except InputError:  # nothing was tuned for this network
            self.tuned = []
        shape = self.denoise.shape
        assert shape is not None
        reference = open_reference(run).images
        assert reference is not None
        self.features = features or ("digits" if shape[0] == 1 and max(shape[1:]) <= 32 else "inception")
        self.extractor, self.batch = extractor(self.features, where), batch
        found = collect(reference, self.extractor, moments=("pool",), batch_size=batch, progress=False)
        self.real, self.count = found.statistics["pool"], found.count
        self.noise = noise(range(seed, seed + images), shape, where)
        self.about = {
            "frechet": f"Frechet distance on the features {self.features} of {images} images to the {self.count} of "
            "the run's data"
        }
        self._fine: dict[float, Tensor] = {}

    def describe(self) -> Row:
        """As JSON types."""
        about = {"head": self.denoise.head.name, "schedule": self.denoise.schedule.name}
        return {
            **about,
            "shape": list(self.denoise.shape or ()),
            "images": len(self.noise),
            "data": self.count,
            "features": self.features,
        }

    def measure(self, solution: Solution) -> dict[str, float]:
        """Of images made from `noise`."""
        from ..data.pixels import to_uint8
        from ..evaluation import Statistics, frechet_distance

        made: Statistics | None = None
        for part in solution.images.split(self.batch):
            features = self.extractor(to_uint8(part))["pool"]
            made = Statistics.of(features) if made is None else made.update(features)
        assert made is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few images: equally many in every cell
            return {"frechet": frechet_distance(made, self.real)}

    def contest(self, peer: Peer, nfe: int) -> Iterator[tuple[Choice, Solution]]:
        """The two choices of a peer nearest to the fine solution of a few images; the nearest told all there is."""
        few = self.noise[: self.SCREENED]
        errors = [
            (float((made.images - self._fine_of(few, made.start)).square().mean().sqrt()), place, choice)
            for place, (choice, made) in enumerate(_contest(self.denoise, few, peer.choices, nfe))
        ]
        best = [choice for _, _, choice in sorted(errors)[: self.SHORTLIST]]
        best += [replace(best[0], prediction=kind) for kind in _kinds(best[0])] if best else []
        wanted = {(choice.label, choice.prediction): choice for choice in best}
        return _contest(self.denoise, self.noise, wanted.values(), nfe)

    def _fine_of(self, noise: Tensor, start: float) -> Tensor:
        """Where our finest leads from this noise at this angle."""
        from ..denoiser import angle_range
        from ..grids import grid
        from ..sampling import sample

        key = round(start, 7)
        if key not in self._fine:
            smallest, _ = angle_range(self.denoise)
            angles = grid(CANDIDATE[1], NFE_FINE, start, smallest=smallest, dimensions=noise[0].numel())
            self._fine[key] = sample(self.denoise, noise, CANDIDATE[0], grid=angles).images
        return self._fine[key]


Subject = World | Trained


def _kinds(choice: Choice) -> tuple[str, ...]:
    if choice.scheduler == "IPNDMScheduler":
        return ("v_prediction",)
    return ("v_prediction", "epsilon", *(() if choice.scheduler in _NO_IMAGE else ("sample",)))


def _contest(denoise: Denoise, noise: Tensor, choices: Iterable[Choice], nfe: int) -> Iterator[tuple[Choice, Solution]]:
    """What each choice makes of the noise, where it can be run from (nearly) pure noise at exactly this NFE."""
    from ..denoiser import Counted

    for choice in choices:
        scheduler = choice.make(nfe)
        if scheduler is None:
            continue
        start = angles_of(scheduler)[0]
        if math.cos(start) > PURE_NOISE:
            continue
        counted = Counted(denoise)
        try:
            images = solve_by_peer(counted, noise, scheduler, choice.prediction)
        except InputError:  # an angle at which a trained denoiser is not defined
            continue
        if bool(images.isfinite().all()) and counted.nfe == nfe:
            yield choice, Solution(images, start, counted.nfe)


def _patches(size: int, count: int) -> Tensor:
    """Patches of the two photographs, taken in turn at random places, in [-1, 1], float64 (count, 3, size, size)."""
    import numpy as np
    import torch
    from sklearn.datasets import load_sample_images

    random, pictures = np.random.default_rng(0), load_sample_images().images
    patches = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        row, column = (int(random.integers(side - size + 1)) for side in picture.shape[:2])
        patches.append(picture[row : row + size, column : column + size].transpose(2, 0, 1))
    return torch.tensor(np.array(patches) / 127.5 - 1.0)


def _digits() -> Tensor:
    import torch
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images / 8.0 - 1.0)[:, None]


WORLDS: dict[str, Callable[[], Tensor]] = {
    "digits": _digits,
    "patches8": lambda: _patches(8, 800),
    "patches16": lambda: _patches(16, 400),
}
"""The centres of each world's mixture: all 1797 digits, and 8x8 and 16x16 colour patches of the photographs."""
WIDTH = 0.15
"""The width h of every mixture."""


# measuring


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
    from ..sampling import plan

    own = plan(subject.denoise, ours.sampler, 8, shape=subject.noise.shape[1:], **ours.options).grid
    tuned = ["tuned"] if ours == TUNED and subject.tuned else []
    return list(dict.fromkeys([own, *GRIDS, *tuned]))


def _solve(subject: Subject, ours: Ours, grid: str, nfe: int) -> Solution | None:
    """What a sampler of ours makes with exactly this NFE; None where no number of steps gives it."""
    from ..samplers import sampler
    from ..sampling import sample

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
    from ..tuning import tune

    grids = []
    for nfe in nfes:
        tick(f"{world.name}: tune {nfe}")
        grids.append(tune(world.denoise, nfe, TUNED.sampler, progress=False))
    return grids


def _default(subject: Subject) -> tuple[str, str]:
    """The sampler and grid that `sample` takes when it is told neither."""
    from ..sampling import plan

    chosen = plan(subject.denoise, shape=subject.noise.shape[1:])
    return chosen.name, chosen.grid


def _adaptive(subject: Subject, tick: Callable[[str], None]) -> list[Row]:
    from ..sampling import sample

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
        return (len(self.ours) * len(GRIDS) + len(self.peers)) * len(self.nfes) + len(ROUGH + FINE) + len(self.nfes)


def _few(peer: Peer) -> Peer:
    """The peer with its first four choices on the linear family: enough to see that all works."""
    linear = [choice for choice in peer.choices if choice.settings.get("beta_schedule", "linear") == "linear"]
    spacings = [choice for choice in linear if not any(name.startswith("use_") for name in choice.settings)]
    return replace(peer, choices=tuple(spacings[:4]))


# command


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
    parser.add_argument(
        "--tune", action="store_true", help="tune multistep to each world too, as `quarterarc tune` does"
    )
    parser.add_argument("--quick", action="store_true", help="few images, numbers and settings: that all works")
    parser.add_argument("--out", type=Path, help="write everything as JSON to this file")
    parser.add_argument("--figure", type=Path, help="draw error against NFE to this SVG file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables as Markdown, write the JSON and the figure; returns 0.

    Raises:
        InputError: on an unknown world, numbers below 1, an unfit run, or without diffusers or scikit-learn.
    """
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
    from ..closed_form import MixtureData

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


# tables and figure


def tables(subject: Row) -> str:
    """Everything measured on a subject, as Markdown."""
    parts = [f"## {subject['name']}", _line_about(subject)]
    for measure, about in subject["measures"].items():
        parts += [f"### {measure}\n\n{about[0].upper() + about[1:]}.", _table(subject, measure)]
    parts += ["### settings of the best peer", _winners(subject), "### adaptive", _adaptive_table(subject)]
    if "at_100" in subject:
        fine = subject["at_100"]
        parts.append(f"{fine['row']} at {fine['nfe']} NFE: {fine['frechet']:.4g}")
    return "\n\n".join(parts) + "\n"


def _line_about(subject: Row) -> str:
    shape = "x".join(map(str, subject["shape"]))
    what = (
        f"a mixture of {subject['mixture']} Gaussians of width {subject['h']}"
        if "mixture" in subject
        else f"head {subject['head']}, schedule {subject['schedule']}"
    )
    return f"{shape} pixels, {what}; {subject['images']} images."


def _table(subject: Row, measure: str) -> str:
    default = tuple(subject["default"])
    lines = [["", "grid", *(f"{nfe} NFE" for nfe in subject["nfe"])]]
    for row in subject["ours"]:
        mark = " (default)" if (row["row"], row["grid"]) == default else ""
        values = [None if cell is None else cell[measure] for cell in row["cells"]]
        lines.append([row["row"] + mark, row["grid"], *map(_number, values)])
    for row in subject["peers"]:
        values = [None if cell is None else cell[measure]["value"] for cell in row["cells"]]
        lines.append([f"diffusers {row['row']}", "best", *map(_number, values)])
    ratios = subject["ratios"][measure]
    lines += [[f"**ratio: {row['row']}**", "", *map(_number, row["values"])] for row in ratios]
    lines.append(["best peer", "", *(name or "-" for name in ratios[0]["against"])])
    return _markdown(lines)


def _winners(subject: Row) -> str:
    """By NFE, for the first measure: which peer was the best, and with what settings."""
    measure = next(iter(subject["measures"]))
    lines = [["NFE", "peer", "settings", measure, "cos(start)"]]
    for place, nfe in enumerate(subject["nfe"]):
        name = subject["ratios"][measure][0]["against"][place]
        if name is not None:
            row = next(row for row in subject["peers"] if row["row"] == name)
            won = row["cells"][place][measure]
            start = f"{math.cos(won['start']):.1g}"
            lines.append([str(nfe), name, won["settings"] or "its own", _number(won["value"]), start])
    settings = [["peer", "its one setting, best from 5 to 20 NFE"]]
    settings += [
        [row["row"], found["settings"] or "its own"] for row in subject["peers"] if (found := row["steady"][measure])
    ]
    return _markdown(lines) + "\n\n" + _markdown(settings)


def _adaptive_table(subject: Row) -> str:
    lines = [["pair", "tolerance", "NFE", *subject["measures"]]]
    for row in subject["adaptive"]:
        values = [_number(row[measure]) for measure in subject["measures"]]
        lines.append([row["pair"], f"{row['tolerance']:g}", f"{row['nfe']:.1f}", *values])
    return _markdown(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


DRAWN = ("DDIM", "DPM-Solver++ 2M", "UniPC", "DEIS", "iPNDM")
"""The peers in the figure, which has room for so many."""


def figure(subjects: Sequence[Row]) -> str:
    """The first measure of each subject against NFE, charts one below the other, as an `<svg>` element."""
    from ..report.charts import WIDTH, line_chart

    parts, top = [], 0.0
    for subject in subjects:
        measure = next(iter(subject["measures"]))
        lines = _series(subject, measure)
        chart = line_chart(lines, subject["name"], "network evaluations", measure, log_x=True, log_y=True)
        height = float(chart.split('viewBox="', 1)[1].split('"', 1)[0].split()[3])  # the legend's is its own
        parts.append(chart.replace("<svg ", f'<svg y="{top:g}" width="{WIDTH}" height="{height:g}" ', 1))
        top += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:g}">'
    return "\n".join([head, *parts, "</svg>"])


def _series(subject: Row, measure: str) -> list[Any]:
    from ..report import Series

    heads = list(dict.fromkeys([tuple(subject["default"]), CANDIDATE, (TUNED.sampler, "tuned")]))
    lines = [
        (f"{row['row']}, {row['grid']}", [None if cell is None else cell[measure] for cell in row["cells"]])
        for row in subject["ours"]
        if (row["row"], row["grid"]) in heads
    ] + [
        (row["row"], [None if cell is None else cell[measure]["value"] for cell in row["cells"]])
        for row in subject["peers"]
        if row["row"] in DRAWN
    ]
    return [
        Series(name, subject["nfe"], [math.nan if value is None else value for value in values])
        for name, values in lines
    ]
