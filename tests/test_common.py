"""Common modules: registries, import paths, error lines, numbers in messages, progress bars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from quarterarc.common.devices import Processes
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.common.registry import Registry, import_attribute
from quarterarc.common.text import counted, duration, one_line, ranges


@pytest.fixture
def shapes() -> Registry[Any]:
    return Registry("shape", {"circle": float, "square": int})


def test_a_registry_is_a_mapping_in_order_of_registration(shapes: Registry[Any]) -> None:
    shapes.register("arc")(complex)
    assert list(shapes) == ["circle", "square", "arc"]
    assert shapes["arc"] is complex
    assert len(shapes) == 3
    assert "line" not in shapes
    assert shapes.names() == list(shapes)
    assert repr(shapes) == "Registry(shape: circle, square, arc)"


def test_register_returns_what_it_decorates(shapes: Registry[Any]) -> None:
    @shapes.register("line")
    def line() -> str:
        return "a line"

    assert line() == "a line"
    assert shapes.lookup("line") is line


def test_names_that_are_registered_or_have_a_colon_raise(shapes: Registry[Any]) -> None:
    with pytest.raises(InputError, match="the shape name 'circle' is registered already: choose another name"):
        shapes.register("circle")
    with pytest.raises(InputError, match="the shape name 'my:circle' contains a colon, which marks an import path"):
        shapes.register("my:circle")


@pytest.mark.parametrize("name", ["cirle", "", "math.pi", 7])
def test_unknown_names_raise_with_the_known_names(shapes: Registry[Any], name: Any) -> None:
    with pytest.raises(InputError, match=f"unknown shape '{name}'") as raised:
        shapes.lookup(name)
    assert "(known: circle, square; or an import path, package.module:name)" in str(raised.value)
    assert ("did you mean 'circle'?" in str(raised.value)) == (name == "cirle")
    with pytest.raises(InputError, match="unknown shape"):
        shapes.require(name)


def test_import_paths_lead_to_attributes(shapes: Registry[Any]) -> None:
    import math

    assert shapes.lookup("math:hypot") is math.hypot
    assert shapes.lookup("pathlib:Path.cwd")() == Path.cwd()
    shapes.require("math:hypot")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("math:", "is not an import path: write package.module:name"),
        (":hypot", "is not an import path: write package.module:name"),
        ("math:hypo", "AttributeError: module 'math' has no attribute 'hypo'"),
        ("no_such_module:shape", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("math:pi", "the shape 'math:pi' is a float: a class or function is expected"),
    ],
)
def test_unusable_import_paths_raise_in_one_line(shapes: Registry[Any], path: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        shapes.lookup(path)
    assert message in str(raised.value)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_check_of_a_registry_is_applied_to_import_paths() -> None:
    def check(entry: Any, path: str) -> None:
        if not isinstance(entry, type):
            raise InputError(f"the shape '{path}' is no class")

    shapes: Registry[Any] = Registry("shape", {}, check)
    assert shapes.lookup("pathlib:Path") is Path
    with pytest.raises(InputError, match="the shape 'math:hypot' is no class"):
        shapes.lookup("math:hypot")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, without the entry of `sys.path` that stands for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    return tmp_path


def test_modules_in_the_current_folder_can_be_imported(folder: Path) -> None:
    (folder / "shapes_of_mine.py").write_text("def star(): return 5\n")
    before = list(sys.path)
    assert import_attribute("shapes_of_mine:star", "shape")() == 5
    assert sys.path == before


def test_the_current_folder_does_not_hide_installed_modules(folder: Path) -> None:
    (folder / "colorsys.py").write_text("raise RuntimeError\n")
    sys.modules.pop("colorsys", None)
    assert import_attribute("colorsys:rgb_to_hsv", "shape")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def star(:", "SyntaxError"),
    ],
)
def test_a_module_that_raises_is_reported_in_one_line(folder: Path, source: str, reason: str) -> None:
    (folder / "broken_shapes.py").write_text(source + "\n")
    with pytest.raises(InputError) as raised:
        import_attribute("broken_shapes:star", "shape")
    assert f"cannot import the shape 'broken_shapes:star' ({reason}" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert str(folder) not in sys.path


def test_unknown_name_offers_the_nearest_name() -> None:
    error = unknown_name("grid", "angel", ("time", "angle"))
    assert str(error) == "unknown grid 'angel'; did you mean 'angle'? (known: angle, time)"
    assert str(unknown_name("grid", "x", ("time",))) == "unknown grid 'x' (known: time)"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 ms"),
        (0.002, "2 ms"),
        (0.0123456, "12.3 ms"),
        (0.1, "0.1 s"),
        (2.0, "2.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (45.4, "45 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (599.6, "10 min"),
        (1000, "17 min"),
        (5369, "89 min"),
        (5399, "1.5 hours"),
        (5.5 * 3600, "5.5 hours"),
        (36 * 3600, "36 hours"),
        (2 * 86400, "2.0 days"),
        (12 * 86400, "12 days"),
        (400 * 86400, "400 days"),
        (27825 * 86400, "76 years"),
        (1e12, "31,688 years"),
    ],
)
def test_durations_have_a_readable_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "nouns", "words"),
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (1797, ("image",), "1,797 images"),
        (2, ("class", "classes"), "2 classes"),
        (1, ("class", "classes"), "1 class"),
    ],
)
def test_counts_have_the_noun_in_the_right_number(count: int, nouns: tuple[str, ...], words: str) -> None:
    assert counted(count, *nouns) == words


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([5], "5"), ([0, 1, 2, 3], "0-3"), ([0, 1, 2, 7, 9, 10], "0-2,7,9-10"), ([3, 5], "3,5")],
)
def test_ranges_join_consecutive_numbers(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_one_line_is_the_message_or_the_class_of_an_error() -> None:
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"


def test_an_error_in_one_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes would otherwise wait for the one that has left."""
    monkeypatch.setattr("accelerate.utils.gather_object", lambda part: [*part, InputError("NaN in process 1")])
    with pytest.raises(InputError, match="NaN in process 1"), Processes(0, 2).raising_together():
        pass
    with pytest.raises(InputError, match="alone"), Processes().raising_together():
        raise InputError("alone")
