"""The room that text takes in a picture, which is drawn before the font of its reader is known."""

from __future__ import annotations

from unicodedata import east_asian_width

__all__ = ["width", "wrapped"]

SIZE = 12
"""Pixels of the letters to which the widths belong."""
_WIDTHS = {5.0: " !'(),-./:;IJ[\\]fijlrt|", 6.7: '"*?L_`csz', 9.5: "&ABCDGHKNOQRUVXZw", 12.0: "#%+<=>@MW^m~"}
_WIDTH_OF = {letter: width for width, letters in _WIDTHS.items() for letter in letters}
"""Upper limits for DejaVu Sans, which is as wide as Verdana and wider than the other usual fonts of screens."""
_OTHERS, _NOT_LATIN, _BOLD = 7.7, 9.5, 1.2


def width(text: str, size: float = SIZE, bold: bool = False) -> float:
    """Pixels that a line of text takes at most, in the usual fonts without serifs.

    Args:
        text: the line.
        size: height of the font in pixels.
        bold: whether the letters are bold.
    """
    return sum(map(_width_of, text)) * size / SIZE * (_BOLD if bold else 1.0)


def wrapped(text: str, most: float, size: float = SIZE, bold: bool = False) -> list[str]:
    """A text in lines of at most `most` pixels, broken between words, and within those that are longer than a line.

    Args:
        text: the text.
        most: pixels of a line; a single letter may have more.
        size, bold: as for `width`.
    """
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and width(joined, size, bold) <= most:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and width(lines[-1] + letter, size, bold) > most:
                lines.append("")
            lines[-1] += letter
    return lines or [""]


def _width_of(letter: str) -> float:
    if letter.isascii():
        return _WIDTH_OF.get(letter, _OTHERS)
    return float(SIZE) if east_asian_width(letter) in "WF" else _NOT_LATIN
