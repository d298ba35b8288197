"""`quarterarc tune`: fit a sampler's grid to one network, for sampling in few evaluations."""

from __future__ import annotations

import argparse
import os

from ..common.errors import InputError
from .model import parse_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `quarterarc tune`."""
    parser.add_argument("model", metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--nfe", default="5,8,10", help="evaluations an image to tune for (default: %(default)s)")
    parser.add_argument("--sampler", default="multistep", help="a deterministic sampler (default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the sampler, such as order=2"
    )
    parser.add_argument(
        "--images", type=int, default=128, help="images to fit to; as many judge (default: %(default)s)"
    )
    parser.add_argument("--no-weights", action="store_true", help="tune the angles only, not the weights of the steps")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    """Tune, print what it brings, and keep it beside the weights; 0 when done."""
    counts = _counts(args.nfe)
    options = dict(parse_option(option) for option in args.option)

    from ..common.devices import pick_device
    from ..samplers import Adaptive, sampler
    from ..sampling.tuned_grids import write_tuned
    from ..sampling.tuning import tune
    from ..storage.checkpoints import load
    from ..storage.runs import newest_checkpoint

    checkpoint = newest_checkpoint(args.model)
    if not os.access(checkpoint, os.W_OK):
        raise InputError(f"{checkpoint} cannot be written to, and tuned grids are kept there: copy the run")
    denoise = load(checkpoint, pick_device(args.device))
    rule = sampler(args.sampler, **options)
    evaluations = rule.evaluations
    if min(counts) < 2 * evaluations and not isinstance(rule, Adaptive):
        raise InputError(
            f"--nfe {args.nfe}: {args.sampler} takes {evaluations} evaluations a step, and one step has no angles to "
            f"tune: ask for at least {2 * evaluations}"
        )
    print("Median distance to the network's own fine trajectories on noise it was not tuned on, a pixel:")
    for nfe in counts:
        steps = max(1, nfe // evaluations)
        found = tune(denoise, steps, args.sampler, images=args.images, weights=not args.no_weights, **options)
        write_tuned(checkpoint, [found])
        errors = ", ".join(f"{name} {error:.5f}" for name, error in found.errors.items())
        kept = "the untuned grid is kept: nothing was better" if found.kept == "untuned" else f"kept: {found.kept}"
        asked = "" if found.nfe == nfe else f", asked for {nfe}"
        print(f"  {found.nfe} evaluations ({steps} steps{asked}): {errors}; {kept}")
    how = "" if args.sampler == "multistep" else f"--sampler {args.sampler} "
    how += "".join(f"--option {option} " for option in args.option)
    print(f"Sample with {how}--grid tuned --steps N (in {checkpoint / 'tuned.json'})")
    return 0


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--nfe takes whole numbers, 5,8,10, got '{text}'") from None
    if min(counts) < 2:
        raise InputError(f"--nfe {text}: tuning takes at least 2 evaluations")
    return counts
