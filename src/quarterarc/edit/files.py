"""Edits of picture files: the plan of an edit, with the settings to record and the pictures to show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.progress import working
from ..denoiser import Denoise, required_shape
from ..likelihood.probability_flow import TOLERANCE
from ..sampling.plans import Plan, Sampling, numbered_labels
from .api import encoded
from .inputs import as_images, as_unknown
from .pictures import read_image, read_mask
from .plans import JUMP, METHODS, RESAMPLINGS, around, between, inpainting, request_for, start_of, towards

__all__ = ["Edit", "from_image", "inpainted", "interpolated", "varied"]

SOLVING = "solving the flow from image to noise"
"""What the progress shows meanwhile, which on a CPU takes up to minutes."""


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of picture files.

    Attributes:
        plan: how the results are sampled, from seeds.
        settings: JSON types that determine the results together with the plan: the kind of edit, its numbers, and the
            names and hashes of its images.
        pictures: the inputs as the network sees them, uint8 (C, H, W), by file name.
    """

    plan: Plan
    settings: dict[str, Any]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


def inpainted(
    denoise: Denoise,
    request: Sampling,
    image: Path,
    mask: Path,
    method: str = METHODS[0],
    resamplings: int = RESAMPLINGS,
    jump: int = JUMP,
) -> Edit:
    """`edit.inpaint` of files.

    Raises:
        InputError: for files that cannot be used, and as for `edit.inpaint`.
    """
    shape = required_shape(denoise)
    plan = request_for(method, request, denoise).plan(denoise)
    pixels, unknown = read_image(image, shape), read_mask(mask, image, shape)
    known = as_images(denoise, pixels, 1)
    plan = inpainting(plan, known, as_unknown(unknown, known, 1), method, resamplings, jump)
    masked = pixels.masked_fill(unknown, 128)
    if shape[0] in (2, 4):
        masked[-1] = pixels[-1]  # alpha
    settings: dict[str, Any] = {
        "edit": "inpaint",
        "method": method,
        **_named(image, pixels),
        **_named(mask, unknown, "mask"),
    }
    if method == "resample":
        settings |= {"resamplings": resamplings, "jump": jump}
    return Edit(plan, settings, {"image.png": pixels, "masked.png": masked})


def from_image(denoise: Denoise, request: Sampling, image: Path, strength: float) -> Edit:
    """`edit.image_to_image` of a file; errors as for that."""
    plan = request.plan(denoise, start=start_of(denoise, strength))
    pixels = read_image(image, required_shape(denoise))
    settings = {"edit": "image-to-image", "strength": strength, **_named(image, pixels)}
    return Edit(towards(plan, as_images(denoise, pixels, 1)), settings, {"image.png": pixels})


def varied(denoise: Denoise, request: Sampling, image: Path, amount: float, labels: Sequence[int | str] | None) -> Edit:
    """`edit.variations` of a file; errors as for that. All results have one label, if any."""
    shape = required_shape(denoise)
    plan, numbers = request.plan(denoise), _one_label(denoise, labels)
    around(plan, torch.zeros(1, *shape), amount)  # checks the amount before the flow is solved
    pixels = read_image(image, shape)
    with working(SOLVING):
        noise = encoded(plan, as_images(denoise, pixels, 1), numbers, TOLERANCE)
    settings = {"edit": "variations", "amount": amount, **_named(image, pixels)}
    return Edit(around(plan, noise, amount), settings, {"image.png": pixels})


def interpolated(
    denoise: Denoise, request: Sampling, first: Path, second: Path, count: int, labels: Sequence[int | str] | None
) -> Edit:
    """`edit.interpolate` of files, whose results have the seeds 0..count - 1; errors as for that."""
    if count < 2:
        raise InputError(f"an interpolation has at least 2 results, its ends included, got {count}")
    shape = required_shape(denoise)
    plan, numbers = request.plan(denoise), _one_label(denoise, labels)
    pair = [read_image(path, shape) for path in (first, second)]
    both = as_images(denoise, torch.stack(pair), 2)
    with working(SOLVING):
        noises = encoded(plan, both, None if numbers is None else numbers * 2, TOLERANCE)
    settings = {"edit": "interpolate", "between": count, **_named(first, pair[0]), **_named(second, pair[1], "second")}
    pictures = {"image.png": pair[0], "second.png": pair[1]}
    return Edit(between(plan, noises[:1], noises[1:], count), settings, pictures)


def _one_label(denoise: Denoise, labels: Sequence[int | str] | None) -> list[int] | None:
    numbers = numbered_labels(denoise, labels)
    if numbers is not None and len(numbers) > 1:
        raise InputError(f"the noise of an image is that of one class, got {len(numbers)} labels: give one")
    return numbers


def _named(path: Path, pixels: Tensor, what: str = "image") -> dict[str, str]:
    """The name of a picture file and the SHA-256 of its pixels, as the network sees them."""
    content = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
    return {what: path.name, f"{what}_sha256": content}
