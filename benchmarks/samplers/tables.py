"""The comparison as Markdown tables and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.report import Row, markdown, number
from benchmarks.samplers.ours import CANDIDATE, TUNED
from quarterarc.report import Series, line_chart
from quarterarc.report.charts import WIDE


def headline(subjects: Sequence[Row]) -> str:
    """The first measure of ours over the best peer's, by world: those held out, those of the search, and networks."""
    kinds = {True: "Held-out worlds", False: "Worlds of the search", None: "Trained networks"}
    parts = []
    for held_out, title in kinds.items():
        rows = [subject for subject in subjects if subject.get("held_out") is held_out]
        if rows:
            lines = [["", "", *(f"{nfe} NFE" for nfe in rows[0]["nfe"])]]
            for subject in rows:
                ratios = next(iter(subject["ratios"].values()))
                lines += [
                    [subject["name"], row["row"], *map(number, row["values"])]
                    for row in ratios
                    if row["row"].endswith(("/ best peer", "/ best tuned peer"))
                ]
            parts.append(f"## {title}\n\nOurs over the best peer:\n\n{markdown(lines)}")
    return "\n\n".join(parts) + "\n"


def tables(subject: Row) -> str:
    """All measurements on a subject, as Markdown."""
    parts = [f"## {subject['name']}", _summary(subject)]
    for measure, about in subject["measures"].items():
        parts += [f"### {measure}\n\n{about[0].upper() + about[1:]}.", _table(subject, measure)]
    parts += ["### settings of the best peer", _winners(subject), "### adaptive", _adaptive_table(subject)]
    if "at_100" in subject:
        fine = subject["at_100"]
        parts.append(f"{fine['row']} at {fine['nfe']} NFE: {fine['frechet']:.4g}")
    return "\n\n".join(parts) + "\n"


def _summary(subject: Row) -> str:
    shape = "x".join(map(str, subject["shape"]))
    if "mixture" in subject:
        denoiser = f"a mixture of {subject['mixture']} Gaussians of width {subject['h']}"
        denoiser += ", held out" if subject["held_out"] else ", a world of the search"
    else:
        denoiser = f"head {subject['head']}, schedule {subject['schedule']}"
    return f"{shape} pixels, {denoiser}; {subject['images']} images."


def _table(subject: Row, measure: str) -> str:
    default = tuple(subject["default"])
    lines = [["", "grid", *(f"{nfe} NFE" for nfe in subject["nfe"])]]
    for row in subject["ours"]:
        mark = " (default)" if (row["row"], row["grid"]) == default else ""
        values = [None if cell is None else cell[measure] for cell in row["cells"]]
        lines.append([row["row"] + mark, row["grid"], *map(number, values)])
    for row in subject["peers"]:
        values = [None if cell is None else cell[measure]["value"] for cell in row["cells"]]
        lines.append([f"diffusers {row['row']}", "best", *map(number, values)])
    for row in subject["tuned_peers"]:
        values = [None if cell is None else cell[measure]["value"] for cell in row["cells"]]
        lines.append([f"{row['row']}-like", "tuned", *map(number, values)])
    ratios = subject["ratios"][measure]
    lines += [[f"**ratio: {row['row']}**", "", *map(number, row["values"])] for row in ratios]
    lines.append(["best peer", "", *(name or "-" for name in ratios[0]["against"])])
    return markdown(lines)


def _winners(subject: Row) -> str:
    """By NFE, for the first measure: the best peer and its settings."""
    measure = next(iter(subject["measures"]))
    lines = [["NFE", "peer", "settings", measure, "cos(start)"]]
    for column, nfe in enumerate(subject["nfe"]):
        name = subject["ratios"][measure][0]["against"][column]
        if name is not None:
            best = next(row for row in subject["peers"] if row["row"] == name)["cells"][column][measure]
            start = f"{math.cos(best['start']):.1g}"
            lines.append([str(nfe), name, best["settings"] or "its own", number(best["value"]), start])
    settings = [["peer", "its one setting, best from 5 to 20 NFE"]]
    settings += [
        [row["row"], steady["settings"] or "its own"] for row in subject["peers"] if (steady := row["steady"][measure])
    ]
    return markdown(lines) + "\n\n" + markdown(settings)


def _adaptive_table(subject: Row) -> str:
    lines = [["pair", "tolerance", "NFE", *subject["measures"]]]
    for row in subject["adaptive"]:
        values = [number(row[measure]) for measure in subject["measures"]]
        lines.append([row["pair"], f"{row['tolerance']:g}", f"{row['nfe']:.1f}", *values])
    return markdown(lines)


DRAWN = ("DDIM", "DPM-Solver++ 2M", "UniPC", "DEIS", "iPNDM")
"""The peers in the figure; more lines would not be legible."""


def figure(subjects: Sequence[Row]) -> str:
    """The first measure of each subject against NFE, one chart below the other, as an `<svg>` element."""
    parts, top = [], 0.0
    for subject in subjects:
        measure = next(iter(subject["measures"]))
        lines = _series(subject, measure)
        chart = line_chart(lines, subject["name"], "network evaluations", measure, log_x=True, log_y=True)
        height = float(chart.split('viewBox="', 1)[1].split('"', 1)[0].split()[3])  # it depends on the legend
        parts.append(chart.replace("<svg ", f'<svg y="{top:g}" width="{WIDE[0]}" height="{height:g}" ', 1))
        top += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE[0]} {top:g}">'
    return "\n".join([head, *parts, "</svg>"])


def _series(subject: Row, measure: str) -> list[Series]:
    heads = list(dict.fromkeys([tuple(subject["default"]), CANDIDATE, (TUNED.sampler, "tuned")]))
    lines = [
        (f"{row['row']}, {row['grid']}", [None if cell is None else cell[measure] for cell in row["cells"]])
        for row in subject["ours"]
        if (row["row"], row["grid"]) in heads
    ] + [
        (row["row"], [None if cell is None else cell[measure]["value"] for cell in row["cells"]])
        for row in subject["peers"]
        if row["row"] in DRAWN
    ]
    return [
        Series(name, subject["nfe"], [math.nan if value is None else value for value in values])
        for name, values in lines
    ]
