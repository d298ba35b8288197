"""Render the tables and the figure of docs/results/samplers.md from docs/results/samplers.json.

    python tools/render_samplers.py            # rewrites page and figure
    python tools/render_samplers.py --check    # exit status 1 if one of them is not what it would be

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the text around it is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import markdown  # noqa: E402
from benchmarks.samplers.tables import figure, tables  # noqa: E402

DATA, PAGE, FIGURE = (ROOT / f"docs/results/samplers.{kind}" for kind in ("json", "md", "svg"))
TUNED = "multistep, tuned"
BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Subject = dict[str, Any]


def ratios(subject: Subject, label: str, against: str = "best peer", measure: str | None = None) -> list[str] | None:
    """Our row over the best peer by NFE, for the subject's first measure; None if there is no such row."""
    rows = subject["ratios"][measure or next(iter(subject["measures"]))]
    row = next((row for row in rows if row["row"] == f"{label} / {against}"), None)
    digits = 3 if label == TUNED else 2
    return None if row is None else ["-" if value is None else f"{value:.{digits}f}" for value in row["values"]]


def default(subject: Subject) -> str:
    """The label of the subject's default."""
    return ", ".join(subject["default"])


def comparison(subjects: Sequence[Subject], rows: Sequence[tuple[str, str | None, str]]) -> str:
    """A table of ratios: one line per subject and row of (title, label or None for the default, against)."""
    lines = [["world", "row", *(f"{nfe} NFE" for nfe in subjects[0]["nfe"])]]
    for subject in subjects:
        found = [(title, ratios(subject, label or default(subject), against)) for title, label, against in rows]
        named = [(title, values) for title, values in found if values is not None]
        lines += [[subject["name"] if not k else "", title, *values] for k, (title, values) in enumerate(named)]
    return markdown(lines)


def network(subject: Subject) -> str:
    """A table of ratios on a trained network, by both measures, untuned and tuned."""
    lines = [["", *(f"{nfe} NFE" for nfe in subject["nfe"])]]
    for measure, title in (("error", "distance to its flow"), ("frechet", "Frechet distance")):
        for label, further in ((default(subject), ""), (f"{subject['default'][0]}, tuned", ", tuned")):
            values = ratios(subject, label, measure=measure)
            if values is not None:
                lines.append([title + further, *values])
    return markdown(lines)


def rendered(text: str, subjects: Sequence[Subject]) -> str:
    """The page with its tables from the data."""
    held_out = [subject for subject in subjects if subject.get("held_out") is True]
    search = [subject for subject in subjects if subject.get("held_out") is False]
    networks = {subject["name"]: subject for subject in subjects if "held_out" not in subject}
    usual = (("default", None, "best peer"), ("best fixed setting of ours", "best of ours", "best peer"))
    blocks = {
        "held-out": comparison(
            held_out,
            [
                ("default", None, "best peer"),
                ("first step evaluated", "multistep free_start False, octave", "best peer"),
                ("tuned", TUNED, "best peer"),
                ("tuned, over the best tuned peer", TUNED, "best tuned peer"),
            ],
        ),
        "search": comparison(search, usual),
        "search-one-setting": comparison(search, [("default", None, "best peer, one setting each")]),
        **{name: network(subject) for name, subject in networks.items()},
        "all": "\n".join(tables(subject) for subject in [*search, *networks.values()]),
    }
    missing = blocks.keys() - {name for _, name, _ in BLOCK.findall(text)}
    if missing:
        raise SystemExit(f"{PAGE} has no place for {', '.join(sorted(missing))}")
    return BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match[2]].strip()}\n\n{match[3]}", text)


def main() -> int:
    """Rewrite or check the page."""
    subjects: list[Subject] = json.loads(DATA.read_text(encoding="utf-8"))["subjects"]
    search = [subject for subject in subjects if subject.get("held_out") is False]
    new = {PAGE: rendered(PAGE.read_text(encoding="utf-8"), subjects), FIGURE: figure(search) + "\n"}
    if "--check" in sys.argv[1:]:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in new.items()))
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
