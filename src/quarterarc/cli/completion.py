"""Shell completion of the command line by shtab: commands, options, and the names that options accept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..common.optional import need

__all__ = ["completion_script"]


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a shell; the parser cannot be used for parsing afterwards.

    Args:
        parser: the parser of the whole command line.
        shell: `bash` or `zsh`.

    Raises:
        InputError: if shtab is not installed.
    """
    shtab = need("shtab", "completion", "shell completion")
    names = _names()
    for action in _actions(parser):
        option = action.option_strings[0] if action.option_strings else action.dest
        if option in names:
            action.choices = names[option]
        elif action.type is Path or option in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


_PATHS = ("model", "source", "recipe", "--reference", "--weights", "--data")
"""Arguments that accept a path among other things."""


def _names() -> dict[str, list[str]]:
    """The names that an option accepts; it may accept more (a path, numbers), which the shell then does not offer."""
    from ..estimate import PROJECTIONS
    from ..evaluation.extractors import EXTRACTORS
    from ..evaluation.metrics import METRICS
    from ..experiments import EXPERIMENTS
    from ..grids import GRIDS
    from ..samplers import SAMPLERS
    from ..training.recipe_text import recipe_names

    return {
        "--sampler": list(SAMPLERS),
        "--grid": [*GRIDS, "tuned"],
        "--projection": [*PROJECTIONS, "none"],
        "--features": list(EXTRACTORS),
        "--metrics": list(METRICS),
        "--scale": recipe_names(),
        "name": [*EXPERIMENTS, "all"],
        "--device": ["auto", "cpu", "cuda", "mps"],
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of a parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
