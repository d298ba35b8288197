"""The quality of the demo's images: their features against those of the real digits, by sampler and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.order import permutation
from ..data.pixels import to_uint8
from ..denoiser import Denoiser
from ..evaluation.measure import evaluate
from ..sampling.generation import batches
from ..sampling.plans import Sampling

__all__ = ["FEATURES", "Quality"]

FEATURES, BATCH = "digits", 250


@dataclass(frozen=True)
class Quality:
    """Frechet distance, precision and recall in `digits` features.

    Attributes:
        real: the real images, uint8 (N, 1, H, W).
        count: images per measurement, of the seeds from 0 on.
    """

    real: Tensor
    count: int

    def score(self, images: Tensor) -> dict[str, float]:
        """The metrics of images by name."""
        result = evaluate(images, self.real, features=FEATURES, batch_size=BATCH, progress=False)
        return {name: round(value, 4) for name, value in result["metrics"].items()}

    @property
    def floor(self) -> dict[str, float]:
        """The metrics of as many random real images, at most half of them."""
        rows = permutation(0, count=len(self.real))[: min(self.count, len(self.real) // 2)]
        return self.score(self.real[torch.from_numpy(rows)])

    def of(self, denoise: Denoiser, sampler: str, steps: int) -> dict[str, Any]:
        """The metrics of a sampler's images, with its name, its steps, and its evaluations per image, `nfe`."""
        plan = Sampling(sampler, steps).plan(denoise)
        results = [result for _, result in batches(plan, range(self.count), batch_size=BATCH)]
        images = torch.cat([to_uint8(result.images) for result in results])
        return {"sampler": sampler, "steps": steps, "nfe": results[0].nfe, **self.score(images)}
