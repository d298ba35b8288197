"""`python -m benchmarks agreement`: how far a flow map is from its teacher's flow, and from itself.

From the same noise: the images of the map in a few jumps and of the teacher's `multistep` in as many evaluations,
against the teacher's fine trajectory; and one jump of the map against two by a middle angle, which agree for an exact
map (semigroup). For a map that goes both ways, also how far its noise of the teacher's images is from theirs, and how
far the images are that it makes of that noise. Distances are |x - y| / sqrt(D), medians over the images, for pixels in
[-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import quarterarc as qa
from benchmarks.report import Row, environment, markdown, number
from quarterarc.denoiser import Denoise, required_shape, traits

JUMPS = (1, 2, 4, 8)
FINE = 200
"""Steps of `multistep` that stand for the teacher's flow."""
MIDDLE = (1.2, 0.8, 0.4)
"""Angles between two jumps, in radians."""


def run(*, teacher: str, map: str, images: int, show: Callable[[str], None] = print) -> Row:
    """Measure a trained map and show the tables.

    Args:
        teacher, map: runs, checkpoints or folders of pipelines.
        images: number of images.
        show: receives the tables.

    Returns:
        "settings", "environment", and the distances of `measure`.
    """
    distances = measure(qa.load(teacher), qa.load(map), images)
    flow, semigroup = distances["flow"], distances["semigroup"]
    rows = [[whose, *[number(value) for value in values.values()]] for whose, values in flow.items()]
    show("\nFrom the teacher's flow:\n\n" + markdown([["evaluations", *flow["map"]], *rows]))
    show(f"\nOne image of the teacher from another: {number(distances['another'])}\n\nOne jump from two:\n")
    show(markdown([["by the angle", *semigroup], ["map", *[number(value) for value in semigroup.values()]]]))
    if inversion := distances.get("inversion"):
        rows = [[what, *[number(value) for value in values.values()]] for what, values in inversion.items()]
        show("\nFrom the teacher's images to noise, and back:\n")
        show(markdown([["evaluations each way", *inversion["noise"]], *rows]))
    return {"settings": {"teacher": teacher, "map": map, "images": images}, "environment": environment(), **distances}


@torch.no_grad()
def measure(teacher: Denoise, student: Denoise, images: int) -> dict[str, Any]:
    """The distances: "flow" of "map" and "teacher" by jumps, "semigroup" by middle angle, and of "another" image.

    For a map that goes both ways also "inversion": of "noise" and "images" by jumps, and of the images that the flow of
    the teacher makes of that noise.
    """
    noise = qa.noise(range(images), required_shape(teacher))

    def sampled(denoise: Denoise, sampler: str, steps: int) -> Tensor:
        return qa.sample(denoise, noise, sampler, steps=steps).images

    fine, largest = sampled(teacher, "multistep", FINE), traits(student).largest_angle
    direct = _jump(student, noise, largest, 0.0)
    further = {"inversion": _inversion(teacher, student, noise, fine)} if traits(student).reverses else {}
    return {
        "flow": {
            "map": {str(jumps): _distance(sampled(student, "jump", jumps), fine) for jumps in JUMPS},
            "teacher": {str(steps): _distance(sampled(teacher, "multistep", steps), fine) for steps in JUMPS},
        },
        "semigroup": {
            f"{middle:g}": _distance(_jump(student, _jump(student, noise, largest, middle), middle, 0.0), direct)
            for middle in MIDDLE
        },
        "another": _distance(fine.roll(1, 0), fine),
        **further,
    }


def _inversion(teacher: Denoise, student: Denoise, noise: Tensor, images: Tensor) -> dict[str, dict[str, float]]:
    noises = {str(jumps): qa.encode(student, images, steps=jumps, progress=False) for jumps in JUMPS}
    decoded = {
        jumps: qa.decode(student, encoded, steps=int(jumps), progress=False) for jumps, encoded in noises.items()
    }
    solved = {jumps: qa.decode(teacher, encoded, tolerance=1e-3, progress=False) for jumps, encoded in noises.items()}
    return {
        "noise": {jumps: _distance(encoded, noise) for jumps, encoded in noises.items()},
        "images": {jumps: _distance(image, images) for jumps, image in decoded.items()},
        "images of the teacher": {jumps: _distance(image, images) for jumps, image in solved.items()},
    }


def _jump(student: Denoise, x: Tensor, start: float, end: float) -> Tensor:
    return qa.rotate(x, student(x, start, to=end).velocity(start), end - start)[0]


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).flatten(1).square().mean(1).sqrt().median())
