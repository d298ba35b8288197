"""Folders beside a result for partial results, from which an interrupted evaluation continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..common.devices import processes
from ..common.errors import InputError

__all__ = ["partial_results"]


@contextmanager
def partial_results(out: Path | None, suffix: str) -> Iterator[Path | None]:
    """The folder `OUT.suffix` for partial results of `out`, removed at the end and on an InputError or OSError.

    An interrupt leaves it. The folder is not created. None if there is no `out`.
    """
    if out is None:
        yield None
        return
    folder = out.with_name(f"{out.name}.{suffix}")
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        yield folder
    except (InputError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: other files are in it
            for parent in new:
                parent.rmdir()
        raise
    if processes().rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
