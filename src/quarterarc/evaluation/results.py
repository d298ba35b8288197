"""Comparison of results: a table of comparable results, and the differences that make results incomparable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.errors import InputError

__all__ = ["differences", "table"]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The differences that make two results incomparable, one line per difference; empty for comparable results.

    Extractor, weights, resize, counts, reference and the settings of metrics must agree. Sampling may differ, because
    that is what results compare.
    """
    pairs: list[tuple[str, Any, Any]] = [
        *(
            (f"extractor {key}", a["extractor"][key], b["extractor"][key])
            for key in ("name", "weights_sha256", "resize")
        ),
        ("number of images", a["images"]["count"], b["images"]["count"]),
        ("shape of images", a["images"]["shape"], b["images"]["shape"]),
    ]
    if a["reference"] and b["reference"]:
        # saved statistics and the images that they were computed from are the same reference
        pairs += [(f"reference {key}", a["reference"][key], b["reference"][key]) for key in ("fingerprint", "count")]
    shared = a["settings"].keys() & b["settings"].keys()
    pairs += [(key, a["settings"][key], b["settings"][key]) for key in sorted(shared)]
    return [f"{name}: {first} and {second}" for name, first, second in pairs if first != second]


def table(results: Mapping[str, Mapping[str, Any]], anyway: bool = False) -> str:
    """A table of results in Markdown, one per row.

    Args:
        results: results of `evaluate`, by the name of the row.
        anyway: include results that are not comparable; the differences are listed below the table.

    Raises:
        InputError: if two results are not comparable, or there are none.
    """
    if not results:
        raise InputError("there are no results: give at least 1")
    for name, result in results.items():
        if "extractor" not in result or "images" not in result:
            raise InputError(f"{name} is not a result of metrics of images: give results of quarterarc.evaluate")
    (first, base), *others = results.items()
    wrong = [f"{name} and {first} differ in {line}" for name, result in others for line in differences(base, result)]
    if wrong and not anyway:
        raise InputError(
            f"these results are not comparable: {'; '.join(wrong)}: compute them alike, or give anyway=True"
        )
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for name, result in results.items():
        values = (result["metrics"].get(column) for column in names)
        rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [f"\nNot comparable: {line}." for line in wrong])
