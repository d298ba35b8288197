"""The parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from ..common.text import printable
from .process import print_line

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors, and a help text whose last part is computed only when it is printed.

    Attributes:
        listing: returns the last part of the help text; None for none.
    """

    listing: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        print_line(f"{self.prog}: error: {printable(message)} (see `{self.prog} --help`)")
        self.exit(2)

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.listing is None else f"{text}\n{self.listing()}\n"
