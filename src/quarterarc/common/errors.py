"""Errors that a person can act on: what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "unknown_name"]


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one line that says why and what to do.

    The command line prints the message alone and exits with status 2.
    """


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that no registry holds: it offers the nearest name and lists the known ones."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return InputError(f"unknown {kind} '{name}'{hint} (known: {', '.join(names)})")
