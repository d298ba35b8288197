"""`quarterarc sample`: images from seeds, as PNG files or as one npz."""

from __future__ import annotations

import argparse

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


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc sample`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=A_MODEL)
    out = "the folder of the images, or a file that ends in .npz, in ADM's layout"
    parser.add_argument("--out", required=True, type=a_path, metavar="PATH", help=out)
    seeds = "one per image: 0-63 or 1,5,10-19 (default: %(default)s)"
    parser.add_argument("--seeds", default="0-63", metavar="LIST", help=seeds)
    add_sampling_arguments(parser)
    add_batch_arguments(parser, "images")


def run(args: argparse.Namespace) -> int:
    """Write the images; 0 when all are there."""
    seeds, labels, sampling = parse_seeds(args.seeds), parse_labels(args.labels), sampling_request(args)

    import torch

    from ..evaluation.sources import open_model
    from ..sampling.folders import write_samples

    model = open_model(args.model, args.device, torch.bfloat16 if args.bf16 else None, args.projection, args.guidance)
    made = write_samples(
        model.denoise,
        args.out,
        seeds,
        sampling,
        batch_size=args.batch_size,
        labels=labels,
        about=model.about,
        compile=args.compile,
    )
    if made:
        images, evaluations = counted(made["count"], "image"), counted(made["nfe"], "network evaluation")
        overview = " (overview: contact-sheet.png)" if args.out.is_dir() else ""
        print(f"{images}, {evaluations} per image, in {args.out}{overview}")
    return 0
