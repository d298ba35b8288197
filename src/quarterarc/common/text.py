"""Numbers in messages, written as a person writes them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "duration", "one_line", "ranges"]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: "1 image", "1,797 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


_UNITS = (("year", 365.25 * 86400.0), ("day", 86400.0), ("hour", 3600.0), ("min", 60.0))


def duration(seconds: float) -> str:
    """A duration: "2.0 s", "45 s", "3 min 20 s", "5.5 hours", "12 days", "76 years"."""
    if seconds < 10.0:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if seconds < 5400.0:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    name, unit = next((name, unit) for name, unit in _UNITS if seconds >= (1.5 if name == "year" else 1.0) * unit)
    if name == "day" and seconds < 2.0 * unit:
        name, unit = "hour", 3600.0
    value = seconds / unit
    return f"{value:.1f} {name}s" if value < 10.0 else f"{value:,.0f} {name}s"


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers in short: "0-63,100"."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
