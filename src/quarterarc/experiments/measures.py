"""Measures: what can be asked of a trained arm. Each is a function of a denoiser and a cell's settings.

A measure returns JSON types and may write pictures into the cell's folder; it says how often it will ask the network,
so that a plan can say what it costs.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..arc import mix
from ..common.devices import processes
from ..common.errors import InputError
from ..common.streams import Purpose, normal, stream
from ..data import ImageData
from ..data.order import permutation
from ..data.pixels import to_float, to_uint8
from ..denoiser import Clipped, Denoise, Denoiser, Projected
from ..evaluation import evaluate
from ..evaluation.extractors import Extractor
from ..evaluation.references import Reference
from ..evaluation.sets import SampledSet, TensorSet
from ..likelihood.evaluation import LikelihoodSettings, evaluate_likelihood
from ..likelihood.inversion import decode, encode
from ..samplers import sampler as named_sampler
from ..sampling.generation import generate, noise
from ..sampling.plans import Sampling, resolve_grid
from ..sampling.trajectories import sample, trajectory
from ..storage.pictures import contact_sheet, write_png
from .cells import Cell
from .scales import Scale

__all__ = ["MEASURES", "WRAPPERS", "Measure", "Surroundings", "image_seeds", "leading"]

BLOCK = 1_000_000
"""Image seeds of one training seed: the images of seed s and draw d are numbered from s BLOCK + d BLOCK / 10."""


def image_seeds(seed: int, count: int, draw: int = 0) -> range:
    """The seeds of images: the same for every arm, sampler and step count, so that all begin with the same noise."""
    first = seed * BLOCK + draw * (BLOCK // 10)
    return range(first, first + count)


INVERSION_TOLERANCE = 1e-4
"""How far a step of the flow's inversion may miss; a level of 8 bits is 8e-3."""


class Surroundings(Protocol):
    """What a measure needs of the laboratory, `experiments.lab.Lab`.

    Attributes:
        scale: the scale.
        cache: where things are kept.
        device: where networks are measured.
        bars: None to show progress bars on a terminal, False for none.
        data: the training images.
        extractor: what makes features.
        reference: the training images as metrics see them.
    """

    @property
    def scale(self) -> Scale: ...
    @property
    def cache(self) -> Path: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def bars(self) -> bool | None: ...
    @property
    def data(self) -> ImageData: ...
    @property
    def extractor(self) -> Extractor: ...
    @property
    def reference(self) -> Reference: ...
    def folder(self, cell: Cell) -> Path:
        """Where a cell is kept."""
        ...


@dataclass(frozen=True)
class Measure:
    """A way to measure.

    Attributes:
        compute: (lab, denoiser, cell, folder for pictures) -> JSON types.
        evaluations: how often the network sees an image for it, about.
        identity: what decides the values besides arm, seed and settings.
    """

    compute: Callable[[Surroundings, Denoiser, Cell, Path], dict[str, Any]]
    evaluations: Callable[[Cell], int]
    identity: Callable[[Surroundings], dict[str, Any]] = lambda lab: {}


WRAPPERS: dict[str, Callable[[Denoise], Any]] = {"clipped": Clipped, "projected": Projected}
"""What may stand between a network and its sampler, by name."""


def leading(denoise: Denoiser, steps: int) -> list[float]:
    """The grid of DDIM's published code, on which the papers built: it does not begin at T.

    With k = T // steps the times are 1 + k (steps - 1), ..., 1 + k, 1 and 0, so that the walk begins with pure noise at
    an angle that is k times below the end. A noise head is spared the end of the arc, where it says nothing of the
    image; what lies beyond the first angle is lost.
    """
    table = denoise.schedule
    times = [1 + (table.steps // steps) * place for place in reversed(range(steps))]
    return [*(min(table.angle(float(t)), denoise.largest_angle) for t in times), 0.0]


# --- quality of samples ---------------------------------------------------------------------------------------------


class _Timed:
    """A set of images that counts the seconds it takes to make them."""

    def __init__(self, inner: SampledSet) -> None:
        self.inner, self.seconds, self.made = inner, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Tensor]]:
        made = self.inner.batches(size, wanted)
        while True:
            started = time.perf_counter()
            batch = next(made, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            self.made += len(batch[1])
            yield batch


def _quality(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Metrics of features of sampled images, NFE, and images a second."""
    seeds = image_seeds(cell.seed, cell["images"], cell["draw"])
    hash_ = cell.arm.hash(lab.scale, cell.seed)
    grid = leading(denoise, cell["steps"]) if cell["grid"] == "leading" else cell["grid"]
    images = _Timed(
        SampledSet(
            denoise,
            seeds,
            Sampling(cell["sampler"], cell["steps"], grid, dict(cell["options"])),
            what=f"the arm '{cell.arm.name}'",
            about={"checkpoint_sha256": hash_},
        )
    )
    batch = min(lab.scale.batch, cell["images"])
    features = lab.cache / "features" / lab.folder(cell).name  # of finished batches: a long pass goes on after a kill
    try:
        found = evaluate(
            images, lab.reference, cell["metrics"], lab.extractor, batch_size=batch, cache=features, progress=lab.bars
        )
    except InputError as error:
        if "NaN" not in str(error):
            raise
        return {"unstable": str(error)}
    if not processes().rank:
        shutil.rmtree(features, ignore_errors=True)
    assert images.sampling is not None
    # where all batches had been made before a kill, nothing was counted or timed
    nfe = images.sampling.get(
        "nfe", cell["steps"] * named_sampler(cell["sampler"], **dict(cell["options"])).evaluations
    )
    rate = round(images.made / images.seconds, 2) if images.made else None
    return {**found.get("metrics", {}), "nfe": nfe, "images_per_second": rate, "notes": found.get("notes", [])}


def _sampling_evaluations(cell: Cell) -> int:
    each = named_sampler(cell["sampler"], **dict(cell["options"])).evaluations
    return int(cell["images"] * cell["steps"] * each)


def _judged_by(lab: Surroundings) -> dict[str, Any]:
    return {"extractor": lab.extractor.describe(), "reference": lab.data.fingerprint}


# --- errors of the estimates ----------------------------------------------------------------------------------------


@torch.no_grad()
def _reconstruction(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Mean square errors of image, noise and velocity by time: mean and standard deviation over training images."""
    image = _training_images(lab, cell["images"], cell.seed)
    last = math.floor(denoise.schedule.time(denoise.largest_angle) + 1e-6)
    times = np.unique(np.linspace(1, last, cell["times"]).round().astype(int)).tolist()
    found: dict[str, Any] = {"times": times, "angles": [denoise.schedule.angle(float(t)) for t in times]}
    errors: dict[str, list[np.ndarray]] = {"image": [], "noise": [], "velocity": [], "residual": []}
    for t, angle in zip(times, found["angles"], strict=True):
        streams = [stream(cell.seed, Purpose.BOUND_NOISE, number, t) for number in range(len(image))]
        fresh = normal(streams, image.shape[1:]).to(image)
        parts: dict[str, list[Tensor]] = {name: [] for name in errors}
        for some, other in zip(image.split(lab.scale.batch), fresh.split(lab.scale.batch), strict=True):
            x = mix(some, other, angle)
            estimate = denoise(x, angle)
            wrong = {
                "image": estimate.image - some,
                "noise": estimate.noise - other,
                "velocity": estimate.velocity(angle) - (math.cos(angle) * other - math.sin(angle) * some),
                "residual": estimate.residual(x, angle),
            }
            for name, error in wrong.items():
                parts[name].append(error.square().flatten(1).mean(1))
        for name, each in parts.items():
            errors[name].append(torch.cat(each).double().cpu().numpy())
    for name, by_time in errors.items():
        found[name] = {"mean": [float(e.mean()) for e in by_time], "std": [float(e.std()) for e in by_time]}
    return found


def _training_images(lab: Surroundings, count: int, seed: int) -> Tensor:
    """Training images chosen at random, the same for every arm: float32 in [-1, 1]."""
    there = lab.data.count or 0
    rows = permutation(seed, count=there)[:count]
    return to_float(lab.data.batch(sorted(rows.tolist())).images).to(lab.device)


# --- bits a dimension -----------------------------------------------------------------------------------------------


def _bits(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """The bound, or the likelihood of the flow, of training or test images."""
    images = _likelihood_images(lab, cell["split"], cell["images"])
    if images is None:
        return {"missing": "there are no test images"}
    settings = LikelihoodSettings(variance=cell["variance"], terms=cell["terms"], seed=cell.seed)
    name = cell["bits"]
    result = evaluate_likelihood(
        denoise,
        TensorSet(images, f"{cell['split']} images"),
        [name],
        settings,
        batch_size=min(lab.scale.batch, 256),
        what=f"the arm '{cell.arm.name}'",
        progress=lab.bars is None,
    )
    return dict(result["metrics"][name]) if result else {}


def _likelihood_images(lab: Surroundings, split: str, count: int) -> Tensor | None:
    if split == "train":
        return lab.data.batch(range(min(count, lab.data.count or 0))).images.cpu()
    test = lab.scale.test_images()
    if test is None:
        return None
    data, numbers = test
    return data.batch(numbers[:count]).images.cpu()


def _bits_evaluations(cell: Cell) -> int:
    if cell["bits"] == "bits-per-dim":
        return int(cell["images"] * (cell["terms"] or 1000))
    return int(cell["images"] * 300)  # an adaptive solver, forward and backward


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Images of the first seeds, as they come."""
    seeds = image_seeds(cell.seed, cell["images"])
    images = generate(
        denoise,
        seeds,
        cell["sampler"],
        cell["steps"],
        cell["grid"],
        batch_size=lab.scale.batch,
        **dict(cell["options"]),
    )
    _write(folder / "images.png", images, columns=min(16, cell["images"]))
    return {"picture": "images.png"}


def _progress(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Image estimates along trajectories, and when each comes close to its own end and stays there.

    Close is a root mean square difference, on the scale -1..1, of at most each of `cell["close"]`.
    """
    seeds = image_seeds(cell.seed, cell["images"])
    start = noise(seeds, denoise.shape or (), lab.device)
    states = trajectory(
        denoise, start, cell["sampler"], cell["steps"], cell["grid"], seeds=seeds, **dict(cell["options"])
    )
    estimates = [(state.x if state.estimate is None else state.estimate.image).cpu() for state in states]
    end = estimates[-1]
    distance = torch.stack([(each - end).square().flatten(1).mean(1).sqrt() for each in estimates])  # (states, B)
    close = {}
    for within in cell["close"]:
        far = distance > within
        # the first state after the last one that is still far
        first = torch.where(far.any(0), len(far) - far.flip(0).int().argmax(0), 0)
        close[str(within)] = [int(step) for step in first]
    columns = np.linspace(0, len(estimates) - 1, cell["columns"]).round().astype(int).tolist()
    shown = torch.stack([estimates[step][: cell["rows"]] for step in columns], dim=1).flatten(0, 1)
    _write(folder / "progress.png", shown, columns=len(columns))
    mean = distance.mean(1).tolist()
    return {"picture": "progress.png", "columns": columns, "close": close, "distance": [mean[step] for step in columns]}


def _estimates(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Metrics of the image estimates after a share of the steps (Ho et al., Figure 10)."""
    seeds = image_seeds(cell.seed, cell["images"])
    wanted = sorted({round(share * cell["steps"]) for share in cell["shares"]})
    parts: dict[int, list[Tensor]] = {step: [] for step in wanted}
    for first in range(0, len(seeds), lab.scale.batch):
        some = seeds[first : first + lab.scale.batch]
        start = noise(some, denoise.shape or (), lab.device)
        states = trajectory(denoise, start, cell["sampler"], cell["steps"], cell["grid"], seeds=some)
        for step, state in enumerate(states):
            if step in parts:
                seen = state.x if state.estimate is None else state.estimate.image
                parts[step].append(to_uint8(seen.nan_to_num(0.0)).cpu())
    found: dict[str, Any] = {"steps": wanted}
    scores = [
        evaluate(
            torch.cat(parts[step]),
            lab.reference,
            cell["metrics"],
            lab.extractor,
            batch_size=lab.scale.batch,
            progress=lab.bars,
        ).get("metrics", {})
        for step in wanted
    ]
    return found | {name: [score.get(name) for score in scores] for name in cell["metrics"]}


def _shared(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Images that share their x_t at several t, and how far they are apart (Ho et al., Figure 7).

    One trajectory is followed to each t; from there `cell["images"]` go on, each with noise of its own.
    """
    first, *others = image_seeds(cell.seed, cell["images"] + 1)
    start = noise([first], denoise.shape or (), lab.device)
    states = list(trajectory(denoise, start, "ddpm", cell["steps"], "time", seeds=[first]))
    angles = [state.angle for state in states]
    rows, apart = [], []
    for share in cell["shares"]:
        at = min(len(states) - 2, round((1.0 - share) * cell["steps"]))
        latent = states[at].x.expand(len(others), -1, -1, -1)
        images = sample(denoise, latent, "ddpm", grid=angles[at:], seeds=others).images.cpu()
        rows.append(images)
        apart.append(float(torch.pdist(images.flatten(1)).mean() / math.sqrt(images[0].numel())))
    _write(folder / "shared.png", torch.cat(rows), columns=len(others))
    return {"picture": "shared.png", "apart": apart}


def _interpolation(lab: Surroundings, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Between two training images: mixed at x_t with the same noise and decoded by DDPM; and along the flow.

    Rows of the picture: for every pair and share of T, the first image, the decoded mixtures, the second image; then
    the same by the flow, whose noises are interpolated on the sphere.
    """
    images = _training_images(lab, 2 * cell["pairs"], cell.seed)
    weights = torch.linspace(0.0, 1.0, cell["weights"], device=images.device)[:, None, None, None]
    steps = cell["steps"]
    grid = resolve_grid(denoise, "time", steps)
    rows: list[Tensor] = []
    missed: dict[str, list[float]] = {name: [] for name in [*map(str, cell["shares"]), "flow"]}
    for pair in range(cell["pairs"]):
        one, two = images[2 * pair], images[2 * pair + 1]
        fresh = noise(image_seeds(cell.seed, 1, draw=pair + 1), one.shape, lab.device)
        for share in cell["shares"]:
            at = min(steps - 1, round((1.0 - share) * steps))
            ends = mix(torch.stack([one, two]), fresh, float(grid[at]))
            mixed = (1.0 - weights) * ends[:1] + weights * ends[1:]
            # the same noise for every weight, so that the weight alone makes the difference
            seeds = [cell.seed] * len(mixed)
            made = sample(denoise, mixed, "ddpm", grid=grid[at:], seeds=seeds).images
            rows += [one[None], made, two[None]]
            missed[str(share)].append(_apart(made[0], one))
        ends = encode(denoise, torch.stack([one, two]).cpu(), tolerance=INVERSION_TOLERANCE, progress=False)
        made = decode(
            denoise, _slerp(ends[0], ends[1], weights.cpu()), tolerance=INVERSION_TOLERANCE, progress=False
        ).to(one)
        rows += [one[None], made, two[None]]
        missed["flow"].append(_apart(made[0], one))
    _write(folder / "interpolation.png", torch.cat(rows), columns=cell["weights"] + 2)
    return {"picture": "interpolation.png", "missed": missed}


def _slerp(one: Tensor, two: Tensor, weights: Tensor) -> Tensor:
    """Points of the great circle through two noises, of interpolated length: shape (len(weights), *)."""
    cosine = torch.dot(one.flatten(), two.flatten()) / (one.norm() * two.norm())
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    direction = ((1 - weights) * angle).sin() * one / one.norm() + (weights * angle).sin() * two / two.norm()
    return direction / angle.sin() * ((1 - weights) * one.norm() + weights * two.norm())


def _apart(one: Tensor, two: Tensor) -> float:
    """Root mean square difference."""
    return float((one - two).square().mean().sqrt())


def _write(path: Path, images: Tensor, columns: int) -> None:
    if not processes().rank:
        write_png(path, contact_sheet(to_uint8(images), columns=columns, size=48, smooth=images.shape[-1] < 32))


MEASURES: dict[str, Measure] = {
    "quality": Measure(_quality, _sampling_evaluations, _judged_by),
    "reconstruction": Measure(_reconstruction, lambda cell: cell["images"] * cell["times"]),
    "bits": Measure(_bits, _bits_evaluations),
    "pictures": Measure(_pictures, _sampling_evaluations),
    "progress": Measure(_progress, _sampling_evaluations),
    "estimates": Measure(_estimates, lambda cell: cell["images"] * cell["steps"], _judged_by),
    "shared": Measure(_shared, lambda cell: cell["steps"] * (1 + cell["images"] * len(cell["shares"]))),
    "interpolation": Measure(
        _interpolation, lambda cell: cell["pairs"] * cell["weights"] * (cell["steps"] * len(cell["shares"]) + 300)
    ),
}
"""What can be asked of an arm, by name."""
