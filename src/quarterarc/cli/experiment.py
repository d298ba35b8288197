"""`quarterarc experiment`: a table or figure of the papers, from training to report."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from ..common.errors import InputError
from .arguments import a_path, a_text, add_device_argument, parse_seeds
from .parser import Parser
from .process import print_line

_MOST_SEEDS, _MOST_JOBS = 1000, 256


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc experiment`."""
    from ..experiments import EXPERIMENTS, WITH_WEIGHTS

    names = f"{', '.join(EXPERIMENTS)}; all runs every one of them; {', '.join(WITH_WEIGHTS)}: networks of --pretrained"
    parser.add_argument("name", metavar="NAME", help=names)
    scale = (
        "digits, patches16, cifar10-short, cifar10, celeba64, church256, or a recipe's YAML file (default: %(default)s)"
    )
    parser.add_argument("--scale", type=a_text, default="digits", metavar="SCALE", help=scale)
    seeds = "seeds of training and noise, such as 0,1,2 or 0-2; claims need three (default: %(default)s)"
    parser.add_argument("--seeds", default="0-2", metavar="LIST", help=seeds)
    out = "the folder of the report (default: runs/experiments/SCALE/NAME)"
    parser.add_argument("--out", type=a_path, metavar="DIR", help=out)
    cache = "the folder of trained arms and measurements, shared by all experiments (default: %(default)s)"
    parser.add_argument("--cache", type=a_path, default=Path("runs/experiments/cache"), metavar="DIR", help=cache)
    parser.add_argument(
        "--data", type=a_text, metavar="PATH", help="the images to train on, instead of the recipe's source"
    )
    parser.add_argument("--images", type=int, metavar="N", help="images per measurement (default: the scale's)")
    features = (
        "inception, efficientnet, digits, pixels, package.module:name, or classifier, trained on the labels of the data"
    )
    parser.add_argument("--features", type=a_text, metavar="NAME", help=features)
    norm = "train the rows of Zhang et al. in one norm, mse or l2 (default: in both, each a group of rows)"
    parser.add_argument("--norm", choices=("mse", "l2"), help=norm)
    pretrained = (
        "a network that is not trained but given, for a row of the paper (DDIM, ours, ...) or an arm: a run, a "
        "checkpoint, or a folder of diffusers; repeat it for several"
    )
    parser.add_argument("--pretrained", action="append", metavar="ROW=PATH", help=pretrained)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, run nothing")
    jobs = "processes that share the arms (default: %(default)s)"
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help=jobs)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the experiment, or all; 0 when done, 128 + the signal's number when a signal stopped it."""
    from ..common.devices import pick_device, processes
    from ..experiments import EXPERIMENTS, experiment
    from ..experiments.lab import Lab
    from ..experiments.pretrained import check_rows, with_pretrained
    from ..experiments.run import plan_experiments, run_experiment
    from ..experiments.scales import scale
    from ..experiments.writing import write_index
    from ..training.stopping import Interrupted

    seeds = parse_seeds(args.seeds)
    if len(seeds) > _MOST_SEEDS:
        raise InputError(f"--seeds {args.seeds}: each seed is a training run, give at most {_MOST_SEEDS:,}")
    if not 1 <= args.jobs <= _MOST_JOBS:
        raise InputError(f"--jobs is at least 1 and at most {_MOST_JOBS}, got {args.jobs}")
    names = list(EXPERIMENTS) if args.name == "all" else [args.name]
    experiments = [experiment(name) for name in names]
    chosen = scale(args.scale, args.data, args.images, args.features)
    if args.norm:
        squared, unsquared = (experiments[0].cells(replace(chosen, norms=(norm,)), seeds) for norm in ("mse", "l2"))
        if args.name != "all" and squared == unsquared:
            raise InputError(f"the experiment '{args.name}' has no rows by norm: leave out --norm {args.norm}")
        chosen = replace(chosen, norms=(args.norm,))
    if args.pretrained:
        chosen = with_pretrained(chosen, args.pretrained)
        check_rows(chosen, experiments, seeds)
    lab = Lab(chosen, args.cache, pick_device(args.device))
    out = args.out or Path("runs/experiments") / lab.scale.name / ("" if args.name == "all" else args.name)
    if args.dry_run:
        print(plan_experiments(experiments, lab, seeds, args.jobs))
        return 0
    for current in experiments:
        folder = out / current.name if args.name == "all" else out
        try:
            report = run_experiment(current, lab, seeds, folder, jobs=args.jobs, command=_command(args, current.name))
        except Interrupted as stopped:
            print_line("quarterarc: stopped: run the same command again to continue")
            return 128 + stopped.signal
        if report is not None:
            print(f"report    {report}")
    if args.name == "all" and not processes().rank:
        print(f"index     {write_index(out)}")
    return 0


def _command(args: argparse.Namespace, name: str) -> str:
    """The command that reproduces these results."""
    words = ["quarterarc", "experiment", name, "--scale", args.scale, "--seeds", args.seeds]
    for option in ("data", "images", "features", "norm"):
        value = getattr(args, option)
        if value is not None:
            words += [f"--{option}", str(value)]
    for text in args.pretrained or ():
        words += ["--pretrained", text]
    return shlex.join(words)
