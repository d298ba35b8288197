"""What commands that sample a run have in common: the options, how their text is read, and the model they ask for."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ..common.errors import InputError, unknown_name

if TYPE_CHECKING:
    from ..denoiser import Denoise
    from ..sampling.plans import Sampling

__all__ = [
    "Asked",
    "add_sampling_arguments",
    "ask",
    "parse_grid",
    "parse_labels",
    "parse_option",
    "parse_projection",
    "parse_seeds",
]

_MOST_SEEDS = 10_000_000  # a list of them is kept


def add_sampling_arguments(parser: argparse._ActionsContainer) -> None:
    """The options that say how a model is sampled; the seeds and the device are each command's own."""
    parser.add_argument("--sampler", default=None, help="a sampler by name (default: multistep)")
    parser.add_argument("--steps", type=int, default=None, help="how many steps (default: 10)")
    parser.add_argument(
        "--grid",
        default=None,
        help="a grid of angles by name, tuned, or angles: 1.57,1.2,0.6,0 (default: the sampler's)",
    )
    option = "an option of the sampler, such as churn=0.5 or variance=large"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option)
    parser.add_argument("--labels", default=None, help="classes to make, 3 or 0,1,2, used in turn over the seeds")
    parser.add_argument(
        "--guidance", type=float, default=None, help="scale of classifier-free guidance (with --labels)"
    )
    keep = "what a model of both estimates keeps where they disagree: velocity, image, noise, or none to leave them"
    parser.add_argument("--projection", default="velocity", metavar="KEEP", help=f"{keep} (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16")


@dataclass(frozen=True)
class Asked:
    """The model that the options ask for, and what else they say.

    Attributes:
        denoise: the denoiser, with guidance if any.
        sampling: sampler, steps, grid and options.
        labels: classes.
        about: which model it is, as JSON types.
    """

    denoise: Denoise
    sampling: Sampling
    labels: list[int] | None
    about: dict[str, Any]


def ask(args: argparse.Namespace, run: str) -> Asked:
    """Load the model of a run as the options say.

    Raises:
        InputError: if there is no complete checkpoint, or the labels are none of the model's.
    """
    labels = parse_labels(args.labels)
    options = dict(parse_option(option) for option in args.option)

    import torch

    from ..common.devices import pick_device
    from ..sampling.plans import Sampling, check_labels
    from ..storage.checkpoints import hash_of, load
    from ..storage.runs import newest_checkpoint

    checkpoint = newest_checkpoint(run)
    precision = torch.bfloat16 if args.bf16 else None
    if args.guidance is not None and labels is None:
        raise InputError("--guidance needs --labels: it steers towards a class")
    sampling = Sampling(args.sampler, args.steps, parse_grid(args.grid), options, args.guidance)
    denoise = load(checkpoint, pick_device(args.device), precision, parse_projection(args.projection))
    check_labels(denoise, labels)
    about = {
        "model": str(run),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hash_of(checkpoint),
        "guidance": args.guidance,
        "precision": "bf16" if args.bf16 else "fp32",
        "projection": args.projection,
    }
    return Asked(denoise, sampling, labels, about)


def parse_seeds(text: str) -> list[int]:
    """Seeds from text such as "0-63" or "1,5,10-19"."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise InputError(f"--seeds takes whole numbers and ranges, 0-63 or 1,5,10-19, got '{text}'") from None
        if high < low:
            raise InputError(f"--seeds {part}: the range runs backwards")
        if high - low >= _MOST_SEEDS:
            raise InputError(f"--seeds {part}: at most {_MOST_SEEDS} seeds a command")
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds {text} names a seed twice")
    return seeds


def parse_labels(text: str | None) -> list[int] | None:
    """Labels from text such as "3" or "0,1,2"."""
    if text is None:
        return None
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--labels takes whole numbers, 3 or 0,1,2, got '{text}'") from None
    if min(labels) < 0:
        raise InputError(f"--labels are numbers from 0, got '{text}'")
    return labels


def parse_option(text: str) -> tuple[str, Any]:
    """A sampler's option from text such as "churn=0.5"."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option {text}: write NAME=VALUE, such as churn=0.5")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--option {text}: '{value}' is no number and no word") from None
    if isinstance(read, str):
        with suppress(ValueError):  # YAML takes 1e-3, which has no point, for a word
            return name, float(read)
    return name, read


def parse_projection(text: str) -> str | None:
    """What is kept of estimates that disagree, from its name; nothing is done for "none"."""
    from ..estimate import PROJECTIONS

    if text not in (*PROJECTIONS, "none"):
        raise unknown_name("projection", text, (*PROJECTIONS, "none"))
    return None if text == "none" else text


def parse_grid(text: str | None) -> str | list[float] | None:
    """A grid's name, or its angles from text such as "1.57,0.8,0"."""
    if text is None or "," not in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--grid takes a name or angles, 1.57,0.8,0, got '{text}'") from None
