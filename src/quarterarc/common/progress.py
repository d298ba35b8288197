"""Progress bars."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from tqdm import TqdmMonitorWarning, tqdm

from .text import printable

__all__ = ["progress_bar", "shown"]

warnings.simplefilter("ignore", TqdmMonitorWarning)  # where the system allows no further thread, bars need none


def progress_bar(total: int | None, unit: str, description: str, show: bool = True, **options: Any) -> tqdm[Any]:
    """A progress bar on the error stream, as a context manager.

    Args:
        total: number of units; None if unknown.
        unit: unit of progress, in the singular: "image".
        description: text before the bar.
        show: whether to show the bar on a terminal; it is never shown in a pipe or a log file.
        options: further options of `tqdm`.
    """
    return tqdm(
        total=total,
        unit=unit,
        desc=printable(description),
        disable=None if show else True,
        dynamic_ncols=True,
        **options,
    )


def shown(show: bool) -> bool:
    """Whether `progress_bar` shows a bar: `show`, and the error stream is a terminal. For bars of other libraries."""
    return show and sys.stderr.isatty()
