"""Frozen, validated groups of settings, the parts of a recipe: errors are one line with the nearest field name."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from .errors import InputError

__all__ = ["Section"]

LONGEST_VALUE = 80
"""Characters of a value in a message."""


class Section(BaseModel):
    """A frozen group of settings that accepts its own fields only.

    Raises:
        InputError: for an unknown field (with the nearest name), a missing field, or a value of the wrong type.

    The docstrings of the fields are their descriptions, `model_fields[name].description`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    SHORT_FORMS: ClassVar[tuple[str, ...]] = ()
    """Names that the constructor accepts for fields of other sections."""

    def __init__(self, *values: Any, **fields: Any) -> None:
        if values:
            names = ", ".join(f"{name}=..." for name in list(type(self).model_fields)[: max(2, len(values))])
            raise InputError(f"the fields of a {type(self).__name__} are given by name: {type(self).__name__}({names})")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(explain(error, type(self))) from None

    # Validation of a nested section bypasses this constructor, so that the outer error has the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """A section from a mapping of its fields."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise InputError(explain(error, cls)) from None


def explain(error: ValidationError, model: type[Section]) -> str:
    """The first problem of a failed validation, in one line."""
    errors = error.errors()
    # a misspelt field is missing under its own name too; of several accepted types the one that fits furthest counts
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    location = _field_path(first["loc"], model)
    alternatives = [entry for entry in errors if _field_path(entry["loc"], model) == location]
    first = max(alternatives, key=lambda entry: len(entry["loc"]))
    kind = model.__name__.removesuffix("Spec").lower()
    if first["type"] == "extra_forbidden":
        section = _model_at(location[:-1], model)
        known = [*section.model_fields, *section.SHORT_FORMS]
        near = get_close_matches(location[-1], known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{kind}: unknown field '{'.'.join(location)}'{hint} (known: {', '.join(known)})"
    name = ".".join(location)
    if first["type"] == "missing":
        return f"{kind}: the field '{name}' is missing"
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if isinstance(first.get("ctx", {}).get("error"), InputError):
        return f"{kind}: {name}: {message}" if name else f"{kind}: {message}"  # such a message contains the value
    return f"{kind}: {name or 'value'}: {message}, got {_shown(first['input'])}"


def _shown(value: Any) -> str:
    """A value in a message: mappings and lists with few elements of few levels, so that none takes long; one line."""
    text = " ".join((repr(value) if isinstance(value, int | float | None) else _BRIEF.repr(value)).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 200


def _field_path(location: Sequence[int | str], model: type[Section]) -> list[str]:
    """The names of a location up to the first field that is not a section, and the name below a section."""
    path: list[str] = []
    at: type[Section] | None = model
    for part in location:
        if at is None:
            break
        path.append(str(part))
        field = at.model_fields.get(str(part))
        at = _section(field) if field is not None else None
    return path


def _model_at(path: Sequence[str], model: type[Section]) -> type[Section]:
    for part in path:
        section = _section(model.model_fields[part])
        assert section is not None
        model = section
    return model


def _section(field: FieldInfo) -> type[Section] | None:
    """The class of a field that is a section, also of one that may be missing."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
    return None
