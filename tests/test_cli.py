"""The command line: every mistake gets one line, status 2, and leaves nothing behind."""

import json
import pickle
import re
import shutil
import struct

import pytest
import torch
from PIL import Image

from quarterarc.cli import main
from quarterarc.cli.model import parse_grid, parse_labels, parse_option, parse_seeds
from quarterarc.common.errors import InputError
from quarterarc.storage.runs import checkpoints


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and return its one line."""

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"quarterarc: error: [^\n]+\n", printed.err), printed.err
        return str(printed.err)

    return call


def folder_of(tmp_path, **sizes):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in sizes.items():
        Image.new("RGB", (size, size), (200, 30, 90)).save(folder / f"{name}.png")
    return folder


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in ("demo", "train", "sample", "evaluate"):
        assert f"  {name} " in text


def test_train_and_sample_on_a_folder_of_images(tmp_path, capsys, tiny):
    folder = folder_of(tmp_path, a=20, b=31, c=17)
    out = tmp_path / "run"
    fields = [*tiny, f"data.source={folder}", "data.size=[8,12]", "data.channels=3", "data.crop=center",
              "network.attention=[4]", "training.steps=2"]  # fmt: skip
    assert main(["train", "digits", *fields, "--out", str(out)]) == 0
    assert main(["sample", str(out), "--out", str(tmp_path / "made"), "--seeds", "3,5-6", "--steps", "2"]) == 0
    with Image.open(tmp_path / "made" / "000005.png") as picture:
        assert picture.size == (12, 8)
        assert picture.mode == "RGB"
    assert json.loads((tmp_path / "made" / "samples.json").read_text())["seeds"] == "3,5-6"


def test_fields_may_stand_before_and_after_options(capsys):
    assert main(["train", "digits", "training.steps=7", "--out", "x", "--show", "head=velocity"]) == 0
    shown = capsys.readouterr().out
    assert "steps: 7" in shown
    assert "head: velocity" in shown
    with pytest.raises(SystemExit):
        main(["train", "digits", "--out", "x", "--nonsense"])


def test_bad_data_is_named(tmp_path, fails, tiny):
    out = tmp_path / "run"
    train = ["train", "digits", *tiny, "data.channels=3", "--out", out]
    assert "no such data" in fails(*train, f"data.source={tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(*train, f"data.source={tmp_path / 'empty'}")
    folder = folder_of(tmp_path, a=20, b=20)
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png" in fails(*train, f"data.source={folder}")
    (folder / "cut.png").write_bytes(b"this is no image")
    assert "cut.png" in fails(*train, f"data.source={folder}")
    (folder / "cut.png").unlink()
    assert "a.png" in fails(*train, f"data.source={folder}", "data.crop=[0,0,30,30]")
    assert not out.exists()


def test_a_command_line_that_cannot_be_read_is_one_line(capsys):
    for words in (
        (),
        ("smaple",),
        ("sample", "run"),
        ("sample", "run", "--out", "x", "--steps", "1.5"),
        ("train", "--x"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"quarterarc[a-z ]*: error: [^\n]+ --help` says more\n", printed.err), printed.err


def test_skip_bad_goes_on_and_counts(tmp_path, tiny, capsys):
    folder = folder_of(tmp_path, a=20, b=20)
    (folder / "bad.png").write_bytes(b"this is no image")
    out = tmp_path / "run"
    fields = [*tiny, "data.channels=3", f"data.source={folder}", "training.steps=2"]
    assert main(["train", "digits", *fields, "--out", str(out), "--skip-bad"]) == 0
    assert "1 skipped" in capsys.readouterr().err


def test_a_run_that_cannot_be_sampled_is_refused(tmp_path, fails, tiny_run):
    sample = ["sample", "--out", tmp_path / "made"]
    assert "no run at" in fails(*sample, tmp_path / "none")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "no complete checkpoint" in fails(*sample, tmp_path / "begun")
    (tmp_path / "begun" / "model_index.json").write_text("{}")
    assert "quarterarc.interop.load_pipeline" in fails(*sample, tmp_path / "begun")
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "never read" in fails(*sample, tmp_path / "weights.pt")

    copy = tmp_path / "copy"
    shutil.copytree(checkpoints(tiny_run)[-1], copy)
    torch.save({"a": torch.ones(3)}, copy / "model.safetensors")
    assert "no pickle" in fails(*sample, copy)
    header = json.dumps({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "another network" in fails(*sample, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert "format" in fails(*sample, copy)
    (copy / "config.json").write_text("{")
    assert "not JSON" in fails(*sample, copy)
    assert not (tmp_path / "made").exists()


def test_sampling_options_that_do_not_exist_are_refused(tmp_path, fails, tiny_run):
    sample = ["sample", tiny_run, "--out", tmp_path / "made"]
    assert "did you mean 'heun'" in fails(*sample, "--sampler", "huen")
    assert "ddim" in fails(*sample, "--sampler", "none-such")
    assert "at least 1" in fails(*sample, "--steps", 0)
    assert "has 1000" in fails(*sample, "--grid", "time", "--steps", 1001)
    assert "known" in fails(*sample, "--grid", "anglee")
    assert "no option" in fails(*sample, "--sampler", "ddim", "--option", "chrun=1")
    assert "0..1" in fails(*sample, "--sampler", "ddim", "--option", "churn=2")
    assert "cannot use" in fails(*sample, "--sampler", "ddim", "--option", "churn=much")
    assert "no number and no word" in fails(*sample, "--option", "churn=[")
    assert "at least 1" in fails(*sample, "--batch-size", 0)
    assert "at most 10000000" in fails(*sample, "--seeds", "0-99999999999999999999")
    assert "descends" in fails(*sample, "--grid", "0.5,1.5,0")
    assert "without labels" in fails(*sample, "--labels", 3)
    assert "--labels" in fails(*sample, "--guidance", 2)
    assert "none" in fails(*sample, "--projection", "zero")
    assert "cannot be used" in fails(*sample, "--device", "warp")
    assert "seed twice" in fails(*sample, "--seeds", "1,0-3")
    assert not (tmp_path / "made").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, fails, tiny_run, tiny):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in fails("sample", tiny_run, "--out", tmp_path / "file")
    assert "cannot write" in fails("train", "digits", *tiny, "--out", tmp_path / "file" / "run")


def test_unknown_names_list_the_known_ones(tmp_path, fails):
    assert "did you mean 'digits'" in fails("train", "digit", "--out", tmp_path / "x")
    known = fails("train", "digits", "schedule.name=zigzag", "--out", tmp_path / "x")
    assert all(name in known for name in ("arc", "linear", "cosine", "jsd"))
    assert "needs a recipe" in fails("train", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_reading_arguments():
    assert parse_seeds("1,5-7") == [1, 5, 6, 7]
    assert parse_labels("0,1") == [0, 1]
    assert parse_option("churn=0.5") == ("churn", 0.5)
    assert parse_option("tolerance=1e-3") == ("tolerance", 1e-3)
    assert parse_option("order=2") == ("order", 2)
    assert isinstance(parse_option("order=2")[1], int)
    assert parse_option("variance=large") == ("variance", "large")
    assert parse_grid("1.5,0") == [1.5, 0.0]
    assert parse_grid("rho") == "rho"
    for read, text in ((parse_seeds, "a"), (parse_seeds, "5-1"), (parse_labels, "-1"), (parse_labels, "x"),
                       (parse_option, "churn"), (parse_grid, "1,x")):  # fmt: skip
        with pytest.raises(InputError):
            read(text)
