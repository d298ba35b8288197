"""Folders beside a result for partial results, from which an interrupted evaluation continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..common.devices import processes
from ..common.errors import InputError
from ..storage.files import make_folder
from ..storage.temporary import is_temporary, remove_folder, sweep, sweep_beside

__all__ = ["partial_results"]

_MARK = ".quarterarc"


@contextmanager
def partial_results(out: Path | None, suffix: str) -> Iterator[Path | None]:
    """The folder `OUT.suffix` for partial results of `out`, removed at the end and on an InputError or OSError.

    An interrupt leaves it. It contains the file `.quarterarc`, and a folder without it is never removed. None if there
    is no `out`.

    Raises:
        InputError: if there is a folder of this name that quarterarc has not created.
    """
    if out is None:
        yield None
        return
    folder = out.with_name(f"{out.name}.{suffix}")
    new = [parent for parent in folder.parents if not parent.exists()]
    _claim(folder)
    try:
        yield folder
    except (InputError, OSError):
        _remove(folder)
        with suppress(OSError):  # not empty: other files are in it
            for parent in new:
                parent.rmdir()
        raise
    if processes().rank == 0:
        _remove(folder)


def _remove(folder: Path) -> None:
    with suppress(OSError):  # another process has removed it
        remove_folder(folder)


def _claim(folder: Path) -> None:
    """Create and mark the folder; InputError for one with content that is not marked."""
    # the content first: another process of this run may be creating the folder, and marks it before it writes to it
    if folder.exists() and _has_content(folder) and not (folder / _MARK).is_file():
        raise InputError(
            f"{folder} would hold partial results, but exists already and is not quarterarc's: rename or remove it, or "
            "choose another file (--out)"
        )
    sweep_beside(folder)
    make_folder(folder)
    (folder / _MARK).touch()
    sweep(folder, *folder.iterdir())


def _has_content(folder: Path) -> bool:
    """Whether something is in a folder, or it is a file; temporary files of a killed process do not count."""
    return not folder.is_dir() or not all(map(is_temporary, folder.iterdir()))
