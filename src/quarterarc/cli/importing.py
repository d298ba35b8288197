"""`quarterarc import`: a published checkpoint as a checkpoint folder."""

from __future__ import annotations

import argparse

from .arguments import a_path
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc import`."""
    file = "a state dict as safetensors, or a file of torch.save: DDIM's .ckpt, ADM's .pt, EDM's (docs/other-models.md)"
    parser.add_argument("file", type=a_path, metavar="FILE", help=file)
    parser.add_argument("out", type=a_path, metavar="OUT", help="the checkpoint folder, which must not exist")
    size = "side of the images in pixels (default: from the levels with attention; EDM's weights contain it)"
    parser.add_argument("--size", type=int, metavar="N", help=size)
    schedule = "schedule of training, linear or cosine, for DDIM's and ADM's layouts (default: %(default)s)"
    parser.add_argument("--schedule", default="linear", metavar="NAME", help=schedule)
    steps = "steps of the schedule (default: %(default)s)"
    parser.add_argument("--steps", type=int, default=1000, metavar="T", help=steps)
    heads = "attention heads at every width, for ADM's layout (default: 4 for improved-diffusion's networks)"
    parser.add_argument("--heads", type=int, metavar="N", help=heads)
    channels = "channels per attention head, for ADM's layout (default: 64 for guided-diffusion's networks)"
    parser.add_argument("--head-channels", type=int, metavar="N", help=channels)
    order = "order of attention's channels, legacy or new, for ADM's layout (default: %(default)s)"
    parser.add_argument("--attention-order", default="legacy", metavar="NAME", help=order)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint folder; 0 when it is complete."""
    from ..interop.importing import import_checkpoint

    checkpoint = import_checkpoint(
        args.file,
        args.out,
        size=args.size,
        schedule=args.schedule,
        steps=args.steps,
        heads=args.heads,
        head_channels=args.head_channels,
        order=args.attention_order,
    )
    print(f"imported: {checkpoint}")
    return 0
