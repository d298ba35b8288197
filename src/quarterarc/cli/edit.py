"""`quarterarc edit`: new content in a part of an image, other versions of it, and images between two."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..common.errors import InputError
from ..common.text import counted
from .arguments import (
    A_MODEL,
    a_path,
    a_text,
    add_batch_arguments,
    add_sampling_arguments,
    parse_labels,
    parse_seeds,
    sampling_request,
)
from .parser import Parser

if TYPE_CHECKING:
    from ..denoiser import Denoise
    from ..edit.files import Edit
    from ..sampling.plans import Sampling

SEEDS = "0-7"
EDITS = {"mask": "--mask M", "strength": "--strength S", "between": "--between A B", "variations": "--variations V"}
BELONGS = {"method": "mask", "resamplings": "mask", "jump": "mask", "count": "between"}
"""The option of an edit, and the edit to which it belongs."""
COUNT = 8


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc edit`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=A_MODEL)
    parser.add_argument("--out", required=True, type=a_path, metavar="PATH", help="the folder of the results")
    image = "a picture file, cropped and resized to the size of the model's images"
    parser.add_argument("--image", type=a_path, metavar="FILE", help=image)
    mask = "new content where this picture is white; the rest of --image stays (default sampler: ddpm)"
    parser.add_argument("--mask", type=a_path, metavar="FILE", help=mask)
    method = "with --mask: project, for any sampler, or resample, RePaint (default: project)"
    parser.add_argument("--method", metavar="NAME", help=method)
    resamplings = "with --method resample: how often each part of the grid is sampled (default: 10)"
    parser.add_argument("--resamplings", type=int, metavar="N", help=resamplings)
    jump = "with --method resample: steps of such a part (default: 1)"
    parser.add_argument("--jump", type=int, metavar="N", help=jump)
    strength = "other versions of --image: noise is added and removed, from just above 0 (a little) to 1 (all of it)"
    parser.add_argument("--strength", type=float, metavar="S", help=strength)
    between = "images on the way between two picture files"
    parser.add_argument("--between", nargs=2, type=a_path, metavar="FILE", help=between)
    count = "with --between: number of results, both ends included (default: 8)"
    parser.add_argument("--count", type=int, metavar="N", help=count)
    variations = "images near --image: its noise under the flow, changed by 0 (not at all) to 1 (a new image)"
    parser.add_argument("--variations", type=float, metavar="V", help=variations)
    parser.add_argument("--seeds", metavar="LIST", help=f"one per result: 0-63 or 1,5,10-19 (default: {SEEDS})")
    add_sampling_arguments(parser)
    add_batch_arguments(parser, "results")


def run(args: argparse.Namespace) -> int:
    """Write the results; 0 when all are there."""
    _check_one_edit(args)
    seeds = (
        list(range(args.count or COUNT)) if args.between else parse_seeds(SEEDS if args.seeds is None else args.seeds)
    )
    request, labels = sampling_request(args), parse_labels(args.labels)

    import torch

    from ..common.limits import check_batch_size
    from ..evaluation.sources import open_model
    from ..sampling.folders import write_plan

    check_batch_size(args.batch_size)
    model = open_model(args.model, args.device, torch.bfloat16 if args.bf16 else None, args.projection, args.guidance)
    edit = _edit(args, model.denoise, request, labels)
    made = write_plan(
        edit.plan,
        args.out,
        seeds,
        batch_size=args.batch_size,
        labels=labels,
        about={**model.about, **edit.settings},
        beside=edit.pictures,
        # `adaptive`, whose batches have many sizes, is not compiled; inpainting hides it from `auto`
        compile=False if args.compile == "auto" and args.sampler == "adaptive" else args.compile,
    )
    if made:
        images, evaluations = counted(made["count"], "image"), counted(made["nfe"], "network evaluation")
        print(f"{images}, {evaluations} per image, in {args.out} (overview: contact-sheet.png)")
    return 0


def _edit(args: argparse.Namespace, denoise: Denoise, request: Sampling, labels: list[int | str] | None) -> Edit:
    """The edit that the arguments describe."""
    from ..edit.files import from_image, inpainted, interpolated, varied
    from ..edit.plans import METHODS

    if args.mask is not None:
        repeated = {name: getattr(args, name) for name in ("resamplings", "jump") if getattr(args, name) is not None}
        method = METHODS[0] if args.method is None else args.method
        return inpainted(denoise, request, args.image, args.mask, method, **repeated)
    if args.strength is not None:
        return from_image(denoise, request, args.image, args.strength)
    if args.variations is not None:
        return varied(denoise, request, args.image, args.variations, labels)
    first, second = args.between
    return interpolated(denoise, request, first, second, args.count or COUNT, labels)


def _check_one_edit(args: argparse.Namespace) -> None:
    """Raise an InputError unless the arguments describe one edit, with what belongs to it alone."""
    chosen = [name for name in EDITS if getattr(args, name) is not None]
    if len(chosen) != 1:
        what = "no edit was chosen" if not chosen else f"{' and '.join(f'--{name}' for name in chosen)} are two edits"
        listed = "--image A --mask M, --image A --strength S, --image A --variations V or --between A B"
        raise InputError(f"{what}: give one of {listed}")
    (edit,) = chosen
    if edit == "between" and args.image is not None:
        raise InputError("--between takes its two images itself: leave out --image")
    if edit == "between" and args.seeds is not None:
        raise InputError("--between has no random part: leave out --seeds, and give --count")
    if edit != "between" and args.image is None:
        raise InputError(f"--{edit} needs the image to edit: give --image")
    for name, owner in BELONGS.items():
        if getattr(args, name) is not None and owner != edit:
            raise InputError(f"--{name} belongs to {EDITS[owner]}, not to --{edit}: leave it out")
    for name in ("resamplings", "jump"):
        if getattr(args, name) is not None and args.method != "resample":
            raise InputError(f"--{name} belongs to --method resample: give that too, or leave it out")
    if args.count is not None and args.count < 2:
        raise InputError(f"--count {args.count}: an interpolation has at least 2 results, its ends included")
    if args.out.suffix.lower() == ".npz":
        raise InputError(f"--out {args.out}: the results of an edit are a folder, not an npz")
