"""Results of a part of the campaign: counts by kind and verdict, and the failures with what repeats them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Outcome", "summary", "table"]


@dataclass
class Outcome:
    """The outcome of one case.

    Attributes:
        index: the number of the case.
        kind: what was tried.
        verdict: the outcome in a word or two.
        good: whether it is one of the promised outcomes.
        command: the command, for people.
        detail: for a failure, what happened.
        events: how many events of the part's kind the case had: kills that hit, otherwise 1.
        remarks: blemishes that break no promise, by name.
    """

    index: int
    kind: str
    verdict: str
    good: bool
    command: str = ""
    detail: str = ""
    events: int = 1
    remarks: tuple[str, ...] = ()


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Counts by kind and verdict, remarks, and all failures."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.index)
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.kind, Counter())[outcome.verdict] += outcome.events
    remarks = Counter(remark for outcome in outcomes for remark in outcome.remarks)
    return {
        "cases": len(outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "failed": sum(not outcome.good for outcome in outcomes),
        "good": sorted({outcome.verdict for outcome in outcomes if outcome.good}),
        "counts": {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)},
        "remarks": dict(remarks.most_common()),
        "failures": [asdict(outcome) for outcome in outcomes if not outcome.good],
    }


def table(result: dict[str, Any]) -> str:
    """A Markdown table of the counts of a part: one row per kind, one column per verdict, promised ones first."""
    counts: dict[str, dict[str, int]] = result["counts"]
    verdicts = {verdict for row in counts.values() for verdict in row}
    columns = sorted(verdicts, key=lambda verdict: (verdict not in result["good"], verdict))
    bad = [f"**{column}**" if column not in result["good"] else column for column in columns]
    rows = [["", *bad]]
    rows += [[kind, *(_count(row.get(column)) for column in columns)] for kind, row in counts.items()]
    total = [sum(row.get(column, 0) for row in counts.values()) for column in columns]
    rows.append(["all", *(_count(number) for number in total)])
    return "\n".join(_markdown(rows))


def _count(number: int | None) -> str:
    return f"{number:,}" if number else "0"


def _markdown(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    for place, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if not place:
            yield "|---|" + "---:|" * (len(row) - 1)
