"""Renamed options: the old name is accepted for one version, with a warning that names the new one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .errors import InputError

__all__ = ["rename_keys"]

logger = logging.getLogger("quarterarc")


def rename_keys(
    values: Mapping[str, Any], renames: Mapping[str, str], owner: str | None, kind: str = "option"
) -> dict[str, Any]:
    """A copy of `values` with old keys replaced by their new names.

    Args:
        values: options or fields by name.
        renames: the new name of each old one.
        owner: the thing that the options belong to, for the warning: "the sampler 'ddim'"; None replaces without a
            warning, for values read from a file.
        kind: "option" or "field".

    Raises:
        InputError: if both the old and the new name are given.
    """
    renamed = dict(values)
    for old, new in renames.items():
        if old not in renamed:
            continue
        if new in renamed:
            raise InputError(f"'{old}' is the old name of the {kind} '{new}': give '{new}' alone")
        if owner is not None:
            logger.warning(
                "%s: the %s '%s' is now called '%s'; the next version removes '%s'", owner, kind, old, new, old
            )
        renamed[new] = renamed.pop(old)
    return renamed
