"""The mean image of a denoiser, measured by a few evaluations of pure noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..arc import NOISE_END, ROUNDING
from ..common.errors import InputError
from ..denoiser import Denoise, Denoiser, call, mean_images_of, traits
from ..mean_image import MeanImage
from .generation import first_noise

__all__ = ["mean_image", "with_mean_image"]

FIRST_SEED, POINTS = 2_000_000_000, 8
"""The points that the mean is measured at: the first seed of their noise, far from common ones and those of `tuning`,
and their largest number per class; the estimate depends little on the point."""
BATCH = 64
"""Points at once, and those of all classes together where this is at least one per class."""
LARGEST = 2**22
"""Largest size of the mean images of all classes, in numbers: they are stored with each checkpoint or tuned grid."""


@torch.no_grad()
def mean_image(denoise: Denoise, shape: Sequence[int] | None = None, batch: int = BATCH) -> MeanImage | None:
    """The image estimate at the largest angle, averaged over points, by class.

    Args:
        denoise: a denoiser.
        shape: (C, H, W) of its images, if it does not declare it.
        batch: points at once.

    Returns:
        None if it has more than 4 million numbers, or is not finite.
    """
    declared = traits(denoise)
    count = mean_images_of(declared.classes, declared.unlabelled)
    each = max(1, min(POINTS, BATCH // count))
    points = first_noise(denoise, range(FIRST_SEED, FIRST_SEED + each), shape)
    if count * points[0].numel() > LARGEST:
        return None
    sums = points.new_zeros(count, *points.shape[1:], dtype=torch.float32)
    for part in torch.arange(count * each, device=points.device).split(batch):
        classes = part // each
        labels = None if declared.classes is None else classes
        images = call(denoise, points[part % each], declared.largest_angle, labels).image.float()
        sums.index_add_(0, classes, images)
    images = sums / each
    return MeanImage.of(images) if bool(images.isfinite().all()) else None


def with_mean_image(denoise: Denoiser, batch: int = BATCH) -> Denoiser:
    """The denoiser with its mean image, by which the first step of `multistep` takes no evaluation.

    Args:
        denoise: a denoiser, whose mean image is measured if it is not known, by up to 8 evaluations per class.
        batch: images at once.

    Returns:
        The denoiser itself if its angles end below pi/2, or it does not declare the shape of its images; without a mean
        image if the images of all classes have more than 4 million numbers, or are not finite.

    Raises:
        InputError: for anything but a `Denoiser`: other denoisers declare their mean image by their traits.
    """
    if not isinstance(denoise, Denoiser):
        raise InputError(
            f"the mean image is kept in a Denoiser, got a {type(denoise).__name__}: give the one that it wraps, or "
            "declare traits = quarterarc.Traits(mean_image=...)"
        )
    known = denoise.traits.mean_image is not None
    if known or denoise.shape is None or denoise.largest_angle <= NOISE_END - ROUNDING:
        return denoise
    return replace(denoise, mean_image=mean_image(denoise, batch=batch))
