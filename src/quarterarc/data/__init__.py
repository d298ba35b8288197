"""Image data: sources, decoding to uint8 tensors, and the order of a training run.

`open_data(DataSpec(source=..., size=...))` opens any source, `from_memory(images)` a tensor, an array, PIL images or a
`datasets.Dataset`; `to_float` and `to_uint8` convert 8-bit pixels to [-1, 1] and back; the module `order` computes the
order of the images of a run. Names are imported on first use, so importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .images import ImageData, RawBatch, is_open
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
    "is_open",
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
    "is_open": "images",
    "memory_spec": "memory",
    "open_data": "loading",
    "to_float": "pixels",
    "to_uint8": "pixels",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
