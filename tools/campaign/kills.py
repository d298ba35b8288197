"""Kills: SIGKILL at random moments, then the command again until it is done, and the same results bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .attempts import FORKS, Attempt, start
from .folders import broken, differences, snapshot
from .prepared import Part, Prepared
from .results import Outcome

__all__ = ["Kills"]


@dataclass(frozen=True)
class Task:
    """A command that is killed.

    Attributes:
        words: the command at first.
        again: the command after a kill.
        needs: the parts of the prepared folder that it uses.
        launched: of ten cases with two processes, how many use torch.distributed.run.
    """

    words: tuple[str, ...]
    again: tuple[str, ...]
    needs: tuple[str, ...]
    launched: int


_TRAIN = ("train", "mine.yaml", "--out", "made")
_SAMPLE = ("sample", "run", "--out", "made", "--seeds", "0-11", "--batch-size", "2", "--steps", "2")
_EVALUATE = (
    "evaluate", "run", "--reference", "pics", "--features", "pixels", "--metrics", "fid,precision", "--count", "12",
    "--batch-size", "2", "--steps", "1", "--out", "made/result.json",
)  # fmt: skip
_EXPERIMENT = (
    "experiment", "steps", "--scale", "./mine.yaml", "--images", "8", "--features", "pixels", "--out", "made/out",
    "--cache", "made/cache",
)  # fmt: skip

TASKS = {
    "train": Task(_TRAIN, (*_TRAIN, "--resume"), ("mine.yaml",), 3),
    "sample": Task(_SAMPLE, _SAMPLE, ("run",), 6),
    "evaluate": Task(_EVALUATE, _EVALUATE, ("run", "pics"), 6),
    "experiment": Task(_EXPERIMENT, _EXPERIMENT, ("mine.yaml",), 6),
}
TURNS = ("train", "sample", "train", "evaluate", "experiment") * 2
"""The tasks by the last digit of a case's index; cases of one task alternate between one and several processes."""
_FORKED = {1: "fork", 2: "pair", 4: "four"}
_WORDS = {1: "one process", 2: "two processes", 4: "four processes"}


class Kills(Part):
    """The kills of training, sampling, evaluation and experiments."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        super().__init__(prepared, seed)
        self._references: dict[tuple[str, int], dict[str, Any]] = {}
        self._uninterrupted: dict[tuple[str, str], tuple[float, int]] = {}

    def case(self, index: int, keep: bool = False) -> Outcome:
        """Kill a command once, or twice in a third of the cases, complete it, and compare."""
        rng = np.random.default_rng([self.seed, index])
        name = TURNS[index % 10]
        several = (index // 10) % 2 == 1
        turn = (index // 20) % 10
        if several:
            how = "launcher" if turn < TASKS[name].launched else "four" if turn == 9 else "pair"
        else:
            how = "fresh" if turn % 5 == 0 else "fork"
        count = _count(how)
        ranks = tuple(str(rank) for rank in range(count))
        if how == "launcher":
            targets: tuple[str, ...] = ("all", "all", "all", "all", *ranks, "launcher")
        else:
            targets = ("all", *ranks[1:], *ranks) if several else ("all",)
        kind = f"{name}, {_WORDS[count]}"
        reference = self._reference(name, count)
        duration, names = self._duration(name, how)
        for again in range(6):
            folder = self._folder(name, f"kill-{index}")
            hits, problems, story = 0, [], []
            for attempt_number in range(2 if rng.random() < 1 / 3 else 1):
                words = TASKS[name].words if not attempt_number else TASKS[name].again
                target = str(rng.choice(targets))
                attempt = start(how, words, folder, f"{os.getpid()}-{index}-{again}-{attempt_number}")
                aim = _wait(attempt, folder, rng, duration * 0.8**again, names)
                attempt.kill(target)
                if not attempt.end():
                    problems.append("processes left over 40 s after the kill")
                if attempt.killed or target in ranks:
                    hits += 1
                    story.append(f"{how}, killed {target} {aim}")
                problems += broken(folder)
            if hits or problems:
                break
        else:
            shutil.rmtree(folder, ignore_errors=True)
            return Outcome(index, kind, "not hit", False, " ".join(TASKS[name].words), "ended before the kill", 1)
        problems += self._complete(name, count, folder, index, hits)
        if not problems:
            problems = differences(reference, snapshot(folder / "made"))
        detail = f"{'; '.join(story)}: {'; '.join(problems)}"
        if not keep:
            shutil.rmtree(folder)
        return Outcome(
            index, kind, "failed" if problems else "same bits", not problems, " ".join(TASKS[name].again),
            detail[:2000] if problems else "", max(hits, 1),
        )  # fmt: skip

    def _folder(self, name: str, target: str) -> Path:
        folder = self.prepared.base / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for part in TASKS[name].needs:
            source = self.prepared.folder / part
            if source.is_dir():
                shutil.copytree(source, folder / part)
            else:
                shutil.copy(source, folder / part)
        return folder

    def _complete(self, name: str, count: int, folder: Path, index: int, hits: int) -> list[str]:
        """Run the command to its end; the problems in words."""
        records = folder.with_name(f"{folder.name}.records")
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir()
        words = TASKS[name].again if hits else TASKS[name].words
        attempt = start(_FORKED[count], words, folder, f"{os.getpid()}-{index}-last", records)
        ended = attempt.wait(120)
        if not ended:
            attempt.kill()
            attempt.wait(5)
            return [f"the command that continues did not end in 120 s: {attempt.output[-1000:]}"]
        if attempt.status != 0:
            return [f"the command that continues ended with status {attempt.status}: {attempt.output[-1000:]}"]
        return _not_connected(records, count)

    def _reference(self, name: str, count: int) -> dict[str, Any]:
        """The result of the command, uninterrupted."""
        if (name, count) not in self._references:
            self._references[name, count] = self._run_through(name, _FORKED[count])
        return self._references[name, count]

    def _duration(self, name: str, how: str) -> tuple[float, int]:
        """Seconds of the uninterrupted command, and the number of names seen while it wrote."""
        if (name, how) not in self._uninterrupted:
            result = self._run_through(name, how)
            lines = differences(self._reference(name, _count(how)), result)
            if lines:
                raise RuntimeError(f"two uninterrupted runs of {name} ({how}) differ: {lines}")
        return self._uninterrupted[name, how]

    def _run_through(self, name: str, how: str) -> dict[str, Any]:
        folder = self._folder(name, f"whole-{name}-{how}")
        records = folder.with_name(f"{folder.name}.records")
        records.mkdir(exist_ok=True)
        started = time.monotonic()
        attempt = start(how, TASKS[name].words, folder, f"{os.getpid()}-whole-{name}-{how}", records)
        seen = _Names(folder)
        while not attempt.poll():
            seen.look()
            time.sleep(0.0005)
            if time.monotonic() > started + 120:
                attempt.kill()
        self._uninterrupted[name, how] = (time.monotonic() - started, seen.count)
        problems = [] if attempt.status == 0 else [f"status {attempt.status}: {attempt.output[-2000:]}"]
        problems += _not_connected(records, _count(how))
        if problems:
            raise RuntimeError(f"{name} ({how}) without a kill: {problems}")
        result = snapshot(folder / "made")
        shutil.rmtree(folder)
        return result


def _count(how: str) -> int:
    """The number of processes of a way to start a command."""
    return 2 if how == "launcher" else FORKS.get(how, 1)


def _not_connected(records: Path, count: int) -> list[str]:
    """A problem in words if the processes of a run, of which there are several, were not connected with each other."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(records.glob("*.json"))]
    same = count == 1 or found == [{"status": 0, "processes": count}] * count
    return [] if same else [f"not {count} connected processes: {found}"]


class _Names:
    """The names that have appeared below a folder, temporary ones too.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.known = str(folder), 0, set(_walk(str(folder)))

    def look(self) -> None:
        """Count the names that are new."""
        for path in _walk(self.folder):
            if path not in self.known:
                self.known.add(path)
                self.count += 1


def _walk(folder: str) -> list[str]:
    paths = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                paths.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    paths += _walk(entry.path)
    except OSError:  # it was renamed meanwhile
        pass
    return paths


def _wait(attempt: Attempt, folder: Path, rng: np.random.Generator, duration: float, names: int) -> str:
    """Wait for a random moment: of the whole duration, or of a write, that is milliseconds after a new name appears.

    Returns:
        The moment in words.
    """
    until = time.monotonic() + rng.uniform(0, duration)
    if rng.random() < 0.5:
        while not attempt.poll() and time.monotonic() < until:
            time.sleep(0.0005)
        return f"{duration - max(0.0, until - time.monotonic()):.2f} s after its start at most"
    wanted, seen = int(rng.integers(1, max(2, names + 1))), _Names(folder)
    delay = rng.uniform(0, 0.003)
    while not attempt.poll() and seen.count < wanted:
        seen.look()
        time.sleep(0.0002)
    time.sleep(delay)
    return f"{1000 * delay:.1f} ms after new name {wanted} of {names}"
