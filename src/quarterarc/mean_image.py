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

from .common.devices import send
from .common.errors import InputError
from .common.hashes import digest
from .estimate import Estimate

__all__ = ["MeanImage"]

_NUMBERS = {"float32": "<f4", "float64": "<f8"}


@dataclass(frozen=True)
class MeanImage:
    """The image estimate at the first angle: one for all images, or one per class.

    At pi/2 the point is pure noise, and the mean of the image given the point is the mean of the data. Below it the
    point carries a trace of its image, which the mean leaves out.

    Attributes:
        shape: (K, C, H, W); K is 1 without classes, else the number of classes, and one more for images without a
            label where a network can do without.
        pixels: little-endian bytes, K C H W numbers.
        dtype: of the numbers, `float32` or `float64`.

    Raises:
        ValueError: for a shape that does not fit the pixels, pixels that are not finite, or another dtype.
    """

    shape: tuple[int, int, int, int]
    pixels: bytes = field(repr=False)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _NUMBERS:
            raise ValueError(f"a mean image has the dtype {' or '.join(_NUMBERS)}, got {self.dtype!r}")
        size = np.dtype(_NUMBERS[self.dtype]).itemsize
        if len(self.shape) != 4 or min(self.shape) < 1 or size * math.prod(self.shape) != len(self.pixels):
            raise ValueError(f"a mean image of shape {self.shape} has {len(self.pixels)} bytes")
        if not bool(self.images.isfinite().all()):
            raise ValueError("a mean image has pixels that are not finite")

    @classmethod
    def of(cls, images: Tensor) -> MeanImage:
        """From images, shape (K, C, H, W); those of other dtypes than float64 become float32.

        Raises:
            ValueError: for images of another number of dimensions, or pixels that are not finite.
        """
        if images.ndim != 4:
            raise ValueError(f"mean images have the shape (K, C, H, W), got {tuple(images.shape)}")
        classes, channels, height, width = images.shape
        dtype = "float64" if images.dtype == torch.float64 else "float32"
        numbers = images.detach().to("cpu", getattr(torch, dtype)).numpy().astype(_NUMBERS[dtype])
        return cls((classes, channels, height, width), numbers.tobytes(), dtype)

    @cached_property
    def images(self) -> Tensor:
        """The images, shape (K, C, H, W)."""
        numbers = np.frombuffer(self.pixels, _NUMBERS[self.dtype]).astype(self.dtype)
        return torch.from_numpy(numbers.reshape(self.shape))

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the pixels."""
        return digest(self.shape, self.pixels)

    def estimate(self, x: Tensor, angle: float, labels: Tensor | None = None) -> Estimate:
        """The mean, and the noise that agrees with it on x, without an evaluation.

        Args:
            x: points, shape (B, C, H, W).
            angle: their angle, above 0.
            labels: classes, int64, shape (B,); None for images without a label.

        Raises:
            InputError: for points of another shape than the images.
        """
        if x.shape[1:] != self.shape[1:]:
            raise InputError(
                f"the first estimate is known for images of shape {self.shape[1:]} alone, got {tuple(x.shape[1:])}: "
                "give noise of that shape, or a grid that is not tuned"
            )
        images = send(self.images, x.device, x.dtype)
        image = images[-1:] if labels is None or len(images) == 1 else images[labels]
        noise = (x - math.cos(angle) * image) / math.sin(angle)
        return Estimate(image.expand_as(x), noise)

    def guided(self, scale: float) -> MeanImage | None:
        """The mean under classifier-free guidance; None if it is not finite.

        That of images without a label, the last one, is not changed by it.
        """
        without = self.images[-1:]
        guided = without + scale * (self.images - without)
        return MeanImage.of(guided) if bool(guided.isfinite().all()) else None

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        return {"shape": list(self.shape), self.dtype: base64.b64encode(self.pixels).decode("ascii")}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> MeanImage:
        """From `describe`'s JSON types.

        Raises:
            KeyError, TypeError, ValueError: for a value that does not describe a mean image.
        """
        classes, channels, height, width = (int(size) for size in value["shape"])
        dtype = "float64" if "float64" in value else "float32"
        return cls((classes, channels, height, width), base64.b64decode(value[dtype], validate=True), dtype)
