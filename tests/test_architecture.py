"""The floors: imports point strictly down, the network knows nothing of diffusion, and the package itself is lazy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import quarterarc

ROOT = Path(quarterarc.__file__).parent

# A unit (a module or package at the top level) imports only units on rows above its own here, which are lower floors.
# Within a package modules import each other freely, as long as there is no circle.
FLOORS = (
    {"common"},
    {"arc", "networks"},
    {"schedules", "posterior"},
    {"estimate", "grids"},
    {"heads", "objectives"},
    {"denoiser"},
    {"wrappers"},
    {"closed_form", "samplers", "storage"},
    {"report", "data"},
    {"sampling"},
    {"likelihood", "training"},
    {"evaluation"},
    {"interop", "experiments"},
    {"cli"},
    {"__main__"},
)
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}
CORE = {unit for units in FLOORS[:7] for unit in units} - {"common", "storage"}


def modules() -> dict[str, Path]:
    """Every module below the package by its dotted name: `samplers.ddim`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """What a module imports anywhere in it: `.samplers.ddim` of this package, `numpy` of others."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace("quarterarc", "", 1) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").replace("quarterarc", "", 1)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:  # `from . import grids` names a module, `from .grids import grid` what is in it
                inner = ".".join([*base, alias.name])
                yield "." + (inner if inner in MODULES else ".".join(base))


def own(name: str) -> set[str]:
    """The modules of this package that a module imports; without itself, which is how a package finds its files."""
    return {each[1:] for each in imports(name) if each.startswith(".") and each != "."} - {name}


def unit(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_strictly_down(name: str) -> None:
    assert unit(name) in FLOOR, f"place '{unit(name)}' in FLOORS"
    for other in own(name):
        assert other in MODULES, f"{name} imports {other}, which is not there"
        if unit(other) != unit(name):
            assert FLOOR[unit(other)] < FLOOR[unit(name)], f"{name} imports {other}, which is not below it"


def test_every_unit_has_its_floor_and_every_floor_exists() -> None:
    assert {unit(name) for name in MODULES} == set(FLOOR)


def test_contributing_lists_the_same_floors() -> None:
    text = (ROOT.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    listed = [{name.rstrip("/") for name in re.findall(r"`([^`]+)`", rooms)} for _, rooms in rows]
    assert listed == [set(units) for units in FLOORS[:-1]]  # the last one is `python -m quarterarc`
    assert [int(number) for number, _ in rows] == list(range(len(listed)))


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join([*way, name])}"
        if name not in done:
            # a package stands for what its __init__ brings in; its own files do not wait for that
            for other in own(name) - ({name.rpartition(".")[0]} if "." in name else set()):
                visit(other, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def outside(name: str) -> set[str]:
    """The other packages that a module imports, without the standard library."""
    return {
        each.partition(".")[0] for each in imports(name) if not each.startswith(".") and each
    } - sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) == "networks"])
def test_the_network_knows_torch_and_nothing_of_diffusion(name: str) -> None:
    assert outside(name) <= {"torch"}
    assert {unit(other) for other in own(name)} <= {"networks", "common"}


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) in CORE])
def test_the_core_needs_torch_and_numpy_alone(name: str) -> None:
    assert outside(name) <= {"torch", "numpy"}


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) == "samplers"])
def test_samplers_know_no_network_no_head_and_no_file(name: str) -> None:
    assert not {unit(other) for other in own(name)} & {"networks", "heads", "storage", "schedules", "grids"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("name", ["quarterarc", "quarterarc.cli"])
def test_the_package_and_its_help_load_nothing_heavy(name: str) -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'accelerate', 'pydantic', 'datasets'}"
    assert run(f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_public_names_are_listed_once_and_all_there() -> None:
    assert sorted(quarterarc.__all__) == sorted(quarterarc._MODULE)
    assert set(quarterarc.__all__) <= set(dir(quarterarc))
    for name in quarterarc.__all__:
        assert getattr(quarterarc, name) is getattr(import_module(f"quarterarc.{quarterarc._MODULE[name]}"), name)
    with pytest.raises(AttributeError, match="module 'quarterarc' has no attribute 'nothing'"):
        quarterarc.nothing  # noqa: B018


def test_type_checkers_see_the_public_names_where_they_are() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for guard in tree.body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == quarterarc._MODULE
