"""Files: damaged and hostile ones of every format that quarterarc reads, given to the commands that read them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .attempts import start
from .commands import in_a_fork, write_npz, write_parquet
from .damage import damage
from .prepared import TINY, Part, Prepared, run_command
from .results import Outcome
from .watch import GOOD, Rules, judge, remarks, watched_twice

__all__ = ["Files"]

_FIELDS = ("data.limit=6", *(field for field in TINY if not field.startswith(("data.", "training.steps"))))
_TRAIN = ("train", "digits", "--out", "new", *_FIELDS, "training.steps=1")
_EVALUATE = ("--features", "pixels", "--batch-size", "4")
_SAMPLE = ("sample", "run", "--out", "new", "--seeds", "0-1", "--steps", "1")
_AGAIN = ("sample", "run", "--out", "made", "--seeds", "0-5", "--steps", "1")
_RESUME = ("train", "--out", "run", "--resume", "training.steps=5")
_RESULT = ("evaluate", "run", "--reference", "pics", *_EVALUATE, "--count", "12", "--steps", "1", "--out", "r.json")
_EXPERIMENT = (
    "experiment", "samples", "--scale", "./mine.yaml", "--images", "8", "--features", "pixels", "--out", "results",
    "--cache", "results-cache",
)  # fmt: skip


def _data(source: str) -> list[tuple[str, ...]]:
    return [
        (*_TRAIN, f"data.source={source}"),
        (*_TRAIN, f"data.source={source}", "data.memory=stream", "data.skip_bad=true"),
        ("evaluate", source, "--reference", "pics", *_EVALUATE),
        ("evaluate", "pics", "--reference", source, *_EVALUATE),
    ]


OWN: dict[str, tuple[str, Sequence[tuple[str, ...]]]] = {
    "PNG": ("images/a.png", _data("images")),
    "JPEG": ("images/b.jpg", _data("images")),
    "TIFF": ("images/c.tiff", _data("images")),
    "WebP": ("images/d.webp", _data("images")),
    "labels": ("labelled/dataset.json", [(*_TRAIN, "data.source=labelled", "data.labels=true")]),
    "parquet": ("table.parquet", _data("table.parquet")),
    "npz": ("pics.npz", _data("pics.npz")[2:]),
    "LMDB": ("lsun/data.mdb", _data("lsun")),
    "saved data set": ("saved/state.json", _data("saved")),
    "saved data set's arrow": ("saved/data-00000-of-00001.arrow", _data("saved")),
    "recipe": ("mine.yaml", [("train", "mine.yaml", "--out", "new", "training.steps=1", "data.limit=6")]),
    "statistics": ("statistics.safetensors", [("evaluate", "pics", "--reference", "statistics.safetensors")]),
    "config.json": ("run/checkpoints/step-00000004/config.json", [_SAMPLE, _RESUME, _RESULT]),
    "weights": ("run/checkpoints/step-00000004/model.safetensors", [_SAMPLE, _RESUME]),
    "raw weights": ("run/checkpoints/step-00000004/raw.safetensors", [_RESUME, _SAMPLE]),
    "optimiser": ("run/checkpoints/step-00000004/optimizer.safetensors", [_RESUME]),
    "tuned.json": ("run/checkpoints/step-00000004/tuned.json", [(*_SAMPLE, "--grid", "tuned")]),
    "metrics.jsonl": ("run/metrics.jsonl", [_RESUME]),
    "recipe of a run": ("run/recipe.yaml", [_RESUME, ("evaluate", "pics", "--reference", "run", *_EVALUATE)]),
    "samples.json": ("made/samples.json", [_AGAIN, ("evaluate", "made", "--reference", "pics", *_EVALUATE)]),
    "sample": ("made/000002.png", [_AGAIN, ("evaluate", "made", "--reference", "pics", *_EVALUATE)]),
    "partial features": ("r.json.features/*/*.safetensors", [_RESULT]),
    "cell.json": ("results-cache/cells/*/cell.json", [_EXPERIMENT]),
    "experiment.json": ("results/experiment.json", [_EXPERIMENT]),
}
"""The files of every format, and the commands that read them."""


class Files(Part):
    """Damaged and hostile files."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        super().__init__(prepared, seed)
        folder = prepared.folder
        run_command(["sample", "run", "--out", "made", "--seeds", "0-3", "--steps", "1"], folder)
        run_command(["evaluate", "pics", "--features", "pixels", "--save-reference", "statistics.safetensors"], folder)
        run_command(["tune", "run", "--nfe", "2", "--images", "8", "--no-weights"], folder)
        run_command([*_EXPERIMENT], folder)
        write_npz(folder / "pics.npz")
        in_a_fork(lambda: _write_data(folder))
        self._partial(folder)
        (prepared.base / "outside" / "secret.png").write_bytes((folder / "made" / "000000.png").read_bytes())
        self.hostile = _hostile_files()

    def case(self, index: int, keep: bool = False) -> Outcome:
        """Damage one file, or write a hostile one, and run a command that reads it."""
        base, folder = self.prepared.base, self.prepared.base / "work"
        kind, words = self._write(index, folder)
        rules = Rules((folder, *self.prepared.caches), base / "outside")
        seen = watched_twice(words, folder, rules, lambda: self._write(index, folder))
        verdict, detail = judge(seen, rules)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        good = verdict in GOOD
        return Outcome(
            index, kind.partition(":")[0], verdict, good, " ".join(words)[:1500], "" if good else f"{kind}: {detail}",
            remarks=remarks(seen),
        )  # fmt: skip

    def _write(self, index: int, folder: Path) -> tuple[str, list[str]]:
        """Make the folder of a case; returns its kind and its command."""
        rng = np.random.default_rng([self.seed, index, 2])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.prepared.folder, folder, symlinks=True)
        return self._hostile(rng, folder) if self.hostile and index % 2 else self._own(rng, folder)

    def _own(self, rng: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
        name = list(OWN)[int(rng.integers(len(OWN)))]
        pattern, commands = OWN[name]
        paths = sorted(folder.glob(pattern))
        way = damage(paths[int(rng.integers(len(paths)))], rng)
        words = list(commands[int(rng.integers(len(commands)))])
        if "statistics.safetensors" in words:
            words += _EVALUATE
        return f"{name}: {way}", words

    def _hostile(self, rng: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
        place = folder / "hostile"
        place.mkdir()
        kind, path, use = self.hostile[0](rng, place)
        source = os.path.relpath(path.parent if use == "image" else path, folder)
        if use == "recipe":
            return f"hostile {kind}", ["train", source, "--out", "new", *_FIELDS, "training.steps=1"]
        commands = _data(source)
        words = commands[3] if use == "reference" else commands[int(rng.integers(4))]
        return f"hostile {kind}", list(words)

    def _partial(self, folder: Path) -> None:
        """Partial features of an evaluation, as a killed process leaves them."""
        for attempt_number in range(10):
            attempt = start("fork", list(_RESULT), folder, f"partial-{attempt_number}")
            while not attempt.poll():
                if len([*folder.glob("r.json.features/*/*.safetensors")]) > 1:
                    attempt.kill()
            if [*folder.glob("r.json.features/*/*.safetensors")]:
                return
            (folder / "r.json").unlink(missing_ok=True)
        raise RuntimeError("an evaluation left no partial features behind")


def _hostile_files() -> list:  # type: ignore[type-arg]
    """The function that writes hostile files for the tests, where there is one."""
    tests = str(Path(__file__).parents[2] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    try:
        from hostile_files import hostile_file
    except ImportError:
        return []
    return [hostile_file]


def _write_data(folder: Path) -> None:
    """Images of every format, a table, a saved data set, an LMDB and a labelled folder."""
    import datasets
    import lmdb
    from PIL import Image

    pictures = sorted((folder / "pics").glob("*.png"))
    (folder / "images").mkdir()
    images = [Image.open(path).convert("RGB").resize((24, 24)) for path in pictures]
    for image, name in zip(images, ("a.png", "b.jpg", "c.tiff", "d.webp", "e.png", "f.png"), strict=False):
        image.save(folder / "images" / name)
    write_parquet(folder / "table.parquet", folder / "pics")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in pictures], "label": [0, 1] * 6}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))
    with lmdb.open(str(folder / "lsun"), map_size=1 << 20) as environment, environment.begin(write=True) as writing:
        for number, path in enumerate(pictures):
            writing.put(f"{number:04d}".encode(), path.read_bytes())
    (folder / "lsun" / "lock.mdb").unlink(missing_ok=True)
    labelled = folder / "labelled"
    labelled.mkdir()
    names = [f"{number}.png" for number in range(6)]
    for name, image in zip(names, images, strict=False):
        image.save(labelled / name)
    text = ", ".join(f'["{name}", {number % 2}]' for number, name in enumerate(names))
    (labelled / "dataset.json").write_text(f'{{"labels": [{text}]}}\n', encoding="utf-8")
