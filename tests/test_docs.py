"""The documentation: the reference is what the code generates, and every block of the page on extending runs."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc
from quarterarc.cli import main
from quarterarc.evaluation import EXTRACTORS, FeatureNetwork
from quarterarc.storage.pictures import is_whole_png
from tools import draw_few_evaluations, make_reference

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(python|sh)\n(.*?)^```$", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
MODULES = {
    name: text for language, text in BLOCKS if language == "python" for name in re.findall(r"\A# (\w+)\.py\n", text)
}
FAMILIES = ("sampler", "grid", "schedule", "head", "objective", "network", "features")


def test_the_reference_is_what_the_code_generates() -> None:
    current = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert current == make_reference.reference(), "run python tools/make_reference.py"


def test_every_row_of_the_reference_has_a_meaning() -> None:
    rows = [line for line in make_reference.reference().splitlines() if line.startswith("|")]
    assert [row for row in rows if re.search(r"(?<!\\)\|\s*\|", row)] == []


def test_each_extension_takes_fewer_than_20_lines_of_code() -> None:
    assert list(MODULES) == [f"my_{family}" for family in FAMILIES]
    for name, text in MODULES.items():
        assert len(lines_of_code(text)) < 20, name


def lines_of_code(text: str) -> list[str]:
    """The lines that are neither blank, nor comments, nor docstrings."""
    text = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_every_block_of_the_page_on_extending_runs(
    tmp_path: Path, tiny_run: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder, with a small network, few training steps and few images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("quarterarc.samplers.SAMPLERS._entries", dict(sys.modules["quarterarc.samplers"].SAMPLERS))
    shutil.copytree(tiny_run, "runs/demo")
    for language, text in BLOCKS:
        name = next(iter(re.findall(r"\A# (\w+)\.py\n", text)), None)
        if name is not None:
            Path(f"{name}.py").write_text(text, encoding="utf-8")
            monkeypatch.delitem(sys.modules, name, raising=False)
        elif language == "python":
            exec(compile(text, "docs/extending.md", "exec"), {"__name__": "page"})
        else:
            for line in text.splitlines():
                assert main(command_of(line, tiny)) == 0, line
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_every_command_of_the_page_on_watching_runs(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```$", (DOCS / "watching.md").read_text(), re.DOTALL | re.MULTILINE)
    commands = [command_of(line, (*tiny, "data.limit=200")) for block in blocks for line in block.splitlines()]
    assert [words[0] for words in commands] == ["train", "train", "evaluate"]
    for words in commands:
        few = ["--count", "8", "--steps", "1"] if words[0] == "evaluate" else []
        assert main([*words, *few]) == 0, words
    lines = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    page = (DOCS / "watching.md").read_text()
    assert lines[0].split() == ["share", "of", "copies", "of", "thumbnails", "pool", "features"]
    assert all(line in page for line in lines[1:])
    assert (tmp_path / "runs" / "mine" / "index.html").is_file()
    (longer,) = re.findall(r"`quarterarc (train --out runs/mine --resume training\.steps=)\d+`", page)
    assert main(f"{longer}9".split()) == 0
    assert "9 of 9 steps" in capsys.readouterr().err
    assert any((tmp_path / "runs" / "tracked" / "tensorboard").iterdir())


def test_every_command_of_the_page_on_flow_maps_runs(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer images and steps; the networks of each part of the page in a folder of their own."""
    page = (DOCS / "flow-maps.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:    )?(quarterarc .+)$", page, re.MULTILINE)
    shorter = {f"training.steps={steps}": "training.steps=4" for steps in (300, 750, 1050, 1800)}
    small = {"2000": "8", "1024": "8", **shorter}
    commands = [[small.get(word, word) for word in command_of(line.partition("#")[0], tiny)] for line in lines]
    assert [words[0] for words in commands] == [
        "distill", "train", "sample", "train", "distill", "evaluate", "distill", "train", "train", "train", "distill",
        "distill", "train", "distill", "sample",
    ]  # fmt: skip
    more = {"distill": ["teacher.images=8"], "sample": ["--seeds", "0-3"]}
    for part, (first, last) in enumerate(pairwise((0, 3, 12, 15))):
        folder = tmp_path / str(part)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if not part:
            assert main(command_of("quarterarc train digits --out runs/digits", tiny)) == 0
        for words in commands[first:last]:
            assert main([*words, *more.get(words[0], [])]) == 0, words
        if Path("both-ways").is_dir():
            (block,) = re.findall(r"^```python\n(both_ways = .*?)^```$", page, re.DOTALL | re.MULTILINE)
            names: dict[str, Any] = {"qa": quarterarc, "images": torch.rand(2, 1, 8, 8)}
            exec(block, names)
            assert names["again"].shape == names["images"].shape
        if not part:
            draw_few_evaluations.draw("runs/digits", "runs/map", Path("few-evaluations.png"))
            assert is_whole_png(Path("few-evaluations.png"), (1, 552, 695))


class Halves(FeatureNetwork):
    """The means of the halves of an image, as features of every kind."""

    kinds = ("pool", "spatial", "logits")
    resize = "none"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        means = images.double().flatten(1).unflatten(1, (2, -1)).mean(2)
        return dict.fromkeys(self.kinds, means)


def test_every_command_and_block_of_the_page_on_evaluation_runs(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the digits as CIFAR-10 and as photographs, fewer images and terms, and features of every kind."""
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    lines = re.findall(r"^quarterarc (.+)$", page, re.MULTILINE)
    assert len(lines) == 4
    monkeypatch.setattr(EXTRACTORS, "_entries", dict(EXTRACTORS._entries))
    EXTRACTORS.register("halves")(Halves)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "runs/mine")
    assert main(["sample", "runs/mine", "--out", "made", "--seeds", "0-15", "--steps", "1"]) == 0
    shutil.copytree("made", "PHOTOS")
    shutil.copytree("made", "photos")
    small = {"cifar10": "digits", "100": "2", "1000": "4"}
    for line in lines:
        command, *words = [small.get(word, word) for word in shlex.split(line)]
        words += [] if "--terms" in words else ["--features", "halves"]
        words += ["--count", "8"] if words[0] == "runs/mine" and "--count" not in words else []
        assert main([command, *words]) == 0, line
    assert {path.name for path in Path().iterdir()} >= {"fid.json", "made.json", "photos.safetensors", "bits.json"}
    first, second = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for written, replacement in {"count=5_000": 'count=8, features="brightness"', "steps=10": "steps=1"}.items():
        assert written in first
        first = first.replace(written, replacement)
    names: dict[str, Any] = {}
    for block in (second, first):
        exec(compile(block, "docs/evaluation.md", "exec"), names)
    assert set(names["result"]["metrics"]) == {"fid", "precision"}


def test_every_command_on_fine_tuning_and_sharing_runs(
    tmp_path: Path, tiny_run: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the digits as photographs; the places of the page are folders."""
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, **given: "https://huggingface.co/OWNER/NAME")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **given: None)
    page = (DOCS / "other-models.md").read_text(encoding="utf-8")
    part = page[page.index("## Fine-tuning") : page.index("## Published checkpoints")]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "RUN")
    assert main(["train", "digits", "--out", "noise", "head=noise", "objective.name=noise", *tiny]) == 0
    assert main(["export", "noise", "PIPELINE", "--samples", "0"]) == 0
    assert main(["sample", "RUN", "--out", "photos", "--seeds", "0-7", "--steps", "1"]) == 0
    own = ["data.size=8", "data.channels=1"]
    for line in re.findall(r"^quarterarc .+$", part, re.MULTILINE):
        words = command_of(line, tuple(word for word in tiny if not word.startswith("network.")))
        more = own if words[0] == "train" else ["--samples", "1"]
        assert main([*words, *more]) == 0, line
    assert {path.name for path in Path("out").iterdir()} == {"pipeline", "weights", "network"}


def command_of(line: str, tiny: tuple[str, ...]) -> list[str]:
    """The words after `quarterarc`, with fewer steps and images."""
    program, *words = shlex.split(line)
    assert program == "quarterarc"
    words = ["0-3" if word == "0-63" else word for word in words]
    if words[0] == "train":
        own = any(word.startswith("network.name=") for word in words)
        words += [field for field in tiny if not (own and field.startswith("network."))]
    return words
