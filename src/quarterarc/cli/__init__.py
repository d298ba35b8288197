"""The command line: `quarterarc COMMAND`. A command is a module here with `add_arguments` and `run`.

Only the chosen command's module is imported, and it imports torch only when it runs, so that help is immediate.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..common.errors import InputError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": "train on handwritten digits, sample, and write a report: a few minutes on a laptop",
    "train": "train a model by a recipe, on your own images or a known data set",
    "sample": "make images from seeds with a trained model",
    "tune": "fit a sampler's grid to one network, for sampling in few evaluations",
    "evaluate": "measure images against a reference: FID, precision, recall and more",
    "experiment": "run a table or figure of the papers, from training to report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 2 after a one-line error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # GNU OpenMP's threads wait for each other by spinning for ever. Where two share a processor, on a busy machine or
    # an unlucky virtual one, that is fifty times slower; spinning for microseconds costs little. Read as torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    parser = _Parser(
        prog="quarterarc", description="Diffusion models of images on the quarter arc between image and noise."
    )
    parser.add_argument("--version", action="version", version=f"quarterarc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = import_module(f".{name}", __name__)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes positional words in one place only; fields of a recipe may stand anywhere
    if not hasattr(parsed, "fields") or any(word.startswith("-") or "=" not in word for word in rest):
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        parsed.fields = [*parsed.fields, *rest]
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("quarterarc: %(message)s"))
    logger = logging.getLogger("quarterarc")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return int(parsed.run(parsed) or 0)
    except InputError as error:
        return _complain(str(error))
    except BrokenPipeError:  # whoever read our output has gone; that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error))
    except KeyboardInterrupt:
        print("quarterarc: interrupted", file=sys.stderr)
        return 130
    finally:
        logger.removeHandler(handler)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all of our errors are said."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` says more\n")


def _complain(message: str) -> int:
    print(f"quarterarc: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
