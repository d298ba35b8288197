"""Opening data from strangers reads the files of the data set, and does nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_samples import encode, patch, table, write_folder
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, from_memory, open_data
from quarterarc.data.cell_files import file_of_cell
from quarterarc.data.decode import BadImage
from quarterarc.evaluation.image_files import open_set
from quarterarc.evaluation.resume import partial_results
from quarterarc.experiments.scales import scale
from quarterarc.training.recipe_text import read_recipe

HERE = Path(__file__).parent


# --- paths in tables ---------------------------------------------------------------------------------------------


def hostile_folder(root: Path) -> Path:
    """A folder of tables with a FIFO, links and images in it, and a readable image outside."""
    tables, outside = root / "tables", root / "outside"
    for folder in (tables / "sub", outside):
        folder.mkdir(parents=True)
    for path in (tables / "inside.png", tables / "sub/inside.png", outside / "secret.png"):
        path.write_bytes(encode(patch(1)))
    os.mkfifo(tables / "pipe.png")
    (tables / "link.png").symlink_to(outside / "secret.png")
    (tables / "loop.png").symlink_to(tables / "loop.png")
    (tables / "out").symlink_to(outside)
    (tables / "alias.png").symlink_to("sub/inside.png")
    return tables


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_hostile_tables_open_no_other_file_no_connection_and_no_process(tmp_path: Path) -> None:
    hostile_folder(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    environment["HF_HOME"] = environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    process = subprocess.run(
        [sys.executable, str(HERE / "hostile_tables.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(results) > 100
    for kind, cell, reason, seen in results:
        assert seen == [], (kind, cell, seen)
        assert "\n" not in reason
        if kind == "file":
            continue
        if cell == "inside.png" and kind in ("parquet", "saved"):
            assert reason == ""
        else:
            assert reason.startswith("cannot use"), (kind, cell, reason)
            assert "row " in reason, (kind, cell, reason)
            assert len(reason) < 1000


def test_a_path_may_name_a_file_below_the_folder_of_the_table(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    tables = hostile_folder(tmp_path)
    cells = [{"bytes": None, "path": path} for path in ("inside.png", "sub/inside.png", "alias.png", "./inside.png")]
    parquet.write_table(table(cells), tables / "a.parquet")
    data = open_data(DataSpec(source=str(tables / "a.parquet"), size=32))
    images = data.batch(range(4)).images.permute(0, 2, 3, 1).numpy()
    assert (images == patch(1)).all()


def test_the_error_of_a_path_names_the_row_and_the_rule(tmp_path: Path) -> None:
    tables = hostile_folder(tmp_path)
    for cell, rule in (
        ("../outside/secret.png", "contains '..', but may only name a file below the table's folder"),
        ("/etc/passwd", "is absolute, but may only name a file below the table's folder"),
        ("file:///etc/passwd", "is an address, which is never opened"),
        ("link.png", "is a link that leads out of the table's folder"),
        ("out/secret.png", "is a link that leads out of the table's folder"),
        (5, "is not the path of a file"),
    ):
        with pytest.raises(BadImage, match=f"cannot use row 7: .*{rule}"):
            file_of_cell(cell, tables, "row 7")
    with pytest.raises(BadImage, match="the table has no folder of its own"):
        file_of_cell("inside.png", None, "row 7")


def test_a_dataset_object_with_paths_is_read_after_embedding(tmp_path: Path) -> None:
    from datasets import Dataset, Image
    from datasets.table import embed_table_storage

    write_folder(tmp_path / "photos", 2)
    paths = [str(tmp_path / f"photos/{number:02}.png") for number in range(2)]
    dataset = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    with pytest.raises(InputError, match=r"embed_table_storage") as caught:
        from_memory(dataset, size=32)
    assert "\n" not in str(caught.value)
    embedded = dataset.with_format("arrow").map(embed_table_storage, batched=True)
    images = from_memory(embedded, size=32).batch([0, 1]).images.permute(0, 2, 3, 1).numpy()
    assert (images == [patch(0), patch(1)]).all()


def test_files_that_datasets_downloaded_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    own, other = tmp_path / "hub/datasets--a--b/snapshots/1", tmp_path / "hub/datasets--c--d/snapshots/1"
    for folder in (own, other):
        write_folder(folder, 1)
    (tmp_path / "token.png").write_bytes(encode(patch(3)))

    def load(path: Path) -> Any:
        dataset = datasets.Dataset(table([{"bytes": None, "path": str(path)}]))
        monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: dataset)
        return open_data(DataSpec(source="hub:a/b", size=32, image_column="image"), progress=False)

    assert (load(own / "00.png").batch([0]).images[0].permute(1, 2, 0).numpy() == patch(0)).all()
    for path in (other / "00.png", tmp_path / "token.png", own / "../../../../token.png"):
        with pytest.raises(BadImage, match="row 0"):
            load(path)


def test_a_saved_dataset_names_only_its_own_files(tmp_path: Path) -> None:
    from datasets import Dataset

    for name in ("mine", "theirs"):
        Dataset(table([encode(patch(0))])).save_to_disk(tmp_path / name)
    arrow = next((tmp_path / "mine").glob("*.arrow"))
    state = tmp_path / "theirs/state.json"
    (tmp_path / "theirs/link.arrow").symlink_to(arrow)
    for name in (f"../mine/{arrow.name}", str(arrow), "link.arrow", f"file://{arrow}"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="does not lie in the folder itself"):
            open_data(DataSpec(source=str(tmp_path / "theirs"), size=8))


# --- FIFOs, devices and sockets ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", ["a.png", "a.parquet", "data.mdb", "state.json", "dataset_dict.json"])
def test_fifos_devices_and_sockets_are_an_error(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    sources = [tmp_path, tmp_path / name] if name == "a.parquet" else [tmp_path]
    for kind in ("FIFO", "device", "socket"):
        (tmp_path / name).unlink()
        with socket.socket(socket.AF_UNIX) as server:
            if kind == "FIFO":
                os.mkfifo(tmp_path / name)
            elif kind == "device":
                (tmp_path / name).symlink_to("/dev/zero")
            else:
                server.bind(os.path.relpath(tmp_path / name))  # the path of a socket is short
            for source in sources:
                with pytest.raises(InputError, match=f"it is a {kind}, not a regular file") as caught:
                    open_data(DataSpec(source=str(source), size=8))
                assert "\n" not in str(caught.value)


# --- decompression bombs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_an_image_beyond_max_pixels_is_not_decoded(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"a.{form.lower()}").write_bytes(encode(patch(0, 20, 30), form))
    spec = DataSpec(source=str(tmp_path), size=8, max_pixels=600)
    assert open_data(spec).count == 1
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(
        BadImage, match=r"it is 20x30 = 600 pixels, more than data.max_pixels=599; raise that"
    ) as caught:
        open_data(spec.model_copy(update={"max_pixels": 599}))
    assert "\n" not in str(caught.value)


def test_a_bomb_beyond_the_limit_of_pillow_names_our_option(tmp_path: Path) -> None:
    from data_samples import png

    whole = png(np.zeros((8, 8), np.uint16), 0)
    header = struct.pack(">IIBBBBB", 50000, 50000, 16, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "a.png").write_bytes(whole[:16] + header + checksum + whole[33:])
    with pytest.raises(BadImage, match=r"data\.max_pixels=67108864"):
        open_data(DataSpec(source=str(tmp_path), size=8))


def test_all_threads_together_decode_a_bounded_number_of_pixels() -> None:
    from quarterarc.data.decode import _Budget

    budget, held, most = _Budget(), 0, 0
    lock = threading.Lock()

    def work(pixels: int) -> None:
        nonlocal held, most
        with budget.hold(pixels, 100):
            with lock:
                held += pixels
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 40, 50, 90, 10, 100, 70, 20] * 3))
    assert most <= 100


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "anchors and aliases"),
        ("data: &a {source: digits}\ntraining: {<<: *a}\n", "anchors and aliases"),
        ("data: " + "[" * 5000, "nested more than 50 levels"),
        ("training: {steps: 2024-99-99}", "2024-99-99"),
        ("training: {steps: " + "9" * 5000 + "}", "digits"),
    ],
)
def test_yaml_that_expands_is_an_error_in_a_moment(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(InputError, match=reason) as caught:
        read_recipe(tmp_path / "a.yaml")
    assert time.perf_counter() - started < 5.0
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_large_value_in_an_error_is_shortened() -> None:
    nested: list[Any] = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    with pytest.raises(InputError) as caught:
        read_recipe({"data": "digits", "size": 8, "training": {"steps": nested}})
    assert len(str(caught.value)) < 1000


def test_an_npz_that_claims_more_than_it_holds_is_an_error(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1, 1, 1), }"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(
            "arr_0.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(9)
        )
    with pytest.raises(InputError, match=r"is damaged: its arr_0 of shape .* takes 1,000,000,000,000 bytes"):
        open_set(tmp_path / "a.npz")


# --- folders built from values -----------------------------------------------------------------------------------


def test_partial_results_remove_their_own_folder_only(tmp_path: Path) -> None:
    mine = tmp_path / "z.json.features"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match="exists already and is not quarterarc's"),
        partial_results(tmp_path / "z.json", "features"),
    ):
        pass
    assert (mine / "notes.txt").read_text() == "mine"
    with contextlib.suppress(KeyboardInterrupt), partial_results(tmp_path / "a.json", "features") as folder:
        assert folder is not None
        (folder / "0.safetensors").touch()
        raise KeyboardInterrupt
    with partial_results(tmp_path / "a.json", "features") as folder:
        assert folder is not None
        assert (folder / "0.safetensors").exists()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "..", "a/b", "a\\b", ""])
def test_the_name_of_a_recipe_is_no_path_in_an_experiment(tmp_path: Path, name: str) -> None:
    recipe = {**read_recipe("digits").model_dump(mode="json"), "name": name}
    (tmp_path / "a.yaml").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="is the name of a folder of results"):
        scale(str(tmp_path / "a.yaml"))
