"""LMDB files are read as the library reads them, and a damaged one is an error, whatever it contains."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hostile_files import damage, sound_lmdb
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.data.lmdb_file import DamagedLmdb, Entry, LmdbFile

PAGE = 4096


def content(path: Path) -> list[tuple[bytes, bytes]]:
    file = LmdbFile(path)
    return [(key, file.read(start, size)) for key, start, size in file.entries()]


@pytest.mark.parametrize("seed", range(12))
def test_keys_and_values_are_those_of_the_library(tmp_path: Path, seed: int) -> None:
    import lmdb

    draw = random.Random(seed)
    environment = lmdb.open(str(tmp_path), map_size=1 << 28)
    for _ in range(seed % 4):  # transactions, which leave free pages between those of the tree
        with environment.begin(write=True) as transaction:
            for _ in range(draw.choice([1, 10, 300, 2000])):
                key = draw.randbytes(draw.choice([1, 8, 40, 300]))
                if draw.random() < 0.2:
                    cursor = transaction.cursor()
                    if cursor.set_range(key):
                        transaction.delete(cursor.key())
                else:
                    transaction.put(key, draw.randbytes(draw.choice([0, 1, 100, 2000, 2036, 5000, 20000])))
    with environment.begin() as transaction:
        expected = list(transaction.cursor())
    environment.close()
    assert content(tmp_path / "data.mdb") == expected


def test_damage_of_any_page_of_the_tree_is_an_error_or_leaves_the_structure(tmp_path: Path) -> None:
    whole, path = sound_lmdb(), tmp_path / "data.mdb"
    path.write_bytes(whole)
    sound = LmdbFile(path)
    expected = list(sound.entries())
    assert expected == sorted(expected)
    draw = np.random.default_rng(0)
    tree = [page for page in range(0, len(whole), PAGE) if whole[page + 10] in (1, 2, 8)]  # branches, leaves, meta
    errors = 0
    for variant in range(320):
        page = tree[variant % len(tree)]
        size = int(draw.choice([16, 16, 160, PAGE]))
        _, part = damage(draw, whole[page : page + size], 8)
        damaged = whole[:page] + part[:size].ljust(size, b"\0") + whole[page + size :]
        path.write_bytes(damaged[: int(draw.integers(len(whole)))] if variant % 10 == 0 else damaged)
        try:
            file = LmdbFile(path)
            entries = list(file.entries())
            values = [file.read(start, size) for _, start, size in entries]
        except DamagedLmdb:
            errors += 1
            continue
        # there are no checksums: damage to the text of a key or to a value is not seen, that to the structure is
        assert len(entries) == len(expected)
        assert all(len(value) == entry.size for value, entry in zip(values, entries, strict=True))
    assert 60 < errors < 320


@pytest.mark.parametrize("name", ["loop", "meta pages only", "cut to whole pages", "zeros after the meta pages"])
def test_an_lmdb_that_ends_the_library_is_one_line(tmp_path: Path, name: str) -> None:
    from hostile_files import bombs

    bombs()["lmdb"][name](tmp_path)
    with pytest.raises(InputError, match=r"cannot read LMDB .*copy data.mdb again") as caught:
        open_data(DataSpec(source=str(tmp_path), size=8))
    assert "\n" not in str(caught.value)


def test_a_tree_that_names_a_page_twice_ends(tmp_path: Path) -> None:
    whole, path = bytearray(sound_lmdb()), tmp_path / "data.mdb"
    meta = PAGE * (whole[PAGE + 144 : PAGE + 152] > whole[144:152])
    root = int.from_bytes(whole[meta + 128 : meta + 136], "little")
    offset = int.from_bytes(whole[root * PAGE + 16 : root * PAGE + 18], "little")
    whole[root * PAGE + offset : root * PAGE + offset + 8] = root.to_bytes(6, "little") + bytes(2)  # its own child
    path.write_bytes(whole)
    with pytest.raises(DamagedLmdb, match="is a child of two pages, or lies too deep"):
        list(LmdbFile(path).entries())


def test_a_file_that_becomes_shorter_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(sound_lmdb())
    file = LmdbFile(path)
    entries = list(file.entries())
    path.write_bytes(sound_lmdb()[: 2 * PAGE])
    for entry in entries:
        with pytest.raises(DamagedLmdb, match="has become shorter"):
            file.read(entry.start, entry.size)


def test_other_kinds_of_lmdb_are_refused(tmp_path: Path) -> None:
    import lmdb

    for name in ("sub", "dup"):
        environment = lmdb.open(str(tmp_path / name), map_size=1 << 20, max_dbs=2)
        database = environment.open_db(b"inner", dupsort=name == "dup")
        with environment.begin(write=True, db=database) as transaction:
            transaction.put(b"a", b"b")
        environment.close()
        with pytest.raises(DamagedLmdb, match="named databases are not supported"):
            list(LmdbFile(tmp_path / name / "data.mdb").entries())


def test_an_entry_is_a_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(sound_lmdb())
    for entry in LmdbFile(tmp_path / "data.mdb").entries():
        assert isinstance(entry, Entry)
        assert entry.start > 0
        assert entry.start + entry.size <= len(sound_lmdb())
