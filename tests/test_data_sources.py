"""Images and labels of every source, in the documented order."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_samples import encode, patch, table, write_folder, write_lmdb, write_parquet
from quarterarc.data import DataSpec, ImageData, open_data
from quarterarc.data.decode import BadImage
from quarterarc.data.images import MemoryImages

HWC = (0, 2, 3, 1)


def load(source: str | Path, size: Any = 32, **fields: Any) -> MemoryImages:
    data = open_data(DataSpec(source=str(source), size=size, memory="memory", **fields))
    assert isinstance(data, MemoryImages)
    return data


def pixels(data: ImageData) -> np.ndarray:
    assert data.count is not None
    return data.batch(range(data.count)).images.numpy().transpose(HWC)


def labels(data: ImageData) -> list[int]:
    assert data.count is not None
    classes = data.batch(range(data.count)).labels
    assert classes is not None
    assert classes.dtype == torch.int64
    return classes.tolist()


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = load("digits", 8, channels=1, labels=True)
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (1797, 1, 8, 8)
    assert np.array_equal(data.images[:, 0].numpy(), np.round(digits.images * 255 / 16))
    assert labels(data) == digits.target.tolist()
    assert data.classes == 10
    assert data.name(3) == "digit 3"
    assert data.description.startswith("digits: 1,797 images in memory, fingerprint ")


def test_digits_can_be_resized_coloured_and_limited() -> None:
    data = load("digits", (16, 24), channels=3, limit=7, resize="bicubic")
    assert data.images.shape == (7, 3, 16, 24)
    assert data.batch([0]).labels is None
    assert data.classes is None


# --- folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    images = [patch(number) for number in range(8)]
    for number, (name, form) in enumerate(
        [
            ("a.PNG", "PNG"),
            ("b/a.bmp", "BMP"),
            ("b/c/a.Tiff", "TIFF"),
            ("b.tif", "TIFF"),
            ("c.webp", "WEBP"),
            ("z/deep/er/x.png", "PNG"),
            ("c.jpeg", "JPEG"),
            ("d.JPG", "JPEG"),
        ]
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(images[number], form, **({"lossless": True} if form == "WEBP" else {})))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    data = load(tmp_path)
    names = [os.path.relpath(name, tmp_path) for name in map(data.name, range(8))]
    assert names == ["a.PNG", "b.tif", "b/a.bmp", "b/c/a.Tiff", "c.jpeg", "c.webp", "d.JPG", "z/deep/er/x.png"]
    decoded = pixels(data)
    for place, number in ((0, 0), (1, 3), (2, 1), (3, 2), (5, 4), (7, 5)):  # the lossless ones
        assert (decoded[place] == images[number]).all()


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("dog", "cat/tabby", "cat", "ant"):
        write_folder(tmp_path / name, 2)
    data = load(tmp_path, labels=True)
    assert labels(data) == [0, 0, 1, 1, 1, 1, 2, 2]  # ant, cat (with its subfolder), dog
    assert data.classes == 3
    limited = load(tmp_path, labels=True, limit=3)
    assert (labels(limited), limited.classes) == ([0, 1, 2], 3)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", 2)
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    assert load(tmp_path / "set").count == 2


def test_images_of_several_sizes_are_resized_to_one(tmp_path: Path) -> None:
    for number, size in enumerate([(20, 30), (64, 10), (32, 32)]):
        (tmp_path / f"{number}.png").write_bytes(encode(patch(number, *size)))
    assert pixels(load(tmp_path)).shape == (3, 32, 32, 3)
    assert pixels(load(tmp_path, crop="center")).shape == (3, 32, 32, 3)


def test_the_fingerprint_of_a_folder_depends_on_content_not_place(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        write_folder(tmp_path / name, 3)
    (tmp_path / "other" / "00.png").write_bytes(encode(patch(9)))
    one, two, other = (load(tmp_path / name).fingerprint for name in ("one", "two", "other"))
    assert one == two != other
    assert len(one) == 12


# --- parquet -----------------------------------------------------------------------------------------------------


def test_a_parquet_file_gives_images_labels_and_row_names(tmp_path: Path) -> None:
    images = write_parquet(tmp_path / "some.parquet")
    data = load(tmp_path / "some.parquet", labels=True)
    assert (pixels(data) == images).all()
    assert labels(data) == [number % 3 for number in range(10)]
    assert data.classes == 3
    assert data.name(7) == f"{tmp_path / 'some.parquet'} row 7"
    assert pixels(load(tmp_path / "some.parquet", limit=5)).shape[0] == 5


def test_parquet_files_are_chosen_by_folder_split_and_pattern(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "data/train-00000-of-00002.parquet", 10)
    second = write_parquet(tmp_path / "data/train-00001-of-00002.parquet", 5, first=10)
    test = write_parquet(tmp_path / "data/test-00000-of-00001.parquet", 3, first=20)
    train = load(tmp_path)
    assert (pixels(train) == first + second).all()
    assert train.name(11) == f"{tmp_path}/data/train-00001-of-00002.parquet row 1"
    assert (pixels(load(tmp_path, split="test")) == test).all()
    assert load(tmp_path / "data/*.parquet").count == 18
    assert (pixels(load(f"{tmp_path}/**/train-00001*.parquet")) == second).all()
    assert (pixels(load(tmp_path, limit=12)) == (first + second)[:12]).all()


def test_columns_are_chosen_by_type_and_name_or_given(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    cells = [encode(patch(number)) for number in range(3)]
    plain = arrow.table(
        {"img": cells, "mask": [b"x"] * 3, "coarse": [0, 1, 2], "fine": [5, 6, 7], "smiling": [True] * 3}
    )
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert (pixels(load(tmp_path / "plain.parquet"))[2] == patch(2)).all()
    data = load(tmp_path / "plain.parquet", labels=True, label_column="fine")
    assert (labels(data), data.classes) == ([5, 6, 7], 8)
    assert labels(load(tmp_path / "plain.parquet", labels=True, label_column="smiling")) == [1, 1, 1]

    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features(
        {"thumb": Value("binary"), "photo": Image(), "kind": ClassLabel(names=list("abcd")), "n": Value("int64")}
    )
    rows = {
        "thumb": [b"x"] * 3,
        "photo": [{"bytes": cell, "path": None} for cell in cells],
        "kind": [0, 2, 1],
        "n": [9] * 3,
    }
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "declared.parquet")
    data = load(tmp_path / "declared.parquet", labels=True)
    assert (pixels(data)[1] == patch(1)).all()
    assert (labels(data), data.classes) == ([0, 2, 1], 4)


def test_a_path_in_a_cell_is_relative_to_its_parquet_file(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.png").write_bytes(encode(patch(4)))
    parquet.write_table(table([{"bytes": None, "path": "files/a.png"}]), tmp_path / "t.parquet")
    assert (pixels(load(tmp_path / "t.parquet"))[0] == patch(4)).all()


def test_the_fingerprint_of_parquet_files_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """A resumed run compares it: names and sizes of the files, and the chosen columns."""
    path = tmp_path / "some.parquet"
    write_parquet(path)
    listing = [("some.parquet", path.stat().st_size)]
    written = f"({listing!r}, Columns(image='image', label='label', classes=None))"
    expected = hashlib.sha256(written.encode()).hexdigest()[:12]
    assert load(path, labels=True).fingerprint == expected
    moved = tmp_path / "elsewhere" / "some.parquet"
    moved.parent.mkdir()
    path.rename(moved)
    assert load(moved, labels=True).fingerprint == expected
    assert load(moved).fingerprint != expected


def test_tables_open_no_connection_and_no_path_but_by_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*given: Any, **options: Any) -> Any:
        raise AssertionError("a connection, or a decoded cell")

    import socket

    import datasets
    import pyarrow.parquet as parquet

    dataset().save_to_disk(tmp_path / "saved")
    dataset().to_parquet(tmp_path / "declared.parquet")
    parquet.write_table(table([{"bytes": None, "path": "gone.png"}]), tmp_path / "path.parquet")
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(datasets.Image, "decode_example", forbidden)
    for source in ("saved", "declared.parquet"):
        assert (pixels(load(tmp_path / source))[5] == patch(5)).all()
    with pytest.raises(BadImage, match=r"path.parquet row 0: No such file"):
        load(tmp_path / "path.parquet")


def test_a_limit_converts_no_further_rows(tmp_path: Path) -> None:
    expected = write_parquet(tmp_path / "train-0.parquet", 5) + write_parquet(tmp_path / "train-1.parquet", 9, first=5)
    assert (pixels(load(tmp_path, limit=7)) == expected[:7]).all()
    (arrow,) = (tmp_path / "xdg-cache" / "quarterarc" / "tables").rglob("*.arrow")
    assert datasets_rows(arrow) == 7


def datasets_rows(path: Path) -> int:
    from datasets import Dataset

    return len(Dataset.from_file(str(path)))


# --- saved datasets and the hub ----------------------------------------------------------------------------------


def dataset(count: int = 6, first: int = 0) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image

    cells = [{"bytes": encode(patch(number)), "path": None} for number in range(first, first + count)]
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": cells, "label": [n % 2 for n in range(count)]}, features=features)


def test_a_saved_dataset_gives_images_and_labels(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    data = load(tmp_path / "saved", labels=True)
    assert (pixels(data) == [patch(number) for number in range(6)]).all()
    assert (labels(data), data.classes) == ([0, 1, 0, 1, 0, 1], 3)


def test_the_fingerprint_of_a_saved_dataset_is_that_of_earlier_versions(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    listing = tuple((name, (tmp_path / "saved" / name).stat().st_size) for name in names)
    expected = hashlib.sha256(repr(listing).encode()).hexdigest()[:12]
    assert load(tmp_path / "saved").fingerprint == expected


def test_a_saved_dictionary_gives_the_named_split(tmp_path: Path) -> None:
    from datasets import DatasetDict

    DatasetDict(train=dataset(3), test=dataset(2, first=7)).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").count == 3
    assert (pixels(load(tmp_path / "saved", split="test")) == [patch(7), patch(8)]).all()


@pytest.mark.parametrize(
    ("source", "name", "config"),
    [
        ("hub:someone/things", "someone/things", None),
        ("hub:someone/things:small", "someone/things", "small"),
        ("cifar10", "uoft-cs/cifar10", None),
        ("celeba", "flwrlabs/celeba", None),
    ],
)
def test_hub_names_become_arguments_of_load_dataset(
    monkeypatch: pytest.MonkeyPatch, source: Any, name: Any, config: Any
) -> None:
    import datasets

    calls = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        calls.append((*names, options["split"], options["streaming"]))
        return dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(source, labels=True, split="test")
    assert calls == [(name, config, "test", False)]
    assert (pixels(data)[5] == patch(5)).all()
    assert (labels(data), data.classes) == ([0, 1, 0, 1, 0, 1], 3)


# --- LMDB --------------------------------------------------------------------------------------------------------


def test_an_lmdb_is_read_in_the_order_of_its_keys(tmp_path: Path) -> None:
    values = {f"{number:040x}".encode(): encode(patch(number), "WEBP", lossless=True) for number in (5, 1, 300, 17)}
    write_lmdb(tmp_path / "church_outdoor_train_lmdb", values)
    data = load(tmp_path / "church_outdoor_train_lmdb")
    assert (pixels(data) == [patch(number) for number in (1, 5, 17, 300)]).all()  # in the order of the keys
    assert data.name(0) == f"LMDB {tmp_path}/church_outdoor_train_lmdb key {1:040x}"
    assert sorted(os.listdir(tmp_path / "church_outdoor_train_lmdb")) == ["data.mdb"]  # no lock file is created
    again = load(tmp_path / "church_outdoor_train_lmdb", limit=2)  # the environment is shared
    assert (pixels(again) == [patch(1), patch(5)]).all()


def test_no_extra_is_needed_for_folders_and_digits() -> None:
    code = (
        "import sys; from quarterarc.data import open_data, DataSpec; open_data(DataSpec(source='digits', size=8));"
        "print(sorted({'pyarrow', 'datasets', 'lmdb', 'pandas'} & set(sys.modules)))"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    write_folder(tmp_path / "images", 3)
    write_parquet(tmp_path / "some.parquet")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    for source, verb in (("images", "reading folder"), ("some.parquet", "Generating")):
        spec = DataSpec(source=str(tmp_path / source), size=8)
        open_data(spec, cache_dir=tmp_path / "silent", progress=False)
        assert capsys.readouterr().err == ""
        open_data(spec, cache_dir=tmp_path / "shown")
        assert (verb in capsys.readouterr().err) == terminal
