"""The command line: `quarterarc COMMAND`. A command is a module of this package with `add_arguments` and `run`.

Only the module of the chosen command is imported, and it imports torch only when it runs, so that help is immediate.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from .. import __version__
from ..common.errors import InputError
from ..common.signals import end_with, signal_of, stopping_in_order
from ..common.text import printable
from .parser import Parser
from .process import drop, finish_output, open_closed_streams, print_line

__all__ = ["COMMANDS", "command_parser", "main"]

COMMANDS = {
    "demo": "train on handwritten digits, sample, and write a report: a few minutes on a laptop",
    "train": "train a model by a recipe, on your own images or a known data set",
    "distill": "make a flow map of a trained model, which makes images in one to four evaluations",
    "sample": "make images from seeds with a trained model",
    "edit": "edit images: new content in a part, other versions, images between two",
    "play": "a page in the browser: seed, steps, sampler, class, guidance, filling a painted part",
    "tune": "fit a sampler's grid to one network, for sampling in few evaluations",
    "evaluate": "measure images against a reference: FID, precision, recall and more",
    "export": "write a trained model for diffusers, ONNX or as safetensors, with a model card",
    "push": "upload a trained model, with a model card, to the Hugging Face hub",
    "import": "write a published checkpoint (DDIM, ADM, EDM) as a checkpoint folder, without running code in it",
    "experiment": "run a table or figure of the papers, from training to report",
}

MODULES = {"import": "importing"}
"""Modules of commands whose names are keywords of Python."""

MOVED = {"bench": "the benchmarks are outside the package: run `python -m benchmarks` in a clone of the repository"}
"""Commands of version 0.1 that no longer exist, and what to run instead."""

SHELLS = ("bash", "zsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after `quarterarc`; those of the process (`sys.argv`) if None.

    Returns:
        The exit status: 0, 2 after a one-line error, or 130 and 143 after SIGINT and SIGTERM.

    Raises:
        SystemExit: for `--help` and `--version`, and for words that do not form a command (status 2).
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:
        open_closed_streams()
    # Threads of GNU OpenMP wait for each other in a busy loop without end. Where two of them share a processor, on a
    # loaded or virtual machine, that is fifty times slower; a busy loop of microseconds costs little. torch reads the
    # variable when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        with stopping_in_order(None if arguments is not None else partial(_print_stopped, command)):
            _end_with_launcher()
            return _run(words, command)
    except KeyboardInterrupt as stopped:
        return _print_stopped(command, signal_of(stopped))


def _run(words: Sequence[str], command: str | None) -> int:
    """Run the command of some words; returns the exit status."""
    if command in MOVED:
        return _print_error(MOVED[command])
    parser = command_parser([command] if command in COMMANDS else [])
    if not words:
        parser.print_help()
        return 0
    parsed = _parse(parser, words)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("quarterarc: %(message)s"))
    warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's, of which damaged metadata causes thousands
    logger = logging.getLogger("quarterarc")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        status = int(parsed.run(parsed) or 0)
        finish_output()
        return status
    except InputError as error:
        return _print_error(str(error))
    except BrokenPipeError:  # the reader of the output closed it (`quarterarc ... | head`), which is no error
        drop(sys.stdout)
        return 0
    except OSError as error:
        if error.errno == errno.EMFILE:
            return _print_error("the system allows no further open file: raise the limit (ulimit -n)")
        return _print_error(f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        from ..common.devices import is_lost_connection
        from ..common.memory import is_out_of_memory

        if str(error) == "can't start new thread":
            return _print_error("the system allows no further thread: raise the limit (ulimit -u), or end processes")
        if is_lost_connection(error):
            return _print_error(f"another process of this run has ended or does not answer: {_again(command)}")
        if not is_out_of_memory(error):
            raise
        return _print_error("out of memory: lower the batch size (--batch-size, training.batch) or the image size")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def command_parser(commands: Sequence[str]) -> Parser:
    """The parser of the command line, with the arguments of these commands; the others have a summary only."""
    parser = Parser(
        prog="quarterarc", description="Diffusion models of images on the quarter arc between image and noise."
    )
    parser.add_argument("--version", action="version", version=f"quarterarc {__version__}")
    completion = "print the completion script of a shell, bash or zsh (needs shtab)"
    parser.add_argument("--print-completion", action=_PrintCompletion, metavar="SHELL", choices=SHELLS, help=completion)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in commands:
            module = import_module(f".{MODULES.get(name, name)}", __name__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


class _PrintCompletion(argparse.Action):
    """`--print-completion SHELL`: print the completion script of all commands and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: object = None
    ) -> None:
        from .completion import completion_script

        try:
            script = completion_script(command_parser(list(COMMANDS)), str(values))
        except InputError as error:
            parser.exit(_print_error(str(error)))
        print(script)
        parser.exit()


def _parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words; recipe fields, `section.field=value`, may stand before, between and after options."""
    parsed, rest = parser.parse_known_args(words)
    for name, value in vars(parsed).items():  # of `--steps=--` argparse of Python 3.11 makes an empty list
        if (value == [] and name not in ("fields", "option")) or (isinstance(value, list) and [] in value):
            parser.error(f"argument --{name.replace('_', '-')}: a value is expected, got '--'")
    fields = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest != fields or (rest and not hasattr(parsed, "fields")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if fields:  # argparse takes positional words in one place only and returns the others as unrecognized
        parsed.fields = [*parsed.fields, *fields]
    return parsed


def _again(command: str | None) -> str:
    """How to go on after a command that was stopped."""
    if command == "train":
        return "continue with --resume"
    return f"run the same command again{' to continue' if command in ('demo', 'sample', 'edit', 'experiment') else ''}"


def _print_stopped(command: str | None, number: signal.Signals) -> int:
    again = "" if command == "play" else f": {_again(command)}"  # a server has nothing to continue
    print_line(f"quarterarc: stopped by {number.name}{again}")
    return 128 + number


def _end_with_launcher() -> None:
    """Stop this process when `torchrun` or `accelerate launch` is killed: it would hold locks and devices."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())


class _Formatter(logging.Formatter):
    """One line per record, without control characters: names of files and classes may come from a stranger."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _print_error(message: str) -> int:
    print_line(f"quarterarc: error: {' '.join(message.split())}")
    return 2
