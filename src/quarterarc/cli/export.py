"""`quarterarc export`: a trained model in the format of other programs."""

from __future__ import annotations

import argparse

from .arguments import A_MODEL, a_path, a_text, add_device_argument
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc export`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=A_MODEL)
    out = "the folder; it must not exist, unless it is an export of the same model, whose card is written again"
    parser.add_argument("out", type=a_path, metavar="OUT", help=out)
    add_export_arguments(parser)


def add_export_arguments(parser: Parser) -> None:
    """The arguments of commands that export a model."""
    format = "diffusers, a pipeline; safetensors, a checkpoint of quarterarc; onnx, the network (default: %(default)s)"
    parser.add_argument("--format", default="diffusers", metavar="NAME", help=format)
    samples = "images in the picture of the model card, 0 for none (default: %(default)s)"
    parser.add_argument("--samples", type=int, default=16, metavar="N", help=samples)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the export; 0 when it is complete."""
    from ..sharing.exporting import export

    folder = export(args.model, args.out, format=args.format, samples=args.samples, device=args.device)
    print(f"exported: {folder} (model card: README.md)")
    return 0
