"""Files of a folder: which ones are read, what is said about the others, and archives and arrays as a source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_samples import encode, patch
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, from_memory, open_data
from quarterarc.data.formats import ENDINGS, counted_by_ending
from quarterarc.data.images import log_bad


def opened(source: Path, **fields: Any) -> Any:
    return open_data(DataSpec.model_validate({"source": str(source), "size": 32, **fields}), progress=False)


def message_of(source: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(source, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- endings -----------------------------------------------------------------------------------------------------

FORMS = {
    "a.gif": "GIF", "b.jfif": "JPEG", "c.JPE": "JPEG", "d.ppm": "PPM", "e.PGM": "PPM", "f.jp2": "JPEG2000",
    "g.avif": "AVIF", "h.Jpg": "JPEG", "i.webp": "WEBP", "j.TIFF": "TIFF", "k.bmp": "BMP", "l.pnm": "PPM",
}  # fmt: skip


def test_common_formats_are_read_by_content_and_the_other_files_are_counted(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        (tmp_path / name).write_bytes(encode(patch(0), form))
    (tmp_path / "m.png").write_bytes(encode(patch(0), "JPEG"))  # another format than its ending
    for name in (
        "IMG_0.HEIC",
        "IMG_1.heic",
        "notes.txt",
        "Thumbs.db",
        "image",
        ".DS_Store",
        "._a.jpg",
        ".hidden/b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    data = opened(tmp_path)
    assert data.count == len(FORMS) + 1
    assert (
        np.abs(data.batch(range(data.count)).images.float().numpy() - patch(0).transpose(2, 0, 1)).mean() < 12
    )  # JPEG
    note, *_ = data.notes
    assert note == f"folder {tmp_path}: passed over 2 .heic, 1 .db, 1 without an ending, 1 .txt"
    assert "passed over" not in data.description


def test_kinds_of_files_are_counted_up_to_six() -> None:
    files = [f"{number}.{kind}" for kind in "abcdefgh" for number in range(2)]
    assert counted_by_ending(files) == "2 .a, 2 .b, 2 .c, 2 .d, 2 .e, 2 .f, 4 others"
    assert counted_by_ending([]) == ""
    assert len(set(ENDINGS)) == len(ENDINGS)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image, which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "a damaged AVIF image"),
        (b"\xff\xd8\xff\0", "a damaged JPEG image"),
        (b"GIF89a", "a damaged GIF image"),
        (b"II+\0\x08\0\0\0\0\0", "a damaged TIFF image"),
        (b"MM\0*", "a damaged TIFF image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"<!DOCTYPE html><html>404", "an HTML or XML page, such as a failed download"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; download the file itself"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0" * 900, "filled with zeros"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "0.jpg").write_bytes(content)
    assert f"0.jpg: it is {kind}" in message_of(tmp_path)


# --- archives and arrays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz"])
def test_the_command_in_the_error_unpacks_the_archive(tmp_path: Path, name: str) -> None:
    import shutil
    import subprocess

    path, folder = tmp_path / name, tmp_path / name.split(".")[0]
    content = encode(patch(0))
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("0.png")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    for source in (path, tmp_path):
        message = message_of(source)
        assert "unpack it first (" in message
    command = message.partition("unpack it first (")[2].partition(") and give that folder")[0]
    assert str(folder) in command
    if shutil.which(command.split()[0]):
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        assert opened(folder).count == 1


def test_files_that_are_not_read_are_named_with_their_remedy(tmp_path: Path) -> None:
    from quarterarc.evaluation.image_files import open_set

    (tmp_path / "f.h5").write_bytes(b"x")
    assert "read it in Python" in message_of(tmp_path / "f.h5")
    (tmp_path / "b.tgz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"b\.tgz is not read: unpack it first"):
        open_set(tmp_path / "b.tgz")
    assert "b.tgz; only *.parquet, *.zip or *.tar files can be given by a pattern; unpack it first" in message_of(
        tmp_path / "*.tgz"
    )


# --- images in memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
@pytest.mark.parametrize("white", [1023, 4095, 16383, 65535])
@pytest.mark.parametrize("tensor", [False, True])
def test_the_call_in_the_error_scales_images_of_more_than_8_bits(dtype: str, white: int, tensor: bool) -> None:
    values = np.linspace(0, white, 5 * 8 * 8 * 3).round().reshape(5, 8, 8, 3).astype(dtype)
    images = torch.from_numpy(values) if tensor else values
    with pytest.raises(InputError, match=f"if {white} is white, call ") as caught:
        from_memory(images)
    call = str(caught.value).partition("is white, call ")[2]
    data = from_memory(eval(call, {"images": images, "torch": torch}))
    expected = np.round(values.transpose(0, 3, 1, 2) * (255 / white))
    assert np.abs(data.batch(range(5)).images.numpy() - expected).max() <= 1  # float32 in the tensor's call


def test_arrays_with_nan_are_named() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        from_memory(np.full((2, 3, 8, 8), np.nan, np.float32))


# --- skipped images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["memory", "stream"])
def test_skipped_images_have_names_and_reasons(tmp_path: Path, memory: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "good.png").write_bytes(encode(patch(0)))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>")
    (folder / "cut.png").write_bytes(encode(patch(0))[:500])
    Image.new("L", (900, 900)).save(folder / "large.png")
    for number in range(9):
        (folder / f"zeros{number}.png").write_bytes(b"\0" * 9)
    for _ in range(2):  # decoded, then from the cache
        data = opened(folder, skip_bad=True, memory=memory, max_pixels=500_000)
        assert (data.count, data.skipped, len(data.bad)) == (1, 13, 13)
        assert data.bad[str(folder / "empty.jpg")] == "it is empty"
        assert data.bad[str(folder / "page.jpg")].startswith("it is an HTML or XML page")
        assert "more than data.max_pixels=500000" in data.bad[str(folder / "large.png")]
        assert not any("skip_bad" in reason or "cannot use" in reason for reason in data.bad.values())
    assert opened(folder, skip_bad=True, memory=memory).count == 2  # under other limits
    log_bad(data)
    assert len(caplog.records) == 12
    assert caplog.messages[0] == f"skipped {folder / 'cut.png'}: {data.bad[str(folder / 'cut.png')]}"
    assert caplog.messages[-2] == "and 3 more"


def test_the_cache_names_the_limits_of_its_verdicts_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "0.png").write_bytes(encode(patch(0)))
    (folder / "1.png").write_bytes(b"")
    spec = DataSpec(source=str(folder), size=8, skip_bad=True, memory="stream")
    cache = tmp_path / "cache"
    open_data(spec, cache_dir=cache)
    (note,) = (cache / "checked").glob("*.json")
    content = json.loads(note.read_text())
    assert content["bad"] == {"1": "it is empty"}
    limits = {"crop": "none", "max_pixels": 2**26, "pages": "auto", "range": None}
    assert content["limits"].items() >= limits.items()
    for damaged in ("", "[]", "null", '{"bad": 3}', '{"bad": {"x": "y"}}', "\0\0"):
        note.write_text(damaged)
        assert open_data(spec, cache_dir=cache).count == 1
        assert json.loads(note.read_text()) == content
    for fields in ({"pages": "one"}, {"range": (0, 1)}, {"max_pixels": 99999}, {"crop": "center"}):
        open_data(spec.model_copy(update=fields), cache_dir=cache)
    assert len(list((cache / "checked").glob("*.json"))) == 5
