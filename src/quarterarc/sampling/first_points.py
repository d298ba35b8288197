"""A check of the points that `sample` and `trajectory` start from: partly noised images are no noise."""

from __future__ import annotations

import math

from torch import Tensor

from ..common.errors import InputError

__all__ = ["check_noise"]

_NOISE_FROM = 0.95 * math.pi / 2
"""Angles at which the image has less than 1/12 of the noise's size."""
_CORRELATION, _DEVIATIONS = 0.1, 8.0


def check_noise(x: Tensor, angle: float) -> None:
    """Raise an InputError for points of the noise end whose neighbouring pixels are correlated, as those of images are.

    Noise has independent pixels: the correlation over N pairs has the standard deviation 1/sqrt(N), at any scale of the
    noise. Correlations above 0.1 and above 8 standard deviations are an error. One number is read from the device.

    Args:
        x: points, shape (B, C, H, W).
        angle: their angle; nothing is checked below 0.95 quarter turns.
    """
    if angle < _NOISE_FROM or x.ndim != 4 or x.is_meta:
        return
    values = x.detach().float()
    pairs = [(values[..., 1:], values[..., :-1]), (values[..., 1:, :], values[..., :-1, :])]
    number = sum(first.numel() for first, _ in pairs)
    products = sum((first * second).sum() for first, second in pairs)
    sizes = sum((first.square().sum() + second.square().sum()) / 2 for first, second in pairs)
    correlation = float(products / sizes) if number else 0.0
    if abs(correlation) > max(_CORRELATION, _DEVIATIONS / math.sqrt(max(number, 1))):
        raise InputError(
            f"the grid starts at angle {angle:.4g}, in noise, but neighbouring pixels of x have a correlation of "
            f"{correlation:.2f}, as those of images do: for an image call quarterarc.edit.image_to_image(denoise, "
            "image, strength, seeds=...), for a point of the arc give grid=[its angle, ..., 0], and for the noise of "
            "an image unlike the data (quarterarc.encode) call quarterarc.decode"
        )
