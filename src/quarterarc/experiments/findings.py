"""The content of a report: tables, charts, pictures and claims, independent of Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .claims import Claim

__all__ = ["Chart", "Findings", "Picture", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: the heading.
        header: one cell per column.
        rows: one sequence of cells per row.
        note: an explanation below the table.
        words: the columns that contain words and are aligned to the left; all others contain numbers.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = (0,)


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        name: the file name without its ending.
        svg: the chart for wide and narrow screens, as of `responsive_chart`.
        caption: a description.
    """

    name: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A contact sheet of images.

    Attributes:
        name: the file name in the report, without its ending.
        path: the PNG file to copy from.
        caption: a description.
    """

    name: str
    path: Path
    caption: str = ""


Part: TypeAlias = Table | Chart | Picture


@dataclass(frozen=True)
class Section:
    """A section of a report: a title, text, and tables, charts or pictures."""

    title: str
    text: str = ""
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Findings:
    """The content of an experiment's report: its sections, and the claims with their verdicts."""

    sections: Sequence[Section]
    claims: Sequence[Claim] = field(default_factory=tuple)
