"""Short hashes of plain values, which name cached files and folders."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["digest", "short_hash"]


def digest(*items: object) -> str:
    """12 hexadecimal digits: the SHA-256 of the `repr` of `items`, truncated."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:12]


def short_hash(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value of JSON types, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
