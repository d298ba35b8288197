"""Errors of the caller's input: the value given, the values expected, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from .text import printable, shortened

__all__ = ["InputError", "unknown_name"]

_MOST = 3_000  # characters of a message: the longest lists of names have a third of that


class InputError(ValueError):
    """An unusable argument, option or file; the message is one line with the reason and the remedy.

    The command line prints the message without a traceback and exits with status 2. Values in it may come from a
    stranger's file: control characters are escaped, and the middle of a message of more than 3,000 characters is left
    out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(printable(shortened(str(message), _MOST)), _MOST))


def unknown_name(kind: str, name: object, known: Iterable[str], alternative: str = "") -> InputError:
    """The error of an unknown name, with the nearest known name and the list of all.

    Args:
        kind: what is named: "sampler".
        name: the unknown name.
        known: the known names.
        alternative: what else is accepted, after the list: "or an import path".
    """
    names, given = sorted(known), shortened(str(name), 200)
    parts = [name for name in names if name.endswith(f"+{given}")]  # "tangent" for "both+tangent"
    nearest = parts or get_close_matches(given, names, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {kind} '{given}'{hint} (known: {', '.join(names)}{alternative and f'; {alternative}'})")
