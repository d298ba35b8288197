"""`python -m benchmarks multistep`: the contribution of each choice inside the sampler `multistep`.

The denoisers are exact, mixtures of narrow Gaussians around digits and around patches of photographs, so that all error
is the sampler's. The tables give the median distance per image from the probability flow's own image, root mean square
per pixel, times 1000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import quarterarc as qa
from benchmarks.report import Row, environment, markdown, number
from benchmarks.worlds import mixture

WORLDS = ("digits", "patches8")
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "first step evaluated": {"free_start": False},
    "plain": {"order": 3, "share": None, "width": 0.0, "finish": "falling", "free_start": False},
    "no corrector": {"corrector": False},
    "estimates not moved": {"share": None},
    "noise a polynomial, level finish": {"width": 0.0, "finish": "level"},
    "noise of one width, 0.1": {"width": 0.1},
    "level finish": {"finish": "level"},
    "falling finish": {"finish": "falling"},
    "finish in the image": {"finish": "image"},
    "order 2": {"order": 2},
    "order 3": {"order": 3},
    "form velocity": {"form": "velocity"},
    "form image": {"form": "image"},
    "clock angle": {"clock": "angle"},
    "Runge-Kutta start, order 3": {"start": "runge-kutta", "order": 3},
    "grid angle": {"grid": "angle"},
}
"""Arguments of `qa.sample` by row."""
RUNGE_KUTTA_EXTRA = 2
"""Evaluations that a Runge-Kutta start of order 3 adds: two steps take two evaluations each."""


def run(*, images: int, width: float, nfe: Sequence[int], show: Callable[[str], None] = print) -> Row:
    """Measure every choice on both worlds, and show a table per world.

    Args:
        images: images per setting.
        width: standard deviation of the mixtures' components, above 0.
        nfe: numbers of evaluations per image, at least 5 (what a Runge-Kutta start of order 3 takes).
        show: receives each table.

    Returns:
        "settings", "environment", and "distances" by world and choice, one per NFE.

    Raises:
        InputError: for a width or a number of evaluations out of range.
    """
    if width <= 0.0 or min(nfe) < 5:
        raise qa.InputError(f"--width is above 0 and --nfe at least 5, got {width:g} and {min(nfe)}")
    report: Row = {"settings": {"images": images, "width": width, "nfe": list(nfe)}, "environment": environment()}
    report["distances"] = {}
    for name in WORLDS:
        distances = report["distances"][name] = _distances(mixture(name, width), images, nfe)
        rows = [[choice, *(number(1000 * distance) for distance in row)] for choice, row in distances.items()]
        show("\n" + markdown([[name, *(f"NFE {count}" for count in nfe)], *rows]))
    return report


def _distances(world: qa.MixtureData, images: int, nfe: Sequence[int]) -> dict[str, list[float]]:
    """Median distances from the flow's images by choice, one per NFE."""
    noise = qa.noise(range(images), world.shape, dtype=torch.float64)
    flow = qa.sample(world, noise, "adaptive", pair="dormand-prince", tolerance=1e-6).images
    distances: dict[str, list[float]] = {}
    for choice, options in CHOICES.items():
        for count in nfe:
            steps = count - RUNGE_KUTTA_EXTRA if "start" in options else count
            result = qa.sample(world, noise, "multistep", steps, **options)
            assert result.nfe == count
            distance = (result.images - flow).flatten(1).square().mean(1).sqrt().median()
            distances.setdefault(choice, []).append(float(distance))
    return distances
