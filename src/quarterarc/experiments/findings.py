"""Findings: what an experiment reports, as plain objects that can be written as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .claims import Claim

__all__ = ["Chart", "Findings", "Picture", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """Rows of text below a header.

    Attributes:
        name: of its file and heading.
        header: one cell a column.
        rows: as many cells each.
        note: what a reader needs to know to read it.
        words: the columns that hold words, which stand to the left; all others hold numbers.
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
        name: of its file.
        svg: the chart.
        caption: what it shows.
    """

    name: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of images.

    Attributes:
        name: of its file.
        path: where it is now, a PNG.
        caption: what it shows.
    """

    name: str
    path: Path
    caption: str = ""


Part: TypeAlias = Table | Chart | Picture


@dataclass(frozen=True)
class Section:
    """Some text and what belongs to it."""

    title: str
    text: str = ""
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Findings:
    """All that an experiment reports: sections, and the claims that it tests."""

    sections: Sequence[Section]
    claims: Sequence[Claim] = field(default_factory=tuple)
