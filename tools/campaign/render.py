"""Write the figures of docs/reliability.md from the results of the campaign.

python -m tools.campaign.render                       the page from docs/results/reliability/*.json
python -m tools.campaign.render after A.json [...]    first store results of parts as after.json
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import table

__all__ = ["page", "store"]

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "results" / "reliability", DOCS / "reliability.md"
_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
NAMES = {
    "kills": ("SIGKILL", "kills"),
    "commands": ("Commands and recipes", "commands"),
    "files": ("Damaged and hostile files", "files"),
    "disk": ("Full disk", "cases"),
}


def page(text: str, results: Path = RESULTS) -> str:
    """The page with the figures of the results between its marks."""
    values = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"), reverse=True)
    }
    return _BLOCK.sub(lambda match: f"{match[1]}{_figures(match[2], values)}\n{match[3]}", text)


def _figures(name: str, values: dict[str, dict[str, Any]]) -> str:
    if name == "summary":
        return _summary(values)
    if name not in values:
        return "\nNot measured yet.\n"
    lines = []
    value = values[name]
    for part, result in value["parts"].items():
        title, what = NAMES[part]
        lines.append(
            f"\n**{title}**: {result['events']:,} {what} in {result['cases']:,} cases, {result['failed']:,} failed; "
            f"{result['seconds'] / 60:.0f} minutes.\n\n{table(result)}\n"
        )
    about = f"commit {value['commit']}, seed {value['seed']}, {value['cores']} cores, {value['date']}"
    return "\n".join([f"\nMeasured at {about}.", *lines])


def _summary(values: dict[str, dict[str, Any]]) -> str:
    """One row per part: cases and failures, before and after."""
    lines = ["", "| | " + " | ".join(values) + " |", "|---|" + "---:|" * len(values)]
    for part, (title, _) in NAMES.items():
        cells = []
        for value in values.values():
            result = value["parts"].get(part)
            cells.append("" if result is None else f"{result['failed']:,} of {result['cases']:,} failed")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def store(name: str, sources: Sequence[Path], results: Path = RESULTS) -> None:
    """Store the results of one or more runs of the campaign under a name; what happened is shortened."""
    merged: dict[str, Any] = {}
    for source in sources:
        value = json.loads(source.read_text(encoding="utf-8"))
        parts = merged.get("parts", {})
        own = {part: together(parts[part], new) if part in parts else new for part, new in value["parts"].items()}
        merged = {**value, "parts": {**parts, **own}}
    for result in merged["parts"].values():
        for failure in result["failures"]:
            failure["detail"] = " ".join(failure["detail"].split())[-200:]
            failure["command"] = failure["command"][:200]
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(merged, indent=1, ensure_ascii=True)
    (results / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The results of a part from two runs with other cases."""
    sums = {name: first[name] + second[name] for name in ("cases", "events", "failed", "seconds", "failures")}
    kinds = sorted(first["counts"].keys() | second["counts"].keys())
    counts = {kind: Counter(first["counts"].get(kind, {})) + Counter(second["counts"].get(kind, {})) for kind in kinds}
    return {
        **sums,
        "good": sorted({*first["good"], *second["good"]}),
        "counts": {kind: dict(sorted(verdicts.items())) for kind, verdicts in counts.items()},
        "remarks": dict((Counter(first["remarks"]) + Counter(second["remarks"])).most_common()),
    }


def main(words: Sequence[str]) -> None:
    """Store results where some are given, and write the page."""
    if words:
        store(words[0], [Path(word) for word in words[1:]])
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
