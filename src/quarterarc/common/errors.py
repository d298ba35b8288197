"""Errors of the caller's input: the value given, the values expected, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "unknown_name"]


class InputError(ValueError):
    """An unusable argument, option or file; the message is one line with the reason and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: object, known: Iterable[str], alternative: str = "") -> InputError:
    """The error of an unknown name, with the nearest known name and the list of all.

    Args:
        kind: what is named: "sampler".
        name: the unknown name.
        known: the known names.
        alternative: what else is accepted, after the list: "or an import path".
    """
    names = sorted(known)
    nearest = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {kind} '{name}'{hint} (known: {', '.join(names)}{alternative and f'; {alternative}'})")
