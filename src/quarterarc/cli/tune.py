"""`quarterarc tune`: fit a sampler's grid to one network, for sampling in few evaluations."""

from __future__ import annotations

import argparse

from ..common.text import counted
from .arguments import A_MODEL, a_text, add_device_argument, add_sampler_arguments, parse_numbers, parse_options
from .listing import grid_listing, sampler_listing
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc tune`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=A_MODEL)
    nfe = "evaluations per image to tune for; each has a grid of its own (default: %(default)s)"
    parser.add_argument("--nfe", default="5,8,10", metavar="LIST", help=nfe)
    add_sampler_arguments(parser)
    images = "images to fit to; as many others compare the grids (default: 128, fewer above 256 pixels)"
    parser.add_argument("--images", type=int, metavar="N", help=images)
    guidance = "scale of classifier-free guidance whose flow is fitted; an evaluation with it is two of the network"
    parser.add_argument("--guidance", type=float, metavar="SCALE", help=guidance)
    parser.add_argument("--no-weights", action="store_true", help="tune the angles only, not the weights of the steps")
    add_device_argument(parser)
    parser.listing = lambda: f"{sampler_listing()}\n\n{grid_listing(flag='')}"


def run(args: argparse.Namespace) -> int:
    """Tune, print the errors of both grids, and store the better one beside the weights; 0 when done."""
    counts = parse_numbers(args.nfe, "--nfe")
    options = parse_options(args.option)

    from ..denoiser import traits
    from ..interop.opening import load
    from ..sampling.plans import DEFAULT_SAMPLER, Sampling
    from ..sampling.tuning import tune_run

    # as a request: an option named like an argument of `tune_run` must not be taken for that
    request = Sampling(args.sampler, options=options, guidance=args.guidance)
    grids = tune_run(
        args.model,
        counts,
        request,
        images=args.images,
        weights=not args.no_weights,
        device=args.device,
    )
    for place, (nfe, tuned) in enumerate(zip(counts, grids, strict=True)):
        if not place:  # the first grid has passed all checks
            print("Median distance per pixel to the network's own fine trajectories, on noise that was not tuned on:")
        errors = ", ".join(f"{grid} {error:.5f}" for grid, error in tuned.errors.items())
        kept = "untuned grid kept: tuning did not improve it" if tuned.kept == "untuned" else f"kept: {tuned.kept}"
        requested = "" if tuned.nfe == nfe else f", {nfe} requested"
        free = "" if tuned.first is None else " after a free first one"
        steps = f"{counted(tuned.steps, 'step')}{free}{requested}"
        print(f"  {counted(tuned.nfe, 'evaluation')} ({steps}): {errors}; {kept}")
    sampler = args.sampler
    if sampler is None and traits(load(args.model)).maps:  # whose default is another one, `jump`
        sampler = DEFAULT_SAMPLER
    same = "" if sampler is None else f"--sampler {sampler} "
    same += "".join(f"--option {option} " for option in args.option)
    same += "" if args.guidance is None else f"--guidance {args.guidance} --labels LIST "
    print(f"Sample with {same}--grid tuned --steps N (the grids are in tuned.json beside the weights)")
    return 0
