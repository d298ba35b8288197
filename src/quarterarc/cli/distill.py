"""`quarterarc distill`: from a trained denoiser to a flow map, which makes images in one to four evaluations."""

from __future__ import annotations

import argparse

from ..common.errors import InputError
from .arguments import a_path, a_text
from .parser import Parser
from .train import train_by


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc distill`."""
    parser.usage = "quarterarc distill TEACHER --out RUN [--resume] [section.field=value ...]"
    teacher = "the folder of a trained run, one of its checkpoints, or a diffusers pipeline (not needed with --resume)"
    parser.add_argument("teacher", nargs="?", type=a_text, metavar="TEACHER", help=teacher)
    fields = "a field of the recipe and its value, such as teacher.guidance=2 or training.steps=600 (docs/reference.md)"
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)
    parser.add_argument("--out", type=a_path, metavar="RUN", help="the run folder (required, except with --show)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the one that accelerate selects)")
    parser.add_argument("--show", action="store_true", help="print the complete recipe, and train nothing")


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
        raise InputError(
            "distillation needs a teacher: the folder of a trained run, one of its checkpoints, or a diffusers pipeline"
        )
    else:
        from ..training.distilling import distillation_recipe, resumed_recipe

        begun = resumed_recipe(teacher, args.out) if args.resume and args.out is not None else None
        recipe = read_recipe(begun or distillation_recipe(teacher), fields)
    if args.show:
        print(recipe.to_yaml(), end="")
        return 0

    return train_by(recipe, args, "distilled")
