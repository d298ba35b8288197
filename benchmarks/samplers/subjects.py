"""The denoisers that samplers are compared on: exact worlds, and trained networks."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import quarterarc as qa
from benchmarks.report import Row
from benchmarks.samplers.ours import CANDIDATE, NFE_FINE
from benchmarks.samplers.peers import PREDICTIONS, Choice, Peer, angles_of, solve_by_peer
from benchmarks.samplers.tuned_peers import LARGEST, TunedPeers
from benchmarks.worlds import Setting
from quarterarc.closed_form import MixtureData
from quarterarc.common.devices import pick_device
from quarterarc.denoiser import Denoise, Denoiser, traits
from quarterarc.evaluation import collect, extractor, frechet_distance, open_reference
from quarterarc.sampling.tuned_grids import TunedGrid, read_tuned
from quarterarc.storage.runs import newest_checkpoint
from quarterarc.wrappers import Evaluator

PURE_NOISE = 0.05
"""The largest cosine of a starting angle that counts as pure noise."""


@dataclass(frozen=True)
class Solution:
    """A batch of sampled images.

    Attributes:
        images: shape (B, C, H, W).
        start: the angle of the first evaluation.
        nfe: evaluations per image.
    """

    images: Tensor
    start: float
    nfe: float


class Subject(ABC):
    """A denoiser, noise, and the measures of images that were sampled from them.

    Attributes:
        measures: names of the measures.
        name: the subject's name.
        noise: the noise of all images, shape (B, C, H, W).
        tuned: grids that were tuned to the denoiser.
        peers: the peers that were tuned to it; None if none were.
        about: a line about each measure, by name.
    """

    measures: tuple[str, ...]
    screened: int | None = None
    """Images whose fine solution is computed; None for all of them."""

    def __init__(self, name: str, noise: Tensor, about: dict[str, str], tuned: Iterable[TunedGrid] = ()) -> None:
        self.name, self.noise, self.about, self.tuned = name, noise, about, list(tuned)
        self.peers: TunedPeers | None = None
        self._fine: dict[float, Tensor] = {}

    @property
    @abstractmethod
    def denoise(self) -> Denoise:
        """The denoiser."""

    @abstractmethod
    def describe(self) -> Row:
        """The subject's settings as JSON types."""

    @abstractmethod
    def measure(self, solution: Solution) -> dict[str, float]:
        """The measures of images that were sampled from `noise`, by name."""

    @abstractmethod
    def solutions(self, peer: Peer, nfe: int) -> Iterator[tuple[Choice, Solution]]:
        """Images by the choices of a peer that compete at this NFE."""

    @abstractmethod
    def _solve(self, noise: Tensor, start: float) -> Tensor:
        """The solution of the probability flow from noise at an angle."""

    def fine(self, start: float) -> Tensor:
        """The solution of the probability flow from the noise of the screened images at an angle."""
        key = round(start, 7)  # angles of float32 schedulers that differ by rounding are the same angle
        if key not in self._fine:
            self._fine[key] = self._solve(self.noise[: self.screened], start)
        return self._fine[key]


class World(Subject):
    """An exact mixture.

    Attributes:
        mixture: the denoiser.
        setting: the numbers of images, and whether the world is held out.
    """

    measures = ("error", "frechet")

    def __init__(self, name: str, mixture: MixtureData, setting: Setting, seed: int = 0) -> None:
        about = {
            "error": "median over images of |x - fine solution| / sqrt(D), both from the sampler's own starting angle",
            "frechet": "Frechet distance on pixels between the sampler's images and the fine solution's, both from the "
            "sampler's own starting angle and the same noise: 0 for a sampler without error",
        }
        seeds = range(setting.seed + seed, setting.seed + seed + setting.images)
        super().__init__(name, qa.noise(seeds, mixture.shape, dtype=mixture.means.dtype), about)
        self.mixture, self.setting = mixture, setting

    @property
    def denoise(self) -> Denoise:
        """The mixture's exact denoiser."""
        return self.mixture

    def describe(self) -> Row:
        """Shape, number and width of the components, and number of images."""
        means = self.mixture.means
        return {
            "shape": list(self.mixture.shape),
            "mixture": len(means),
            "h": self.mixture.h,
            "held_out": self.setting.held_out,
            "images": len(self.noise),
            "tuned_on": self.setting.tuned_on,
        }

    def _solve(self, noise: Tensor, start: float) -> Tensor:
        """Accurate to 1e-6 per pixel (median 1e-7)."""
        sampler = qa.sampler("adaptive", tolerance=1e-7, pair="dormand-prince")
        return qa.sample(self.mixture, noise, sampler, grid=[start, 0.0]).images

    def measure(self, solution: Solution) -> dict[str, float]:
        """Distance from the fine solution per image, and Frechet distance from its images, on pixels."""
        images, fine = solution.images.flatten(1), self.fine(solution.start).flatten(1)
        return {"error": _median_distance(images, fine), "frechet": _frechet_distance(images, fine)}

    def solutions(self, peer: Peer, nfe: int) -> Iterator[tuple[Choice, Solution]]:
        """Images by every choice of a peer."""
        return _solutions(self.mixture, self.noise, peer.choices, nfe)

    def solutions_of_tuned(self, name: str, nfe: int) -> Iterator[tuple[str, Solution]]:
        """Images by every setting of a tuned peer, "GITS" or "AMED", with the setting."""
        assert self.peers is not None
        rows = {"GITS": self.peers.gits, "AMED": self.peers.amed}[name]
        for label, images in rows(self.mixture, self.noise, nfe):
            yield label, Solution(images, math.atan(LARGEST), nfe)


class Trained(Subject):
    """A trained network, and the features of its data."""

    measures = ("frechet", "error")
    screened = 16
    SHORTLIST = 2
    """Choices per peer that are measured by the Frechet distance."""

    def __init__(
        self,
        run: Path,
        images: int,
        seed: int,
        features: str | None,
        weights: Path | None,
        device: str,
        batch: int,
    ) -> None:
        where = pick_device(device)
        self._denoise = qa.load(run, where)
        shape = self._denoise.shape
        reference = open_reference(run).images
        if shape is None or reference is None:
            raise qa.InputError(f"{run} has no images to compare with: give a run folder whose recipe names its data")
        self.features = features or ("digits" if shape[0] == 1 and max(shape[1:]) <= 32 else "inception")
        self.extractor, self.batch = extractor(self.features, where, weights), batch
        data = collect(reference, self.extractor, statistics=("pool",), batch_size=batch, progress=False)
        self.real, self.count = data.statistics["pool"], data.count
        about = {
            "frechet": f"Frechet distance on the features {self.features} of {images} images to the {self.count} of "
            "the run's data",
            "error": f"median over {min(images, self.screened)} of them of |x - fine solution| / sqrt(D), both from "
            f"the sampler's own starting angle; the fine solution is the network's own flow in {NFE_FINE} NFE",
        }
        try:
            tuned = read_tuned(newest_checkpoint(run))
        except qa.InputError:  # no grid was tuned to this network
            tuned = []
        super().__init__(run.name, qa.noise(range(seed, seed + images), shape, where), about, tuned)

    @property
    def denoise(self) -> Denoiser:
        """The network's denoiser."""
        return self._denoise

    def describe(self) -> Row:
        """Head, schedule, shape, numbers of images, and features."""
        return {
            "head": self.denoise.head.name,
            "schedule": self.denoise.schedule.name,
            "shape": list(self.denoise.shape or ()),
            "images": len(self.noise),
            "data": self.count,
            "features": self.features,
        }

    def _solve(self, noise: Tensor, start: float) -> Tensor:
        sampler, name = CANDIDATE
        smallest = traits(self.denoise).smallest_angle
        angles = qa.grid(name, NFE_FINE, start, smallest=smallest, dimensions=noise[0].numel())
        return qa.sample(self.denoise, noise, sampler, grid=angles).images

    def measure(self, solution: Solution) -> dict[str, float]:
        """Frechet distance from the run's data, on features, and distance from the fine solution per image."""
        features = [self.extractor(qa.to_uint8(part))["pool"] for part in solution.images.split(self.batch)]
        error = _median_distance(solution.images[: self.screened].flatten(1), self.fine(solution.start).flatten(1))
        return {"frechet": _frechet_distance(torch.cat(features), self.real), "error": error}

    def solutions(self, peer: Peer, nfe: int) -> Iterator[tuple[Choice, Solution]]:
        """Images by the choices of a peer nearest to the fine solution; by the nearest one with every prediction."""
        screened = _solutions(self.denoise, self.noise[: self.screened], peer.choices, nfe)
        errors = [
            (float((solution.images - self.fine(solution.start)).square().mean().sqrt()), index, choice)
            for index, (choice, solution) in enumerate(screened)
        ]
        best = [choice for _, _, choice in sorted(errors)[: self.SHORTLIST]]
        if best:
            predictions = PREDICTIONS.get(best[0].scheduler, ("v_prediction", "epsilon", "sample"))
            best += [replace(best[0], prediction=prediction) for prediction in predictions]
        unique = {(choice.label, choice.prediction): choice for choice in best}
        return _solutions(self.denoise, self.noise, unique.values(), nfe)


def _solutions(
    denoise: Denoise, noise: Tensor, choices: Iterable[Choice], nfe: int
) -> Iterator[tuple[Choice, Solution]]:
    """Images by each choice that starts at (nearly) pure noise and takes exactly this NFE."""
    for choice in choices:
        scheduler = choice.make(nfe)
        if scheduler is None:
            continue
        start = angles_of(scheduler)[0]
        if math.cos(start) > PURE_NOISE:
            continue
        evaluator = Evaluator(denoise)
        try:
            images = solve_by_peer(evaluator, noise, scheduler, choice.prediction)
        except qa.InputError:  # an angle at which a trained denoiser is not defined
            continue
        if bool(images.isfinite().all()) and evaluator.nfe == nfe:
            yield choice, Solution(images, start, evaluator.nfe)


def _median_distance(images: Tensor, fine: Tensor) -> float:
    """Median over images, shape (B, D), of the root mean square difference per pixel value."""
    return float((images - fine).square().mean(1).sqrt().median())


def _frechet_distance(*sets: object) -> float:
    """The Frechet distance without its warning of few images, whose bias is equal in all cells of a table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return frechet_distance(*sets)  # type: ignore[arg-type]
