"""Open registries: the heads, schedules, samplers, ... that recipes, checkpoints and the command line use by name.

A name is either registered (`"ddim"`) or an import path (`"package.module:name"`), so that other packages extend a
family:

    from quarterarc.samplers import SAMPLERS

    @SAMPLERS.register("mine")
    class Mine: ...
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Generic, TypeVar

from .errors import InputError, unknown_name

__all__ = ["IMPORT_PATH", "Registry", "check_definition", "import_attribute"]

Entry = TypeVar("Entry")
Decorated = TypeVar("Decorated")

IMPORT_PATH = "package.module:name"
_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping from names to entries, in order of registration.

    Args:
        kind: noun for an entry, used in messages: "sampler".
        entries: initial entries.
        check: called with the object of an import path and the path; raises an InputError for an unusable object.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, Entry] | None = None,
        check: Callable[[Any, str], None] | None = None,
    ) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = dict(entries or {})
        self._check = check

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """A decorator that registers a class or function under a name.

        Raises:
            InputError: if the name is registered already, or contains a colon.
        """
        if ":" in name:
            raise InputError(f"the {self.kind} name '{name}' contains a colon, which marks an import path")
        if name in self._entries:
            raise InputError(f"the {self.kind} name '{name}' is registered already: choose another name")

        def add(entry: Decorated) -> Decorated:
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def names(self) -> list[str]:
        """The names that `lookup` accepts, import paths aside; for help texts and error messages."""
        return list(self)

    def lookup(self, name: str) -> Entry:
        """The entry of a registered name, or the object at an import path.

        Raises:
            InputError: for an unknown name (with the nearest one), a module that cannot be imported, or an object of
                the wrong kind.
        """
        if name in self._entries:
            return self._entries[name]
        self.require(name)
        entry = import_attribute(name, self.kind)
        if not callable(entry):
            raise InputError(f"the {self.kind} '{name}' is a {type(entry).__name__}: a class or function is expected")
        if self._check is not None:
            self._check(entry, name)
        return entry

    def require(self, name: str) -> None:
        """Raise an InputError for a name that is neither registered nor of the form of an import path.

        Nothing is imported, so that a recipe can be read and printed without running the code that it names.
        """
        if name in self._entries:
            return
        if not isinstance(name, str) or ":" not in name:
            raise unknown_name(self.kind, name, self.names(), f"or an import path, {IMPORT_PATH}")
        _check_form(name, self.kind)


def check_definition(entry: Any, path: str, kind: str) -> None:
    """Raise an InputError unless an object is a Python function or class, defined in the package of its import path.

    Instances, built-in functions and the standard library raise: `os:system` is no objective.
    """
    package = path.partition(":")[0].partition(".")[0]
    if not (inspect.isfunction(entry) or inspect.isclass(entry)):
        raise InputError(f"the {kind} '{path}' is a {type(entry).__name__}: a Python function or class is expected")
    module = str(entry.__module__)
    if module.partition(".")[0] != package:
        raise InputError(f"the {kind} '{path}' is defined in another package: write {module}:{entry.__qualname__}")
    if package in sys.stdlib_module_names:
        raise InputError(f"the {kind} '{path}' belongs to Python's standard library: give your own function or class")


def _check_form(path: str, kind: str) -> None:
    if not _FORM.fullmatch(path):
        raise InputError(f"the {kind} '{path}' is not an import path: write {IMPORT_PATH}")


def import_attribute(path: str, kind: str) -> Any:
    """The object at an import path, `package.module:name`; the current folder is searched last.

    Raises:
        InputError: if the module cannot be imported or has no such attribute; one line with the reason.
    """
    module, _, attribute = path.partition(":")
    _check_form(path, kind)
    try:
        with _current_folder_last():
            value: Any = import_module(module)
        for name in attribute.split("."):
            value = getattr(value, name)
    except Exception as error:  # an imported module can raise any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        absent = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        remedy = (
            "install its package, or run where the module is importable" if absent else "correct the module or path"
        )
        raise InputError(f"cannot import the {kind} '{path}' ({reason}): {remedy}") from None
    return value


@contextmanager
def _current_folder_last() -> Iterator[None]:
    """Append the current folder to `sys.path`, which for an installed command does not contain it."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
