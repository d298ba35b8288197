"""Images in zip, tar and NumPy files, which are read in place."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_samples import encode, patch, write_folder
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, ImageData, open_data
from quarterarc.data.decode import BadImage


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


WRITE: Any = {"zip": write_zip, "tar": write_tar}
FILES = {
    "dog/a.png": encode(patch(0)), "cat/b.png": encode(patch(1)), "cat/c.JPG": encode(patch(2), "JPEG"),
    "cat/readme.txt": b"x", ".hidden.png": b"x", "__MACOSX/cat/._b.png": b"x", "../out.png": encode(patch(9)),
}  # fmt: skip


def opened(path: Path, **fields: Any) -> ImageData:
    spec = DataSpec.model_validate({"source": str(path), "size": 32, **fields})
    return open_data(spec, cache_dir=path.parent / "cache", progress=False)


def message_of(path: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(path, **fields).batch([0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- zip and tar -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("memory", ["memory", "stream"])
def test_archives_are_read_in_place_with_the_names_of_a_folder(tmp_path: Path, kind: str, memory: str) -> None:
    path = WRITE[kind](tmp_path / f"photos.{kind}", FILES)
    before = {file.name for file in tmp_path.iterdir()}
    data = opened(path, labels=True, memory=memory)
    assert (data.count, data.classes, list(data.class_names)) == (3, 2, ["cat", "dog"])
    batch = data.batch([2, 0])
    assert (batch.images.permute(0, 2, 3, 1).numpy() == [patch(0), patch(1)]).all()
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    assert data.notes[0] == f"{kind} {path}: passed over 1 .txt"
    assert data.passed_over == {f"{path}/cat/readme.txt": ".txt is not the ending of an image"}
    assert {file.name for file in tmp_path.iterdir()} == before  # nothing is unpacked
    assert not (tmp_path.parent / "out.png").exists()
    for name, content in FILES.items():
        if name[0] not in "._":
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(content)
    assert opened(tmp_path / "folder").fingerprint == opened(path).fingerprint  # names and sizes


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_read_by_many_threads_at_once(tmp_path: Path, kind: str) -> None:
    files = {f"{number:03}.png": encode(patch(number)) for number in range(60)}
    data = opened(WRITE[kind](tmp_path / f"a.{kind}", files), memory="stream")
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda first: data.batch(range(first, first + 20)).images, [0, 20, 40] * 4))
    for place, batch in enumerate(batches):
        first = 20 * (place % 3)
        assert (batch.permute(0, 2, 3, 1).numpy() == [patch(first + row) for row in range(20)]).all()


def test_shards_of_a_web_dataset_are_one_source_with_labels_beside_the_images(tmp_path: Path) -> None:
    for shard in range(3):
        files = {}
        for number in range(4):
            files[f"{number:03}.png"] = encode(patch(4 * shard + number))
            files[f"{number:03}.cls"] = f"{number % 2 + shard}\n".encode()
            files[f"{number:03}.json"] = b"{}"
        write_tar(tmp_path / f"train-{shard}.tar", files)
    write_tar(tmp_path / "val-0.tar", {"000.png": encode(patch(50)), "000.cls": b"3"})
    for source in (tmp_path, tmp_path / "train-*.tar"):
        data = opened(source, labels=True)
        assert data.count == 12
        assert (data.batch([0, 5, 11]).images.permute(0, 2, 3, 1).numpy() == [patch(0), patch(5), patch(11)]).all()
        labels = data.batch(range(12)).labels
        assert labels is not None
        assert labels.tolist() == [0, 1, 0, 1, 1, 2, 1, 2, 2, 3, 2, 3]
        assert data.name(5) == f"{tmp_path}/train-1.tar/001.png"  # type: ignore[attr-defined]
        assert data.notes[0].endswith("passed over 12 .json")
    for split in ("val", "validation"):
        assert opened(tmp_path, split=split).count == 1
    write_tar(tmp_path / "val-0.tar", {"a.png": encode(patch(0)), "a.cls": b"cat", "b.png": encode(patch(1))})
    assert "b.png has no label: data.labels=file reads dataset.json" in message_of(tmp_path / "val-0.tar", labels=True)
    write_tar(tmp_path / "val-0.tar", {"a.b.png": encode(patch(0)), "a.cls": b"cat"})
    assert list(opened(tmp_path / "val-0.tar", labels="file").class_names) == ["cat"]


def test_labels_beside_the_images_are_classes_in_all_splits(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for name, label in (("train/0", "cat"), ("train/1", "dog"), ("val/0", "ant")):
        files |= {f"{name}.png": encode(patch(0)), f"{name}.cls": label.encode()}
    path = write_zip(tmp_path / "a.zip", {**files, "val/1.png": encode(patch(1))})
    data = opened(path, labels="file")
    assert (list(data.class_names), data.count) == (["ant", "cat", "dog"], 2)
    assert "val/1.png has no label" in message_of(path, labels="file", split="val")


def test_edms_dataset_json_gives_the_labels_of_a_folder_and_of_a_zip(tmp_path: Path) -> None:
    files = {f"0000{number % 2}/img{number}.png": encode(patch(number)) for number in range(4)}
    listing = {"labels": [[name, number * 3] for number, name in enumerate(files)]}
    path = write_zip(tmp_path / "a.zip", {**files, "dataset.json": json.dumps(listing).encode()})
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    listing_file = tmp_path / "folder/dataset.json"
    listing_file.write_text(json.dumps(listing))
    for source in (path, tmp_path / "folder"):
        for labels in (True, "file"):
            data = opened(source, labels=labels)
            numbers = data.batch(range(4)).labels
            assert numbers is not None
            assert (numbers.tolist(), data.classes) == ([0, 6, 3, 9], 10)
        assert list(opened(source, labels="folder").class_names) == ["00000", "00001"]
    for wrong, reason in (
        ({"labels": None}, "has no labels"),
        ({"labels": [["00000/img0.png", 1]]}, "has no label of 00000/img2.png"),
        ({"labels": [[name, [0.0, 1.0]] for name in files]}, "has the label '[0.0, 1.0]'"),
        ({"labels": [[name, -1] for name in files]}, "has the label '-1'"),
        ({"labels": [[name, 10**9] for name in files]}, "number the classes from 0"),
        ({"labels": [1, 2]}, "is not a list of pairs"),
        ([], "has no labels"),
    ):
        listing_file.write_text(json.dumps(wrong))
        assert reason in message_of(tmp_path / "folder", labels=True)
    listing_file.write_text("{")
    assert "cannot read dataset.json of folder" in message_of(tmp_path / "folder", labels=True)


# --- hostile and damaged archives ----------------------------------------------------------------------------------


def test_damaged_archives_are_errors_of_one_line(tmp_path: Path) -> None:
    pictures = {f"{number}.png": encode(patch(number)) for number in range(3)}
    for kind in ("zip", "tar"):
        path = WRITE[kind](tmp_path / f"a.{kind}", pictures)
        content = path.read_bytes()
        for damaged in (b"", b"hello", content[: len(content) // 2], content[:700]):
            path.write_bytes(damaged)
            assert message_of(path)
    path = write_zip(tmp_path / "b.zip", pictures)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the first image, whose checksum is compared
    path.write_bytes(content)
    assert f"cannot use {path}/0.png" in message_of(path)
    assert opened(path, skip_bad=True).count == 2
    path = write_tar(tmp_path / "b.tar", pictures, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    second = content.index(b"1.png")
    content[second + 3] ^= 1  # the checksum of a header: the images from there on would be missing
    path.write_bytes(content)
    assert f"cannot read tar {path}: it is damaged at byte {second:,}" in message_of(path)


def test_entries_that_claim_more_than_they_hold_or_are_no_files_are_not_read(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", {"a.png": bytes(2**25)})
    assert "it has 33,554,432 bytes, but is compressed to" in message_of(bomb)
    assert "more than the 16,777,3" in message_of(bomb, max_pixels=16)
    path = write_zip(tmp_path / "a.zip", {"a.png": encode(patch(0))}, zipfile.ZIP_LZMA)
    assert "it is compressed by method 14 of zip" in message_of(path)
    content = bytearray(write_zip(tmp_path / "c.zip", {"a.png": encode(patch(0))}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "c.zip").write_bytes(content)
    assert "it is encrypted" in message_of(tmp_path / "c.zip")
    content = bytearray(write_zip(tmp_path / "d.zip", {"a.png": encode(patch(0))}).read_bytes())
    size = content.index(b"PK\x01\x02") + 24
    content[size : size + 4] = struct.pack("<I", 10**6)
    (tmp_path / "d.zip").write_bytes(content)
    assert "it does not have the 1,000,000 bytes that its header states" in message_of(tmp_path / "d.zip")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    assert "no images under" in message_of(tmp_path / "links.tar")


def test_a_tar_whose_sizes_lead_backwards_ends(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": encode(patch(0)), "b.png": encode(patch(1))}, tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    for size in (-512, -1024, 2**40):
        header = bytearray(content[:512])
        header[124:136] = (size % 2**96).to_bytes(12, "big")
        header[124] = 0xFF if size < 0 else 0x80
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + bytes(content[512:]))
        assert "cannot read tar" in message_of(path)


# --- NumPy files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 32, 40, 3), (5, 3, 32, 40), (5, 32, 40), (5, 32, 40, 1)])
def test_arrays_of_8_bits_are_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.array([1, 0, 2, 0, 1])
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images)
    np.savez_compressed(tmp_path / "m.npz", train_images=images, train_labels=labels[:, None], test_images=images[:2])
    np.savez(tmp_path / "k.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    channels = 1 if len(shape) == 3 or shape[3] == 1 else 3
    planar = images[:, None] if len(shape) == 3 else images if shape[1] == 3 else images.transpose(0, 3, 1, 2)
    for name, labelled in (("a.npy", False), ("a.npz", False), ("m.npz", True), ("k.npz", True)):
        for memory in ("memory", "stream"):
            data = opened(tmp_path / name, size=(32, 40), channels=channels, labels=labelled, memory=memory)
            assert (data.batch(range(5)).images.numpy() == planar).all()
            assert data.classes == (3 if labelled else None)
    assert opened(tmp_path / "k.npz", split="test", size=(32, 40), channels=channels).count == 2
    assert opened(tmp_path / "m.npz", image_column="test_images", size=8, channels=3).count == 2


def test_arrays_of_other_numbers_need_their_range(tmp_path: Path) -> None:
    deep = np.linspace(0, 4095, 5 * 64).reshape(5, 8, 8)
    for name, images, limits in (
        ("twelve", deep.astype(np.uint16), "0,4095"),
        ("signed", (deep - 1000).astype(np.int16), "-1000,4095"),
        ("unit", (deep / 4095).astype(np.float32), "0,1"),
        ("symmetric", deep / 2047.5 - 1, "-1,1"),
    ):
        np.save(tmp_path / f"{name}.npy", images)
        assert f"give the values of black and white, such as data.range={limits}" in message_of(
            tmp_path / f"{name}.npy"
        )
    data = opened(tmp_path / "symmetric.npy", size=8, channels=1, range=(-1, 1))
    expected = (deep / 4095 * 255 + 0.5).astype(np.uint8)
    assert np.abs(data.batch(range(5)).images[:, 0].numpy().astype(int) - expected).max() <= 1  # rounding
    damaged = deep.copy()
    damaged[3, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", damaged)
    with pytest.raises(BadImage, match=r"nan\.npy image 3: it has pixels that are NaN"):
        opened(tmp_path / "nan.npy", size=8, channels=1, range=(0, 4095))
    assert opened(tmp_path / "nan.npy", size=8, channels=1, range=(0, 4095), skip_bad=True).count == 4


def test_arrays_that_are_no_images_are_errors(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros((5, 8, 8, 7), np.uint8))
    assert "images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels" in message_of(
        tmp_path / "many.npy"
    )
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "vectors.npz", mean=np.zeros(5), labels=np.zeros(5))
    assert "set data.image_column (arrays: mean (5,), labels (5,))" in message_of(tmp_path / "vectors.npz")
    assert "set data.label_column (arrays: mean (), a (5, 8, 8), labels (5,))" in message_of(
        save_npz(tmp_path / "scalar.npz", mean=np.float64(3), a=np.zeros((5, 8, 8)), labels=np.zeros(5)),
        image_column="mean", labels=True,
    )  # fmt: skip
    assert "has no array of images" in message_of(write_zip(tmp_path / "images.npz", {"a.png": encode(patch(0))}))
    huge = save_npz(tmp_path / "huge.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.array([0, 10**12]))
    assert "labels up to 1,000,000,000,000 would be as many classes for 2 images" in message_of(huge, labels=True)
    for name in ("objects.npy", "short.npy", "text.npy", "empty.npy", "broken.npz"):
        (tmp_path / "text.npy").write_bytes(b"hello")
        (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
        (tmp_path / "empty.npy").write_bytes(b"")
        (tmp_path / "short.npy").write_bytes((tmp_path / "many.npy").read_bytes()[:200])
        assert str(tmp_path / name) in message_of(tmp_path / name)


def test_evaluation_reads_archives_too(tmp_path: Path) -> None:
    from quarterarc.evaluation.image_files import open_set

    write_folder(tmp_path / "folder", 4)
    files = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    np.save(tmp_path / "a.npy", np.stack([patch(number) for number in range(4)]))
    expected = next(iter(open_set(tmp_path / "folder").batches(4, lambda _: True)))[1]
    for path in (write_zip(tmp_path / "a.zip", files), write_tar(tmp_path / "a.tar", files), tmp_path / "a.npy"):
        assert (next(iter(open_set(path).batches(4, lambda _: True)))[1] == expected).all()


def test_many_images_that_are_skipped_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from quarterarc.data.images import log_bad

    files = {f"{number:02}.png": encode(patch(0, 10 + number, 20)) for number in range(9)}
    files |= {f"x{number}.png": b"<html>" for number in range(4)} | {"z.png": encode(patch(1))}
    log_bad(opened(write_zip(tmp_path / "a.zip", files), skip_bad=True, crop=(0, 0, 32, 32)))
    assert caplog.messages[-1].startswith('skipped by reason: 9 "it is NxN (height x width), smaller than the crop box')
    assert ', 4 "it is an HTML or XML page, such as a failed download"' in caplog.messages[-1]
    assert "and 3 more" in caplog.messages
