"""The mean of the data, which is the image estimate where x is pure noise, known without an evaluation."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.devices import send
from ..denoiser import Denoise
from ..estimate import Estimate
from ..wrappers import Evaluator

__all__ = ["MeanImage"]


@dataclass(frozen=True)
class MeanImage:
    """The image estimate at the first angle: one for all images, or one per class.

    At pi/2 the point is pure noise, and the mean of the image given the point is the mean of the data. Below it the
    point carries a trace of its image, which the mean leaves out.

    Attributes:
        shape: (K, C, H, W); K is 1 without classes, else the number of classes, and one more for images without a
            label where a network can do without.
        pixels: float32 in little-endian bytes, K C H W numbers.

    Raises:
        ValueError: for a shape that does not fit the pixels, or pixels that are not finite.
    """

    shape: tuple[int, int, int, int]
    pixels: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1 or 4 * math.prod(self.shape) != len(self.pixels):
            raise ValueError(f"a mean image of shape {self.shape} has {len(self.pixels)} bytes")
        if not bool(self.images.isfinite().all()):
            raise ValueError("a mean image has pixels that are not finite")

    @classmethod
    def of(cls, images: Tensor) -> MeanImage:
        """From images, shape (K, C, H, W)."""
        classes, channels, height, width = images.shape
        return cls((classes, channels, height, width), images.cpu().float().numpy().astype("<f4").tobytes())

    @cached_property
    def images(self) -> Tensor:
        """The images, float32, shape (K, C, H, W)."""
        return torch.from_numpy(np.frombuffer(self.pixels, "<f4").astype(np.float32).reshape(self.shape))

    def estimate(self, denoise: Denoise, x: Tensor, angle: float) -> Estimate:
        """The mean, and the noise that agrees with it on x, without an evaluation.

        Args:
            denoise: the denoiser that a sampler is given, which holds the labels.
            x: points, shape (B, C, H, W).
            angle: their angle, above 0.
        """
        labels = denoise.labels if isinstance(denoise, Evaluator) else None
        images = send(self.images, x.device, x.dtype)
        image = images[-1:] if labels is None or len(images) == 1 else images[labels]
        noise = (x - math.cos(angle) * image) / math.sin(angle)
        return Estimate(image.expand_as(x), noise)

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        return {"shape": list(self.shape), "float32": base64.b64encode(self.pixels).decode("ascii")}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> MeanImage:
        """From `describe`'s JSON types.

        Raises:
            KeyError, TypeError, ValueError: for a value that does not describe a mean image.
        """
        classes, channels, height, width = (int(size) for size in value["shape"])
        return cls((classes, channels, height, width), base64.b64decode(value["float32"], validate=True))
