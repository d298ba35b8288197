"""Architecture: imports point strictly down, networks are independent of diffusion, the package imports lazily."""

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

# A unit (a module or package at the top level) imports only units of the rows above its own, which are lower floors.
# Modules of a package import each other freely, without cycles.
FLOORS = (
    {"common"},
    {"arc", "networks"},
    {"schedules", "posterior"},
    {"estimate", "grids"},
    {"heads", "mean_image", "objectives"},
    {"denoiser"},
    {"wrappers"},
    {"closed_form", "flow_map", "samplers", "storage"},
    {"report", "data", "interop"},
    {"sampling"},
    {"likelihood", "training"},
    {"edit", "evaluation", "sharing"},
    {"app", "experiments"},
    {"cli"},
    {"__main__"},
)
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}
CORE = {unit for units in FLOORS[:8] for unit in units} - {"common", "storage"}


def modules() -> dict[str, Path]:
    """The paths of all modules of the package by dotted name: `samplers.ddim`."""
    paths = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            paths[name] = path
    return paths


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The imports of a module, at any level: `.samplers.ddim` of this package, `numpy` of others."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace("quarterarc", "", 1) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").replace("quarterarc", "", 1)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:  # a module (`from . import grids`) or its content
                inner = ".".join([*base, alias.name])
                yield "." + (inner if inner in MODULES else ".".join(base))


def own(name: str) -> set[str]:
    """The modules of this package that a module imports, without itself."""
    return {module[1:] for module in imports(name) if module.startswith(".") and module != "."} - {name}


def unit(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_strictly_down(name: str) -> None:
    assert unit(name) in FLOOR, f"place '{unit(name)}' in FLOORS"
    for other in own(name):
        assert other in MODULES, f"{name} imports {other}, which does not exist"
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


def test_imports_have_no_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join([*path, name])}"
        if name not in done:
            # a package stands for the imports of its __init__, on which its own modules do not depend
            for other in own(name) - ({name.rpartition(".")[0]} if "." in name else set()):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def outside(name: str) -> set[str]:
    """Third-party packages that a module imports."""
    return {
        module.partition(".")[0] for module in imports(name) if module and not module.startswith(".")
    } - sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) == "networks"])
def test_networks_import_torch_and_nothing_of_diffusion(name: str) -> None:
    assert outside(name) <= {"torch"}
    assert {unit(other) for other in own(name)} <= {"networks", "common"}


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) in CORE])
def test_the_core_imports_torch_and_numpy_only(name: str) -> None:
    assert outside(name) <= {"torch", "numpy"}


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) == "samplers"])
def test_samplers_import_no_networks_heads_or_files(name: str) -> None:
    assert not {unit(other) for other in own(name)} & {"networks", "heads", "storage", "schedules", "grids"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("name", ["quarterarc", "quarterarc.cli"])
def test_importing_the_package_and_its_help_imports_no_heavy_packages(name: str) -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'accelerate', 'pydantic', 'datasets'}"
    assert run(f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_public_names_are_listed_once_and_exist() -> None:
    assert sorted(quarterarc.__all__) == sorted(quarterarc._MODULE)
    assert set(quarterarc.__all__) <= set(dir(quarterarc))
    for name in quarterarc.__all__:
        assert getattr(quarterarc, name) is getattr(import_module(f"quarterarc.{quarterarc._MODULE[name]}"), name)
    with pytest.raises(AttributeError, match="module 'quarterarc' has no attribute 'nothing'"):
        quarterarc.nothing  # noqa: B018


def test_type_checkers_see_the_public_names_in_their_modules() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    names = {
        alias.name: node.module
        for guard in tree.body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names == quarterarc._MODULE
