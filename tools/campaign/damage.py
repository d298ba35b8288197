"""Damage: changed bytes of a file, and changed values of a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .values import junk, mutated, mutated_yaml

__all__ = ["damage", "damaged_bytes"]


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file in one of several ways; returns the way in a word."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.65:
        return _json(path, data, rng)
    if path.suffix == ".yaml" and rng.random() < 0.65:
        path.write_bytes(mutated_yaml(data.decode(), rng))
        return "values"
    if rng.random() < 0.06:
        path.unlink()
        special = int(rng.integers(4))
        if special == 0:
            path.mkdir()
        elif special == 1:
            path.symlink_to("no-such")
        elif special == 2:
            path.symlink_to(path.name)
        return ("folder", "broken link", "loop", "missing")[special]
    way, changed = damaged_bytes(data, rng)
    path.write_bytes(changed)
    return way


def damaged_bytes(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Changed bytes, and the way in a word."""
    size = len(data)
    if not size:
        return "noise", rng.bytes(50)
    way = str(rng.choice(["bits", "bits", "head", "cut", "empty", "zeros", "ones", "noise", "double", "swap", "text"]))
    place, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 4)))
    if way in ("bits", "head"):
        changed = bytearray(data)
        for _ in range(int(rng.choice([1, 1, 3, 20]))):
            changed[int(rng.integers(min(size, 64) if way == "head" else size))] ^= 1 << int(rng.integers(8))
        return way, bytes(changed)
    if way == "cut":
        return way, data[:place]
    if way == "empty":
        return way, b""
    if way == "double":
        return way, data[:place] + data[place : place + length] * 2 + data[place + length :]
    if way == "swap":
        other = rng.integers(size)
        return way, data[:place] + data[other : other + length] + data[place + length :]
    filling = {"zeros": b"\0" * length, "ones": b"\xff" * min(8, length), "noise": rng.bytes(length)}
    filling["text"] = junk(rng, nul=True).encode("utf-8", "surrogatepass")
    return way, data[:place] + filling[way] + data[place + len(filling[way]) :]


def _json(path: Path, data: bytes, rng: np.random.Generator) -> str:
    lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    place = int(rng.integers(len(lines)))
    value = json.loads(lines[place])
    for _ in range(int(rng.integers(1, 3))):
        value = mutated(value, rng)
    lines[place] = json.dumps(value)
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return "values"
