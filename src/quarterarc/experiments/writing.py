"""The files of an experiment's results: results.json, results.csv, results.md with its figures, and report.html."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..common.errors import InputError
from ..common.text import one_line
from ..report import data_url, wide_chart, write_page
from ..storage.files import make_folder, read_json, replace_file, write_json
from .claims import RULE
from .findings import Chart, Findings, Part, Picture, Section, Table

__all__ = ["write_index", "write_markdown", "write_results"]


def write_results(out: Path, about: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """Write all files of the results, each atomically.

    Args:
        out: the experiment's folder.
        about: experiment, title, source, scale, seeds, setting, command, commit, versions and arms.
        cells: arm, seed, measure, settings and values of every cell.
        findings: the content of the report.
    """
    write_markdown(out, about, cells, findings)
    _write_text(out / "results.csv", _csv(cells))
    write_page(
        out / "report.html",
        "experiment.html",
        title=about["title"],
        about=about,
        sections=[_for_page(section) for section in findings.sections],
        claims=[claim.describe() for claim in findings.claims],
        rule=RULE,
    )


def write_markdown(out: Path, about: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """Write results.json, the figures and results.md, which shows them; arguments as for `write_results`."""
    figures = make_folder(out / "figures")
    parts = [part for section in findings.sections for part in section.parts]
    for part in parts:
        _write_figure(figures, part)
    if not any(figures.iterdir()):
        figures.rmdir()
    tables = [part for part in parts if isinstance(part, Table)]
    write_json(
        out / "results.json",
        {
            **about,
            "tables": [{"name": t.name, "header": list(t.header), "rows": [list(r) for r in t.rows]} for t in tables],
            "rule": RULE,
            "claims": [claim.describe() for claim in findings.claims],
            "cells": list(cells),
        },
    )
    _write_text(out / "results.md", "\n".join(_markdown(about, findings)) + "\n")


def write_index(out: Path) -> Path | None:
    """Write README.md for a folder of several experiments: their questions, and the verdicts on the papers' claims.

    Returns:
        The file; None if the folder has no results.
    """
    files = sorted(out.glob("*/results.json"))
    results = [read_json(path) for path in files]
    if not results:
        return None
    verdicts = ("held", "not held", "undecided")
    rows = []
    for path, result in zip(files, results, strict=True):
        try:
            rows.append(_index_row(result, verdicts))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} does not hold the results of an experiment ({one_line(error)}): run the experiment again"
            ) from None
    header = ["experiment", "question", "source", "seeds", *verdicts]
    lines = [
        f"# Experiments at the scale `{results[0]['scale']}`\n",
        f"{results[0]['setting']}\n",
        *_rows(header, rows, range(4)),
        f"\nThe last three columns count the verdicts on the papers' claims. {RULE}",
    ]
    _write_text(out / "README.md", "\n".join(lines) + "\n")
    return out / "README.md"


def _index_row(result: Mapping[str, Any], verdicts: Sequence[str]) -> list[str]:
    given = [claim["verdict"] for claim in result["claims"]]
    counts = [str(given.count(verdict)) if given else "" for verdict in verdicts]
    texts = [result[name] for name in ("experiment", "title", "source", "scale", "setting")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is missing")
    link = f"[{texts[0]}]({texts[0]}/results.md)"
    return [link, texts[1], texts[2], ", ".join(map(str, result["seeds"])), *counts]


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _write_figure(folder: Path, part: Part) -> None:
    if isinstance(part, Chart):
        # outside a page a chart needs a background of its own
        _write_text(
            folder / f"{part.name}.svg",
            wide_chart(part.svg).replace("<title>", '<rect width="100%" height="100%" fill="white"/><title>', 1),
        )
    elif isinstance(part, Picture):
        with replace_file(folder / f"{part.name}.png") as beside:
            shutil.copyfile(part.path, beside)


# --- CSV ------------------------------------------------------------------------------------------------------------


def _csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """One row per cell: its settings, and the values that are a number or text."""
    rows = [
        {
            "arm": cell["arm"],
            "seed": cell["seed"],
            "measure": cell["measure"],
            **{name: _plain(value) for name, value in cell["settings"].items()},
            **{name: value for name, value in cell["values"].items() if isinstance(value, int | float | str)},
        }
        for cell in cells
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join("=".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value)
    return value


# --- Markdown -------------------------------------------------------------------------------------------------------


def _markdown(about: Mapping[str, Any], findings: Findings) -> Iterable[str]:
    yield f"# {about['title']}"
    yield f"\n{about['source']}. Scale `{about['scale']}`, seeds {', '.join(map(str, about['seeds']))}."
    yield f"\n{about['setting']}"
    yield f"\n```\n{about['command']}\n```"
    for section in findings.sections:
        yield f"\n## {section.title}"
        if section.text:
            yield f"\n{section.text}"
        for part in section.parts:
            yield ""
            yield from _part(part)
    if findings.claims:
        yield f"\n## Claims\n\n{RULE}\n"
        rows = [[claim.text, claim.source, f"**{claim.verdict}**", claim.evidence] for claim in findings.claims]
        yield from _rows(["claim", "source", "verdict", "evidence"], rows, range(4))
    yield f"\nMeasured with quarterarc {about['quarterarc']}, commit {about['commit']}."


def _part(part: Part) -> Iterable[str]:
    if isinstance(part, Table):
        yield f"**{part.name}**\n"
        yield from _rows(part.header, part.rows, part.words)
        if part.note:
            yield f"\n{part.note}"
    else:
        ending = "svg" if isinstance(part, Chart) else "png"
        yield f"![{part.caption or part.name}](figures/{part.name}.{ending})"
        if part.caption:
            yield f"\n*{part.caption}*"


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int]) -> Iterable[str]:
    aligned = ["---" if column in words else "---:" for column in range(len(header))]
    for cells in (header, aligned, *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


# --- HTML -----------------------------------------------------------------------------------------------------------


def _for_page(section: Section) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in section.parts:
        if isinstance(part, Table):
            parts.append(
                {
                    "kind": "table",
                    "name": part.name,
                    "header": part.header,
                    "rows": part.rows,
                    "note": part.note,
                    "words": part.words,
                }
            )
        elif isinstance(part, Chart):
            parts.append({"kind": "chart", "svg": Markup(part.svg), "caption": part.caption})
        else:
            parts.append({"kind": "picture", "url": data_url(part.path), "caption": part.caption})
    return {"title": section.title, "text": section.text, "parts": parts}
