"""`python -m benchmarks transfer`: tuned grids on denoisers that they were not tuned to.

`multistep` is tuned to an exact denoiser of digits, to one of patches of photographs and to the given trained runs, and
every tuned grid samples from all of them. The table gives the median distance from the probability flow's own image
over that of the untuned default: below 1 the tuned grid is better. On the diagonal a grid samples from the denoiser
that it was tuned to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import quarterarc as qa
from benchmarks.report import Row, environment, markdown, number
from benchmarks.worlds import mixture

WORLDS = ("digits", "patches8")


def run(*, runs: Sequence[str], nfe: int, images: int, show: Callable[[str], None] = print) -> Row:
    """Tune to every denoiser, sample from all of them with every grid, and show the table.

    Args:
        runs: trained runs or checkpoints.
        nfe: evaluations per image.
        images: images to tune on, and as many others to measure on.
        show: receives the table.

    Returns:
        "settings", "environment", and "ratios" by the denoiser that a grid was tuned to and the one it samples from.
    """
    denoisers: dict[str, Any] = {name: mixture(name) for name in WORLDS} | {run: qa.load(run) for run in runs}
    tuned = {name: qa.tune(denoise, nfe, images=images) for name, denoise in denoisers.items()}
    ratios: dict[str, dict[str, float]] = {name: {} for name in denoisers}
    for name, denoise in denoisers.items():
        noise = qa.noise(range(images), denoise.shape)
        flow = qa.sample(denoise, noise, "adaptive", pair="dormand-prince", tolerance=1e-5)
        default = _distance(qa.sample(denoise, noise, steps=nfe), flow)
        for origin, grid in tuned.items():
            result = qa.sample(denoise, noise, grid.apply(qa.sampler("multistep")), grid=grid.angles)
            ratios[origin][name] = _distance(result, flow) / default
    rows = [[origin, *map(number, row.values())] for origin, row in ratios.items()]
    show("\n" + markdown([["tuned to", *denoisers], *rows]))
    settings = {"runs": list(runs), "nfe": nfe, "images": images}
    return {"settings": settings, "environment": environment(), "ratios": ratios}


def _distance(result: qa.Result, flow: qa.Result) -> float:
    """Median over images of the Euclidean distance."""
    return float((result.images - flow.images).flatten(1).norm(dim=1).median())
