"""The end of `sample --help` and `tune --help`: samplers with their options, and grids, from the registries."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from functools import partial
from typing import Any

__all__ = ["grid_listing", "paragraph", "sampler_listing", "summary", "written"]

COLUMN = 24


def sampler_listing() -> str:
    """Every registered sampler with its options, their defaults and meanings."""
    from ..samplers import SAMPLERS, sampler_options

    lines = ["samplers (--sampler) and their options (--option NAME=VALUE):"]
    for name, entry in SAMPLERS.items():
        lines.append(_entry(name, summary(entry)))
        for option in sampler_options(name):
            value = "required" if option.required else option.shown_default
            lines.append(_entry(option.name, f"{option.description} (default: {value})", indent=4))
    return "\n".join(lines)


def grid_listing(flag: str = " (--grid)") -> str:
    """Every registered grid with its summary; `flag` is the option that takes one, in the heading."""
    from ..grids import GRIDS

    lines = [f"grids{flag}:", *(_entry(name, summary(entry)) for name, entry in GRIDS.items())]
    lines.append(_entry("tuned", "the grid that `quarterarc tune` fitted to this network"))
    return "\n".join(lines)


def paragraph(entry: Any) -> str:
    """The first paragraph of the docstring of a class or function, a partial one included; empty without one."""
    if isinstance(entry, partial) and entry.__doc__ == partial.__doc__:
        return paragraph(entry.func)
    return (inspect.getdoc(entry) or "").partition("\n\n")[0]


def summary(entry: Any) -> str:
    """The first sentence of a docstring, in one line; empty without one."""
    return re.split(r"(?<!al)(?<!Eq)\.\s", " ".join(paragraph(entry).split()) + " ", maxsplit=1)[0].strip()


def written(value: Any) -> str:
    """A value as the command line and YAML write it: `null`, `true`, `0.5`, `octave`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(name: str, meaning: str, indent: int = 2) -> str:
    width = shutil.get_terminal_size().columns - 2
    first, margin = " " * indent + name, " " * COLUMN
    lines = textwrap.wrap(meaning, max(width - COLUMN, 20))
    if lines and len(first) < COLUMN - 1:
        first = first.ljust(COLUMN) + lines.pop(0)
    return "\n".join([first, *(margin + line for line in lines)])
