"""Images and tables that stand for much memory or time end in a moment, in one line or with their pixels."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_samples import encode, patch
from hostile_files import bombs, image_bombs, jpeg_of_scans, sound_images, sound_saved, special
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.data.decode import BadImage
from quarterarc.data.structure import BadStructure, check_structure

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # about damaged metadata

BOMBS = [(form, name) for form, files in image_bombs().items() for name in files]
SLOW = {("bmp", "run lengths"), ("tiff", "deflate")}  # seconds, bounded by the pixels and bytes
FINE = {("png", "data after the end"), ("jpg", "metadata"), ("tiff", "a loop of pages")}


@pytest.mark.parametrize(("form", "name"), [bomb for bomb in BOMBS if bomb not in SLOW])
def test_an_image_bomb_ends_in_a_moment(tmp_path: Path, form: str, name: str) -> None:
    path, _ = bombs()[form][name](tmp_path)
    spec, started = DataSpec(source=str(path.parent), size=8), time.process_time()
    try:
        open_data(spec, progress=False)
        usable = True
    except InputError as error:
        usable = False
        assert str(error).isprintable()  # noqa: PT017, an image that can be used is no error
        assert len(str(error)) < 1000  # noqa: PT017
    assert time.process_time() - started < 5.0
    assert usable or (form, name) not in FINE


@pytest.mark.parametrize("form", sorted(sound_images()))
def test_what_programs_write_passes(form: str) -> None:
    for _, data in sound_images()[form]:
        check_structure(data)


def test_large_files_of_programs_pass() -> None:
    photo = np.tile(patch(0, 256, 256), (3, 3, 1))
    check_structure(encode(photo, "JPEG", progressive=True, quality=100))
    check_structure(encode(photo, "PNG", compress_level=0))
    check_structure(encode(photo, "TIFF", compression="tiff_deflate"))
    check_structure(encode(Image.new("L", (64, 20_000)), "TIFF", strip_size=64))  # a strip per row
    check_structure(encode(photo) + bytes(2**22))


@pytest.mark.parametrize(("scans", "usable"), [(1, True), (16, True), (17, False)])
def test_the_scans_of_a_jpeg_are_bounded_by_max_pixels(tmp_path: Path, scans: int, usable: bool) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of_scans(64, scans))
    spec = DataSpec(source=str(tmp_path), size=8, max_pixels=64 * 64)
    if usable:
        assert open_data(spec).count == 1
    else:
        with pytest.raises(BadImage, match="it is a JPEG of too many scans for its size"):
            open_data(spec)
    with pytest.raises(BadStructure, match="101 scans, more than 100"):
        check_structure(jpeg_of_scans(64, 101))


def test_an_encoded_image_beyond_max_pixels_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    special(tmp_path / "a.png", "sparse")
    with pytest.raises(BadImage, match=r"it has 107,374,182,400 bytes, more than the 553,648,128 that data.max_pixels"):
        open_data(DataSpec(source=str(tmp_path), size=8))


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("null rows", "claims 30,000,000 rows in"),
        ("many columns", "cannot choose the column"),
        ("nested lists", "too deeply nested"),
        ("metadata", "cannot use"),
    ],
)
def test_a_parquet_bomb_ends_in_a_moment(tmp_path: Path, name: str, reason: str) -> None:
    path, _ = bombs()["parquet"][name](tmp_path)
    started = time.process_time()
    with pytest.raises(InputError, match=reason) as caught:
        open_data(DataSpec(source=str(path), size=8), cache_dir=tmp_path / "cache", progress=False)
    assert time.process_time() - started < 5.0
    assert len(str(caught.value)) <= 3_000


def test_rows_that_repeat_a_large_cell_are_not_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    cell = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    rows = arrow.array([cell]).take(arrow.array(np.zeros(5_000, np.int32)))
    parquet.write_table(arrow.table({"image": rows}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    monkeypatch.setattr("quarterarc.data.parquet._FREE_BYTES", 2**20)
    with pytest.raises(InputError, match="is a decompression bomb: its first rows take more than"):
        open_data(DataSpec(source=str(tmp_path / "a.parquet"), size=8), cache_dir=tmp_path / "cache", progress=False)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow")) < 2**21


def test_a_cell_beyond_max_pixels_is_not_copied(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    for cell in (bytes(2**25), {"bytes": bytes(2**25), "path": None}):
        table = arrow.table({"image": arrow.array([cell], kind if isinstance(cell, dict) else arrow.binary())})
        parquet.write_table(table, tmp_path / "a.parquet", compression="none")
        with pytest.raises(BadImage, match="row 0: it has 33,554,432 bytes, more than the 16,777,296"):
            open_data(DataSpec(source=str(tmp_path / "a.parquet"), size=1, max_pixels=10), progress=False)


def test_a_saved_dataset_that_names_a_file_often_is_an_error(tmp_path: Path) -> None:
    bombs()["saved"]["the same file often"](tmp_path)
    with pytest.raises(InputError, match="or another one twice"):
        open_data(DataSpec(source=str(tmp_path), size=8))


def test_a_saved_dataset_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    bombs()["saved"]["a format with code"](folder)
    with pytest.raises(InputError, match="cannot read saved dataset"):
        open_data(DataSpec(source=str(folder), size=8))
    assert not (tmp_path / "hacked").exists()


def test_pixels_are_unchanged_by_the_checks(tmp_path: Path) -> None:
    data = encode(patch(0), "JPEG", progressive=True)
    (tmp_path / "a.jpg").write_bytes(data)
    (image,) = open_data(DataSpec(source=str(tmp_path), size=32)).batch([0]).images.permute(0, 2, 3, 1).numpy()
    assert (image == np.asarray(Image.open(io.BytesIO(data)))).all()


@pytest.mark.parametrize("value", [2**31 - 1, -1, 2**30])
def test_a_wrong_offset_in_a_saved_dataset_is_an_error(tmp_path: Path, value: int) -> None:
    files = sound_saved()
    lengths = np.cumsum([0, *(len(data) for _, data in sound_images()["png"])]).astype("<i4")
    damaged = lengths.copy()
    damaged[2] = value  # Arrow maps the file and trusts its offsets: reading the row ended the process
    for name, data in files.items():
        if name.endswith(".arrow"):
            assert data.count(lengths.tobytes()) == 1
        (tmp_path / name).write_bytes(data.replace(lengths.tobytes(), damaged.tobytes()))
    with pytest.raises(InputError, match="cannot read saved dataset"):
        open_data(DataSpec(source=str(tmp_path), size=8), progress=False)
