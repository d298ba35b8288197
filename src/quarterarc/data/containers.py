"""Files that hold images but are not read, or not within a folder of images: how to use them instead."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

__all__ = ["CONTAINERS", "TRAIN", "how_to_use"]

TRAIN = "quarterarc.train(RECIPE, OUT, data={})"
"""The call in which `{}` stands for images, or for a pair of images and labels."""

_UNPACK = {
    (
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
_OTHERS = {
    (".npy", ".npz", ".zip", ".tar"): "give this file as the source",
    (".h5", ".hdf5", ".mat", ".pt", ".pth", ".pkl", ".pickle", ".zarr"): "read it in Python and give the images as "
    "uint8 (N, C, H, W): {call}",
    (".arrow", ".tfrecord", ".tfrecords", ".csv", ".jsonl"): "convert it to parquet with a column of encoded images, "
    "or write the images to a folder",
    (".mdb",): "give the folder it lies in",
}
CONTAINERS = tuple(ending for endings in (*_UNPACK, *_OTHERS) for ending in endings)
"""The endings of files that may hold images but are not read within a folder of images."""


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
    advice = next((advice for endings, advice in _OTHERS.items() if name.endswith(endings)), None)
    return advice and advice.format(call=call.format("images"))
