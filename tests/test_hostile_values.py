"""Files and values from strangers that are read into memory, or shown: bounded, and without control of the terminal."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import Cli
from hostile_files import NPZ_BOMBS, bombs, special
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.common.text import printable, shortened
from quarterarc.evaluation.references import open_reference
from quarterarc.storage.files import read_json
from quarterarc.storage.npz import Npz
from quarterarc.training.recipe_text import read_recipe


def one_line_of(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert len(text) <= 3_000
    return text


# --- messages ----------------------------------------------------------------------------------------------------


def test_messages_have_no_control_characters_and_are_bounded() -> None:
    text = one_line_of(InputError("\x1b]0;title\x07\x1b[2Jred\r\nb\u202ec \udcff " + "x" * 10**7 + "end"))
    assert text.startswith("\\x1b]0;title\\x07\\x1b[2Jred b\\u202ec \\udcff xxx")
    assert text.endswith("xend")
    assert "characters)" in text
    assert len(one_line_of(unknown_name("sampler", "y" * 10**6, ["ddim", "ddpm"]))) < 400
    assert InputError("ä 中文 \N{SNOWMAN}").args == ("ä 中文 \N{SNOWMAN}",)


def test_shortened_keeps_both_ends() -> None:
    assert shortened("x" * 200, 200) == "x" * 200
    text = shortened("a" * 500 + "b" * 500, 200)
    assert len(text) <= 200
    assert (text[0], text[-1]) == ("a", "b")
    assert printable("a\tb\n\n c") == "a\\tb c"


def test_the_terminal_receives_no_control_characters(cli: Cli, tmp_path: Path) -> None:
    name = "\x1b]0;title\x07folder"
    (tmp_path / name).mkdir()
    for words in (("train", "digits", "--out", "r", f"data.source={name}"), ("evaluate", name), (f"{name}",)):
        done = cli(*words)
        assert done.returncode == 2
        assert all(line.isprintable() for line in done.stderr.splitlines())
        assert len(done.stderr.splitlines()) == 1


def test_log_lines_have_no_control_characters(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import quarterarc.cli.train as command

    monkeypatch.setattr(
        command, "run", lambda parsed: logging.getLogger("quarterarc").warning("class %s", "\x1b[31mred")
    )
    assert cli("train", "digits").stderr == "quarterarc: class \\x1b[31mred\n"


# --- JSON and recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"), [("FIFO", "a FIFO"), ("device", "a device"), ("sparse", "more than 67,108,864")]
)
def test_json_that_is_no_small_file_is_not_read(tmp_path: Path, name: str, reason: str) -> None:
    special(tmp_path / "a.json", name)
    with pytest.raises(InputError, match=reason):
        read_json(tmp_path / "a.json")


def test_json_nested_deeply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 10**6)
    with pytest.raises(InputError, match="nested too deep"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "reason"), [("FIFO", "a FIFO"), ("device", "a device"), ("sparse", "more than 65,536")]
)
def test_a_recipe_that_is_no_small_file_is_not_read(tmp_path: Path, name: str, reason: str) -> None:
    special(tmp_path / "a.yaml", name)
    with pytest.raises(InputError, match=reason):
        read_recipe(str(tmp_path / "a.yaml"))


def test_recipe_bombs_are_an_error_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in bombs()["recipe"].items():
        path, _ = write(tmp_path)
        started = time.perf_counter()
        if not name.endswith((" source", " kernel")):  # those are valid recipes
            with pytest.raises(InputError) as caught:
                read_recipe(str(path))
            one_line_of(caught.value)
        assert time.perf_counter() - started < 10.0, name
        assert os.listdir(tmp_path) == ["a.yaml"], name


@pytest.mark.parametrize("section", [1, "x", ["a"], [["a", "b"]], None, True])
def test_a_section_of_another_type_is_an_error(section: object) -> None:
    with pytest.raises(InputError):
        read_recipe({"data": "digits", "size": 8, "network": section, "training": {"steps": "x"}})


# --- npz ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NPZ_BOMBS if name not in ("path", "twice", "zeros")])
def test_npz_bombs_are_an_error_before_they_take_memory(tmp_path: Path, name: str) -> None:
    import tracemalloc

    path, _ = bombs()["npz"][name](tmp_path)
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        open_reference(path)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_line_of(caught.value)
    assert used < 2**27


def test_an_npz_whose_bytes_are_zeros_is_read_batch_by_batch(tmp_path: Path) -> None:
    path, _ = bombs()["npz"]["zeros"](tmp_path)
    images = open_reference(path).images
    assert images is not None
    assert images.count == 2**18
    _, batch = next(images.batches(16, lambda number: True))
    assert batch.shape == (16, 1, 64, 64)


def test_a_flipped_bit_in_an_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.arange(64.0), sigma=np.eye(64))
    data = bytearray(path.read_bytes())
    place = data.index(np.arange(64.0).tobytes()) + 100
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged \(Bad CRC-32 for file 'mu.npy'\): copy it again"):
        open_reference(path)


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    arrays = {
        "c": np.arange(12.0).reshape(3, 4),
        "f": np.asfortranarray(np.arange(12).reshape(3, 4)),
        "scalar": np.array(3),
        "empty": np.zeros((0, 3), np.float32),
        "text": np.array("about"),
        "big": np.arange(5, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        stored = Npz(tmp_path / "a.npz")
        assert sorted(stored.names) == sorted(arrays)
        for name, array in arrays.items():
            read = stored.read(name)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert (read == array).all()


@pytest.mark.parametrize(
    "about", [[], 1, "[" * 10**5, {"count": "3"}, {"count": -1}, {"shape": 3}, {"shape": [1, 2]}, {"extractor": 1}]
)
def test_a_description_of_another_type_is_an_error(tmp_path: Path, about: object) -> None:
    text = about if isinstance(about, str) else json.dumps(about)
    np.savez(tmp_path / "a.npz", mu=np.zeros(4), sigma=np.eye(4), about=np.array(text))
    with pytest.raises(InputError, match="its entry 'about' does not describe statistics"):
        open_reference(tmp_path / "a.npz")
