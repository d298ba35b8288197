"""`quarterarc demo`: training, sampling and evaluation in one command, on data that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..common.text import counted
from .arguments import a_path
from .parser import Parser
from .process import print_line


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc demo`."""
    out = "the run folder (default: %(default)s)"
    parser.add_argument("--out", type=a_path, default=Path("runs/demo"), metavar="RUN", help=out)
    measure = "images per sampler and number of evaluations in the comparison (default: %(default)s)"
    parser.add_argument("--measure", type=int, default=400, metavar="N", help=measure)
    steps = "optimiser steps of the flow map that is distilled from the network, 0 for none (default: 250)"
    parser.add_argument("--map-steps", type=int, metavar="N", help=steps)
    fields = "a field of the recipe and its value, such as training.steps=1000 (docs/reference.md)"
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)


def run(args: argparse.Namespace) -> int:
    """Train, sample and report; the last line printed is the report's path."""
    from ..experiments.demo import MAP_STEPS, run_demo
    from ..training.recipe_text import read_recipe
    from ..training.stopping import Interrupted

    steps = MAP_STEPS if args.map_steps is None else args.map_steps
    try:
        metrics = run_demo(read_recipe("digits", args.fields), args.out, args.measure, steps)
    except Interrupted as stopped:
        print_line(f"quarterarc: {str(stopped).rpartition(':')[0]}: run the demo again to continue")
        return 128 + stopped.signal
    sampling = metrics["sampling"]
    evaluations = counted(sampling["nfe"], "network evaluation")
    print(f"{evaluations} per image, {counted(sampling['images_per_second'], 'image')} per second")
    if metrics["map"] is not None:
        at = ", ".join(f"{line['fid']:.1f} at {line['nfe']}" for line in metrics["map"]["map"])
        print(f"flow map: Frechet distance {at} evaluations per image")
    print(f"samples   {args.out / 'samples.png'}")
    print(f"report    {args.out / 'report.html'}")
    return 0
