"""Numbers and errors in messages: counts, durations, ranges, one-line errors."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "duration", "one_line", "printable", "ranges", "shortened"]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: "1 image", "1,797 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A duration: "12 ms", "2.0 s", "45 s", "3 min 20 s", "17 min", "5.5 hours", "12 days", "76 years"."""
    if seconds < 0.1:
        return f"{1e3 * seconds:.3g} ms"
    if round(seconds, 1) < 10.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if round(seconds / 60.0) < 90:
        return f"{round(seconds / 60.0)} min"
    name, unit = next((name, unit) for name, unit, least in _UNITS if seconds >= least * unit)
    value = seconds / unit
    return f"{value:.1f} {name}" if round(value, 1) < 10.0 else f"{value:,.0f} {name}"


# the unit of a duration, and how many of it there are at least: 36 hours, 400 days
_UNITS = (("years", 365.25 * 86400.0, 1.5), ("days", 86400.0, 2.0), ("hours", 3600.0, 0.0))


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers, consecutive ones joined: "0-63,100"."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; the name of its class for an empty message."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: in place of the middle of a longer one the number of characters left out."""
    if len(text) <= most:
        return text
    head = 2 * most // 3 - 20
    tail = most - head - 40
    return f"{text[:head]} ... ({len(text) - head - tail:,} characters) ... {text[len(text) - tail :]}"


def printable(text: str) -> str:
    """A text that may be shown on a terminal: line breaks become spaces, and control characters become escapes.

    So do surrogates and marks that change the direction of writing.
    """
    if text.isprintable():
        return text
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
