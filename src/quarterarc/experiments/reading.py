"""Reading measured cells: tables and charts that several experiments share, and which orders are stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import fmean, stdev

from ..report import Series, line_chart
from .base import Measured
from .cells import Cell
from .claims import Comparison, judge, spread
from .findings import Chart, Table

__all__ = ["BETTER", "compare", "grid_table", "order_table", "quality_chart", "values_at"]

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


def values_at(measured: Measured, cell: CellAt, steps: int, metric: str = "fid") -> list[float]:
    """The metric by seed."""
    return measured.by_seed(lambda seed: cell(steps, seed), metric)


def compare(
    measured: Measured, claimed: CellAt, other: CellAt, steps: int, metric: str = "fid", label: str | None = None
) -> Comparison:
    """One method against another at a number of steps."""
    return Comparison(
        label or f"{steps} steps",
        values_at(measured, claimed, steps, metric),
        values_at(measured, other, steps, metric),
        lower=BETTER[metric] == "lower",
    )


def grid_table(
    measured: Measured,
    name: str,
    rows: Mapping[str, CellAt],
    steps: Sequence[int],
    metric: str = "fid",
    note: str = "",
    unit: str = "steps",
) -> Table:
    """Methods by steps; where the evaluations differ from the steps they stand in brackets."""
    lines = []
    for label, cell in rows.items():
        line = [label]
        for count in steps:
            found = measured[cell(count, measured.seeds[0])]
            if "unstable" in found:
                line.append("unstable")
                continue
            nfe = "" if found["nfe"] == count else f" [{found['nfe']}]"
            line.append(spread(values_at(measured, cell, count, metric)) + nfe)
        lines.append(line)
    several = " ± standard deviation over seeds" if len(measured.seeds) > 1 else ""
    if metric == "fid" and measured.floor is not None:
        note = f"{measured.scale.images:,} training images, chosen at random, have {measured.floor:.3g}. {note}"
    direction = f"{TITLES[metric]}{several}; {BETTER[metric]} is better. "
    first = next(iter(rows.values()))
    header = [f"{count} {unit}{_fewer(measured, first(count, measured.seeds[0]))}" for count in steps]
    return Table(name, ["", *header], lines, direction + note)


def _fewer(measured: Measured, cell: Cell) -> str:
    """Says so where a measurement is of fewer images than others, which raises distances."""
    return f" ({cell['images']:,} images)" if cell["images"] != measured.scale.images else ""


def quality_chart(
    measured: Measured, name: str, rows: Mapping[str, CellAt], steps: Sequence[int], metric: str, by: str = "nfe"
) -> Chart:
    """A metric against steps or NFE, with a band of one standard deviation over seeds."""
    series = []
    for label, cell in rows.items():
        stable = [count for count in steps if "unstable" not in measured[cell(count, measured.seeds[0])]]
        found = [values_at(measured, cell, count, metric) for count in stable]
        x = [measured[cell(count, measured.seeds[0])]["nfe"] if by == "nfe" else count for count in stable]
        bands = [stdev(values) for values in found] if len(measured.seeds) > 1 else None
        series.append(Series(label, x, [fmean(values) for values in found], bands))
    title = f"{TITLES[metric]} ({BETTER[metric]} is better)"
    x_label = "network evaluations (NFE)" if by == "nfe" else "steps"
    svg = line_chart(series, title, x_label, TITLES[metric], log_x=True, log_y=BETTER[metric] == "lower")
    return Chart(f"{name}-{metric}-{by}", svg)


def order_table(
    measured: Measured, rows: Mapping[str, CellAt], steps: Sequence[int], metric: str = "fid", unit: str = "steps"
) -> Table:
    """At each number of steps the methods from best to worst, and how many of their pairs are in a stable order."""
    lines = []
    for count in steps:
        found = {label: values_at(measured, cell, count, metric) for label, cell in rows.items()}
        found = {label: values for label, values in found.items() if all(map(math.isfinite, values))}
        sign = 1 if BETTER[metric] == "lower" else -1
        ranked = sorted(found, key=lambda label: sign * fmean(found[label]))
        text = ranked[0] if ranked else ""
        for better, worse in pairwise(ranked):
            text += f" {'<' if _stable(found[better], found[worse], sign) else '≈'} {worse}"
        pairs = list(combinations(ranked, 2))
        stable = sum(_stable(found[better], found[worse], sign) for better, worse in pairs)
        lines.append([f"{count} {unit}", f"{stable} of {len(pairs)}", text])
    note = (
        "From best to worst; < where the order of neighbours is stable by the rule for claims, ≈ where it is not. "
        "With one seed nothing is known to be stable."
    )
    return Table("Which orders are stable", ["", "pairs in a stable order", "from best to worst"], lines, note, (0, 2))


def _stable(better: Sequence[float], worse: Sequence[float], sign: int) -> bool:
    return judge([sign * (b - a) for a, b in zip(better, worse, strict=True)]) == "held"
