"""Commands: words from the grammar of the command line, right and wrong, and recipes with changed fields."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np

from .prepared import TINY, Part, Prepared, run_command
from .results import Outcome
from .values import Grammar, junk, mutated_yaml
from .watch import CTRL_C, GOOD, Rules, judge, remarks, watched_twice

__all__ = ["Commands"]

_NETWORK = re.compile(r"hub|cifar|celeba|inception|dinov2|://|^s3|church|hf:|memory")
"""Words that ask for data or weights from the network."""
_TINY = {name: value for name, _, value in (field.partition("=") for field in TINY)} | {"training.steps": "1"}


class Commands(Part):
    """Fuzzed commands and recipes."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        super().__init__(prepared, seed)
        self.grammar = Grammar()
        folder = prepared.folder
        (folder / "empty").mkdir()
        run_command(["sample", "run", "--out", "made", "--seeds", "0-3", "--steps", "1"], folder)
        run_command(["evaluate", "pics", "--features", "pixels", "--save-reference", "statistics.safetensors"], folder)
        os.mkfifo(folder / "fifo")
        (folder / "broken-link").symlink_to("no-such")
        (folder / "loop").symlink_to("loop")
        write_npz(folder / "pics.npz")
        in_a_fork(lambda: write_parquet(folder / "table.parquet", folder / "pics"))
        outside = prepared.base / "outside"
        (outside / "x").write_text("a file that no command may change\n", encoding="utf-8")
        self.grammar.right["data.source"] += ["fifo", "broken-link", "loop", "run", "./digits"]

    def case(self, index: int, keep: bool = False) -> Outcome:
        """Run one command and judge it."""
        rng = np.random.default_rng([self.seed, index, 1])
        folder = self.prepared.base / "work"
        self._renew(folder)
        kind, words = self.words(rng, folder)
        base = self.prepared.base
        before = _tree(base / "outside")
        network = any(_NETWORK.search(word) for word in words) or words[0] in ("evaluate", "experiment")
        rules = Rules((folder, *self.prepared.caches), None, network, 6 * 2**30, long=True)
        fuzz = folder / "fuzz.yaml"
        recipe = fuzz.read_bytes() if fuzz.exists() else None
        seen = watched_twice(words, folder, rules, lambda: self._renew(folder, recipe))
        verdict, detail = judge(seen, rules)
        if verdict in GOOD and _tree(base / "outside") != before:
            verdict, detail = "write outside", "the files outside have changed"
        busy = os.getloadavg()[0] > (os.cpu_count() or 1) and seen.cpu < 0.8 * CTRL_C
        if verdict == "stopped by Ctrl-C" and not is_long(words) and not busy:
            verdict, detail = "slow", f"little work, but more than 5 s: {seen.output[-300:]}"
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        good = verdict in GOOD
        text = " ".join(ascii(word) if not word.isprintable() or " " in word or not word else word for word in words)
        return Outcome(index, kind, verdict, good, text[:1500], "" if good else detail, remarks=remarks(seen))

    def _renew(self, folder: Path, recipe: bytes | None = None) -> None:
        """Copy the prepared folder, and write the fuzzed recipe."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.prepared.folder, folder, symlinks=True, copy_function=_copy)
        if recipe is not None:
            (folder / "fuzz.yaml").write_bytes(recipe)

    def words(self, rng: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
        """A command, and its kind; a recipe's file is written into the folder."""
        draw = rng.random()
        if draw < 0.03:
            words = [junk(rng) for _ in range(int(rng.integers(1, 4)))]
            return "no command", [word.replace("\0", "") for word in words]
        if draw < 0.25:
            text = (folder / "mine.yaml").read_text(encoding="utf-8").replace("steps: 4\n", "steps: 1\n")
            (folder / "fuzz.yaml").write_bytes(mutated_yaml(text, rng))
            words = ["train", "fuzz.yaml", "--out", "new"]
            if rng.random() < 0.15:
                words = ["experiment", "samples", "--scale", "./fuzz.yaml", "--images", "8", "--features", "pixels"]
            return "recipe file", words
        if draw < 0.55:
            return "recipe fields", ["train", "digits", "--out", "new", *self._fields(rng)]
        name = str(rng.choice(["train", "sample", "evaluate", "tune", "experiment", "demo"], p=_OFTEN))
        return name, self._command(name, rng)

    def _fields(self, rng: np.random.Generator) -> list[str]:
        fields = dict(_TINY)
        names = list(self.grammar.fields)
        for _ in range(int(rng.integers(1, 4))):
            name = names[int(rng.integers(len(names)))]
            if rng.random() < 0.06:
                name = [junk(rng), name + "s", name + ".x", name.upper(), "." + name][int(rng.integers(5))]
                fields[name] = junk(rng)
            else:
                fields.pop(name, None)  # last, so that it is not replaced by a tiny value
                fields[name] = self.grammar.field_value(name, rng)
        return [f"{name}={value}" for name, value in fields.items()]

    def _command(self, name: str, rng: np.random.Generator) -> list[str]:
        right = {
            "train": ["train", "mine.yaml", "--out", "new", "training.steps=1"],
            "sample": ["sample", "run", "--out", "new", "--seeds", "0-3", "--steps", "1"],
            "evaluate": ["evaluate", "pics", "--reference", "pics", "--features", "pixels", "--count", "12"],
            "tune": ["tune", "run", "--nfe", "2", "--images", "8"],
            "experiment": [
                "experiment", str(rng.choice(self.grammar.experiments)), "--scale", "./mine.yaml", "--images", "8",
                "--features", "pixels", "--cache", "cache",
            ],
            "demo": [
                "demo", "--out", "new", "--measure", "8", "--map-steps", "1",
                *(f"{key}={value}" for key, value in _TINY.items()),
            ],
        }[name]  # fmt: skip
        words = list(right)
        if rng.random() < 0.3 and name != "demo":
            place = {"train": "recipe", "sample": "model", "evaluate": "source", "tune": "model"}.get(name, "name")
            words[1] = self.grammar.value(place, rng)
        if name == "evaluate" and rng.random() < 0.4:
            words[1] = "run"
        if rng.random() < 0.1:
            place = int(rng.integers(1, len(words) + 1))
            del words[place : place + 1]
        options = self.grammar.options[name]
        for _ in range(int(rng.integers(0, 4))):
            option = options[int(rng.integers(len(options)))]
            flag = option.option_strings[-1]
            value = self.grammar.value(flag, rng)
            if flag == "--out" and ("/" in value or value in (".", "..", "~")):
                value = "new"  # --out is the user's own choice of a place
            if flag in ("--cache", "--save-reference") and value.startswith(("/", "..", "~", ".")):
                value = "cache"
            if option.nargs == 0:
                words.append(flag)
            elif rng.random() < 0.3:
                words.append(f"{flag}={value}")
            else:
                words += [flag, value]
        if rng.random() < 0.1:
            words.insert(int(rng.integers(1, len(words) + 1)), junk(rng))
        return [word.replace("\0", "") for word in words]


_OFTEN = (0.2, 0.25, 0.25, 0.12, 0.14, 0.04)


def is_long(words: list[str]) -> bool:
    """Whether a command asks for much work: large numbers, a large recipe, compilation, or the counts of the papers."""
    numbers = [abs(float(text)) for word in words for text in re.findall(r"\d+(?:\.\d+)?(?:e\d+)?", word[:200])]
    usual = words[0] in ("demo", "experiment", "evaluate", "tune") or "fuzz.yaml" in words
    usual = usual or "training.compile=true" in words or "network=unet" in words  # the default size
    return usual or any(number > 64 for number in numbers) or any(word.startswith("c") for word in words[1:2])


def _copy(source: str, target: str) -> None:
    """Copy a file; a FIFO is made anew."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def _tree(folder: Path) -> list[tuple[str, int, int]]:
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))]


def write_npz(path: Path, count: int = 8) -> None:
    """Gray images of 8x8 pixels as `arr_0`, as ADM's code stores images."""
    rng = np.random.default_rng(0)
    np.savez(path, arr_0=rng.integers(0, 256, (count, 8, 8, 1), np.uint8))


def write_parquet(path: Path, images: Path) -> None:
    """The PNG files of a folder as a table like those of the hub."""
    import pyarrow as arrow
    from pyarrow import parquet

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    rows = [{"bytes": image.read_bytes(), "path": None} for image in sorted(images.glob("*.png"))]
    labels = [number % 2 for number in range(len(rows))]
    parquet.write_table(arrow.table({"image": arrow.array(rows, kind), "label": arrow.array(labels)}), path)


def in_a_fork(work: object) -> None:
    """Call a function in a fork: libraries that start threads must not do so in the process that is forked."""
    assert callable(work)
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a fork that prepares files failed")
