"""`quarterarc train`: from a recipe to a run folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..common.errors import InputError
from .arguments import a_path, a_text
from .parser import Parser
from .process import print_line

if TYPE_CHECKING:
    from ..training.recipe import Recipe


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc train`."""
    parser.usage = "quarterarc train RECIPE --out RUN [--resume] [section.field=value ...]"
    recipes = "photos, digits, cifar10-short, cifar10, celeba64, church256, or a YAML file (not needed with --resume)"
    parser.add_argument("recipe", nargs="?", type=a_text, metavar="RECIPE", help=recipes)
    fields = (
        "a field of the recipe and its value, such as training.steps=1000 or data.source=photos/ (docs/reference.md)"
    )
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)
    add_run_arguments(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and count, images that cannot be read")


def add_run_arguments(parser: Parser) -> None:
    """The arguments of commands that train by a recipe."""
    parser.add_argument("--out", type=a_path, metavar="RUN", help="the run folder (required, except with --show)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint")
    device = "cpu, cuda or mps (default: the one that accelerate selects, a GPU if there is one)"
    parser.add_argument("--device", help=device)
    parser.add_argument("--show", action="store_true", help="print the complete recipe, and train nothing")


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 128 + the signal's number when a signal stopped it."""
    from ..training.recipe_text import read_recipe, recipe_names

    fields = list(args.fields)
    name = args.recipe
    if args.out is None and not args.show:
        raise InputError("training needs --out RUN, the folder of the run")
    if name and "=" in name:  # the recipe was left out, and the first field is in its place
        fields, name = [name, *fields], None
    if args.skip_bad:
        fields.append("data.skip_bad=true")
    if name is None and args.resume and args.out is not None and (args.out / "recipe.yaml").is_file():
        name = str(args.out / "recipe.yaml")
    if name is None and args.resume:
        raise InputError(f"{args.out} contains no run to resume: give the folder of a run, or a recipe to start one")
    if name is None:
        raise InputError(f"training needs a recipe: {', '.join(recipe_names())}, or a YAML file")
    return train_by(read_recipe(name, fields, device=args.device), args, "trained")


def train_by(recipe: Recipe, args: argparse.Namespace, done: str) -> int:
    """Train by a recipe, or show it (`--show`); returns 0, or 128 + the signal's number after a signal.

    Args:
        recipe: the complete recipe.
        args: those of `add_run_arguments`.
        done: the word before the path of the checkpoint in the last line.
    """
    if args.show:
        print(recipe.to_yaml(), end="")
        return 0

    from ..common.devices import processes
    from ..training.api import train
    from ..training.stopping import Interrupted

    try:
        checkpoint = train(recipe, args.out, device=args.device, resume=args.resume)
    except Interrupted as stopped:
        print_line(f"quarterarc: {stopped}")
        return 128 + stopped.signal
    if not processes().rank:
        print(f"{done}: {checkpoint}")
    return 0
