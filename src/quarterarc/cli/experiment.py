"""`quarterarc experiment`: a table or figure of the papers, from training to report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..common.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc experiment`."""
    from ..experiments import EXPERIMENTS

    parser.add_argument("name", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}; or all of them: all")
    scale = "digits, cifar10-short, cifar10, celeba64, church256, or a recipe's YAML file (default: %(default)s)"
    parser.add_argument("--scale", default="digits", metavar="SCALE", help=scale)
    parser.add_argument("--seeds", default="0", help="of training and noise, 0,1,2 or 0-2 (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/experiments/SCALE/NAME")
    cache = "where trained arms and measurements are kept, for all experiments (default: %(default)s)"
    parser.add_argument("--cache", type=Path, default=Path("runs/experiments/cache"), metavar="DIR", help=cache)
    parser.add_argument("--data", metavar="PATH", help="take the images from here instead of the recipe's source")
    parser.add_argument("--images", type=int, metavar="N", help="how many images each measurement makes")
    features = "inception, digits, pixels, package.module:name, or classifier, trained on the data's labels"
    parser.add_argument("--features", metavar="NAME", help=features)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it costs, and do nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="spread arms over processes")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    """Run the experiment, or all; 0 when done, 128 + the signal's number when a signal stopped it."""
    from ..common.devices import pick_device, processes
    from ..experiments import EXPERIMENTS, experiment
    from ..experiments.lab import Lab
    from ..experiments.run import plan_experiment, run_experiment
    from ..experiments.scales import scale
    from ..experiments.writing import write_index
    from ..training.trainer import Interrupted
    from .model import parse_seeds

    seeds = parse_seeds(args.seeds)
    if args.jobs < 1:
        raise InputError(f"--jobs is at least 1, got {args.jobs}")
    names = list(EXPERIMENTS) if args.name == "all" else [args.name]
    chosen = [experiment(name) for name in names]
    lab = Lab(scale(args.scale, args.data, args.images, args.features), args.cache, pick_device(args.device))
    out = args.out or Path("runs/experiments") / lab.scale.name / ("" if args.name == "all" else args.name)
    for each in chosen:
        if args.dry_run:
            print(plan_experiment(each, lab, seeds, args.jobs))
            continue
        folder = out / each.name if args.name == "all" else out
        try:
            report = run_experiment(each, lab, seeds, folder, jobs=args.jobs, command=_command(args, each.name))
        except Interrupted as stopped:
            print("quarterarc: stopped; run the same command again to go on", file=sys.stderr)
            return 128 + stopped.signal
        if report is not None:
            print(f"report    {report}")
    if args.name == "all" and not args.dry_run and not processes().rank:
        print(f"index     {write_index(out)}")
    return 0


def _command(args: argparse.Namespace, name: str) -> str:
    """What makes these results again."""
    words = ["quarterarc", "experiment", name, "--scale", args.scale, "--seeds", args.seeds]
    for option in ("data", "images", "features"):
        value = getattr(args, option)
        if value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join(words)
