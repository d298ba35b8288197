"""The command line: an error is one line with status 2 and leaves nothing behind; help lists registered names."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from quarterarc.cli import COMMANDS, command_parser, main
from quarterarc.cli.arguments import (
    add_device_argument,
    add_sampling_arguments,
    parse_grid,
    parse_labels,
    parse_numbers,
    parse_option,
    parse_seeds,
    sampling_request,
)
from quarterarc.cli.completion import completion_script
from quarterarc.common.errors import InputError
from quarterarc.common.signals import stopping_in_order
from quarterarc.grids import GRIDS
from quarterarc.samplers import SAMPLERS, sampler_options
from quarterarc.sampling.plans import Sampling
from quarterarc.storage.runs import checkpoints

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail, and return its one line."""

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"quarterarc: error: [^\n]+\n", printed.err), printed.err
        return printed.err

    return call


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The help text of a command."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return call


def image_folder(tmp_path: Path, **sizes: int) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in sizes.items():
        Image.new("RGB", (size, size), (200, 30, 90)).save(folder / f"{name}.png")
    return folder


def test_help_lists_every_command(help_of: Callable[..., str]) -> None:
    text = help_of()
    for name in ("demo", "train", "sample", "tune", "evaluate", "experiment"):
        assert f"  {name} " in text
    assert "bench" not in text


def test_no_words_print_the_help(help_of: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of()
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_main_reads_the_words_of_the_process_only_without_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quarterarc", "train", "digits", "--show", "head=velocity"])
    assert main([]) == 0
    assert "usage: quarterarc" in capsys.readouterr().out
    assert main(["train", "digits", "--show"]) == 0
    assert "head: both" in capsys.readouterr().out
    with stopping_in_order():  # main() leaves the handlers of a process that ends
        assert main() == 0
    assert "head: velocity" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_help_text_in_plain_form(command: str) -> None:
    for action in arguments_of(command_parser([command]), command):
        assert action.help, action.dest
        assert not re.match(r"(of|is|are) ", action.help), action.help
        assert not action.help.endswith("."), action.help
        one_word = action.nargs in (None, 0, "?") or action.dest in ("fields", "between")  # two names of files are not
        assert one_word, "a list is one word: 5,8,10"


def arguments_of(parser: argparse.ArgumentParser, command: str) -> list[argparse.Action]:
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return list(commands.choices[command]._actions)


@pytest.mark.parametrize("command", ["sample", "edit", "tune", "evaluate"])
def test_help_lists_samplers_their_options_and_grids(command: str, help_of: Callable[..., str]) -> None:
    text = help_of(command)
    for name in SAMPLERS:
        assert re.search(rf"^  {name}\s", text, re.MULTILINE), name
        for option in sampler_options(name):
            assert re.search(rf"^    {option.name}\s", text, re.MULTILINE), option.name
    for name in (*GRIDS, "tuned"):
        assert re.search(rf"^  {name}\s", text, re.MULTILINE), name
    assert max(map(len, text.splitlines())) <= 120


def test_the_arguments_of_sampling_are_the_fields_of_the_request() -> None:
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser)
    add_device_argument(parser)
    fields = {field.name for field in dataclasses.fields(Sampling)}
    assert {*fields, "labels", "bf16", "compile", "device"} == {*vars(parser.parse_args([]))} - {"option"} | {"options"}
    words = ["--sampler", "ddim", "--steps", "4", "--grid", "1.5,0.5,0", "--option", "eta=0.5", "--guidance", "2"]
    request = sampling_request(parser.parse_args([*words, "--labels", "3", "--projection", "none"]))
    assert request == Sampling("ddim", 4, [1.5, 0.5, 0.0], {"eta": 0.5}, 2.0, "none")


def test_bench_names_the_new_command(fails: Fails) -> None:
    assert "python -m benchmarks" in fails("bench")
    assert "python -m benchmarks" in fails("bench", "samplers", "--out", "x")


def test_train_and_sample_on_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: tuple[str, ...]
) -> None:
    folder = image_folder(tmp_path, a=20, b=31, c=17)
    out = tmp_path / "run"
    fields = [*tiny, f"data.source={folder}", "data.size=[8,12]", "data.channels=3", "data.crop=center",
              "network.attention=[4]", "training.steps=2"]  # fmt: skip
    assert main(["train", "digits", *fields, "--out", str(out)]) == 0
    assert main(["sample", str(out), "--out", str(tmp_path / "made"), "--seeds", "3,5-6", "--steps", "2"]) == 0
    assert "3 images, 2 network evaluations per image" in capsys.readouterr().out
    with Image.open(tmp_path / "made" / "000005.png") as picture:
        assert picture.size == (12, 8)
        assert picture.mode == "RGB"
    assert json.loads((tmp_path / "made" / "samples.json").read_text())["seeds"] == "3,5-6"


def test_one_image_is_counted_in_the_singular(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tiny_run), "--out", str(tmp_path / "made"), "--seeds", "7", "--steps", "1"]) == 0
    assert "1 image, 1 network evaluation per image" in capsys.readouterr().out


def test_recipe_fields_may_stand_before_and_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "training.steps=7", "--show", "head=velocity"]) == 0
    shown = capsys.readouterr().out
    assert "steps: 7" in shown
    assert "head: velocity" in shown
    with pytest.raises(SystemExit):
        main(["train", "digits", "--out", "x", "--nonsense"])


def test_only_showing_a_recipe_needs_no_out(fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cifar10", "--show"]) == 0
    assert "name: cifar10" in capsys.readouterr().out
    assert "--out RUN" in fails("train", "digits")
    assert "--out RUN" in fails("train", "--resume")


def test_bad_data_is_named(tmp_path: Path, fails: Fails, tiny: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    train = ["train", "digits", *tiny, "data.channels=3", "--out", out]
    assert "no such data" in fails(*train, f"data.source={tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(*train, f"data.source={tmp_path / 'empty'}")
    folder = image_folder(tmp_path, a=20, b=20)
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png" in fails(*train, f"data.source={folder}")
    (folder / "cut.png").write_bytes(b"this is no image")
    assert "cut.png" in fails(*train, f"data.source={folder}")
    (folder / "cut.png").unlink()
    assert "a.png" in fails(*train, f"data.source={folder}", "data.crop=[0,0,30,30]")
    assert not out.exists()


def test_a_command_line_that_cannot_be_parsed_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("smaple",),
        ("sample", "run"),
        ("sample", "run", "--out", "x", "--steps", "1.5"),
        ("sample", "run", "a=1", "--out", "x"),
        ("train", "--x"),
        ("--print-completion", "smash"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"quarterarc[a-z ]*: error: [^\n]+ \(see `[^`]+ --help`\)\n", printed.err), printed.err


def test_skip_bad_leaves_images_out_and_counts_them(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path, a=20, b=20)
    (folder / "bad.png").write_bytes(b"this is no image")
    out = tmp_path / "run"
    fields = [*tiny, "data.channels=3", f"data.source={folder}", "training.steps=2"]
    assert main(["train", "digits", *fields, "--out", str(out), "--skip-bad"]) == 0
    assert "1 skipped" in capsys.readouterr().err


def test_a_path_that_is_no_usable_run_gets_one_line(tmp_path: Path, fails: Fails, tiny_run: Path) -> None:
    sample = ["sample", "--out", tmp_path / "made"]
    assert "no run at" in fails(*sample, tmp_path / "none")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "no complete checkpoint" in fails(*sample, tmp_path / "begun")
    (tmp_path / "begun" / "recipe.yaml").write_text("name: x")  # training has begun: another one is no advice
    begun = fails(*sample, tmp_path / "begun")
    assert "its training writes the first one after `training.checkpoint_every` steps, ten minutes" in begun
    assert "quarterarc train" not in begun
    (tmp_path / "begun" / "model_index.json").write_text("{}")
    assert "has no component 'unet'" in fails(*sample, tmp_path / "begun")
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "not read" in fails(*sample, tmp_path / "weights.pt")

    copy = tmp_path / "copy"
    shutil.copytree(checkpoints(tiny_run)[-1], copy)
    config = json.loads((copy / "config.json").read_text())
    del config["checksum"], config["checksums"]
    (copy / "config.json").write_text(json.dumps(config))
    torch.save({"a": torch.ones(3)}, copy / "model.safetensors")
    assert "not from pickles" in fails(*sample, copy)
    header = json.dumps({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "another network" in fails(*sample, copy)
    (copy / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert "format" in fails(*sample, copy)
    (copy / "config.json").write_text("{")
    assert "not JSON" in fails(*sample, copy)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "words",
    ["sample RUN --out", "sample", "train digits --out", "train", "evaluate", "evaluate RUN --reference", "tune",
     "evaluate RUN --out", "evaluate RUN --weights", "demo --out", "experiment steps --cache", "experiment x --scale"],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*words.split(), ""])
    assert stopped.value.code == 2
    assert "a path or a name is expected, got ''" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images", "run", "nfe", "sampler", "weights", "device", "steps", "self"])
def test_options_do_not_reach_the_arguments_of_functions(tiny_run: Path, fails: Fails, name: str) -> None:
    assert f"no option '{name}' (known: order, form," in fails("tune", tiny_run, "--option", f"{name}=3")
    assert f"no option '{name}'" in fails("sample", tiny_run, "--out", "x", "--option", f"{name}=3")


@pytest.mark.parametrize("device", ["meta", "mps", "cuda", "cuda:7", "cpu:3", "", "banana"])
def test_a_device_that_is_not_there_gets_a_short_line(
    device: str, tiny_run: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if torch.backends.mps.is_available() and device == "mps":
        pytest.skip("this machine has it")
    for words in (("sample", tiny_run, "--out", "x"), ("train", "digits", "--out", "x"), ("tune", tiny_run)):
        message = fails(*words, "--device", device)
        assert len(message) < 150
        assert "auto, cpu" in message


def test_sampling_options_that_do_not_exist_get_one_line(tmp_path: Path, fails: Fails, tiny_run: Path) -> None:
    sample = ["sample", tiny_run, "--out", tmp_path / "made"]
    assert "did you mean 'heun'" in fails(*sample, "--sampler", "huen")
    assert "ddim" in fails(*sample, "--sampler", "none-such")
    assert "cannot import the sampler 'no_such:Sampler'" in fails(*sample, "--sampler", "no_such:Sampler")
    assert "at least 1" in fails(*sample, "--steps", 0)
    assert "has 1000" in fails(*sample, "--grid", "time", "--steps", 1001)
    assert "known" in fails(*sample, "--grid", "anglee")
    assert "no option" in fails(*sample, "--sampler", "ddim", "--option", "tea=1")
    assert "0..1" in fails(*sample, "--sampler", "ddim", "--option", "eta=2")
    assert "is a number, got" in fails(*sample, "--sampler", "ddim", "--option", "eta=much")
    assert "neither a number nor a word" in fails(*sample, "--option", "eta=[")
    assert "at least 1" in fails(*sample, "--batch-size", 0)
    assert "at most 10,000,000" in fails(*sample, "--seeds", "0-99999999999999999999")
    assert "descends" in fails(*sample, "--grid", "0.5,1.5,0")
    assert "without labels" in fails(*sample, "--labels", 3)
    assert "--labels" in fails(*sample, "--guidance", 2)
    assert "none" in fails(*sample, "--projection", "zero")
    assert "unknown device 'warp'" in fails(*sample, "--device", "warp")
    assert "seed 1 occurs twice" in fails(*sample, "--seeds", "1,0-3")
    assert not (tmp_path / "made").exists()


def test_the_old_name_of_an_option_is_accepted_with_one_warning_that_has_the_new_name(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = ["sample", str(tiny_run), "--seeds", "0-1", "--steps", "2", "--sampler", "ddim"]
    assert main([*sample, "--out", str(tmp_path / "old"), "--option", "churn=0.5"]) == 0
    assert capsys.readouterr().err.count("'eta'") == 1
    assert main([*sample, "--out", str(tmp_path / "new"), "--option", "eta=0.5"]) == 0
    assert (tmp_path / "old" / "000001.png").read_bytes() == (tmp_path / "new" / "000001.png").read_bytes()


def test_an_output_folder_that_cannot_be_written_gets_one_line(
    tmp_path: Path, fails: Fails, tiny_run: Path, tiny: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in fails("sample", tiny_run, "--out", tmp_path / "file")
    assert "cannot write" in fails("train", "digits", *tiny, "--out", tmp_path / "file" / "run")


def test_unknown_names_list_the_known_ones(tmp_path: Path, fails: Fails) -> None:
    assert "did you mean 'digits'" in fails("train", "digit", "--out", tmp_path / "x")
    known = fails("train", "digits", "schedule.name=zigzag", "--out", tmp_path / "x")
    assert all(name in known for name in ("arc", "linear", "cosine", "jsd"))
    assert "needs a recipe" in fails("train", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_lists_are_numbers_and_ranges_separated_by_commas() -> None:
    assert parse_numbers("5,8,10", "--nfe") == [5, 8, 10]
    assert parse_seeds("1,5-7") == [1, 5, 6, 7]
    assert parse_labels("0,1") == [0, 1]
    assert parse_labels("0-3") == [0, 1, 2, 3]
    assert parse_grid("1.5,0") == [1.5, 0.0]
    for parse, text in ((parse_seeds, "a"), (parse_seeds, "5-1"), (parse_seeds, "1,1"),
                        (parse_labels, "1,"), (parse_grid, "1,x")):  # fmt: skip
        with pytest.raises(InputError):
            parse(text)


def test_values_of_options_are_numbers_or_words() -> None:
    assert parse_option("eta=0.5") == ("eta", 0.5)
    assert parse_option("tolerance=1e-3") == ("tolerance", 1e-3)
    assert parse_option("variance=large") == ("variance", "large")
    name, order = parse_option("order=2")
    assert (name, order, type(order)) == ("order", 2, int)
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_option("eta")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_offers_commands_options_and_registered_names(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    assert stopped.value.code == 0
    script = capsys.readouterr().out
    assert script == completion_script(command_parser(list(COMMANDS)), shell) + "\n"
    for word in ("evaluate", "save-reference", "multistep", "octave", "dinov2", "church256", "fid"):
        assert re.search(rf"\b{word}\b", script), word


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_parses_and_runs_the_completion_script(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    (tmp_path / "quarterarc.bash").write_text(completion_script(command_parser(list(COMMANDS)), "bash"))
    code = (
        'source ./quarterarc.bash; COMP_WORDS=(quarterarc sample run --sampler "mult"); COMP_CWORD=4; '
        "_shtab_quarterarc; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["multistep"], done.stderr


def test_completion_without_shtab_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 2
    assert re.fullmatch(r"quarterarc: error: [^\n]+pip install[^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--seeds", "--sampler", "--device", "--steps", "--option", "--out"])
def test_two_dashes_are_no_value(option: str, tiny_run: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("sample", tiny_run, "--out", tmp_path / "made", f"{option}=--")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()
