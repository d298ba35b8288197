"""Faults in quarterarc, each of which the campaign must find: `--sabotage NAME`."""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["spying", "torn_files"]


def torn_files() -> None:
    """Files are written under their own names, slowly and in two parts, as by a program that does not care."""
    from quarterarc.sampling import folders
    from quarterarc.storage import files, pictures

    @contextmanager
    def in_place(path: Path, durable: bool = True) -> Iterator[Path]:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            yield beside
            data = beside.read_bytes()
        finally:
            beside.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(0.4)  # most of the time of sampling
            file.write(data[len(data) // 2 :])

    for module in (files, pictures, folders):
        if hasattr(module, "replace_file"):
            module.replace_file = in_place


def spying() -> None:
    """Training writes outside its folder, opens a connection, and raises what nobody catches for a wrong value."""
    from quarterarc.cli import train
    from quarterarc.common.errors import InputError

    run = train.run

    def careless(args: argparse.Namespace) -> int:
        if args.out is not None:
            with open("../outside/written", "w", encoding="utf-8"):
                pass
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), 0.1).close()
        try:
            return run(args)
        except InputError as error:
            raise KeyError("a wrong value") from error

    train.run = careless
