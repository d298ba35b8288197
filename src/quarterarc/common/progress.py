"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar", "shown"]


def progress_bar(total: int | None, unit: str, description: str, show: bool = True, **options: Any) -> tqdm[Any]:
    """A progress bar on the error stream, as a context manager.

    Args:
        total: how many units there are; None if unknown.
        unit: the unit of progress, in the singular: "image".
        description: the text before the bar.
        show: False for no bar. True shows it on a terminal and not in a pipe or a log file.
        options: further options of `tqdm`.
    """
    return tqdm(total=total, unit=unit, desc=description, disable=None if show else True, dynamic_ncols=True, **options)


def shown(show: bool) -> bool:
    """Whether `progress_bar` shows a bar: `show`, and the error stream is a terminal. For bars of other libraries."""
    return show and sys.stderr.isatty()
