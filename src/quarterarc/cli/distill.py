"""`quarterarc distill`: from a trained denoiser to a flow map, which makes images in one to four evaluations."""

from __future__ import annotations

import argparse

from ..common.errors import InputError
from .arguments import A_MODEL, a_text
from .parser import Parser
from .train import add_run_arguments, train_by


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc distill`."""
    parser.usage = "quarterarc distill TEACHER --out RUN [--resume] [section.field=value ...]"
    parser.add_argument(
        "teacher", nargs="?", type=a_text, metavar="TEACHER", help=f"{A_MODEL} (not needed with --resume)"
    )
    fields = "a field of the recipe and its value, such as teacher.guidance=2 or training.steps=600 (docs/reference.md)"
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Distil; 0 when done, 128 + the signal's number when a signal stopped it."""
    from ..training.recipe_text import read_recipe

    fields, teacher = list(args.fields), args.teacher
    if args.out is None and not args.show:
        raise InputError("distillation needs --out RUN, the folder of the flow map's run")
    if teacher and "=" in teacher:  # the teacher was left out, and the first field is in its place
        fields, teacher = [teacher, *fields], None
    if teacher is None and args.resume and args.out is not None and (args.out / "recipe.yaml").is_file():
        recipe = read_recipe(str(args.out / "recipe.yaml"), fields)
    elif teacher is None:
        raise InputError(f"distillation needs a teacher: {A_MODEL}")
    else:
        from ..training.distilling import distillation_recipe, resumed_recipe

        begun = resumed_recipe(teacher, args.out) if args.resume and args.out is not None else None
        recipe = distillation_recipe(teacher, None, fields) if begun is None else read_recipe(begun, fields)
    return train_by(recipe, args, "distilled")
