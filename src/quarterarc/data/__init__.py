"""Images for training: where they come from, how they become one uint8 tensor, and in which order they are seen.

`open_data(DataSpec(source=..., size=...))` opens any source; `to_float` and `to_uint8` lead from 8-bit pixels to
[-1, 1] and back; the module `order` says which image a run sees when. Importing this package imports nothing heavy:
each name is fetched from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .images import ImageData, RawBatch
    from .loading import from_memory, open_data
    from .memory import memory_spec
    from .pixels import apply_flips, to_float, to_uint8
    from .spec import DataSpec

__all__ = [
    "DataSpec",
    "ImageData",
    "RawBatch",
    "apply_flips",
    "from_memory",
    "memory_spec",
    "open_data",
    "to_float",
    "to_uint8",
]

_HOMES = {
    "DataSpec": "spec",
    "ImageData": "images",
    "RawBatch": "images",
    "apply_flips": "pixels",
    "from_memory": "loading",
    "memory_spec": "memory",
    "open_data": "loading",
    "to_float": "pixels",
    "to_uint8": "pixels",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
