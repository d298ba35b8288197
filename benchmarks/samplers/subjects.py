"""What samplers are compared on: exact worlds, and trained networks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quarterarc.common.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from quarterarc.closed_form import MixtureData
    from quarterarc.denoiser import Denoise
    from quarterarc.sampling.tuned_grids import TunedGrid
from benchmarks.samplers.ours import CANDIDATE, NFE_FINE
from benchmarks.samplers.peers import NO_IMAGE, Choice, Peer, angles_of, solve_by_peer

PURE_NOISE = 0.05
"""The largest cosine of a starting angle that counts as pure noise."""

Row = dict[str, Any]


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
        from quarterarc.sampling.generation import noise

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
        from quarterarc.samplers import Adaptive
        from quarterarc.sampling.trajectories import sample

        key = round(start, 7)  # a scheduler's float32 angles are the same angle
        if key not in self._fine:
            exact = Adaptive(1e-7, "dormand-prince")
            self._fine[key] = sample(self.denoise, self.noise, exact, grid=[start, 0.0]).images
        return self._fine[key]

    def measure(self, solution: Solution) -> dict[str, float]:
        """Of images made from `noise`."""
        from quarterarc.evaluation import frechet_distance

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

    measures = ("frechet", "error")
    SHORTLIST, SCREENED = 2, 16

    def __init__(self, run: Path, images: int, seed: int, features: str | None, device: str, batch: int) -> None:
        from quarterarc.common.devices import pick_device
        from quarterarc.evaluation import collect, extractor, open_reference
        from quarterarc.sampling.generation import noise
        from quarterarc.sampling.tuned_grids import read_tuned
        from quarterarc.storage.checkpoints import load
        from quarterarc.storage.runs import newest_checkpoint

        where = pick_device(device)
        self.name, self.denoise = run.name, load(run, where)
        try:
            self.tuned: list[TunedGrid] = read_tuned(newest_checkpoint(run))
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
            "the run's data",
            "error": f"median over {min(images, self.SCREENED)} of them of |x - fine solution| / sqrt(D), the "
            f"network's own flow in {NFE_FINE} NFE, both from the sampler's own starting angle",
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
        import torch

        from quarterarc.data.pixels import to_uint8
        from quarterarc.evaluation import frechet_distance

        made = torch.cat([self.extractor(to_uint8(part))["pool"] for part in solution.images.split(self.batch)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few images: equally many in every cell
            frechet = frechet_distance(made, self.real)
        few = slice(self.SCREENED)
        missed = (solution.images[few] - self._fine_of(self.noise[few], solution.start)).flatten(1)
        return {"frechet": frechet, "error": float(missed.square().mean(1).sqrt().median())}

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
        from quarterarc.denoiser import angle_range
        from quarterarc.grids import grid
        from quarterarc.sampling.trajectories import sample

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
    return ("v_prediction", "epsilon", *(() if choice.scheduler in NO_IMAGE else ("sample",)))


def _contest(denoise: Denoise, noise: Tensor, choices: Iterable[Choice], nfe: int) -> Iterator[tuple[Choice, Solution]]:
    """What each choice makes of the noise, where it can be run from (nearly) pure noise at exactly this NFE."""
    from quarterarc.denoiser import Evaluator

    for choice in choices:
        scheduler = choice.make(nfe)
        if scheduler is None:
            continue
        start = angles_of(scheduler)[0]
        if math.cos(start) > PURE_NOISE:
            continue
        counted = Evaluator(denoise)
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
