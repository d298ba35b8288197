"""Open hostile tables and files under a spy: `python hostile_tables.py FOLDER`.

Run by test_data_safety in a process of its own.

The spy (`sys.addaudithook`) records every file that Python opens, and every socket and process. Prints one JSON line
per source and cell: the error, and what was opened outside the folders that may be opened.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hostile_files import DAMAGED, Hostile, clear, hostile_file

FILES = 44
KINDS = tuple(kind for kind in (*DAMAGED, "special") if kind != "parquet")  # parquet has a loop of its own

WATCHED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)


def hostile_cells(secret: Path) -> list[str]:
    """Paths that must not be opened, some of them to a readable image outside the folder of the table."""
    inside = ["pipe.png", "link.png", "out/secret.png", "sub", "loop.png", "sub/../../outside/secret.png"]
    outside = [
        "../outside/secret.png",
        str(secret),
        f"{secret.parent}/../outside/secret.png",
        "/dev/zero",
        "/dev/stdin",
    ]
    addresses = [f"file://{secret}", f"local://{secret}", "http://127.0.0.1:9/a.png", "ftp://127.0.0.1:9/a.png"]
    addresses += ["github://owner:repo@main/a.png", "hf://datasets/owner/name/a.png", "s3://bucket/a.png"]
    chains = [f"simplecache::file://{secret}", f"zip://a.png::file://{secret}", "reference://::file:///etc/passwd"]
    windows = ["C:\\secret.png", "\\\\127.0.0.1\\share\\a.png", "..\\outside\\secret.png"]
    return [*inside, *outside, *addresses, *chains, *windows, "~/secret.png", "a\0.png", "memory://a", "x" * 5000]


def open_hostile(hostile: Hostile) -> None:
    """Open a hostile file as it is used, and read its first images."""
    from quarterarc.data import DataSpec, open_data
    from quarterarc.evaluation.references import open_reference
    from quarterarc.training.recipe_text import read_recipe

    if hostile.use == "recipe":
        read_recipe(str(hostile.path))
    elif hostile.use == "reference":
        images = open_reference(hostile.path).images
        if images is not None:
            next(images.batches(4, lambda number: number == 0))
    else:
        source = hostile.path.parent if hostile.use == "image" else hostile.path
        open_data(DataSpec(source=str(source), size=8, memory="stream"), progress=False).batch([0])


def main(folder: Path) -> None:
    import datasets
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    import torch

    from data_samples import encode, patch, table
    from quarterarc.common.errors import InputError
    from quarterarc.data import DataSpec, ImageData, open_data
    from quarterarc.data.stream import stream_dataset

    secret = folder / "outside" / "secret.png"
    good = {"bytes": encode(patch(0)), "path": None}
    tables = folder / "tables"
    datasets.disable_progress_bars()
    allowed = [str(tables), str(folder / "cache"), sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    seen: list[str] = []

    def spy(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
            real = os.path.realpath(path)
            if path and not any(real.startswith(os.path.realpath(place)) for place in allowed):
                seen.append(f"open {path}")
        elif event in WATCHED or event.startswith(("socket.", "urllib.", "ftplib.", "http.client")):
            seen.append(event)

    def spec(source: Path | str) -> DataSpec:
        return DataSpec(source=str(source), size=8, image_column="image", memory="stream")

    def read(kind: str, cell: str) -> None:
        rows = table([good, {"bytes": None, "path": cell}])
        if kind == "parquet":
            declared = {"info": {"features": {"image": {"_type": "Image"}}}}
            parquet.write_table(
                rows.replace_schema_metadata({"huggingface": json.dumps(declared)}), tables / "a.parquet"
            )
            open_data(spec(tables / "a.parquet"), cache_dir=folder / "cache", progress=False).batch([0, 1])
        elif kind == "saved":
            saved = datasets.Dataset(rows)
            saved.save_to_disk(str(tables))
            open_data(spec(tables), progress=False).batch([0, 1])
        else:
            features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
            both = arrow.table({"image": rows["image"], "mask": rows["image"]})
            images = datasets.Dataset(both.cast(features.arrow_schema))
            open_data(spec("memory"), images=images, progress=False).batch([0, 1])

    def stream_of(cells: list[str]) -> ImageData:
        """A stream of all cells in one block, with images in another column too."""
        images = table([{"bytes": None, "path": cell} for cell in cells])["image"]
        declared = {"info": {"features": {name: {"_type": "Image"} for name in ("image", "mask")}}}
        both = arrow.table({"image": images, "mask": images})
        parquet.write_table(both.replace_schema_metadata({"huggingface": json.dumps(declared)}), tables / "b.parquet")
        files, cache = str(tables / "b.parquet"), str(folder / "cache")
        stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=cache)
        return stream_dataset(spec("memory"), stream, "stream", torch.device("cpu"), 0)

    for kind in ("parquet", "saved", "object"):
        for name in ("state.json", "dataset_info.json", "a.parquet"):
            (tables / name).unlink(missing_ok=True)
        for path in tables.glob("*.arrow"):
            path.unlink()
        try:
            read(kind, "inside.png")  # also imports everything that reading imports
            print(json.dumps([kind, "inside.png", "", []]), flush=True)
        except InputError as error:
            print(json.dumps([kind, "inside.png", str(error), []]), flush=True)
        if kind == "parquet":
            sys.addaudithook(spy)
        for cell in hostile_cells(secret):
            seen.clear()
            try:
                read(kind, cell)
                reason = ""
            except InputError as error:
                reason = str(error)
            print(json.dumps([kind, cell, reason, list(seen)]), flush=True)
    cells = hostile_cells(secret)
    stream = stream_of(cells)  # made before the spy counts: `datasets` asks the hub here
    seen.clear()
    for number in range(len(cells)):
        try:
            stream.batch([number])
            reason = ""
        except InputError as error:
            reason = str(error)
        print(json.dumps(["stream", number, reason, list(seen)]), flush=True)
    inner = folder / "hostile"
    inner.mkdir()
    allowed.append(str(inner))
    for number in range(FILES):
        seen.clear()
        hostile, reason = hostile_file(np.random.default_rng(number), inner, KINDS[number % len(KINDS)]), ""
        before = {path.name for path in inner.iterdir()}
        seen.clear()  # of writing it
        try:
            open_hostile(hostile)
        except InputError as error:
            reason = str(error)
        made = [f"made {path}" for path in {path.name for path in inner.iterdir()} - before]
        print(json.dumps(["file", hostile.kind, reason, seen + made]), flush=True)
        clear(inner)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
