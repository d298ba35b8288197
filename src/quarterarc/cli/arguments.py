"""Arguments that commands share, and how their text is parsed: a sampler, a request to sample, lists of numbers."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..common.errors import InputError
from ..common.limits import MOST_IMAGES
from ..common.plain_yaml import load_yaml
from .listing import grid_listing, sampler_listing
from .parser import Parser

if TYPE_CHECKING:
    from ..sampling.plans import Sampling

__all__ = [
    "A_MODEL",
    "a_path",
    "a_text",
    "add_batch_arguments",
    "add_device_argument",
    "add_sampler_arguments",
    "add_sampling_arguments",
    "parse_grid",
    "parse_labels",
    "parse_numbers",
    "parse_option",
    "parse_seeds",
    "sampling_request",
]


A_MODEL = "a run folder, one of its checkpoints, or the folder of a diffusers pipeline or of its network"
"""The help of an argument that is the path of a model."""


def a_text(text: str) -> str:
    """An argument that is a path or a name: not empty, as it is from an unset variable of a shell."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"a path or a name is expected, got {text!r}")
    return text


def a_path(text: str) -> Path:
    """An argument that is a path: not empty, which would be the current folder."""
    return Path(a_text(text))


def a_compile(text: str) -> bool | str:
    """The argument of `--compile`: true, false or auto."""
    if text not in _COMPILE:
        raise argparse.ArgumentTypeError(f"true, false or auto is expected, got {text!r}")
    return _COMPILE[text]


_COMPILE: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """`--device`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the fastest one available)")


def add_sampler_arguments(parser: argparse._ActionsContainer) -> None:
    """`--sampler` and `--option`, which together name a sampler."""
    parser.add_argument("--sampler", metavar="NAME", help="a sampler, or package.module:name (default: multistep)")
    option = "an option of the sampler, such as eta=0.5; repeat it for several"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option)


def add_sampling_arguments(parser: argparse._ActionsContainer) -> None:
    """One argument per field of `quarterarc.Sampling`, the labels, and precision and compilation of the network."""
    add_sampler_arguments(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="number of steps (default: 10)")
    grid = "a grid, tuned, package.module:name, or the angles 1.57,1.2,0.6,0 (default: the sampler's own grid)"
    parser.add_argument("--grid", metavar="NAME", help=grid)
    labels = (
        "classes by number or name, such as 3, 0-9 or cat,dog, used in turn over the images, in the order of the "
        "seeds; a name that has a comma, or is a number, in double quotes: '\"a, b\",c'"
    )
    parser.add_argument("--labels", metavar="LIST", help=labels)
    guidance = "scale of classifier-free guidance, with --labels (default: no guidance)"
    parser.add_argument("--guidance", type=float, metavar="SCALE", help=guidance)
    projection = "what is kept where image and noise estimates disagree: velocity, image, noise, or none for both"
    parser.add_argument("--projection", metavar="NAME", help=f"{projection} (default: velocity)")
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16")
    compile = "compile the network: true, false, or auto, on a GPU for many images (default: auto)"
    parser.add_argument("--compile", type=a_compile, default="auto", metavar="auto|true|false", help=compile)


def add_batch_arguments(parser: Parser, what: str) -> None:
    """`--batch-size` and `--device`, after which the help lists samplers and grids; `what` is made in batches."""
    batch_size = f"{what} per batch (default: %(default)s)"
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help=batch_size)
    add_device_argument(parser)
    parser.listing = lambda: f"{sampler_listing()}\n\n{grid_listing()}"


def sampling_request(args: argparse.Namespace) -> Sampling:
    """The request that the arguments of `add_sampling_arguments` describe.

    Raises:
        InputError: for an option or a grid that cannot be parsed, and guidance without labels.
    """
    if args.guidance is not None and args.labels is None:
        raise InputError("--guidance needs --labels: it steers towards a class")
    options = parse_options(args.option)
    grid = parse_grid(args.grid)

    from ..sampling.plans import Sampling

    return Sampling(args.sampler, args.steps, grid, options, args.guidance, args.projection)


def parse_numbers(text: str, option: str) -> list[int]:
    """Whole numbers from text such as "5,8,10", "0-63" or "1,5,10-19".

    Args:
        text: numbers and ranges, separated by commas.
        option: the option's name, for messages: "--seeds".

    Raises:
        InputError: for text of another form, a range that runs backwards, or more than 10,000,000 numbers.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise InputError(f"{option} takes whole numbers and ranges, 5,8,10 or 0-63, got '{text}'") from None
        if high < low:
            raise InputError(f"{option} {part}: the range runs backwards, write {high}-{low}")
        if len(numbers) + high - low >= MOST_IMAGES:
            raise InputError(f"{option} {part}: at most {MOST_IMAGES:,} numbers per command")
        numbers.extend(range(low, high + 1))
    return numbers


def parse_seeds(text: str) -> list[int]:
    """Seeds from text such as "0-63" or "1,5,10-19"; no seed may occur twice."""
    seeds = parse_numbers(text, "--seeds")
    if len(set(seeds)) != len(seeds):
        ((seed, _),) = Counter(seeds).most_common(1)
        raise InputError(f"--seeds {text}: the seed {seed} occurs twice")
    return seeds


_LABEL = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^,]*))\s*(?:,|(?P<end>\Z))')
"""A label and the comma behind it; quoted as in CSV files."""


def parse_labels(text: str | None) -> list[int | str] | None:
    """Labels from text such as "3", "0,1,2", "0-9" or "cat,dog": numbers and ranges of numbers, or names of classes.

    In double quotes a name may contain commas, or be a number: '"cat, asleep",dog,"10"'.
    """
    if text is None:
        return None
    labels: list[int | str] = []
    place, more = 0, True
    while more:
        match = _LABEL.match(text, place)
        assert match is not None  # an unquoted label matches any text
        place, more = match.end(), match["end"] is None
        quoted, part = match["quoted"], (match["plain"] or "").strip()
        first, _, last = part.partition("-")
        numbers = all(word.strip().isdecimal() for word in (first, last or first))
        if quoted is not None:
            labels.append(quoted.replace('""', '"'))
        else:
            labels += parse_numbers(part, "--labels") if numbers or not part else [part]
        if len(labels) > MOST_IMAGES:
            raise InputError(f"--labels {part}: at most {MOST_IMAGES:,} numbers per command")
    return labels


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a sampler from texts such as "eta=0.5"; none may occur twice."""
    options: dict[str, Any] = {}
    for text in texts:
        name, value = parse_option(text)
        if name in options:
            raise InputError(f"--option {text}: '{name}' is given twice")
        options[name] = value
    return options


def parse_option(text: str) -> tuple[str, Any]:
    """An option of a sampler from text such as "eta=0.5"."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option {text}: write NAME=VALUE, such as eta=0.5")
    try:
        return name, load_yaml(value)
    except yaml.YAMLError:
        raise InputError(f"--option {text}: '{value}' is neither a number nor a word") from None


def parse_grid(text: str | None) -> str | list[float] | None:
    """A grid's name, or its angles from text such as "1.57,0.8,0"."""
    if text is None or "," not in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--grid takes a name or angles, 1.57,0.8,0, got '{text}'") from None
