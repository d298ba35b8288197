"""`quarterarc bench`: measurements against peers, side by side in one run."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

BENCHES = {
    "network": "our U-Net against diffusers' UNet2DModel, with the same weights",
    "evaluation": "our Frechet distance, precision and recall against the usual implementations",
    "samplers": "our samplers against diffusers' schedulers, at equal NFE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc bench`: those of the chosen benchmark only, which is all that is imported."""
    benches = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    for name, summary in BENCHES.items():
        sub = benches.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in sys.argv:
            module = import_module(f"quarterarc.bench.{name}")
            module.add_arguments(sub)
            sub.set_defaults(bench_main=module.main)


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return int(args.bench_main(args))
