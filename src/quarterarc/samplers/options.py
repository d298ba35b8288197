"""The options of a sampler, read from its class: name, type, default and documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from ..common.errors import InputError
from .base import Sampler

__all__ = ["Option", "describe", "is_plain", "options_of", "renames_of"]


@dataclass(frozen=True)
class Option:
    """An option of a sampler.

    Attributes:
        name: the keyword.
        type: its annotation, as text: "float | None".
        default: its default; `inspect.Parameter.empty` for a required option.
        description: the first sentence of its documentation; empty for an undocumented option.
    """

    name: str
    type: str
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def shown_default(self) -> str:
        """The default as text; `automatic` for None, with which the sampler chooses."""
        if self.default is None:
            return "automatic"
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def check(self, sampler: str, value: Any) -> None:
        """Raise an InputError for a value of another type than the annotation; compound types are not checked."""
        kinds = [kind.strip() for kind in self.type.split("|")]
        plain = [kind for kind in kinds if kind != "None"]
        if not set(plain) <= _TYPES.keys() or (value is None and "None" in kinds):
            return
        for kind in plain:
            types, _ = _TYPES[kind]
            if isinstance(value, types) and (kind == "bool" or not isinstance(value, bool)):
                return
        expected = " or ".join(_TYPES[kind][1] for kind in plain)
        raise InputError(f"the option '{self.name}' of the sampler '{sampler}' is {expected}, got {value!r}")


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "float": ((int, float), "a number"),
    "int": ((int,), "a whole number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
}
"""The types of option values that are checked, by annotation, and their names in messages."""


def options_of(entry: Callable[..., Sampler]) -> tuple[Option, ...] | None:
    """The options of a sampler class, or of a factory that returns a sampler, in the order of its signature.

    Fields named in `Sampler.internal` are left out. Documentation comes from the section `Attributes:` or `Args:` of
    the docstring.

    Returns:
        None for a factory with `**options`, which accepts any.
    """
    parameters = inspect.signature(entry).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    target = _unwrapped(entry)
    described = _descriptions(target)
    internal = getattr(target, "internal", ())
    return tuple(
        Option(parameter.name, _annotation(parameter), parameter.default, described.get(parameter.name, ""))
        for parameter in parameters
        if parameter.name not in internal
    )


def renames_of(entry: Callable[..., Sampler]) -> Mapping[str, str]:
    """The new name of each renamed option of a sampler class; empty for other factories."""
    target = _unwrapped(entry)
    return target.renamed if isinstance(target, type) and issubclass(target, Sampler) else {}


def describe(sampler: Sampler, entries: Mapping[str, Callable[..., Sampler]]) -> tuple[str, dict[str, Any], bool]:
    """Name and options of a sampler that was given as an object, as JSON types.

    Args:
        sampler: the sampler.
        entries: the registered classes and factories by name.

    Returns:
        The registered name, or `module:Class`; the fields that differ from their defaults; and whether these determine
        the sampler. They do not for a class within a function, for attributes that are not fields, and for fields whose
        value is not plain (`is_plain`), which are given by their `repr`.
    """
    declared: dict[str, Field[Any]] = {field.name: field for field in fields(sampler)} if is_dataclass(sampler) else {}
    values = {key: getattr(sampler, key) for key in declared}
    exact = getattr(sampler, "__dict__", {}).keys() <= values.keys()
    kind = type(sampler)
    name, bound = f"{kind.__module__}:{kind.__qualname__}", dict[str, Any]()
    candidates = ((key, _bound(entry)) for key, entry in entries.items() if _unwrapped(entry) is kind)
    registered = [pair for pair in candidates if all(values.get(key) == value for key, value in pair[1].items())]
    if registered:
        name, bound = registered[0]
    exact = exact and "<locals>" not in name
    options = {}
    for key, value in values.items():
        if key in bound or _plain(value) == _plain(_default(declared[key])):
            continue
        exact = exact and is_plain(value)
        options[key] = _plain(value) if is_plain(value) else repr(value)
    return name, options, exact


def is_plain(value: Any) -> bool:
    """Whether a value is None, a number, text, or a list, tuple, mapping by text or dataclass of these."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return all(is_plain(getattr(value, field.name)) for field in fields(value))
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """A plain value as JSON types; another value as a new object, which equals nothing."""
    if not is_plain(value):
        return object()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if is_dataclass(value):
        entries = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__qualname__, **entries}
    return value


def _default(field: Field[Any]) -> Any:
    """The default of a field; MISSING, which is not plain, without one."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _bound(entry: Callable[..., Sampler]) -> dict[str, Any]:
    """The arguments that a partial class fixes, by name."""
    if not isinstance(entry, partial):
        return {}
    return dict(inspect.signature(entry.func).bind_partial(*entry.args, **entry.keywords).arguments)


def _unwrapped(entry: Callable[..., Sampler]) -> Callable[..., Sampler]:
    return _unwrapped(entry.func) if isinstance(entry, partial) else entry


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is inspect.Parameter.empty:
        return ""
    return (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else inspect.formatannotation(parameter.annotation)
    )


def _descriptions(target: Callable[..., Sampler]) -> dict[str, str]:
    """The first sentence of each entry in the section `Attributes:` or `Args:` of a docstring, by name."""
    section = re.search(
        r"^(?:Attributes|Args):\n(.*?)(?:\n\S|\Z)", inspect.getdoc(target) or "", re.DOTALL | re.MULTILINE
    )
    if section is None:
        return {}
    described = {}
    for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE):
        sentence = re.split(r"(?<=[.;])(?<! al\.)(?<!Eq\.)\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".;")
        described.update(dict.fromkeys(names.split(", "), sentence))
    return described
