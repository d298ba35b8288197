"""YAML without anchors and aliases, a few lines of which can stand for billions of values."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["LARGEST", "PlainDumper", "PlainLoader", "load_yaml"]

LARGEST = 2**16
"""Bytes of the largest recipe: PyYAML reads about 20 kB per second, and recipes have one or two."""
_DEEPEST = 50


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, for which anchors, aliases and nesting deeper than 50 levels are errors."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors and aliases (&{event.anchor}) are not allowed: write the values out")
        if self._depth >= _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date that does not exist, a number of too many digits
            raise yaml.YAMLError(f"{str(getattr(node, 'value', ''))[:40]}: {error}") from error


class PlainDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes the texts that `PlainLoader` reads as numbers."""


# a number may have an exponent without a point: 1e-3, which YAML 1.1 and PyYAML read as text
for _kind in (PlainLoader, PlainDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"]
    )


def load_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: if it is not valid, or contains anchors or aliases.
    """
    return yaml.load(text, PlainLoader)  # a subclass of the safe loader
