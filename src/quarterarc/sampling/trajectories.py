"""`sample` and `trajectory`: from noise to images with a denoiser and a sampler."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..common.text import counted
from ..data.pixels import to_uint8
from ..denoiser import Denoise
from ..samplers import Sampler, State
from .first_points import check_noise
from .plans import GridLike, Plan, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Result", "run", "sample", "trajectory"]

IN_SHEET = 64
"""Images that a notebook and the contact sheet of a sample folder show."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Sampled images. In a notebook it is displayed as a contact sheet.

    Attributes:
        images: shape (B, C, H, W), in the dtype and on the device of the noise. Images lie in [-1, 1]; a sampler may
            overshoot, and values are not clamped (`quarterarc.to_uint8` clamps).
        nfe: network evaluations per image; averaged over the batch where a sampler's steps differ between images.
        angles: the grid, float64, from the first angle to 0.
    """

    images: Tensor
    nfe: float
    angles: np.ndarray

    def pil(self) -> list[Image]:
        """The images as Pillow images, one per image of the batch."""
        from ..storage.pictures import to_picture

        return [to_picture(pixels) for pixels in to_uint8(self.images)]

    def sheet(self, columns: int | None = None) -> Image:
        """All images side by side as one Pillow image, a contact sheet.

        Args:
            columns: images per row; about twice the number of rows if None.
        """
        from ..storage.pictures import contact_sheet, to_picture

        return to_picture(contact_sheet(to_uint8(self.images), columns))

    def _repr_png_(self) -> bytes | None:
        """The first 64 images for a notebook; None for images that have no PNG, such as those of 5 channels."""
        if not len(self.images) or not 1 <= self.images.shape[1] <= 4:
            return None
        png = io.BytesIO()
        replace(self, images=self.images[:IN_SHEET]).sheet().save(png, format="PNG")
        return png.getvalue()

    def __repr__(self) -> str:
        count, *shape = self.images.shape
        return (
            f"Result({counted(count, 'image')} of shape {tuple(shape)}, {self.images.dtype} on {self.images.device}, "
            f"{self.nfe:.4g} evaluations per image in {counted(len(self.angles) - 1, 'step')})"
        )


def sample(
    denoise: Denoise,
    noise: Tensor,
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    *,
    labels: Tensor | Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    projection: str | None = None,
    **options: Any,
) -> Result:
    """Turn noise into images.

    Args:
        denoise: a `Denoiser`, or any callable `(x, angle) -> Estimate`.
        noise: standard normal noise, shape (B, C, H, W); dtype and device are kept.
        sampler, steps, grid, guidance, projection, options: as for `quarterarc.Sampling`.
        labels: classes, int64, shape (B,), for a denoiser with classes.
        seeds: one per image. The noise that a stochastic sampler adds to an image is then drawn from the stream of its
            seed, independent of the batch; if None, from torch's global generator.

    Raises:
        InputError: for an unknown name or option, steps below 1 or in contradiction to the grid, seeds or labels that
            are not one per image, a grid outside the denoiser's angles, or images with noise added in place of noise
            (`quarterarc.edit.image_to_image`).
    """
    plan = Sampling.of(sampler, steps, grid, options, guidance, projection).plan(denoise, noise.shape[1:])
    check_noise(noise, plan.angles[0])
    return run(plan, noise, labels=labels, seeds=seeds)


def run(
    plan: Plan, noise: Tensor, *, labels: Tensor | Sequence[int | str] | None = None, seeds: Sequence[int] | None = None
) -> Result:
    """Sample by a plan; arguments and errors as for `sample`."""
    evaluator, states = plan.states(noise, labels, seeds)
    x = noise
    for state in states:
        x = state.x
    return Result(x, evaluator.nfe, plan.angles)


def trajectory(
    denoise: Denoise,
    noise: Tensor,
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    *,
    labels: Tensor | Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    projection: str | None = None,
    **options: Any,
) -> Iterator[State]:
    """The states from noise to image, one per angle of the grid; arguments as for `sample`.

    Invalid arguments raise when this function is called, before the first state.
    """
    plan = Sampling.of(sampler, steps, grid, options, guidance, projection).plan(denoise, noise.shape[1:])
    check_noise(noise, plan.angles[0])
    _, states = plan.states(noise, labels, seeds)
    return states
