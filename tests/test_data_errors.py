"""Errors of data sources: one line with the reason and the remedy."""

from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_samples import encode, patch, table, write_folder, write_lmdb, write_parquet
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, decode, open_data
from quarterarc.data.decode import BadImage


def message_of(source: str | Path, cache: Path | None = None, **fields: Any) -> str:
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        open_data(DataSpec(source=str(source), size=fields.pop("size", 16), **fields), cache_dir=cache)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the source as a whole ---------------------------------------------------------------------------------------


def test_a_missing_source_lists_the_possible_ones(tmp_path: Path) -> None:
    assert "no such data: " + str(tmp_path / "none") in message_of(tmp_path / "none")
    assert "digits, cifar10, celeba, hub:owner/name, a folder" in message_of("digitz")
    assert "no such data" in message_of(tmp_path / "*.parquet")


def test_an_empty_folder_lists_the_accepted_endings(tmp_path: Path) -> None:
    assert f"no images under {tmp_path}; it has no files" in message_of(tmp_path)
    (tmp_path / "IMG_0.HEIC").write_bytes(b"x")
    message = message_of(tmp_path)
    assert f"no images under {tmp_path}; it has 1 .heic; HEIC is not read: convert the files to JPEG" in message
    (tmp_path / "IMG_0.HEIC").rename(tmp_path / "image.txt")
    assert "it has 1 .txt; expected files that end in .png, .jpg, .jpeg" in message_of(tmp_path)


def test_an_image_file_is_not_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(patch(0)))
    assert "give the folder it lies in" in message_of(tmp_path / "a.png")
    assert "also matches" in message_of(tmp_path / "*")


def test_images_beside_parquet_files_are_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 1)
    write_parquet(tmp_path / "train.parquet")
    assert "holds both parquet files (train.parquet) and images (images/00.png)" in message_of(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root has permission to read everything")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "shut", 1)
    (tmp_path / "shut").chmod(0)
    try:
        assert "cannot read the folder" in message_of(tmp_path)
    finally:
        (tmp_path / "shut").chmod(0o755)


def test_a_split_of_a_source_without_splits_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", 1)
    write_parquet(tmp_path / "some.parquet")
    for source in ("digits", tmp_path / "folder", tmp_path / "some.parquet"):
        assert "has no split 'test'; give the files of that split themselves" in message_of(source, split="test")


def test_a_missing_split_lists_the_existing_ones(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    write_parquet(tmp_path / "tables" / "test-00000-of-00001.parquet")
    assert "has the split 'train' in its name (files: test-00000-of-00001.parquet)" in message_of(tmp_path / "tables")
    DatasetDict(test=Dataset(table([encode(patch(0))]))).save_to_disk(tmp_path / "saved")
    assert "has no split 'train' (splits: test)" in message_of(tmp_path / "saved")


def test_too_little_memory_suggests_decoding_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch, "empty", full)
    assert "takes 0.0 GB as pixels, more than cpu has; read it on demand (memory: stream)" in message_of("digits")


# --- single images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["memory", "stream"])
def test_a_bad_file_is_named(tmp_path: Path, memory: str) -> None:
    write_folder(tmp_path)
    spec = DataSpec(source=str(tmp_path), size=16, memory=memory)  # type: ignore[arg-type]
    for content, reason in ((encode(patch(6))[:600], "truncated"), (b"hello", "it is not a PNG"), (b"", "it is empty")):
        (tmp_path / "06.png").write_bytes(content)
        with pytest.raises(BadImage, match=f"cannot use {tmp_path}/06.png: .*{reason}.*data.skip_bad=true"):
            open_data(spec).batch(range(10))
    (tmp_path / "06.png").unlink()
    (tmp_path / "06.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(BadImage, match=r"06\.png: No such file"):
        open_data(spec).batch(range(10))


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "06.png").write_bytes(encode(patch(0, 20, 30)))
    message = message_of(tmp_path, crop=(0, 0, 32, 32))
    assert "06.png: it is 20x30 (height x width), smaller than the crop box" in message


def test_only_bad_images_are_an_error(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"hello")
    for memory in ("memory", "stream"):
        message = message_of(tmp_path, cache=tmp_path / "cache", skip_bad=True, memory=memory)
        assert (
            f"none of the 3 images of folder {tmp_path} can be used; the first: {tmp_path}/0.png: it is no" in message
        )


def test_labels_of_a_folder_need_subfolders(tmp_path: Path) -> None:
    write_folder(tmp_path / "cat", 1)
    write_folder(tmp_path, 1)
    assert "but 00.png lies in none" in message_of(tmp_path, labels=True)


# --- tables ------------------------------------------------------------------------------------------------------


def written(path: Path, content: Any) -> Path:
    import pyarrow.parquet as parquet

    parquet.write_table(content, path)
    return path


def test_missing_and_ambiguous_columns_list_all_columns(tmp_path: Path) -> None:
    import pyarrow as arrow

    cells = [encode(patch(n)) for n in range(3)]
    path = written(tmp_path / "a.parquet", table(cells, [0, 1, 2]))
    listed = "(columns: image (encoded), label (integer))"
    assert f"has no column 'photo'; set image_column {listed}" in message_of(path, image_column="photo")
    assert f"has no column 'kind'; set label_column {listed}" in message_of(path, labels=True, label_column="kind")
    assert "column 'label' is integer, not encoded images" in message_of(path, image_column="label")
    assert "column 'image' is encoded, not classes (whole numbers, or text)" in message_of(
        path, labels=True, label_column="image"
    )
    path = written(tmp_path / "b.parquet", arrow.table({"one": cells, "two": cells, "word": ["a", "b", "c"]}))
    message = message_of(path)
    assert "cannot choose the column of encoded images (bytes, or bytes and a path), or paths; set image_co" in message
    assert "(columns: one (encoded), two (encoded), word (text))" in message
    assert "cannot choose the column of classes" in message_of(path, image_column="one", labels=True)
    lists = arrow.table({"image": [[[0, 1], [2, 3]]] * 3, "label": [[0], [1], [2]]})
    path = written(tmp_path / "c.parquet", lists)
    assert "holds the pixels as numbers (list<" in message_of(path, image_column="image")
    path = written(tmp_path / "d.parquet", lists.set_column(0, "image", [cells]))
    assert "column 'label' is list<" in message_of(path, labels=True, label_column="label")


def test_labels_that_are_not_classes_are_an_error(tmp_path: Path) -> None:
    cells = [encode(patch(n)) for n in range(3)]
    for labels, reason in (
        ([0.5, 1.0, 2.0], "holds 0.5; classes are whole numbers, or text"),
        ([0.0, math.nan, 2.0], "holds nan; classes are whole numbers, or text"),
        ([0, 10**9, 1], "labels up to 1,000,000,000 would be as many classes for 3 images"),
        ([0, -1, 1], "holds -1..1; classes are numbered from 0"),
        (["a", None, "b"], "has 1 row without a label"),
        ([0, None, 1], "has 1 row without a label"),
    ):
        path = written(tmp_path / "a.parquet", table(cells, labels))
        assert reason in message_of(path, labels=True, label_column="label")
        assert open_data(DataSpec(source=str(path), size=16)).count == 3  # without labels the column is ignored


def test_labels_beyond_the_declared_classes_are_an_error(tmp_path: Path) -> None:
    import json

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    content = table([encode(patch(n)) for n in range(3)], [0, 1, 2]).replace_schema_metadata(metadata)
    path = written(tmp_path / "a.parquet", content)
    assert "holds 0..2; classes are numbered from 0 to 1" in message_of(path, labels=True)


def test_rows_without_a_whole_image_are_named(tmp_path: Path) -> None:
    cells: list[Any] = [encode(patch(n)) for n in range(4)]
    for cell, reason in (
        (cells[2][:500], "truncated"),
        ({"bytes": None, "path": None}, "the cell is empty"),
        ({"bytes": None, "path": "gone.png"}, "No such file"),
    ):
        path = written(tmp_path / "a.parquet", table([*cells[:2], cell, cells[3]]))
        message = message_of(path)
        assert message.startswith(f"cannot use {path} row 2: ")
        assert reason in message


def test_a_parquet_file_whose_columns_have_no_readable_names(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    path.write_bytes(path.read_bytes().replace(b"image", b"\x80mage"))
    assert f"cannot read {path} as parquet: 'utf-8' codec can't decode" in message_of(path, tmp_path)


def test_damaged_and_empty_parquet_files_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "part.parquet"
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert f"cannot read {path} as parquet" in message_of(path)
    assert "has no rows" in message_of(written(path, table([])))
    written(path, table([encode(patch(0))], image="photo"))
    assert "has other columns or classes than" in message_of(tmp_path / "*.parquet")


def test_a_damaged_saved_dataset_is_named(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset(table([encode(patch(n)) for n in range(20)])).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:5000])
    assert f"cannot read saved dataset {tmp_path / 'saved'}" in message_of(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{}")
    assert "cannot read saved dataset" in message_of(tmp_path / "saved")


def test_a_cache_without_write_permission_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    write_folder(tmp_path / "folder", 1)
    (tmp_path / "file").write_text("in the way")
    message = message_of(tmp_path / "a.parquet", cache=tmp_path / "file", memory="stream")
    assert "cannot convert parquet" in message
    assert "choose another cache folder" in message
    message = message_of(tmp_path / "folder", cache=tmp_path / "file", memory="stream", skip_bad=True)
    assert "choose another cache folder" in message


def test_a_failed_conversion_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.arrow_writer import ArrowWriter

    def full(*given: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    write_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(ArrowWriter, "write_table", full)
    message = message_of(tmp_path / "a.parquet", cache=tmp_path / "cache", memory="stream")
    assert "No space left on device" in message
    assert not list((tmp_path / "cache").rglob("*.arrow"))


# --- LMDB and the hub --------------------------------------------------------------------------------------------


def test_a_damaged_lmdb_is_named(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "good", {f"{n:02}".encode(): encode(patch(n)) for n in range(30)})
    whole = (tmp_path / "good/data.mdb").read_bytes()
    for length, reason in (
        (0, "cannot read LMDB"),
        (100, "cannot read LMDB"),
        (len(whole) // 2, "is truncated: it has"),
    ):
        folder = tmp_path / f"cut{length}"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(whole[:length])
        assert reason in message_of(folder)
    write_lmdb(tmp_path / "empty", {})
    assert "is empty" in message_of(tmp_path / "empty")
    assert "has no labels" in message_of(tmp_path / "good", labels=True)
    write_lmdb(tmp_path / "bad", {b"a": encode(patch(0)), b"b": b"hello"})
    assert f"cannot use LMDB {tmp_path / 'bad'} key b: it is not a PNG" in message_of(tmp_path / "bad")


@pytest.mark.parametrize("memory", ["auto", "stream"])
def test_an_unreachable_hub_suggests_a_local_copy(monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    import datasets

    def unreachable(*names: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'uoft-cs/cifar10' on the Hub\n(LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = message_of("cifar10", memory=memory)
    assert "cannot open uoft-cs/cifar10 on the hub" in message
    assert "without a network, give a local copy as the source: its *.parquet files" in message


@pytest.mark.parametrize(("module", "extra"), [("pyarrow.parquet", "datasets"), ("datasets", "datasets")])
def test_a_missing_extra_has_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, module, None)
    sources = {"pyarrow.parquet": str(tmp_path / "a.parquet"), "datasets": "hub:a/b"}
    assert f"is not installed: pip install 'quarterarc[{extra}]'" in message_of(sources[module])


# --- the spec ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"size": (8, -1)},
        {"channels": 5},
        {"crop": "centre"},
        {"crop": (-1, 0, 8, 8)},
        {"crop": (0, 0, 0, 8)},
        {"resize": "nearest"},
        {"limit": 0},
        {"memory": "disk"},
        {"memory_limit_gb": 0},
        {"source": ""},
        {"colour": "red"},
    ],
)
def test_an_impossible_field_value_names_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(fields))) as raised:
        DataSpec(**{"source": "digits", "size": 8, **fields})
    assert "\n" not in str(raised.value)


def test_a_spec_is_frozen_and_goes_through_json() -> None:
    spec = DataSpec(source="celeba", size=(64, 48), crop=(57, 25, 128, 128))
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    assert (spec.height, spec.width) == (64, 48)
    with pytest.raises(ValidationError, match="frozen"):
        spec.size = 8
    assert np.shape(spec.crop) == (4,)


def test_a_misspelt_field_suggests_the_nearest_name() -> None:
    with pytest.raises(
        InputError, match=r"unknown field 'sorce'; did you mean 'source'\? \(known: source, split,"
    ) as raised:
        DataSpec(sorce="digits", size=8)  # type: ignore[call-arg]
    assert "\n" not in str(raised.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="the field 'size' is missing"):
        DataSpec(source="digits")  # type: ignore[call-arg]


def test_running_out_of_memory_is_not_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`skip_bad` neither skips an image nor remembers it when an allocation fails; the codec's error has no reason."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    for ending in ("webp", "png", "jpg"):
        small.save(tmp_path / f"a.{ending}")
    spec = DataSpec(source=str(tmp_path), size=8, skip_bad=True, memory="stream")

    def fails(*arguments: Any, **options: Any) -> Any:
        raise OSError("could not create decoder object")

    def full(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fails)
        patch.setattr(decode, "np", SimpleNamespace(empty=full, uint8=np.uint8))
        with pytest.raises(InputError, match=r"out of memory while decoding .*a\.jpg"):
            open_data(spec, progress=False)
    data = open_data(spec, progress=False)
    assert (data.count, data.skipped) == (3, 0)


def test_the_size_of_a_webp_is_read_from_its_header(tmp_path: Path) -> None:
    for options in ({}, {"lossless": True}, {"exif": b"Exif\x00\x00"}):
        image = io.BytesIO()
        Image.new("RGB", (300, 20)).save(image, "WEBP", **options)
        assert decode._webp_pixels(image.getvalue()) == 300 * 20
