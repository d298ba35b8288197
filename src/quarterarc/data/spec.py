"""What to train on, as a validated, frozen object: the part of a recipe that describes the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ..common.sections import Section

__all__ = ["DataSpec"]

Box = tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt]


class DataSpec(Section):
    """Where the images are and what the network sees of them.

    An image is turned upright (EXIF), cropped, brought to `channels`, and resized, in this order.
    """

    source: Annotated[str, Field(min_length=1)]
    """`digits` (comes with the package), a folder of images, a `*.parquet` file, glob or folder, a folder made by
    `datasets.save_to_disk`, an LSUN LMDB folder, `hub:owner/name` or `hub:owner/name:config`, `cifar10`, `celeba`.
    A path that looks like one of the names is written `./digits`."""
    split: str = "train"
    """The split of a hub dataset, of a folder of parquet files named by split, or of a saved `DatasetDict`."""
    image_column: str | None = None
    """The column of the images; found by its type, or by the names `image` and `img`, when not given."""
    label_column: str | None = None
    """The column of the labels; found by its type, or by the names `label` and `labels`, when not given."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt]
    """What the network sees, in pixels: one number for a square, or (height, width)."""
    channels: Literal[1, 2, 3, 4] = 3
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGBA. Gray is the luma of ITU-R 601. Without an alpha channel, transparent
    images are shown over white; with one, opaque images get alpha 255."""
    crop: Literal["none", "center"] | Box = "none"
    """`none`: the whole image is resized, so another aspect ratio is stretched. `center`: the largest centred box with
    the aspect ratio of `size`. (top, left, height, width): that box of pixels; smaller images are refused.
    CelebA as published for DDIM is (57, 25, 128, 128)."""
    resize: Literal["area", "bilinear", "bicubic", "lanczos"] = "area"
    """The antialiased filter; an image (or box) that has `size` already is left alone."""
    flip: bool = False
    """Mirror images left to right at random while training."""
    labels: bool = False
    """Read class labels: the label column, or the first-level subfolders of a folder in sorted order."""
    skip_bad: bool = False
    """Leave out, and count, images that cannot be read or are smaller than the crop box."""
    limit: PositiveInt | None = None
    """Only the first `limit` entries of the source (unreadable ones among them included)."""
    memory: Literal["auto", "memory", "stream"] = "auto"
    """`memory`: all pixels in one tensor on the device. `stream`: read when needed. `auto`: in memory if they fit."""
    memory_limit_gb: Annotated[float, Field(gt=0)] = 4.0
    """What fits, for `auto`: images * channels * height * width bytes of at most this many 1e9 bytes."""

    @property
    def height(self) -> int:
        """Height in pixels of what the network sees."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Width in pixels of what the network sees."""
        return self.size if isinstance(self.size, int) else self.size[1]
