"""Measures: what an experiment computes from a trained arm, as a function of the lab, the denoiser and the cell.

A measure returns values of JSON types by name, and may write pictures into the cell's folder. It declares its network
evaluations, from which a plan estimates the cost.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arc import mix
from ..common.devices import processes
from ..common.errors import InputError
from ..common.streams import Purpose, normal, stream
from ..data.order import permutation
from ..data.pixels import to_float, to_uint8
from ..denoiser import DEFAULT_PROJECTION, Denoise, Denoiser, required_shape
from ..edit.plans import slerp
from ..evaluation import evaluate
from ..evaluation.sets import SampledSet, TensorSet
from ..likelihood.evaluation import LikelihoodSettings, evaluate_likelihood
from ..likelihood.inversion import decode, encode
from ..samplers import Sampler
from ..samplers import sampler as named_sampler
from ..sampling.generation import first_noise, generate
from ..sampling.plans import Sampling, resolve_grid
from ..sampling.trajectories import sample, trajectory
from ..sampling.tuned_grids import tuned_grid, write_tuned
from ..sampling.tuning import tune, usual_images
from ..storage.pictures import contact_sheet, write_png
from ..wrappers import Clipped, Projected, project
from .cells import LEADING, Cell
from .lab import Lab, exclusive

__all__ = ["MEASURES", "WRAPPERS", "Measure", "image_seeds"]

BLOCK = 1_000_000
"""Image seeds per training seed: the images of seed s and draw d have the seeds from s BLOCK + d BLOCK / 10 on."""


def image_seeds(seed: int, count: int, draw: int = 0) -> range:
    """The seeds of images, equal for all arms, samplers and step counts, so that all start from the same noise."""
    first = seed * BLOCK + draw * (BLOCK // 10)
    return range(first, first + count)


TUNING_IMAGES, TUNING_PASSES = 128, 400
"""Images to which a grid is tuned (fewer of large ones), and roughly the passes over them, derivatives included."""

INVERSION_TOLERANCE = 1e-4
"""The error tolerance of a step when the flow is inverted; one 8-bit level is 8e-3."""


@dataclass(frozen=True)
class Measure:
    """A measure.

    Attributes:
        compute: (lab, denoiser, cell, folder for pictures) -> values by name.
        evaluations: cell -> network evaluations times images, approximately.
        identity: lab -> what decides the values besides arm, seed and settings.
    """

    compute: Callable[[Lab, Denoiser, Cell, Path], dict[str, Any]]
    evaluations: Callable[[Cell], int]
    identity: Callable[[Lab], dict[str, Any]] = lambda lab: {}


WRAPPERS: dict[str, Callable[[Denoise], Any]] = {
    "clipped": Clipped,
    "projected": Projected,
    "loaded": partial(project, keep=DEFAULT_PROJECTION),
}
"""Wrappers between a network and its sampler, by name; `loaded` is the projection of `quarterarc.load`."""


# --- quality of samples ---------------------------------------------------------------------------------------------


class _Timed:
    """A set of sampled images that measures the seconds of sampling."""

    def __init__(self, inner: SampledSet) -> None:
        self.inner, self.seconds, self.sampled = inner, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Tensor]]:
        batches = self.inner.batches(size, wanted)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            self.sampled += len(batch[1])
            yield batch


def _quality(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Metrics of the features of sampled images, NFE, and images per second."""
    seeds = image_seeds(cell.seed, cell["images"], cell["draw"])
    grid = "uniform" if cell["grid"] == LEADING else cell["grid"]
    if grid == "tuned":
        _tune(lab, denoise, cell)
    images = _Timed(
        SampledSet(
            denoise,
            seeds,
            Sampling(cell["sampler"], cell["steps"], grid, dict(cell["options"])),
            what=f"the arm '{cell.arm.name}'",
            about={"recipe_hash": cell.arm.hash(lab.scale, cell.seed)},
        )
    )
    batch = min(lab.scale.batch, cell["images"])
    # features of finished batches, so that an interrupted measurement continues
    features = lab.cache / "features" / cell.key(lab.scale, _reference_identity(lab))
    try:
        result = evaluate(
            images,
            lab.reference,
            cell["metrics"],
            features=lab.extractor,
            batch_size=batch,
            cache=features,
            progress=lab.progress,
        )
    except InputError as error:
        if "NaN" not in str(error):
            raise
        return {"unstable": str(error)}
    if not processes().rank:
        shutil.rmtree(features, ignore_errors=True)
    sampling = images.sampling
    assert sampling is not None
    # nothing was timed if all batches had been sampled before an interruption
    rate = round(images.sampled / images.seconds, 2) if images.sampled else None
    notes = result.get("notes", [])
    return {**result.get("metrics", {}), "nfe": sampling["nfe"], "images_per_second": rate, "notes": notes}


def _tune(lab: Lab, denoise: Denoiser, cell: Cell) -> None:
    """Tune the grid of a cell, unless it is stored beside the arm's weights."""
    options = dict(cell["options"])
    assert denoise.checkpoint is not None
    with exclusive(cell.arm.folder(lab.scale, cell.seed, lab.cache)):  # all seeds of a given network share its grids
        if not processes().rank:
            try:
                tuned_grid(denoise, cell["sampler"], options, cell["steps"])
            except InputError:
                images = min(usual_images(required_shape(denoise)), max(8, cell["images"]))
                grid = tune(denoise, cell["steps"], cell["sampler"], images=images, progress=lab.progress, **options)
                write_tuned(denoise.checkpoint, [grid])
    processes().wait()


def _sampling_evaluations(cell: Cell) -> int:
    tuning = TUNING_IMAGES * TUNING_PASSES if cell["grid"] == "tuned" else 0
    return int((cell["images"] + tuning) * cell["steps"] * _sampler(cell).evaluations)


def _sampler(cell: Cell) -> Sampler:
    return named_sampler(cell["sampler"], **dict(cell["options"]))


def _reference_identity(lab: Lab) -> dict[str, Any]:
    return {"extractor": lab.extractor.describe(), "reference": lab.data.fingerprint}


# --- errors of the estimates ----------------------------------------------------------------------------------------


@torch.no_grad()
def _reconstruction(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Mean squared errors of image, noise and velocity by time: mean and standard deviation over training images."""
    image = _training_images(lab, cell["images"], cell.seed)
    last = math.floor(denoise.schedule.time(denoise.largest_angle) + 1e-6)
    times = np.unique(np.linspace(1, last, cell["times"]).round().astype(int)).tolist()
    values: dict[str, Any] = {"times": times, "angles": [denoise.schedule.angle(float(t)) for t in times]}
    by_time: dict[str, list[np.ndarray]] = {"image": [], "noise": [], "velocity": [], "residual": []}
    for t, angle in zip(times, values["angles"], strict=True):
        streams = [stream(cell.seed, Purpose.BOUND_NOISE, number, t) for number in range(len(image))]
        true_noise = normal(streams, image.shape[1:]).to(image)
        per_image: dict[str, list[Tensor]] = {name: [] for name in by_time}
        for x0, eps in zip(image.split(lab.scale.batch), true_noise.split(lab.scale.batch), strict=True):
            x = mix(x0, eps, angle)
            estimate = denoise(x, angle)
            errors = {
                "image": estimate.image - x0,
                "noise": estimate.noise - eps,
                "velocity": estimate.velocity(angle) - (math.cos(angle) * eps - math.sin(angle) * x0),
                "residual": estimate.residual(x, angle),
            }
            for name, error in errors.items():
                per_image[name].append(error.square().flatten(1).mean(1))
        for name, squares in per_image.items():
            by_time[name].append(torch.cat(squares).double().cpu().numpy())
    for name, arrays in by_time.items():
        values[name] = {"mean": [float(e.mean()) for e in arrays], "std": [float(e.std()) for e in arrays]}
    return values


def _training_images(lab: Lab, count: int, seed: int) -> Tensor:
    """Random training images, equal for all arms: float32 in [-1, 1]."""
    rows = permutation(seed, count=lab.data.count or 0)[:count]
    return to_float(lab.data.batch(sorted(rows.tolist())).images).to(lab.device)


# --- bits per dimension ---------------------------------------------------------------------------------------------


def _bits(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """The variational bound or the flow's likelihood, in bits per dimension, of training or test images."""
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
        progress=lab.progress,
    )
    return dict(result["metrics"][name]) if result else {}


def _likelihood_images(lab: Lab, split: str, count: int) -> Tensor | None:
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


def _pictures(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """A contact sheet of the images of the first seeds, without selection."""
    seeds = image_seeds(cell.seed, cell["images"])
    images = generate(
        denoise,
        seeds,
        cell["sampler"],
        cell["steps"],
        cell["grid"],
        batch_size=lab.scale.batch,
        progress=False,
        **dict(cell["options"]),
    )
    _write(folder / "images.png", images, columns=min(16, cell["images"]))
    return {"picture": "images.png"}


def _progress(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Image estimates along trajectories, and the step from which each stays close to the trajectory's last image.

    Close means a root mean square difference of at most a value of `cell["close"]`, for pixels in [-1, 1].
    """
    seeds = image_seeds(cell.seed, cell["images"])
    start = first_noise(denoise, seeds)
    states = trajectory(
        denoise, start, cell["sampler"], cell["steps"], cell["grid"], seeds=seeds, **dict(cell["options"])
    )
    estimates = [(state.x if state.estimate is None else state.estimate.image).cpu() for state in states]
    end = estimates[-1]
    distance = torch.stack([(image - end).square().flatten(1).mean(1).sqrt() for image in estimates])  # (states, B)
    close = {}
    for within in cell["close"]:
        far = distance > within
        # the state after the last one that is not close
        first = torch.where(far.any(0), len(far) - far.flip(0).int().argmax(0), 0)
        close[str(within)] = [int(step) for step in first]
    columns = np.linspace(0, len(estimates) - 1, cell["columns"]).round().astype(int).tolist()
    shown = torch.stack([estimates[step][: cell["rows"]] for step in columns], dim=1).flatten(0, 1)
    _write(folder / "progress.png", shown, columns=len(columns))
    mean = distance.mean(1).tolist()
    return {"picture": "progress.png", "columns": columns, "close": close, "distance": [mean[step] for step in columns]}


def _estimates(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Metrics of the image estimates after fractions of the steps (Ho et al., Figure 10)."""
    seeds = image_seeds(cell.seed, cell["images"])
    wanted = sorted({round(share * cell["steps"]) for share in cell["shares"]})
    parts: dict[int, list[Tensor]] = {step: [] for step in wanted}
    for first in range(0, len(seeds), lab.scale.batch):
        batch = seeds[first : first + lab.scale.batch]
        start = first_noise(denoise, batch)
        states = trajectory(
            denoise, start, cell["sampler"], cell["steps"], cell["grid"], seeds=batch, **dict(cell["options"])
        )
        for step, state in enumerate(states):
            if step in parts:
                image = state.x if state.estimate is None else state.estimate.image
                parts[step].append(to_uint8(image.nan_to_num(0.0)).cpu())
    scores = [
        evaluate(
            torch.cat(parts[step]),
            lab.reference,
            cell["metrics"],
            features=lab.extractor,
            batch_size=lab.scale.batch,
            progress=lab.progress,
        ).get("metrics", {})
        for step in wanted
    ]
    return {"steps": wanted} | {name: [score.get(name) for score in scores] for name in cell["metrics"]}


def _shared(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Images that share a latent x_t, for several t, and their distance from each other (Ho et al., Figure 7).

    One trajectory is followed to t. From its x_t, `cell["images"]` images are sampled with different noise.
    """
    first, *others = image_seeds(cell.seed, cell["images"] + 1)
    start = first_noise(denoise, [first])
    options = dict(cell["options"])
    states = list(trajectory(denoise, start, "ddpm", cell["steps"], "time", seeds=[first], **options))
    angles = [state.angle for state in states]
    rows, apart = [], []
    for share in cell["shares"]:
        at = min(len(states) - 2, round((1.0 - share) * cell["steps"]))
        latent = states[at].x.expand(len(others), -1, -1, -1)
        images = sample(denoise, latent, "ddpm", grid=angles[at:], seeds=others, **options).images.cpu()
        rows.append(images)
        apart.append(float(torch.pdist(images.flatten(1)).mean() / math.sqrt(images[0].numel())))
    _write(folder / "shared.png", torch.cat(rows), columns=len(others))
    return {"picture": "shared.png", "apart": apart}


def _interpolation(lab: Lab, denoise: Denoiser, cell: Cell, folder: Path) -> dict[str, Any]:
    """Interpolation between two training images: of their x_t, decoded by DDPM, and of their noises under the flow.

    Rows of the picture, per pair of images: for each fraction of T the first image, the decoded mixtures of the two x_t
    (which share their noise), and the second image; in the last row the decoded spherical interpolation of the two
    noises that the flow assigns to the images.
    """
    images = _training_images(lab, 2 * cell["pairs"], cell.seed)
    weights = torch.linspace(0.0, 1.0, cell["weights"], device=images.device)[:, None, None, None]
    steps = cell["steps"]
    grid = resolve_grid(denoise, "time", steps)
    rows: list[Tensor] = []
    missed: dict[str, list[float]] = {name: [] for name in [*map(str, cell["shares"]), "flow"]}
    for pair in range(cell["pairs"]):
        first, second = images[2 * pair], images[2 * pair + 1]
        shared = first_noise(denoise, image_seeds(cell.seed, 1, draw=pair + 1))
        for share in cell["shares"]:
            at = min(steps - 1, round((1.0 - share) * steps))
            ends = mix(torch.stack([first, second]), shared, float(grid[at]))
            mixed = (1.0 - weights) * ends[:1] + weights * ends[1:]
            # the same noise for every weight, so that the images differ by the weight alone
            seeds = [cell.seed] * len(mixed)
            decoded = sample(denoise, mixed, "ddpm", grid=grid[at:], seeds=seeds, **dict(cell["options"])).images
            rows += [first[None], decoded, second[None]]
            missed[str(share)].append(_distance(decoded[0], first))
        ends = encode(denoise, torch.stack([first, second]).cpu(), tolerance=INVERSION_TOLERANCE, progress=False)
        decoded = decode(
            denoise,
            torch.cat([slerp(ends[:1], ends[1:], share) for share in weights.flatten().tolist()]),
            tolerance=INVERSION_TOLERANCE,
            progress=False,
        ).to(first)
        rows += [first[None], decoded, second[None]]
        missed["flow"].append(_distance(decoded[0], first))
    _write(folder / "interpolation.png", torch.cat(rows), columns=cell["weights"] + 2)
    return {"picture": "interpolation.png", "missed": missed}


def _distance(first: Tensor, second: Tensor) -> float:
    """Root mean square difference."""
    return float((first - second).square().mean().sqrt())


def _write(path: Path, images: Tensor, columns: int) -> None:
    if not processes().rank:
        shown = images.nan_to_num(-1.0)  # a sampler that diverges is a result too: its pixels are black
        write_png(path, contact_sheet(to_uint8(shown), columns=columns, size=48, smooth=images.shape[-1] < 32))


MEASURES: dict[str, Measure] = {
    "quality": Measure(_quality, _sampling_evaluations, _reference_identity),
    "reconstruction": Measure(_reconstruction, lambda cell: cell["images"] * cell["times"]),
    "bits": Measure(_bits, _bits_evaluations),
    "pictures": Measure(_pictures, _sampling_evaluations),
    "progress": Measure(_progress, _sampling_evaluations),
    "estimates": Measure(_estimates, lambda cell: cell["images"] * cell["steps"], _reference_identity),
    "shared": Measure(_shared, lambda cell: cell["steps"] * (1 + cell["images"] * len(cell["shares"]))),
    "interpolation": Measure(
        _interpolation, lambda cell: cell["pairs"] * cell["weights"] * (cell["steps"] * len(cell["shares"]) + 300)
    ),
}
"""The measures by name."""
