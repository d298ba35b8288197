"""Results side by side: a table of those that may be compared, and why others may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.errors import InputError

__all__ = ["differences", "table"]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why two results may not stand side by side: one line each, none if they may.

    Extractor, weights, resize, counts, reference and the settings of metrics must agree; how images were sampled need
    not, because that is what is compared.
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
        # saved statistics and the images that they are of are the same reference
        pairs += [(f"reference {key}", a["reference"][key], b["reference"][key]) for key in ("fingerprint", "count")]
    shared = a["settings"].keys() & b["settings"].keys()
    pairs += [(key, a["settings"][key], b["settings"][key]) for key in sorted(shared)]
    return [f"{name}: {one} and {other}" for name, one, other in pairs if one != other]


def table(results: Mapping[str, Mapping[str, Any]], anyway: bool = False) -> str:
    """Results side by side, one a row, in Markdown.

    Args:
        results: by the name that a row gets.
        anyway: put even those side by side that are not comparable; a line below the table then says why they are not.

    Raises:
        InputError: if two of them are not comparable, or there are none.
    """
    if not results:
        raise InputError("there are no results: give at least one")
    for name, result in results.items():
        if "extractor" not in result or "images" not in result:
            raise InputError(f"{name} is no result of metrics of images: a table takes what `evaluate` returns")
    (first, base), *others = results.items()
    wrong = [f"{name} and {first} differ in {line}" for name, result in others for line in differences(base, result)]
    if wrong and not anyway:
        raise InputError(
            f"these results are not comparable: {'; '.join(wrong)}: compute them alike, or say anyway=True"
        )
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for name, result in results.items():
        values = (result["metrics"].get(column) for column in names)
        rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [f"\nNot comparable: {line}." for line in wrong])
