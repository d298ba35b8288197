"""Optional dependencies: packages that only some functions need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import InputError

__all__ = ["need"]


def need(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency.

    Args:
        module: the module to import: "pyarrow.parquet".
        extra: the extra of this package that installs it: "datasets".
        purpose: what it is needed for, for the message: "reading parquet files".

    Raises:
        InputError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed: pip install 'quarterarc[{extra}]'"
        ) from error
