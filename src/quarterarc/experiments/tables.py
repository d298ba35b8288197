"""Tables and charts of measured cells that several experiments share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import fmean, stdev

from ..report import Series, responsive_chart
from .base import Measurements
from .cells import Cell
from .claims import Comparison, judge, spread
from .findings import Chart, Table

__all__ = ["BETTER", "TITLES", "CellAt", "compare", "grid_table", "order_table", "quality_chart", "title", "values_at"]

CellAt = Callable[[int, int], Cell]
"""(steps, seed) -> cell."""

TITLES = {
    "fid": "Frechet distance",
    "sfid": "spatial Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "is": "inception score",
}
BETTER = {"fid": "lower", "sfid": "lower", "precision": "higher", "recall": "higher", "is": "higher"}


def title(metric: str) -> str:
    """The name of a metric at the beginning of a sentence."""
    return TITLES[metric][0].upper() + TITLES[metric][1:]


def values_at(measured: Measurements, cell: CellAt, steps: int, metric: str = "fid") -> list[float]:
    """The metric, one value per seed."""
    return measured.by_seed(lambda seed: cell(steps, seed), metric)


def compare(
    measured: Measurements, claimed: CellAt, other: CellAt, steps: int, metric: str = "fid", label: str | None = None
) -> Comparison:
    """A comparison of two methods at one number of steps."""
    return Comparison(
        label or f"{steps} steps",
        values_at(measured, claimed, steps, metric),
        values_at(measured, other, steps, metric),
        lower=BETTER[metric] == "lower",
    )


def grid_table(
    measured: Measurements,
    name: str,
    rows: Mapping[str, CellAt],
    steps: Sequence[int],
    metric: str = "fid",
    note: str = "",
    unit: str = "steps",
    counts: Mapping[str, Sequence[int]] | None = None,
) -> Table:
    """A table of methods by steps.

    Args:
        measured: the measurements.
        name: the heading.
        rows: the method of each row, by label.
        steps: the numbers of steps, one per column.
        metric: the metric.
        note: more text below the table.
        unit: what `steps` counts. Where the NFE differs from it, the NFE is added in brackets.
        counts: by label, the numbers of steps of a row that is not measured at all of them.
    """
    lines = []
    for label, cell in rows.items():
        line = [label]
        for count in steps:
            if counts is not None and count not in counts[label]:
                line.append("")
                continue
            values = measured[cell(count, measured.seeds[0])]
            if "unstable" in values:
                line.append("unstable")
                continue
            nfe = "" if values["nfe"] == count else f" [{values['nfe']}]"
            line.append(spread(values_at(measured, cell, count, metric)) + nfe)
        lines.append(line)
    sentences = [title(metric) + f"; {BETTER[metric]} is better."]
    if len(measured.seeds) > 1:
        sentences.append("± is the standard deviation over seeds.")
    if any("[" in cell for line in lines for cell in line[1:]):
        sentences.append(
            f"Numbers in brackets are network evaluations (NFE) per image, where they differ from the {unit} of the "
            "column."
        )
    if metric == "fid" and measured.floor is not None:
        sentences.append(
            f"For comparison, {measured.scale.images:,} random training images have the distance {measured.floor:.3g}."
        )
    first = next(iter(rows.values()))
    header = [
        f"{count} {unit.removesuffix('s') if count == 1 else unit}{_fewer(measured, first(count, measured.seeds[0]))}"
        for count in steps
    ]
    return Table(name, ["", *header], lines, " ".join([*sentences, note]).strip())


def _fewer(measured: Measurements, cell: Cell) -> str:
    """The number of images where it is not the scale's; distances of fewer images are larger."""
    return f" ({cell['images']:,} images)" if cell["images"] != measured.scale.images else ""


def quality_chart(
    measured: Measurements,
    name: str,
    rows: Mapping[str, CellAt],
    steps: Sequence[int],
    metric: str,
    by: str = "nfe",
    counts: Mapping[str, Sequence[int]] | None = None,
) -> Chart:
    """A chart of a metric by steps or by NFE, with a band of one standard deviation over seeds.

    Args:
        measured: the measurements.
        name: the start of the file name.
        rows: the method of each line, by label.
        steps: the numbers of steps.
        metric: the metric.
        by: the horizontal axis, "nfe" or "steps".
        counts: by label, the numbers of steps of a line that is not measured at all of them.
    """
    series = []
    for label, cell in rows.items():
        own = steps if counts is None else counts[label]
        stable = [count for count in own if "unstable" not in measured[cell(count, measured.seeds[0])]]
        by_count = [values_at(measured, cell, count, metric) for count in stable]
        x = [measured[cell(count, measured.seeds[0])]["nfe"] if by == "nfe" else count for count in stable]
        bands = [stdev(values) for values in by_count] if len(measured.seeds) > 1 else None
        series.append(Series(label, x, [fmean(values) for values in by_count], bands))
    heading = f"{title(metric)} ({BETTER[metric]} is better)"
    x_label = "network evaluations (NFE)" if by == "nfe" else "steps"
    svg = responsive_chart(series, heading, x_label, TITLES[metric], log_x=True, log_y=BETTER[metric] == "lower")
    return Chart(f"{name}-{metric}-{by}", svg)


def order_table(
    measured: Measurements, rows: Mapping[str, CellAt], steps: Sequence[int], metric: str = "fid", unit: str = "steps"
) -> Table:
    """The ranking of methods at each number of steps, and the number of pairs whose order is significant."""
    lines = []
    for count in steps:
        by_label = {label: values_at(measured, cell, count, metric) for label, cell in rows.items()}
        by_label = {label: values for label, values in by_label.items() if all(map(math.isfinite, values))}
        sign = 1 if BETTER[metric] == "lower" else -1
        ranked = sorted(by_label, key=lambda label: sign * fmean(by_label[label]))
        text = ranked[0] if ranked else ""
        for better, worse in pairwise(ranked):
            text += f" {'<' if _significant(by_label[better], by_label[worse], sign) else '≈'} {worse}"
        pairs = list(combinations(ranked, 2))
        significant = sum(_significant(by_label[better], by_label[worse], sign) for better, worse in pairs)
        lines.append([f"{count} {unit}", f"{significant} of {len(pairs)}", text])
    note = (
        "Methods from best to worst. `<` marks neighbours whose order is significant by the rule for claims, `≈` "
        "neighbours whose order is not. With a single seed no order is significant."
    )
    header = ["", "pairs with a significant order", "from best to worst"]
    return Table("Ranking and its significance", header, lines, note, (0, 2))


def _significant(better: Sequence[float], worse: Sequence[float], sign: int) -> bool:
    return judge([sign * (b - a) for a, b in zip(better, worse, strict=True)]) == "held"
