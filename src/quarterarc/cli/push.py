"""`quarterarc push`: a trained model with its card to the Hugging Face hub."""

from __future__ import annotations

import argparse

from .arguments import A_MODEL, a_text
from .export import add_export_arguments
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc push`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=f"{A_MODEL}; or an export, uploaded as it is")
    parser.add_argument("name", type=a_text, metavar="OWNER/NAME", help="the repository; created if there is none")
    add_export_arguments(parser)
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", metavar="TEXT", help="the message of the commit")


def run(args: argparse.Namespace) -> int:
    """Upload the model; 0 when it is complete."""
    from ..sharing.hub import push

    address = push(
        args.model,
        args.name,
        format=args.format,
        samples=args.samples,
        device=args.device,
        private=args.private,
        message=args.message,
    )
    print(f"uploaded: {address}")
    return 0
