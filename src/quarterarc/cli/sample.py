"""`quarterarc sample`: images from seeds, as PNG files."""

from __future__ import annotations

import argparse
from pathlib import Path

from .model import add_sampling_arguments, ask, parse_seeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc sample`."""
    parser.add_argument("model", metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the images go")
    parser.add_argument("--seeds", default="0-63", help="which images: 0-63, or 1,5,10-19 (default: %(default)s)")
    add_sampling_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    """Write the images; 0 when all are there."""
    seeds = parse_seeds(args.seeds)
    asked = ask(args, args.model)

    from ..sampling.folders import write_samples

    made = write_samples(
        asked.denoise,
        args.out,
        seeds,
        asked.sampling,
        batch_size=args.batch_size,
        labels=asked.labels,
        about=asked.about,
    )
    if made:
        print(f"{made['count']} images, {made['nfe']} network evaluations each, in {args.out} (look at grid.png)")
    return 0
