"""`quarterarc demo`: everything once, on data that comes with the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc demo`."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="default: %(default)s")
    measured = "images measured at every setting (default: %(default)s)"
    parser.add_argument("--measure", type=int, default=400, metavar="N", help=measured)
    fields = "set any field of the recipe, such as training.steps=1000"
    parser.add_argument("fields", nargs="*", metavar="section.field=value", help=fields)


def run(args: argparse.Namespace) -> int:
    """Train, sample and report; the last line printed is the report's path."""
    from ..experiments.demo import run_demo
    from ..training.recipe import read_recipe
    from ..training.trainer import Interrupted

    try:
        metrics = run_demo(read_recipe("digits", args.fields), args.out, args.measure)
    except Interrupted as stopped:
        print(f"quarterarc: {str(stopped).rpartition(':')[0]}: run the demo again to go on", file=sys.stderr)
        return 128 + stopped.signal
    sampling = metrics["sampling"]
    print(f"{sampling['nfe']} network evaluations an image, {sampling['images_per_second']} images/s")
    print(f"samples   {args.out / 'samples.png'}")
    print(f"report    {args.out / 'report.html'}")
    return 0
