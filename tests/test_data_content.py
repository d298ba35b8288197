"""Replaced images are noticed when a run is resumed, and moved or touched ones are accepted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_samples import encode, patch, table, write_lmdb
from quarterarc import DataSpec, open_data
from quarterarc.common.errors import InputError
from quarterarc.data import content
from quarterarc.data.content import content_of
from quarterarc.storage.runs import checkpoints
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.same_data import SameData


def images(change: int) -> list[bytes]:
    """Three images as uncompressed files, of the same sizes whatever the change to one of them."""
    pixels = [patch(number, 8, 8).copy() for number in range(3)]
    pixels[1][4, 4, 0] ^= np.uint8(change)
    return [encode(array, "BMP") for array in pixels]


def folder(place: Path, change: int) -> Path:
    place.mkdir(exist_ok=True)
    for number, image in enumerate(images(change)):
        (place / f"{number}.bmp").write_bytes(image)
    return place


def lmdb(place: Path, change: int) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    write_lmdb(place, {str(number).encode(): image for number, image in enumerate(images(change))})
    return place


def parquet(place: Path, change: int) -> Path:
    from pyarrow import parquet

    place.mkdir(exist_ok=True)
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(table(images(change)), place / "images.parquet", **settings)
    return place


def parquet_of_paths(place: Path, change: int) -> Path:
    from pyarrow import parquet

    (place / "files").mkdir(parents=True, exist_ok=True)
    folder(place / "files", change)
    cells = [{"bytes": None, "path": f"files/{number}.bmp"} for number in range(3)]
    if not (place / "images.parquet").exists():
        parquet.write_table(table(cells), place / "images.parquet")
    return place / "images.parquet"


def saved(place: Path, change: int) -> Path:
    from datasets import Dataset, Features, Image

    shutil.rmtree(place, ignore_errors=True)
    rows = {"image": [{"bytes": image, "path": None} for image in images(change)]}
    Dataset.from_dict(rows, features=Features({"image": Image(decode=False)})).save_to_disk(place)
    return place


@pytest.mark.parametrize("write", [folder, lmdb, parquet, parquet_of_paths, saved])
def test_replaced_images_are_other_data_and_moved_or_touched_ones_are_not(
    write: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    def same(source: Path) -> SameData:
        return SameData(open_data(DataSpec(source=str(source), size=8)), hashed=True)

    source = write(tmp_path / "data", 0)
    first = same(source)
    first.start()
    config = first.describe(wait=True)
    assert all(config.values())
    same(source).check(tmp_path, config)
    for path in source.rglob("*") if source.is_dir() else [source]:
        os.utime(path, ns=(1, 1))
    same(source).check(tmp_path, config)  # touched
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / source.relative_to(tmp_path / "data")
    again = same(moved)
    again.check(tmp_path, config)
    assert again.describe(wait=True)["data_content"] == config["data_content"]
    write(tmp_path / "moved", 1)
    replaced = same(moved)
    assert replaced.describe(wait=True)["data"] == config["data"]  # same names and sizes
    with pytest.raises(InputError, match=r"trained on other data: names and sizes are .* the content is another one"):
        replaced.check(tmp_path, config)
    replaced.check(tmp_path, {"data": config["data"]})  # a checkpoint of version 0.1 has names and sizes only


def test_a_run_is_not_resumed_on_replaced_images(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    fields = [*tiny, f"data.source={folder(tmp_path / 'data', 0)}", "data.channels=3"]
    train(read_recipe("digits", [*fields, "training.steps=2"]), tmp_path / "run", progress=False)
    folder(tmp_path / "data", 1)
    with pytest.raises(InputError, match="the content is another one"):
        train(read_recipe("digits", fields), tmp_path / "run", resume=True, progress=False)
    folder(tmp_path / "data", 0)
    train(read_recipe("digits", fields), tmp_path / "run", resume=True, progress=False)
    assert len(checkpoints(tmp_path / "run")) == 3


def test_large_files_are_hashed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second part of 4 bytes is read: a change of it is noticed, and one of another part is not."""
    monkeypatch.setattr(content, "_PART", 4)
    monkeypatch.setattr(content, "_MOST", 8)
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]
    files[0].write_bytes(b"aaaabbbb")
    files[1].write_bytes(b"ccccdddd")
    before = content_of(files)
    files[0].write_bytes(b"aaaaxbbb")
    assert content_of(files) == before
    files[1].write_bytes(b"cxccdddd")
    assert content_of(files) != before
    assert content_of(files[:2]) != content_of(files[1::-1])


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert content_of([tmp_path / "fifo"]) == content_of([tmp_path / "missing"])
