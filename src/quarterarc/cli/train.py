"""`quarterarc train`: from a recipe to a run folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..common.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc train`."""
    parser.usage = "quarterarc train RECIPE --out RUN [--resume] [section.field=value ...]"
    recipes = "digits, cifar10-short, cifar10, celeba64, church256, or a YAML file (not needed with --resume)"
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=recipes)
    fields = "set any field of the recipe, such as training.steps=1000 or data.source=photos/"
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and count, images that cannot be read")
    parser.add_argument("--show", action="store_true", help="print the resolved recipe and do nothing else")


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 128 + the signal's number when a signal stopped it."""
    from ..training.recipe import read_recipe, recipe_names

    fields = list(args.fields)
    name = args.recipe
    if args.resume and name and "=" in name:  # the recipe was left out, as it may be when resuming
        fields, name = [name, *fields], None
    if args.skip_bad:
        fields.append("data.skip_bad=true")
    saved = args.out / "recipe.yaml"
    if name is None and args.resume and saved.is_file():
        name = str(saved)
    if name is None:
        raise InputError(f"training needs a recipe: {', '.join(recipe_names())}, or a YAML file")
    recipe = read_recipe(name, fields)
    if args.show:
        print(recipe.to_yaml(), end="")
        return 0

    from ..training.trainer import Interrupted, train

    try:
        checkpoint = train(recipe, args.out, resume=args.resume)
    except Interrupted as stopped:
        print(f"quarterarc: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    print(f"trained: {checkpoint}")
    return 0
