"""Claims of the papers, and whether they hold in what was measured.

The rule, for all claims alike. A claim is one or several comparisons, each of two values seed by seed. With d the
differences in the claim's favour, a comparison is

    held        if every d > 0 and their mean is more than two standard errors above 0
    not held    if every d < 0 and their mean is more than two standard errors below 0
    undecided   otherwise, and always for a single seed, whose spread is not known

A claim is held if all its comparisons are, not held if one is not, else undecided. What depends on no random number is
held or not by its value alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

__all__ = ["RULE", "Claim", "Comparison", "Verdict", "judge", "spread"]

Verdict = Literal["held", "not held", "undecided"]

RULE = (
    "A comparison is held if the difference has the claimed sign for every seed and its mean is more than two standard "
    "errors from zero, not held if the same is true of the opposite sign, and undecided otherwise; one seed decides "
    "nothing, unless no random number is in it. A claim is held if all its comparisons are, and not held if one of "
    "them is not."
)


@dataclass(frozen=True)
class Comparison:
    """One value against another, seed by seed.

    Attributes:
        label: where: "10 steps".
        claimed: the values that the claim says are better.
        other: the values that it says are worse, of the same seeds.
        lower: whether lower is better.
        exact: whether the values depend on no random number.
    """

    label: str
    claimed: Sequence[float]
    other: Sequence[float]
    lower: bool = True
    exact: bool = False

    @property
    def verdict(self) -> Verdict:
        """By the rule above."""
        sign = 1.0 if self.lower else -1.0
        pairs = zip(self.claimed, self.other, strict=True)
        return judge([sign * (other - claimed) for claimed, other in pairs], self.exact)

    def __str__(self) -> str:
        return f"{self.label}: {spread(self.claimed)} against {spread(self.other)} ({self.verdict})"


def judge(differences: Sequence[float], exact: bool = False) -> Verdict:
    """The verdict on differences in a claim's favour, one a seed."""
    if not differences or not all(math.isfinite(each) for each in differences):
        return "undecided"
    if exact:
        return "held" if min(differences) > 0 else "not held"
    if len(differences) < 2:
        return "undecided"
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if abs(mean) <= 2.0 * error:
        return "undecided"
    if min(differences) > 0:
        return "held"
    return "not held" if max(differences) < 0 else "undecided"


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what was found.

    Attributes:
        text: the claim, in one sentence.
        source: where it is made.
        comparisons: what it rests on here.
        note: what else a reader should know.
    """

    text: str
    source: str
    comparisons: Sequence[Comparison] = field(default_factory=tuple)
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Held if all comparisons are, not held if one is not, else undecided."""
        verdicts = {each.verdict for each in self.comparisons}
        if verdicts == {"held"}:
            return "held"
        return "not held" if "not held" in verdicts else "undecided"

    @property
    def evidence(self) -> str:
        """The numbers, with their spread over seeds."""
        return "; ".join([*map(str, self.comparisons), *([self.note] if self.note else [])])

    def describe(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "claim": self.text,
            "source": self.source,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "comparisons": [
                {
                    "label": each.label,
                    "claimed": list(each.claimed),
                    "other": list(each.other),
                    "lower_is_better": each.lower,
                    "verdict": each.verdict,
                }
                for each in self.comparisons
            ],
        }


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, over several seeds, standard deviation: "9.50 ± 0.10"."""
    if not values:
        return ""
    mean = fmean(values)
    if 0.0 < abs(mean) < 1e-4:  # as good as nothing: its size is enough
        return f"{mean:.0e}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(mean))) if math.isfinite(mean) and mean else 0))
    text = f"{mean:.{places}f}"
    return f"{text} ± {stdev(values):.{places}f}" if len(values) > 1 else text
