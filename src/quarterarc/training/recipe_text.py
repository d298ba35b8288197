"""Recipes as text: the recipes of the package, YAML files, and fields of the command line.

read_recipe("digits", ["training.steps=100"])      a recipe of the package, with other fields

A recipe may have a section `cuda`: fields that replace those of the other sections on an NVIDIA GPU, such as a larger
network. It is resolved when the recipe is read, so that a run records the fields by which it was trained.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePath
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from ..common.errors import InputError, unknown_name
from ..common.plain_yaml import LARGEST, PlainLoader, load_yaml
from ..common.sections import Section
from ..storage.files import read_text
from .recipe import NetworkSpec, Recipe, expand, flatten_fields

__all__ = ["read_recipe", "recipe_fields", "recipe_names"]


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("quarterarc.training") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    fields: Mapping[str, Any] | None = None,
    device: object = None,
) -> Recipe:
    """A recipe by name, from a YAML file, from a mapping or from another recipe, with some fields replaced.

    Args:
        source: a name of `recipe_names()`, the path of a YAML file, a mapping of fields, or a recipe.
        overrides: fields as text, `section.field=value`; the value is YAML, except for fields that are text, whose
            value is used as it is: `data.source=photos #1`.
        fields: fields by dotted name: `{"training.steps": 1000}`. Another `network.name` replaces all fields of the
            section `network`.
        device: the device that the recipe is for, which selects its section `cuda`; see `recipe_fields`.

    Raises:
        InputError: for an unknown name, a missing or malformed file, an unknown field (with the nearest name), a value
            of the wrong type, or settings that contradict each other.
    """
    values = recipe_fields(source, device)
    changes = {**dict(_parse(override) for override in overrides), **(fields or {})}
    network = values.get("network") or {}
    before = network.name if isinstance(network, NetworkSpec) else _name_of(network)
    if changes.get("network.name", before) != before:
        values["network"] = {}  # the fields and arguments of the recipe's network do not apply to another one
    for name in sorted(changes, key=lambda name: name.count(".")):  # sections before their fields, in any order
        _set(values, name, changes[name])
    return Recipe.model_validate(values)


def _name_of(network: Any) -> Any:
    """The name in the section `network`; of anything that is no section, which is an error later, that of the U-Net."""
    return network.get("name", "unet") if isinstance(network, Mapping) else "unet"


def recipe_fields(source: str | Path | Mapping[str, Any] | Recipe, device: object = None) -> dict[str, Any]:
    """The fields of a recipe by section, before validation; short forms of the data are expanded.

    Args:
        source: as for `read_recipe`.
        device: the device, such as "cpu"; None for the one that `accelerate` selects. On an NVIDIA GPU the section
            `cuda` replaces fields of the others; the result does not contain it.

    Raises:
        InputError: for an unknown name, or a missing or malformed file.
    """
    if isinstance(source, Recipe):
        return source.model_dump(exclude_unset=True)
    fields = expand(source if isinstance(source, Mapping) else _read_yaml(str(source)))
    if (on_cuda := fields.pop("cuda", None)) is None:
        return fields
    if not isinstance(on_cuda, Mapping):
        raise InputError(f"'cuda' is a section of fields for NVIDIA GPUs, got {reprlib.repr(on_cuda)}")
    if _is_cuda(device):
        for name, value in flatten_fields(on_cuda):
            _set(fields, name, value)
    return fields


def _is_cuda(device: object) -> bool:
    """Whether a device is an NVIDIA GPU; of None, whether `accelerate` would select one."""
    if device is not None and str(device) != "auto":
        return str(device).startswith("cuda")
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")
    return torch.cuda.is_available() and not on_cpu


def _read_yaml(source: str) -> dict[str, Any]:
    is_path = source.endswith((".yaml", ".yml")) or "/" in source or Path(source).is_file()
    if is_path:
        if not Path(source).exists():
            raise InputError(f"no recipe file at {source} (recipes of the package: {', '.join(recipe_names())})")
        text = read_text(Path(source), LARGEST)
    elif source in recipe_names():
        text = (resources.files("quarterarc.training") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown_name("recipe", source, recipe_names())
    try:
        fields = _load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{source} is not a recipe: its top level must be a mapping of sections")
    return fields


def _parse(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"'{override}' is not a field: write section.field=value, such as training.steps=1000")
    return name, _parse_value(name.split("."), text)


def _parse_value(path: Sequence[str], text: str) -> Any:
    """The value of a field: the text as it is where the field is text, otherwise YAML.

    `null` is None for text that may be absent. Sections with a short form, such as `schedule`, are text, or a mapping
    in braces.
    """
    kinds = _kinds(path)
    if str in kinds and not (type(None) in kinds and text == "null"):
        return text
    if path in _SHORT_SECTIONS and not text.startswith("{"):
        return text
    lists = [kind for kind in _kinds(path, whole=True) if get_origin(kind) is tuple]
    if lists and "," in text and not text.startswith(("[", "{")):
        text = f"[{text}]"  # brackets may be left out: zsh takes them for a pattern of file names
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        return text
    any_length = any(Ellipsis in get_args(kind) for kind in lists)
    return [value] if any_length and isinstance(value, int) and not isinstance(value, bool) else value


_SHORT_SECTIONS = (["data"], ["schedule"], ["network"], ["objective"])
"""The sections that can be given as one text: a source, or a name."""


def _kinds(path: Sequence[str], whole: bool = False) -> tuple[Any, ...]:
    """The types of a field: `(str, NoneType)` for `data.image_column`; empty for an unknown field.

    Args:
        path: the names of the section and the field.
        whole: return a type that is no union as it is, instead of its arguments.
    """
    model: type[Section] = Recipe
    for place, name in enumerate(path):
        field = model.model_fields.get(name)
        if field is None:
            return ()
        if place == len(path) - 1:
            if whole and get_origin(field.annotation) not in (Union, UnionType):
                return (field.annotation,)
            return get_args(field.annotation) or (field.annotation,)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return ()
        model = field.annotation
    return ()


def _load_yaml(text: str) -> Any:
    """The values of a recipe's YAML; where a field is text, `2024` and `on` are text without quotes too."""
    loader = PlainLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _mark_text(root, [])
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _mark_text(node: yaml.Node, path: list[str]) -> None:
    """Give the scalars of text fields the tag of a string; three levels suffice, since no text lies deeper."""
    if not isinstance(node, yaml.MappingNode) or len(path) > 2:
        return
    for key, value in node.value:
        inner = [*path, str(key.value)]
        if isinstance(value, yaml.ScalarNode):
            kinds = _kinds(inner)
            absent = type(None) in kinds and value.tag == _NULL
            if (str in kinds or inner in _SHORT_SECTIONS) and not absent and value.value:
                value.tag = _STRING
        else:
            _mark_text(value, inner)


_NULL, _STRING = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    target = fields
    for section in sections:
        inner = target.get(section) or {}
        if isinstance(inner, Section):
            inner = inner.model_dump()
        if target is fields and isinstance(inner, str | PurePath) and [section] in _SHORT_SECTIONS:
            inner = {"source" if section == "data" else "name": str(inner)}
        if not isinstance(inner, Mapping):
            raise InputError(f"'{name}={value}': {section} is one value, {reprlib.repr(inner)}, and has no fields")
        target[section] = dict(inner)  # a copy, so that the caller's mapping stays as it is
        target = target[section]
    target[field] = value
