"""Contact sheets of images with classes: one row per class."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["labels_of_sheet", "rows_of"]


def labels_of_sheet(classes: int, count: int) -> list[int]:
    """The labels of about `count` images for a sheet of one row per class, row by row.

    With so many classes that a row would have one image only, the sheet is a square of evenly spread classes.
    """
    shown = _shown(classes, count)
    return [label for label in shown for _ in range(max(1, count // len(shown)))]


def _shown(classes: int, count: int) -> list[int]:
    """The numbers of the rows of a sheet, of so many classes."""
    rows = classes if 2 * classes <= count else min(classes, math.isqrt(count))
    return [place * classes // rows for place in range(rows)]


def rows_of(labels: Sequence[int | None], count: int, names: Sequence[str] = ()) -> tuple[list[list[int]], list[str]]:
    """The rows of a sheet of about `count` images, one per class, ascending.

    Args:
        labels: the label of each image; images without one are left out.
        count: the images of the whole sheet.
        names: the names of the classes; empty where they have none.

    Returns:
        The places of the images in each row, and the name of its class, or its label.
    """
    rows: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(place)
    present = sorted(rows)
    shown = [present[place] for place in _shown(len(present), count)]
    columns = max(1, count // max(1, len(shown)))
    return [rows[label][:columns] for label in shown], [names[label] if names else str(label) for label in shown]
