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
        InputError: if it is not installed (with the command that installs it), or fails on import.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name in (module, package):
            raise InputError(
                f"{purpose} needs {package}, which is not installed: pip install 'quarterarc[{extra}]'"
            ) from error
        reason = str(error)
    except Exception as error:  # an installed library that is broken raises anything on import
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(
        f"{purpose} needs {package}, whose import fails ({reason[:200]}): repair it, or "
        f"pip install --force-reinstall 'quarterarc[{extra}]'"
    )
