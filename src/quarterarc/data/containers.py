"""Files that are no image folder or table: how to use archives and files of arrays instead."""

from __future__ import annotations

import zipfile
from pathlib import Path
from shlex import quote
from typing import IO, Any

import numpy as np

from .pixels import axes_call

__all__ = ["CONTAINERS", "TRAIN", "how_to_use"]

TRAIN = "quarterarc.train(RECIPE, OUT, data={})"
"""The call in which `{}` stands for images, or for a pair of images and labels."""

_UNPACK = {
    (".zip",): "unzip {path} -d {folder}",
    (
        ".tar",
        ".tar.gz",
        ".tgz",
        ".tar.bz2",
        ".tbz2",
        ".tar.xz",
        ".txz",
    ): "mkdir -p {folder} && tar -xf {path} -C {folder}",
    (".tar.zst", ".tzst"): "mkdir -p {folder} && tar --zstd -xf {path} -C {folder}",
    (".7z",): "7z x {path} -o{folder}",
    (".rar",): "unrar x {path} {folder}/",
}
_ARRAYS = (".npy", ".npz")
_OTHERS = {
    (".h5", ".hdf5", ".mat", ".pt", ".pth", ".pkl", ".pickle", ".zarr"): "read it in Python and give the images as "
    "uint8 (N, C, H, W): {call}",
    (".arrow", ".tfrecord", ".tfrecords", ".csv", ".jsonl"): "convert it to parquet with a column of encoded images, "
    "or write the images to a folder",
    (".mdb",): "give the folder it lies in",
}
CONTAINERS = tuple(ending for endings in (*_UNPACK, _ARRAYS, *_OTHERS) for ending in endings)
"""The endings of files that may hold images but are not read."""


def how_to_use(path: Path, call: str = TRAIN) -> str | None:
    """What to do with a file of images that is not read, as a command or call; None for other files.

    Args:
        path: the file.
        call: another call in which `{}` stands for the images.
    """
    name = path.name.lower()
    for endings, command in _UNPACK.items():
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is not None:
            folder = path.with_name(path.name[: -len(ending)] or "images")
            command = command.format(path=quote(str(path)), folder=quote(str(folder)))
            return f"unpack it first ({command}) and give that folder"
    if name.endswith(_ARRAYS):
        return _call(path, call)
    advice = next((advice for endings, advice in _OTHERS.items() if name.endswith(endings)), None)
    return advice and advice.format(call=call.format("images"))


def _call(path: Path, call: str) -> str:
    """The call with the images of an .npy or .npz, as far as its header tells."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                shape, dtype = _header(file)
            if dtype.hasobject:
                raise ValueError("objects")
            return f"give its images in Python: images = numpy.load({str(path)!r}), " + _how(call, shape, dtype)
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for name in archive.namelist()[:20]:
                with archive.open(name) as file:
                    headers[name.removesuffix(".npy")] = _header(file)
        key, (shape, dtype) = next((key, header) for key, header in headers.items() if len(header[0]) in (3, 4))
        labels = next((other for other, header in headers.items() if header[0] in ((shape[0],), (shape[0], 1))), None)
        load = f"file = numpy.load({str(path)!r}); images = file[{key!r}], "
        return (
            "give its images in Python: "
            + load
            + _how(call, shape, dtype, f"file[{labels!r}]" if labels and call == TRAIN else None)
        )
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError):
        return f"load it in Python and give its images as uint8 (N, C, H, W): {call.format('images')}"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of an array in a file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _how(call: str, shape: tuple[int, ...], dtype: Any, labels: str | None = None) -> str:
    """The call with the conversion to uint8 (N, C, H, W) in it."""
    images = "images[:, None]" if len(shape) == 3 else axes_call(shape, "transpose")
    known = images is not None and dtype == np.uint8
    after = "" if known else f" after converting the images from {dtype} {shape} to uint8 (N, C, H, W)"
    given = images if images is not None and known else "images"
    return call.format(f"({given}, {labels})" if labels else given) + after
