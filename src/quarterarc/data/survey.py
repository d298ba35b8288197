"""A look at some images of a source before it is used: what the log mentions, and what is probably a mistake."""

from __future__ import annotations

import numpy as np

from ..common.errors import InputError
from ..common.text import counted
from .decode import look
from .sources import Source
from .spec import DataSpec

__all__ = ["survey"]

_LOOKED_AT = 32  # images, evenly spread
_DARK = 2**14  # two of 16 bits are unused
_WHITE = (255, 1023, 4095, 16383)  # the largest values of 8, 10, 12 and 14 bits


def survey(source: Source, spec: DataSpec) -> tuple[str, ...]:
    """Notes for the log on the images of a source, from at most 32 of them.

    Raises:
        InputError: if all 16-bit images among them are nearly black, as those of 12-bit cameras are, unless
            `spec.range` is set.
    """
    places = np.unique(np.linspace(0, source.count - 1, _LOOKED_AT).round().astype(int))
    looks = []
    for number in places.tolist():
        try:
            seen = look(source.read(number), spec)
        except InputError:  # raised when the image is used
            continue
        if seen is not None:
            looks.append((number, seen))
    highest = [seen.highest for _, seen in looks if seen.highest is not None]
    if spec.range is None and highest and 0 < max(highest) < _DARK:
        white = next(value for value in _WHITE if max(highest) <= value)
        raise InputError(
            f"{source.what}: the 16-bit images reach {max(highest):,} of 65,535 only and would be nearly black: set "
            f"data.range=[0,{white}] if they have {white.bit_length()} bits, data.range=[0,65535] if they are meant to "
            "be this dark, or save them with 8 bits"
        )
    moving = [number for number, seen in looks if seen.frames > 1]
    if moving and spec.pages == "auto":
        return (
            f"{len(moving)} of {counted(len(looks), 'image')} looked at are animations, of which the first frame is "
            f"used (data.pages=one makes that an error): {source.name(moving[0])}",
        )
    return ()
