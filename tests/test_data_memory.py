"""Decoding on demand equals decoding into memory, skips the same images, and uses bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_samples import encode, patch, table, write_folder, write_lmdb, write_parquet
from quarterarc.data import DataSpec, ImageData, decode, images, loading, open_data
from quarterarc.data.decode import BadImage, Encoded, Pixels
from quarterarc.data.images import MappedImages, MemoryImages


def folder_source(path: Path) -> str:
    for name in ("dog", "cat"):
        write_folder(path / name, 12)
    return str(path)


def parquet_source(path: Path) -> str:
    write_parquet(path / "train-0.parquet", 14)
    write_parquet(path / "train-1.parquet", 10, first=14)
    return str(path)


def saved_source(path: Path) -> str:
    from datasets import Dataset

    Dataset(table([encode(patch(number)) for number in range(24)], [0, 1] * 12)).save_to_disk(path)
    return str(path)


def lmdb_source(path: Path) -> str:
    write_lmdb(path, {f"{number:02}".encode(): encode(patch(number)) for number in range(24)})
    return str(path)


def digits_source(path: Path) -> str:
    return "digits"


SOURCES = [folder_source, parquet_source, saved_source, lmdb_source, digits_source]


def both(spec: DataSpec, cache: Path) -> tuple[MemoryImages, MappedImages]:
    memory = open_data(spec.model_copy(update={"memory": "memory"}), cache_dir=cache)
    demand = open_data(spec.model_copy(update={"memory": "stream"}), cache_dir=cache)
    assert isinstance(memory, MemoryImages)
    assert isinstance(demand, MappedImages)
    return memory, demand


def same(a: ImageData, b: ImageData, numbers: Any) -> bool:
    one, two = a.batch(numbers), b.batch(numbers)
    assert one.labels is None or two.labels is None or torch.equal(one.labels, two.labels)
    assert (one.labels is None) == (two.labels is None)
    return torch.equal(one.images, two.images)


@pytest.mark.parametrize("make", SOURCES)
def test_on_demand_equals_in_memory(tmp_path: Path, make: Callable[[Path], str]) -> None:
    labelled = make not in (lmdb_source,)
    spec = DataSpec(source=make(tmp_path / "set"), size=(12, 20), crop="center", labels=labelled, limit=22)
    memory, demand = both(spec, tmp_path / "cache")
    assert memory.count == demand.count == 22
    assert (memory.fingerprint, memory.classes) == (demand.fingerprint, demand.classes)
    order = np.random.default_rng(0).permutation(22)
    for numbers in (order, order[::-1], [3, 3, 21], torch.tensor([5]), []):
        assert same(memory, demand, numbers)
    assert [memory.name(number) for number in range(22)] == [demand.name(number) for number in range(22)]
    assert memory.batch([1, 2]).images.dtype == torch.uint8


def test_auto_chooses_by_the_size_of_the_pixels(tmp_path: Path) -> None:
    spec = DataSpec(source="digits", size=8, channels=1)  # 115,008 bytes
    assert isinstance(open_data(spec), MemoryImages)
    fits = spec.model_copy(update={"memory_limit_gb": 115_008e-9})
    assert isinstance(open_data(fits), MemoryImages)
    too_large = spec.model_copy(update={"memory_limit_gb": 115_007e-9})
    assert isinstance(open_data(too_large, cache_dir=tmp_path), MappedImages)


def test_prefetch_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, demand = both(DataSpec(source=folder_source(tmp_path), size=16), tmp_path / "cache")
    decoded = []

    def read_pixels(encoded: Encoded, spec: DataSpec, name: str) -> Pixels:
        decoded.append(name)
        return decode.read_pixels(encoded, spec, name)

    monkeypatch.setattr(images, "read_pixels", read_pixels)
    demand.prefetch([4, 2])
    demand.prefetch([4, 2])
    assert same(memory, demand, [4, 2])
    assert len(decoded) == 2  # once for three calls
    for number in range(9):  # more than the cache keeps
        demand.prefetch([number])
    assert all(same(memory, demand, [number]) for number in range(9))


def test_the_first_bad_image_of_a_batch_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for name in ("03", "05"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    demand = open_data(DataSpec(source=str(tmp_path), size=8, memory="stream"))
    for _ in range(5):
        with pytest.raises(BadImage, match=r"03\.png"):
            demand.batch(range(10))
    assert demand.batch([0, 9]).images.shape == (2, 3, 8, 8)  # the others are still readable


def test_numbers_out_of_range_raise_index_error(tmp_path: Path) -> None:
    for data in both(DataSpec(source="digits", size=8, limit=10), tmp_path):
        for numbers in ([10], [-1], [0, 99]):
            with pytest.raises(IndexError, match=r"not all within 0\.\.9"):
                data.batch(numbers)


# --- skipping ----------------------------------------------------------------------------------------------------


def bad_folder(path: Path) -> str:
    write_folder(path / "set")
    (path / "set/00.png").write_bytes(encode(patch(0))[:500])
    (path / "set/04.png").write_bytes(b"hello")
    (path / "set/07.png").write_bytes(encode(patch(0, 8, 8)))  # smaller than the crop
    return str(path / "set")


def bad_parquet(path: Path) -> str:
    import pyarrow.parquet as parquet

    cells: list[Any] = [encode(patch(number)) for number in range(10)]
    cells[0], cells[4], cells[7] = cells[0][:500], b"hello", {"bytes": None, "path": None}
    parquet.write_table(table(cells, list(range(10))), path / "set.parquet", row_group_size=3)
    return str(path / "set.parquet")


def bad_lmdb(path: Path) -> str:
    values = {f"{number:02}".encode(): encode(patch(number)) for number in range(10)}
    values |= {b"00": values[b"00"][:500], b"04": b"hello", b"07": encode(patch(0, 8, 8))}
    write_lmdb(path / "set", values)
    return str(path / "set")


@pytest.mark.parametrize("make", [bad_folder, bad_parquet, bad_lmdb])
def test_bad_images_are_skipped_and_counted(tmp_path: Path, make: Callable[[Path], str]) -> None:
    spec = DataSpec(source=make(tmp_path), size=16, crop=(0, 0, 16, 16), skip_bad=True, labels=make is bad_parquet)
    memory, demand = both(spec, tmp_path / "cache")
    for data in (memory, demand):
        assert (data.count, data.skipped) == (7, 3)
        assert "7 images (3 skipped)" in data.description
        batch = data.batch(range(7))
        expected = [patch(number)[:16, :16] for number in (1, 2, 3, 5, 6, 8, 9)]
        assert (batch.images.permute(0, 2, 3, 1).numpy() == expected).all()
        assert batch.labels is None or batch.labels.tolist() == [1, 2, 3, 5, 6, 8, 9]
        assert [name[-1] == "1" or name[-6:] == "01.png" for name in map(data.name, range(7))] == [True] + [False] * 6
    with pytest.raises(BadImage, match=r"00\.png|row 0|key 00"):
        open_data(spec.model_copy(update={"skip_bad": False, "memory": "memory"}))


def test_the_list_of_bad_images_is_cached_until_the_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(source=bad_folder(tmp_path), size=16, skip_bad=True, memory="stream")
    checks = []

    def decode_all(*given: Any) -> dict[int, str]:
        checks.append(given)
        return images.decode_all(*given)

    monkeypatch.setattr(loading, "decode_all", decode_all)
    counts = [open_data(spec, cache_dir=tmp_path / "cache").count for _ in range(2)]
    assert (counts, len(checks)) == ([8, 8], 1)
    (tmp_path / "set/04.png").write_bytes(encode(patch(4)))
    assert open_data(spec, cache_dir=tmp_path / "cache").count == 9
    # With another crop, other images are unusable.
    cropped = spec.model_copy(update={"crop": (0, 0, 16, 16)})
    assert open_data(cropped, cache_dir=tmp_path / "cache").count == 8
    assert len(checks) == 3


def test_a_changed_parquet_file_is_converted_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "set.parquet", tmp_path / "cache"
    spec = DataSpec(source=str(path), size=32, memory="stream")
    for first in (0, 20):
        expected = write_parquet(path, 10, first=first)
        data = open_data(spec, cache_dir=cache)
        assert (data.batch(range(10)).images.permute(0, 2, 3, 1).numpy() == expected).all()
    assert len(list((cache / "tables").rglob("*.arrow"))) == 2
    open_data(spec, cache_dir=cache)
    assert len(list((cache / "tables").rglob("*.arrow"))) == 2  # used again


# --- memory ------------------------------------------------------------------------------------------------------


MEASURE = """
import sys
import numpy as np
from quarterarc.data import DataSpec, open_data

def anonymous():  # without memory-mapped files, which can be dropped at any time
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) * 1024

for source in sys.argv[2:]:
    data = open_data(DataSpec(source=source, size=512, memory="stream"), cache_dir=sys.argv[1])
    numbers = np.random.default_rng(1).permutation(160).reshape(20, 8)
    data.batch(numbers[0])
    before, most = anonymous(), 0
    for step, wanted in enumerate(numbers):
        data.prefetch(numbers[min(step + 1, 19)])
        assert data.batch(wanted).images.shape == (8, 3, 512, 512)
        most = max(most, anonymous() - before)
    print(most)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' /proc")
def test_on_demand_memory_stays_bounded(tmp_path: Path) -> None:
    """160 images of 786 KB as pixels, 126 MB in total, in batches of 8 (6 MB)."""
    import pyarrow.parquet as parquet

    image = np.zeros((512, 512, 3), np.uint8)
    image[:128] = np.random.default_rng(0).integers(0, 256, (128, 512, 3))  # 200 KB encoded, 32 MB in all
    cell = encode(image, compress_level=1)
    (tmp_path / "set").mkdir()
    for number in range(160):
        (tmp_path / f"set/{number}.png").write_bytes(cell)
    parquet.write_table(table([cell] * 160), tmp_path / "set.parquet", use_dictionary=False)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in ("cache", "set", "set.parquet"))]
    # With a fixed threshold the C library returns large blocks at once, so that resident memory is memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    growth = [int(line) for line in done.stdout.split()]
    # Two batches, and an image and its copy per thread, of up to 16 threads.
    assert max(growth) < 2 * 6.3e6 + 16 * 2 * 0.8e6, growth


CONVERT = """
import sys, threading, time
import datasets
from quarterarc.data import DataSpec, open_data

def anonymous():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) * 1024

most = before = anonymous()
def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
open_data(DataSpec(source=sys.argv[1], size=8, memory="stream"), cache_dir=sys.argv[2])
print(most - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' /proc")
def test_memory_of_a_conversion_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    """A file of 20,000 images and 100 MB in a single row group, as pandas writes it."""
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    content = table([rng.bytes(5000) for _ in range(20_000)])
    parquet.write_table(content, tmp_path / "set.parquet", use_dictionary=False, compression="none")
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "set.parquet"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60e6, done.stdout  # the parquet reader of `datasets` needs 2.7 row groups, 270 MB
