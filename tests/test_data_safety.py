"""Opening data from strangers reads the files of the data set, and does nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_samples import encode, patch, table, write_folder
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, from_memory, open_data
from quarterarc.data.cell_files import file_of_cell
from quarterarc.data.decode import BadImage

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
