"""`quarterarc play`: a page to play with a trained model, in the browser."""

from __future__ import annotations

import argparse

from .arguments import A_MODEL, a_text, add_device_argument
from .parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc play`."""
    parser.add_argument("model", type=a_text, metavar="RUN", help=A_MODEL)
    host = "name or address of the page; 0.0.0.0 for all that can reach this machine (default: %(default)s, it alone)"
    parser.add_argument("--host", type=a_text, default="127.0.0.1", help=host)
    port = "port of the page; 0 for any free one (default: %(default)s)"
    parser.add_argument("--port", type=int, default=7860, metavar="N", help=port)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from ..app import play

    play(args.model, host=args.host, port=args.port, device=args.device)
    return 0
