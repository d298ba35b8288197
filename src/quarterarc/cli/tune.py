"""`quarterarc tune`: fit a sampler's grid to one network, for sampling in few evaluations."""

from __future__ import annotations

import argparse
import os

from ..common.errors import InputError
from ..common.text import counted
from .model import add_device_argument, add_sampler_arguments, parse_numbers, parse_options
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc tune`."""
    parser.add_argument("model", metavar="RUN", help="a run folder, or one of its checkpoints")
    nfe = "evaluations per image to tune for; each has a grid of its own (default: %(default)s)"
    parser.add_argument("--nfe", default="5,8,10", metavar="LIST", help=nfe)
    add_sampler_arguments(parser)
    images = "images to fit to; as many others judge the result (default: %(default)s)"
    parser.add_argument("--images", type=int, default=128, metavar="N", help=images)
    parser.add_argument("--no-weights", action="store_true", help="tune the angles only, not the weights of the steps")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, print the errors of both grids, and store the better one beside the weights; 0 when done."""
    counts = parse_numbers(args.nfe, "--nfe")
    if min(counts) < 2:
        raise InputError(f"--nfe {args.nfe}: tuning takes at least 2 evaluations")
    options = parse_options(args.option)

    from ..common.devices import pick_device
    from ..samplers import Adaptive
    from ..samplers import sampler as named_sampler
    from ..sampling.plans import DEFAULT_SAMPLER
    from ..sampling.tuned_grids import write_tuned
    from ..sampling.tuning import tune
    from ..storage.checkpoints import load
    from ..storage.runs import newest_checkpoint

    checkpoint = newest_checkpoint(args.model)
    if not os.access(checkpoint, os.W_OK):
        raise InputError(f"{checkpoint} is not writable, and tuned grids are stored there: copy the run")
    name = args.sampler or DEFAULT_SAMPLER
    sampler = named_sampler(name, **options)
    evaluations = sampler.evaluations
    if min(counts) < 2 * evaluations and not isinstance(sampler, Adaptive):
        raise InputError(
            f"--nfe {args.nfe}: {name} takes {counted(evaluations, 'evaluation')} per step, and one step has no angles "
            f"to tune: give at least {2 * evaluations}"
        )
    denoise = load(checkpoint, pick_device(args.device))
    print("Median distance per pixel to the network's own fine trajectories, on noise that was not tuned on:")
    for nfe in counts:
        steps = max(1, nfe // evaluations)
        tuned = tune(denoise, steps, name, images=args.images, weights=not args.no_weights, **options)
        write_tuned(checkpoint, [tuned])
        errors = ", ".join(f"{grid} {error:.5f}" for grid, error in tuned.errors.items())
        kept = "untuned grid kept: tuning did not improve it" if tuned.kept == "untuned" else f"kept: {tuned.kept}"
        requested = "" if tuned.nfe == nfe else f", {nfe} requested"
        print(f"  {counted(tuned.nfe, 'evaluation')} ({counted(steps, 'step')}{requested}): {errors}; {kept}")
    same = "" if args.sampler is None else f"--sampler {name} "
    same += "".join(f"--option {option} " for option in args.option)
    print(f"Sample with {same}--grid tuned --steps N (the grids are in {checkpoint / 'tuned.json'})")
    return 0
