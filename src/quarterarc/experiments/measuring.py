"""Measuring cells: each cell is measured once and kept in CACHE/cells/HASH."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.devices import processes
from ..common.errors import InputError
from ..storage.checksums import read_sealed, write_sealed
from ..storage.files import make_folder, replace_folder
from ..storage.temporary import remove_folder
from .cells import Cell
from .lab import Lab, exclusive, only_warnings
from .measures import MEASURES, WRAPPERS

__all__ = ["cell_folder", "is_measured", "measure"]


def cell_folder(lab: Lab, cell: Cell) -> Path:
    """The folder of a cell, named by the hash of everything that decides its values."""
    return lab.cache / "cells" / cell.key(lab.scale, MEASURES[cell.measure].identity(lab))


def is_measured(lab: Lab, cell: Cell) -> bool:
    """Whether the values of a cell are in the cache; damaged ones are not."""
    return _values(cell_folder(lab, cell)) is not None


def _values(folder: Path) -> dict[str, Any] | None:
    """The values of a cell's folder; None if there are none, or cell.json is damaged."""
    if not (folder / "cell.json").exists():
        return None
    try:
        values = read_sealed(folder / "cell.json")["values"]
    except (InputError, KeyError, TypeError):
        return None
    return values if isinstance(values, dict) else None


def measure(lab: Lab, cell: Cell) -> dict[str, Any]:
    """The values of a cell, measured (and its arm trained) if they are not in the cache.

    In a distributed run all processes call this function together, and all return the values.

    Returns:
        Values by name; only `unstable`, with the reason, where training diverged or the images are not finite.
    """
    folder = cell_folder(lab, cell)
    if processes().from_first(not is_measured(lab, cell)):
        with exclusive(folder):  # another experiment may be measuring the same cell, with the same partial results
            if processes().from_first(not is_measured(lab, cell)):
                _measure(lab, cell, folder)
    values = _values(folder)
    if values is None:
        raise InputError(f"{folder / 'cell.json'} is damaged: delete its folder to measure it again")
    return values


def _measure(lab: Lab, cell: Cell, folder: Path) -> None:
    """Measure a cell and write its folder; the caller holds its lock."""
    denoise = lab.denoiser(cell.arm, cell.seed)
    with _new_folder(folder) as beside:
        if isinstance(denoise, str):
            values = {"unstable": denoise}
        else:
            through = cell.get("through")
            wrapped = denoise if through is None else WRAPPERS[through](denoise)
            with only_warnings():
                values = MEASURES[cell.measure].compute(lab, wrapped, cell, beside)
        if not processes().rank:
            about = {"arm": cell.arm.name, "seed": cell.seed, "measure": cell.measure}
            write_sealed(beside / "cell.json", {**about, "settings": dict(cell.settings), "values": values})
    processes().wait()


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `folder` at the end; if another process finished first, its folder stays."""
    if processes().rank:
        yield folder
        return
    make_folder(folder.parent)
    if folder.exists() and _values(folder) is None:
        remove_folder(folder)  # it was deleted in part, or is damaged
    try:
        with replace_folder(folder) as beside:
            yield beside
    except OSError:
        if not (folder / "cell.json").is_file():
            raise
