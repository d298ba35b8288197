"""The columns of images and labels in a table: chosen by kind and by name, and the labels in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.errors import InputError
from ..common.text import counted
from ..storage.files import parse_json
from .labels import Labels, check_highest, check_labels_from, classes_of
from .spec import DataSpec

__all__ = ["Columns", "choose_columns", "read_labels", "schema_columns"]


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels; `classes` is None if the table does not declare their number.

    Its `repr` is part of fingerprints, without the names of the classes.
    """

    image: str
    label: str | None
    classes: int | None
    names: tuple[str, ...] = field(default=(), repr=False)


def choose_columns(
    spec: DataSpec, kinds: Mapping[str, str], classes: Mapping[str, tuple[str, ...]], what: str
) -> Columns:
    """Choose the columns of a table.

    Args:
        spec: names columns; unnamed ones are chosen by kind, then by name.
        kinds: the kind of each column: `image` (declared so), `encoded` (bytes, or bytes and a path), `integer`,
            `categories` (text, each distinct one stored once), `number`, `text`, or another word.
        classes: the names of the classes of each column that declares them.
        what: the table, for messages.

    Raises:
        InputError: if a column is missing, of the wrong kind, or ambiguous; the columns are listed.
    """

    def of(kind: str, *names: str) -> list[str]:
        return [name for name, own in kinds.items() if own == kind and (not names or name.lower() in names)]

    image = spec.image_column or _only(of("image"), of("encoded"), of("text", *_PATH_NAMES), usual=("image", "img"))
    if image is None or kinds.get(image) not in ("image", "encoded", "text"):
        raise _no_column("image_column", image, "encoded images (bytes, or bytes and a path), or paths", kinds, what)
    if not spec.labels:
        return Columns(image, None, None)
    check_labels_from(spec, what, "column")
    usual = ("label", "labels", "class")
    label = spec.label_column or _only(
        list(classes), of("integer"), of("categories"), of("text", *usual), of("number", *usual), usual=usual
    )
    if label is None or kinds.get(label) not in ("integer", "categories", "text", "number") or label == image:
        raise _no_column("label_column", label, "classes (whole numbers, or text)", kinds, what)
    names = classes.get(label, ())
    return Columns(image, label, len(names) or None, names)


_PATH_NAMES = ("image", "img", "path", "file", "file_name", "filename", "filepath", "image_path")
"""Names of text columns that are taken for paths of images if no column holds images."""


def _only(*candidates: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column of the first unambiguous candidates: the only one, or the one with a usual name."""
    for names in candidates:
        matches = [name for name in usual if name in names]
        if matches or len(names) == 1:
            return matches[0] if matches else names[0]
    return None


def _no_column(field: str, name: str | None, expected: str, kinds: Mapping[str, str], what: str) -> InputError:
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    if name is None:
        return InputError(f"{what}: cannot choose the column of {expected}; set {field} (columns: {listed})")
    if name not in kinds:
        return InputError(f"{what} has no column '{name}'; set {field} (columns: {listed})")
    kind = kinds[name]
    if kind.startswith(("list", "large_list", "fixed_size_list", "extension")) and field == "image_column":
        return InputError(
            f"{what}: column '{name}' holds the pixels as numbers ({kind}), not {expected}: give them in Python as "
            "uint8 (N, C, H, W), quarterarc.train(RECIPE, OUT, data=(images, labels)), or store them as PNG bytes"
        )
    return InputError(f"{what}: column '{name}' is {kind}, not {expected}; set {field} (columns: {listed})")


def schema_columns(spec: DataSpec, schema: Any, what: str) -> Columns:
    """`choose_columns` for an Arrow schema, with the features that its Hugging Face metadata declares."""
    features: dict[str, Any] = {}
    with suppress(KeyError, TypeError, ValueError):
        declared = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = declared if isinstance(declared, dict) else {}
    kinds = {field.name: _kind(field.type, features.get(field.name)) for field in schema}
    classes = {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and kinds.get(name) == "integer"
        if isinstance(feature.get("names"), list)
    }
    return choose_columns(spec, kinds, classes, what)


def _kind(arrow_type: Any, feature: Any) -> str:
    import pyarrow.types as types

    if types.is_struct(arrow_type) and {"bytes", "path"} <= {field.name for field in arrow_type}:
        return "image" if isinstance(feature, dict) and feature.get("_type") == "Image" else "encoded"
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return "encoded"
    if types.is_integer(arrow_type) or types.is_boolean(arrow_type):
        return "integer"
    if types.is_dictionary(arrow_type):
        kind = _kind(arrow_type.value_type, None)
        return "categories" if kind == "text" else kind
    if types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return "text"
    return "number" if types.is_floating(arrow_type) or types.is_decimal(arrow_type) else str(arrow_type)


def read_labels(cells: Any, columns: Columns, what: str) -> Labels:
    """Class labels from a chunked Arrow array.

    The classes of text are its distinct values in sorted order, by number if all are numbers. Of numbers whose number
    of classes is not declared, the largest one is the last class.
    """
    import pyarrow.types as types

    if cells.null_count:
        rows = counted(cells.null_count, "row")
        raise InputError(f"{what}: column '{columns.label}' has {rows} without a label")
    if types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if _kind(cells.type, None) == "text":
        return classes_of(cells.to_pylist())
    values = np.asarray(cells.to_numpy(zero_copy_only=False))
    with np.errstate(invalid="ignore"):  # NaN differs from every number
        numbers = values.astype(np.int64)
    if (numbers != values).any():
        example = values[numbers != values][0]
        raise InputError(f"{what}: column '{columns.label}' holds {example}; classes are whole numbers, or text")
    low, high = int(numbers.min()), int(numbers.max())
    classes = columns.classes or high + 1
    if low < 0 or high >= classes:
        raise InputError(
            f"{what}: column '{columns.label}' holds {low}..{high}; classes are numbered from 0"
            + (f" to {classes - 1}" if columns.classes else "")
        )
    if not columns.classes:
        advice = "set label_column, or number the classes from 0"
        check_highest(high, len(numbers), f"{what}: column '{columns.label}'", advice)
    return Labels(numbers, classes, columns.names)
