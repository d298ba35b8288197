"""Values that nobody expects, and the grammar of commands: every option and every field of a recipe."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import yaml

__all__ = ["JUNK", "Grammar", "junk"]

JUNK = (
    "", " ", "0", "-0", "-1", "1", "2", "3", "7", "0.5", "-0.5", "1.0", "1e3", "1e9", "1e-300", "1e400", "nan", "NaN",
    ".nan", "inf", "-inf", ".inf", "99999999999999999999", "9223372036854775808", "-9223372036854775809", "4294967296",
    "0x10", "0o7", "1_000", "1,2", "3-1", "0-3", "0-99999999999", "1-", "-", "--", "---", "=", "a=b", "a==b", "٣", "½",
    "²", "true", "yes", "no", "on", "null", "~", "[]", "[[]]", "[1, 2", "[1, 2]", "{}", "{a: 1}", "{a: [1, {b: 2}]}",
    "{", "}", ":", ": ", "a: b: c", "- 1", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {1, 2}",
    "!!timestamp 2020-01-01", "&a [*a]", "*a", "&a {<<: *a}", "# comment", "'", '"', "\\", "%s%n%d", "{0}", "{name}",
    "$HOME", "`ls`", "$(ls)", "; ls", "a\nb", "a\tb", "\r", "\x1b[31mred\x1b[0m", "\x07", "\x7f", "é", "日本語", "🦊",
    "\u202e", "\ufeff", "\u2028", "\udcff", "e\u0301", "x" * 300, "x" * 5000, "9" * 400, "[" * 200, "{a: " * 100,
    "../outside/x", "../../x", "/", ".", "..", "./", "~/x", "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin",
    "/proc/self/mem", "/proc/self/environ", "/etc/passwd", "/no/such/file", "con", "NUL", "C:\\x", "file:///etc/passwd",
    "http://127.0.0.1:9/x", "s3://bucket/x", "hub:", "hub:a/b", "os:getcwd", "os:no_such", "no_such:thing",
    "builtins:print", "torch.nn:Linear", "json:loads", ":", "a:", ":b", "digits", "memory", "cifar10", "auto", "None",
    "unet", "both", "arc", "2024-01-01", "12:30:45", "1e", "e1", "+1", "--help", "-h", "--version", "--seeds", "--out",
)  # fmt: skip
"""Texts that have broken programs, and some that are right in another place."""

LEAVES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**400, 1.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "\x1b[2J", "日本語", "../../x", "/etc/passwd", [], [[]], [1, 2, 3], {}, {"a": {}},
    [None], ["a", 1], "9" * 500, [[[[[[[[]]]]]]]], list(range(300)), {"": None}, "nan", "1", "2024",
)  # fmt: skip
"""Values of any JSON type."""


def junk(rng: np.random.Generator, nul: bool = False) -> str:
    """A text of `JUNK`, or random characters; without NUL unless it is for a file."""
    if rng.random() < 0.85:
        return JUNK[int(rng.integers(len(JUNK)))]
    ranges = ((0x20, 0x7E), (0x01, 0x1F), (0xA0, 0x2FF), (0x4E00, 0x4FFF), (0x1F600, 0x1F64F))
    text = ""
    for _ in range(int(rng.integers(1, 12))):
        low, high = ranges[int(rng.choice(len(ranges), p=(0.6, 0.1, 0.1, 0.1, 0.1)))]
        text += chr(int(rng.integers(low, high)))
    return text + ("\0" if nul and rng.random() < 0.1 else "")


def leaf(rng: np.random.Generator) -> Any:
    """A value of any JSON type, or an unexpected text."""
    return junk(rng, nul=True) if rng.random() < 0.4 else LEAVES[int(rng.integers(len(LEAVES)))]


class Grammar:
    """Options of every command and fields of recipes, with values that are right for them, from the package itself."""

    def __init__(self) -> None:
        from quarterarc.cli import COMMANDS, command_parser
        from quarterarc.evaluation.extractors import EXTRACTORS
        from quarterarc.evaluation.metrics import METRICS
        from quarterarc.experiments import EXPERIMENTS
        from quarterarc.grids import GRIDS
        from quarterarc.heads import HEADS
        from quarterarc.networks import NETWORKS
        from quarterarc.objectives import OBJECTIVES
        from quarterarc.samplers import SAMPLERS
        from quarterarc.schedules import SCHEDULES
        from quarterarc.training.recipe import Recipe

        self.options: dict[str, list[argparse.Action]] = {}
        for name in COMMANDS:
            parser = command_parser([name])
            subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            self.options[name] = [a for a in subparsers.choices[name]._actions if a.option_strings]
        self.fields = dict(_fields(Recipe))
        self.experiments = list(EXPERIMENTS)
        models = ["run", "run", "run", "run/checkpoints/step-00000004", "pics", "empty", "no-such", "mine.yaml"]
        sources = ["run", "pics", "pics.npz", "digits", "table.parquet", "made", "empty", "statistics.safetensors"]
        self.right: dict[str, list[str]] = {
            "model": models, "source": sources, "--reference": sources,
            "recipe": ["digits", "cifar10-short", "celeba64", "mine.yaml"],
            "--out": ["made", "new", "new/deep", "made/x.json", "pics", "empty", "run", "é 日本", "r.json"],
            "--cache": ["cache", "made"], "--save-reference": ["s.npz", "s.safetensors", "s.txt", "empty"],
            "--data": ["pics", "digits", "table.parquet", "empty"], "--scale": ["./mine.yaml", "digits", "cifar10"],
            "--sampler": list(SAMPLERS), "--grid": [*GRIDS, "tuned", "1.57,0.8,0", "1.5,1.5,0"],
            "--projection": ["velocity", "image", "noise", "none"], "--features": [*EXTRACTORS, "pixels", "pixels"],
            "--metrics": [*METRICS, "fid,precision", "bits-per-dim", "flow-bits-per-dim", "fid,fid"],
            "--weights": ["run", "pics", "run/checkpoints/step-00000004/model.safetensors"],
            "--option": ["eta=0.5", "order=2", "eta=nan", "order=99", "churn=1", "x=y", "steps=3"],
            "--device": ["cpu", "auto", "cuda", "mps", "meta", "cpu:0", "xpu"], "--seeds": ["0-3", "5", "1,2", "7,7"],
            "--labels": ["0", "0-1", "9"], "--inception-score": ["torch-fidelity", "adm"],
            "--variance": ["small", "large", "learned"],
        }  # fmt: skip
        self.numbers = ["0", "1", "2", "3", "4", "8", "9", "16"]
        names = {
            "schedule.name": list(SCHEDULES), "head": list(HEADS), "objective.name": list(OBJECTIVES),
            "network.name": list(NETWORKS), "data.source": ["digits", "pics", "table.parquet", "pics.npz", "empty"],
        }  # fmt: skip
        self.right |= {**names, "schedule": names["schedule.name"], "network": names["network.name"]}

    def value(self, name: str, rng: np.random.Generator) -> str:
        """A value for an option or a field: right in half of the cases."""
        if rng.random() < 0.5:
            return junk(rng)
        return str(rng.choice(self.right.get(name, self.numbers)))

    def field_value(self, name: str, rng: np.random.Generator) -> str:
        """A value for a field of a recipe, by its type in half of the cases."""
        if name in self.right or rng.random() < 0.5:
            return self.value(name, rng)
        return _right(self.fields[name], rng)


def _fields(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a recipe by its dotted name, sections too, with its type."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.annotation
        if hasattr(field.annotation, "model_fields"):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def _right(kind: Any, rng: np.random.Generator) -> str:
    """A text that a field of a type might accept."""
    if get_origin(kind) in (Union, types.UnionType, Literal):
        choices = get_args(kind)
        chosen = choices[int(rng.integers(len(choices)))]
        return _right(chosen, rng) if get_origin(kind) is not Literal else str(chosen)
    if get_origin(kind) is tuple:
        return "[" + ", ".join(_right(int, rng) for _ in range(int(rng.integers(0, 4)))) + "]"
    if kind is bool:
        return str(rng.choice(["true", "false"]))
    if kind is float:
        return f"{10 ** rng.uniform(-6, 3):.3g}"
    if kind is int:
        return str(int(rng.choice([1, 1, 2, 2, 3, 4, 8, 10, 16, 100, 1000])))
    if kind is type(None):
        return "null"
    return str(rng.choice(["mse", "l1", "small", "image", "x", "train"]))


def mutated_yaml(text: str, rng: np.random.Generator) -> bytes:
    """A recipe's YAML with values of other types, other keys, or other characters."""
    if rng.random() < 0.6:
        value = yaml.safe_load(text)
        for _ in range(int(rng.integers(1, 4))):
            value = mutated(value, rng)
        try:
            return yaml.safe_dump(value, allow_unicode=bool(rng.random() < 0.5)).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, ValueError, RecursionError):
            return str(value).encode("utf-8", "surrogatepass")
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(lines)))
        line = lines[place]
        change = int(rng.integers(7))
        if change == 0:
            lines[place] = line + junk(rng, nul=True)
        elif change == 1:
            lines[place] = f"{line.partition(':')[0]}: {junk(rng, nul=True)}"
        elif change == 2:
            lines.insert(place, line)
        elif change == 3:
            lines[place] = " " * int(rng.integers(9)) + line.strip()
        elif change == 4:
            lines.insert(place, junk(rng, nul=True))
        elif change == 5:
            lines[place] = line.replace(": ", ": !!str " if rng.random() < 0.5 else ": &a ", 1)
        else:
            del lines[place]
            lines = lines or [""]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.1 else data


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with one node replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = list(value)[int(rng.integers(len(value)))]
        change = rng.random()
        if change < 0.7:
            return {**value, name: mutated(value[name], rng)}
        if change < 0.8:
            return {key: item for key, item in value.items() if key != name}
        if change < 0.9:
            return {(junk(rng) if key == name else key): item for key, item in value.items()}
        return {**value, junk(rng): leaf(rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = int(rng.integers(len(value)))
        if rng.random() < 0.7:
            return [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
        return value[:place] + value[place + 1 :] if rng.random() < 0.5 else [*value, *value]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return [-value, value * 1000, 0, value + 1, 10**30, str(value), value / 3 if abs(value) < 1e300 else 0.5][
            int(rng.integers(7))
        ]
    return leaf(rng)
