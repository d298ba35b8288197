"""`DataSpec`: the section of a recipe that describes the data."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from ..common.limits import LARGEST_SIDE
from ..common.sections import Section

__all__ = ["DataSpec"]

Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Box = tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt]


class DataSpec(Section):
    """The source of the images and their preparation.

    An image is scaled to 8 bits, rotated upright (EXIF orientation), cropped, converted to sRGB (ICC profile) and to
    `channels`, and resized, in this order.
    """

    source: Annotated[str, Field(min_length=1)]
    """`digits` (comes with the package), a folder of images, a `*.zip` or `*.tar` file, pattern or folder of images,
    which are read in place, a `*.npy` or `*.npz` file of images, a `*.parquet` file, pattern or folder, a folder
    written by `save_to_disk` of the library `datasets`, an LSUN LMDB folder, `hub:owner/name` or
    `hub:owner/name:config` (Hugging Face hub), `cifar10`, `celeba`, `memory` (images given as objects in Python), or
    `teacher` (images that the teacher of a distillation makes). A folder named like one of these is written
    `./digits`."""
    split: str = "train"
    """The split of a hub dataset, of a folder of parquet files with split names, of a saved `DatasetDict`, or of a
    folder or archive of images whose folders at the top are called `train`, `val` and `test`."""
    image_column: str | None = None
    """The image column of a table: encoded images, or paths below the folder of the table. Default: the only column of
    images, or the one named `image` or `img`."""
    label_column: str | None = None
    """The label column of a table: integers from 0, or text, whose distinct values in sorted order are the classes.
    Default: the only column of classes, or else of integers, or the one named `label`, `labels` or `class`."""
    size: Side | tuple[Side, Side]
    """Size of the images in pixels: one number for a square, or (height, width)."""
    channels: Literal[1, 2, 3, 4] = 3
    """1: gray, 2: gray and alpha, 3: RGB, 4: RGBA. Gray is the luma of ITU-R 601. Without an alpha channel, transparent
    images are composited over white; with one, opaque images get alpha 255."""
    crop: Literal["none", "center"] | Box = "none"
    """`none`: the whole image is resized, which stretches other aspect ratios. `center`: the largest centred box with
    the aspect ratio of `size`. (top, left, height, width): this box of pixels; smaller images are an error. DDIM's crop
    of CelebA is (57, 25, 128, 128)."""
    resize: Literal["area", "bilinear", "bicubic", "lanczos"] = "area"
    """Antialiased filter of the resizing; an image or box that already has `size` is not filtered."""
    pages: Literal["auto", "one", "first"] = "auto"
    """Files of several pages or frames: `first` uses the first one, `one` is an error for them. `auto`: the first frame
    of an animation (GIF, WebP, PNG, AVIF), which the log mentions, and an error for the pages of a TIFF stack."""
    range: tuple[float, float] | None = None
    """The values of black and white, LOW,HIGH, in gray images and NumPy arrays of more than 8 bits: 0,4095 for 12 bits
    in a 16-bit file, 0,1 for floating point; values beyond are clipped. Default: 0..65535 for unsigned 16 bits, the
    range of the format for other TIFFs, and an error for signed or 32-bit integers and floats."""
    flip: bool = False
    """Mirror each image horizontally with probability 1/2 in training."""
    augment: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = 0.0
    """For small sets: the probability in training of each of five movements of an image (vertical mirror, scale,
    rotation, stretch, shift), whose parameters are a condition of the U-Net, so that samples are not moved (EDM).
    `auto`: 0.15 for at most 5,000 images, otherwise 0."""
    labels: bool | Literal["folder", "file", "column"] = False
    """Read class labels. `folder`: the names of the folders of images are the classes, numbered in sorted order.
    `file`: dataset.json, as EDM and StyleGAN write it, or a file `000.cls` beside each image `000.jpg` (WebDataset).
    `column`: the label column of a table. `true`: the one of these that the source has; of several, `file`."""
    label_level: int | Literal["auto"] = "auto"
    """The level of the folders whose names are the classes: 1 for the top, 2 for the folders in these, -1 for the
    folder of the image itself, -2 for the one around it. `auto`: the first level with more than one folder. Folders
    called `train`, `val` and so on at the top are no level: `split` chooses among them."""
    balanced: bool = False
    """With labels: the classes take turns in training, so that each occurs equally often; images of a small class are
    repeated more often."""
    skip_bad: bool = False
    """Leave out images that cannot be read or are smaller than the crop box, instead of raising an error. The log names
    the first ones, and skipped.json in the run folder all."""
    max_pixels: PositiveInt = 2**26
    """The largest image that is decoded, in pixels as stored, checked before decoding; larger ones are unusable images.
    All worker threads together decode at most 4 * `max_pixels` at a time. A pixel takes up to 64 bytes meanwhile. An
    encoded image of more than 8 * `max_pixels` bytes and 16 MB is not read."""
    limit: PositiveInt | None = None
    """Use only the first `limit` images of the source; with labels the first ones of each class, equally many as far as
    it has them. Skipped ones count."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the images that training never uses. The log has their loss beside that of training, and
    `quarterarc evaluate RUN --metrics nearest` their distances."""
    memory: Literal["auto", "memory", "stream"] = "auto"
    """`memory`: decode all images into one tensor on the device. `stream`: decode on demand; a hub dataset is streamed
    instead of downloaded. `auto`: `memory` if the pixels fit `memory_limit_gb`, otherwise on demand."""
    stream_parts: PositiveInt = 1
    """Parts of a streamed hub dataset, each with files of its own; examples are taken from the parts in turn. A process
    of several downloads its own parts if the number of processes divides that of the parts, and otherwise more."""
    memory_limit_gb: Annotated[float, Field(gt=0)] = 4.0
    """Limit of `auto`: images * channels * height * width bytes, in units of 1e9 bytes."""

    @field_validator("label_level")
    @classmethod
    def _a_level(cls, level: int | str) -> int | str:
        if level == 0:
            raise ValueError("expected 1 for the folders at the top, or -1 for the folder of the image")
        return level

    @field_validator("range")
    @classmethod
    def _ascending(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits is not None and not (math.isfinite(limits[0] + limits[1]) and limits[0] < limits[1]):
            raise ValueError("expected two finite numbers, the first below the second")
        return limits

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest encoded image that is read: 8 per pixel, as of uncompressed 16-bit RGBA, and 16 MB."""
        return 8 * self.max_pixels + 2**24

    @property
    def height(self) -> int:
        """Height of the images in pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Width of the images in pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]
