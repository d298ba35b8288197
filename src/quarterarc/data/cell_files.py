"""Files that are named in the image cells of tables: the rule of which ones are read.

A table may come from anyone, so its paths may name regular files below the folder of the table, and nothing else.
Addresses are never opened, and neither are absolute paths, `..`, links that lead out of the folder, FIFOs, devices and
sockets. Paths to files that the library `datasets` downloaded, which it stores for datasets of image files, are allowed
below its own downloads only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .decode import BadImage, read_file

__all__ = ["download_folders", "file_of_cell", "read_cell_file"]

_REMEDY = (
    "give the folder of the images as the source, or store their bytes in the table: "
    "dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
)


def read_cell_file(path: Any, folder: Path | None, name: str, downloads: Iterable[Path] = (), most: int = 0) -> bytes:
    """The bytes of the file in an image cell.

    Args:
        path: the path in the cell.
        folder: the folder of the table; None if it has none.
        name: the image, for messages.
        downloads: the folders below which an absolute path is allowed too, see `download_folders`.
        most: the largest size in bytes; 0 for no limit.

    Raises:
        BadImage: if the rule does not allow the path, or the file cannot be read.
    """
    return read_file(file_of_cell(path, folder, name, downloads), name, most)


def file_of_cell(path: Any, folder: Path | None, name: str, downloads: Iterable[Path] = ()) -> Path:
    """The resolved path of the file in an image cell; arguments and errors as for `read_cell_file`. Opens nothing."""
    shown = repr(path) if len(repr(path)) <= 100 else repr(path)[:100] + "..."
    if not isinstance(path, str) or not path or "\0" in path:
        raise BadImage(name, f"its path {shown} is not the path of a file")
    if "://" in path:
        raise BadImage(name, f"its path {shown} is an address, which is never opened; {_REMEDY}")
    forms = (PurePosixPath(path), PureWindowsPath(path))
    if any(form.drive or form.root for form in forms):
        if Path(path).is_absolute():
            real = Path(os.path.realpath(path))
            if any(_is_below(real, root) for root in downloads):
                return real
        if folder is not None:
            raise BadImage(name, f"its path {shown} is absolute, but may only name a file below {_place(folder)}")
    if folder is None:
        raise BadImage(name, f"its path {shown} is not read, because the table has no folder of its own; {_REMEDY}")
    if any(".." in form.parts for form in forms):
        raise BadImage(name, f"its path {shown} contains '..', but may only name a file below {_place(folder)}")
    real = Path(os.path.realpath(folder / path))
    if not _is_below(real, folder):
        raise BadImage(name, f"its path {shown} is a link that leads out of {_place(folder)}")
    return real


def download_folders(hub_id: str | None = None, cache_dir: Path | None = None) -> tuple[Path, ...]:
    """The folders to which `datasets` downloads image files: of one dataset of the hub, or of all.

    Only these folders: beside them lie tokens and the data of other libraries.
    """
    if "datasets" not in sys.modules:
        return ()
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = Path(HF_HUB_CACHE)
    own = hub / f"datasets--{hub_id.partition(':')[0].replace('/', '--')}" if hub_id else hub
    tables = Path(cache_dir) if cache_dir is not None else Path(config.HF_DATASETS_CACHE)
    return own, tables / "downloads"


def _is_below(real: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in real.parents


def _place(folder: Path) -> str:
    return f"the table's folder {folder}"
