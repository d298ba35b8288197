"""What all cases start from: a few images, a recipe of a tiny network, and a run trained by it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .attempts import start

__all__ = ["TINY", "Part", "Prepared", "run_command", "set_caches"]

TINY = (
    "data.limit=24", "schedule.steps=8", "network.channels=8", "network.multipliers=[1]", "network.blocks=1",
    "network.attention=[]", "training.batch=4", "training.steps=4", "training.log_every=1",
    "training.checkpoint_every=1", "training.keep=2", "training.sample_every=2", "training.sample_count=2",
    "optimizer.warmup=1", "optimizer.decay=constant", "optimizer.learning_rate=0.001",
)  # fmt: skip
"""Fields with which the recipe `digits` writes a checkpoint in every one of four steps, within half a second."""


def run_command(words: Sequence[str], folder: Path, seconds: float = 120.0) -> str:
    """Run a command in a fork and return its output.

    Raises:
        RuntimeError: if it does not succeed in this time.
    """
    attempt = start("fork", words, folder, f"prepared-{os.getpid()}")
    ended = attempt.wait(seconds)
    if not ended:
        attempt.kill()
        attempt.wait(5)
    if not ended or attempt.status != 0:
        raise RuntimeError(f"quarterarc {' '.join(words)}: status {attempt.status}: {attempt.output[-2000:]}")
    return attempt.output


def set_caches(base: Path) -> None:
    """Let this process and all that it starts keep caches and temporary files in a folder; call it before imports."""
    for name in ("cache", "temporary"):
        (base / name).mkdir(parents=True)
    os.environ |= {"XDG_CACHE_HOME": str(base / "cache"), "HF_HOME": str(base / "cache" / "hub")}
    os.environ |= {"TMPDIR": str(base / "temporary"), "TORCH_HOME": str(base / "cache" / "torch")}
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(base / "cache" / "compiled")}
    tempfile.tempdir = str(base / "temporary")


class Prepared:
    """A folder with `mine.yaml` (the recipe), `run` (trained by it) and `pics` (12 images).

    Args:
        base: the path of a new folder, for this and for all cases.
        first: another one that is copied.
    """

    def __init__(self, base: Path, first: Prepared | None = None) -> None:
        self.base, self.folder = base, base / "prepared"
        (base / "outside").mkdir(parents=True)
        self.caches = tuple(Path(os.environ[name]) for name in ("XDG_CACHE_HOME", "TMPDIR"))
        if first is not None:
            shutil.copytree(first.folder, self.folder)
            return
        self.folder.mkdir()
        run_command(["train", "digits", "--out", "run", *TINY], self.folder)
        (self.folder / "mine.yaml").write_text(
            run_command(["train", "digits", "--show", *TINY], self.folder), encoding="utf-8"
        )
        run_command(["sample", "run", "--out", "pics", "--seeds", "100-111", "--steps", "1"], self.folder)
        for name in ("samples.json", ".lock", "contact-sheet.png"):
            (self.folder / "pics" / name).unlink(missing_ok=True)


class Part:
    """A part of the campaign; a subclass has `case(index, keep) -> Outcome`.

    Args:
        prepared: the prepared folder.
        seed: decides the cases.
    """

    def __init__(self, prepared: Prepared, seed: int) -> None:
        self.prepared, self.seed = prepared, seed
