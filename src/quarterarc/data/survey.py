"""A look at images of a source before it is used: their sizes, what is done to them, and what is probably a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..common.errors import InputError
from ..common.text import counted
from .decode import GRAY_MODES, Look, look
from .images import in_order
from .sources import Source
from .spec import DataSpec

__all__ = ["changes", "survey"]

_LOOKED_AT, _DECODED = 500, 32  # images, evenly spread
_DARK = 2**14  # two of 16 bits are unused
_WHITE = (255, 1023, 4095, 16383)  # the largest values of 8, 10, 12 and 14 bits
_SHAPES = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1))  # aspect ratios with a name
_OTHER = "other shapes"
_OFTEN = 0.1  # smallest share of the images that have the most frequent size, for it to be mentioned
_SAME_SHAPE = 0.02  # relative difference of the aspect ratios of one shape


def survey(source: Source, spec: DataSpec) -> tuple[str, ...]:
    """Notes for the log on the images of a source, from at most 500 of them.

    Raises:
        InputError: if all 16-bit images among them are nearly black, as those of 12-bit cameras are, unless
            `spec.range` is set.
    """
    places, decoded = (_spread(source.count, most) for most in (_LOOKED_AT, _DECODED))

    def seen(number: int) -> tuple[int, Look | None]:
        try:
            return number, look(source.read(number), spec, pixels=number in decoded)
        except InputError:  # raised when the image is used
            return number, None

    looks = {number: found for number, found in in_order(seen, sorted(places | decoded)) if found is not None}
    _check_range(source, spec, looks.values())
    notes = [*_sizes(looks.values(), spec), *_changes(looks.values(), spec)]
    if notes and len(places | decoded) < source.count:
        notes.insert(0, f"of the {counted(source.count, 'image')}, {len(looks)} were looked at:")
    return (*notes, *_moving(source, spec, looks))


def _spread(count: int, most: int) -> set[int]:
    return set(np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist())


def _check_range(source: Source, spec: DataSpec, looks: Iterable[Look]) -> None:
    highest = [seen.highest for seen in looks if seen.highest is not None]
    if spec.range is None and highest and 0 < max(highest) < _DARK:
        white = next(value for value in _WHITE if max(highest) <= value)
        raise InputError(
            f"{source.what}: the 16-bit images reach {max(highest):,} of 65,535 only and would be nearly black: set "
            f"data.range=0,{white} if they have {white.bit_length()} bits, data.range=0,65535 if they are meant to "
            "be this dark, or save them with 8 bits"
        )


def _sizes(looks: Iterable[Look], spec: DataSpec) -> Iterator[str]:
    """The sizes of the images, if they differ from the size in the recipe, and the cropping or stretching of others."""
    sizes = Counter((seen.height, seen.width) for seen in looks)
    target = (spec.height, spec.width)
    if not sizes or set(sizes) == {target}:
        return
    (usual, count), *_ = sizes.most_common(1)
    low, high = min(sizes, key=_area), max(sizes, key=_area)
    if len(sizes) == 1:
        yield f"all have {_pixels(usual)} (height x width), and are resized to {_pixels(target)}"
    else:
        often = f", most often {_pixels(usual)} ({count:,})" if count >= _OFTEN * sizes.total() else ""
        yield (
            f"{len(sizes)} sizes (height x width), from {_pixels(low)} to {_pixels(high)}{often}; resized to "
            f"{_pixels(target)}"
        )
    if not isinstance(spec.crop, str):
        return
    shapes: Counter[str] = Counter()
    for (height, width), number in sizes.items():
        if abs(width / height * spec.height / spec.width - 1) > _SAME_SHAPE:
            shapes[_shape(height, width)] += number
    if shapes:
        into = "squares" if spec.height == spec.width else f"{spec.width}:{spec.height}"
        others = {_OTHER: shapes.pop(_OTHER)} if _OTHER in shapes else {}  # last, however many
        listed = ", ".join(f"{number:,} of {shape}" for shape, number in [*shapes.most_common(), *others.items()])
        if spec.crop == "center":
            yield f"cropped to {into}: {listed} (width:height)"
        else:
            yield f"stretched to {into}: {listed} (width:height); data.crop=center crops them instead"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _shape(height: int, width: int) -> str:
    """The aspect ratio of an image, width to height: "4:3", "9:16", "other shapes"."""
    for long, short in _SHAPES:
        for ratio in ((long, short), (short, long)):
            if abs(width / height * ratio[1] / ratio[0] - 1) <= _SAME_SHAPE:
                return f"{ratio[0]}:{ratio[1]}"
    return _OTHER


def _changes(looks: Iterable[Look], spec: DataSpec) -> Iterator[str]:
    """What is converted, with the number of images: "converted: 12 colour read as gray"."""
    numbers = Counter(what for seen in looks for what in changes(seen, spec))
    if numbers:
        yield "converted: " + ", ".join(f"{number:,} {what}" for what, number in numbers.most_common())


def changes(seen: Look, spec: DataSpec) -> list[str]:
    """What is converted of one image: "colour read as gray"."""
    opaque, gray = spec.channels in (1, 3), seen.mode in GRAY_MODES
    table = (
        ("colour read as gray", spec.channels < 3 and not gray),
        ("gray read as RGB", spec.channels > 2 and gray),
        ("CMYK read as RGB", spec.channels > 2 and seen.mode == "CMYK"),
        ("transparent over white", opaque and seen.alpha),
        ("to sRGB by their ICC profile", seen.profile),
        ("turned upright (EXIF)", seen.turned),
        ("to 8 bits from more", seen.deep),
        ("enlarged, which blurs them", seen.height < spec.height or seen.width < spec.width),
    )
    return [what for what, applies in table if applies]


def _moving(source: Source, spec: DataSpec, looks: Mapping[int, Look]) -> Iterator[str]:
    moving = [number for number, seen in looks.items() if seen.frames > 1]
    if moving and spec.pages == "auto":
        yield (
            f"{len(moving)} of {counted(len(looks), 'image')} looked at are animations, of which the first frame is "
            f"used (data.pages=one makes that an error): {source.name(moving[0])}"
        )
