"""Claims of the papers, and verdicts on them by one rule.

A claim consists of one or several comparisons of two values, paired by seed. With d the differences in the claim's
favour, a comparison is

    held        if every d > 0 and their mean is more than two standard errors above 0
    not held    if every d < 0 and their mean is more than two standard errors below 0
    undecided   otherwise, and always for a single seed, which has no spread

A claim is held if all its comparisons are held, not held if at least one is not held, and undecided otherwise. A
comparison of values without any randomness is held or not held by its sign alone.
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
    "errors away from zero. It is not held if the same is true with the opposite sign, and undecided otherwise; a "
    "single seed is always undecided, except where the values involve no randomness. A claim is held if all its "
    "comparisons are held, and not held if at least one of them is not held."
)


@dataclass(frozen=True)
class Comparison:
    """A comparison of two values, paired by seed.

    Attributes:
        label: the condition of the comparison: "10 steps".
        claimed: the values that are better according to the claim, one per seed.
        other: the values that they are compared with, of the same seeds.
        lower: whether lower values are better.
        exact: whether the values involve no randomness.
    """

    label: str
    claimed: Sequence[float]
    other: Sequence[float]
    lower: bool = True
    exact: bool = False

    @property
    def verdict(self) -> Verdict:
        """The verdict by the rule of this module."""
        sign = 1.0 if self.lower else -1.0
        pairs = zip(self.claimed, self.other, strict=True)
        return judge([sign * (other - claimed) for claimed, other in pairs], self.exact)

    def __str__(self) -> str:
        return f"{self.label}: {spread(self.claimed)} against {spread(self.other)} ({self.verdict})"


def judge(differences: Sequence[float], exact: bool = False) -> Verdict:
    """The verdict on differences in a claim's favour.

    Args:
        differences: one per seed.
        exact: whether the values involve no randomness, so that the sign of one difference decides.
    """
    if not differences or not all(map(math.isfinite, differences)):
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
    """A claim of a paper with the comparisons that test it.

    Attributes:
        text: the claim, one sentence.
        source: the paper and section that make it.
        comparisons: the comparisons that test it.
        note: a remark on the evidence.
    """

    text: str
    source: str
    comparisons: Sequence[Comparison] = field(default_factory=tuple)
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Held if all comparisons are held, not held if at least one is not held, else undecided."""
        verdicts = {comparison.verdict for comparison in self.comparisons}
        if verdicts == {"held"}:
            return "held"
        return "not held" if "not held" in verdicts else "undecided"

    @property
    def evidence(self) -> str:
        """The compared values, with their spread over seeds."""
        return "; ".join([*map(str, self.comparisons), *([self.note] if self.note else [])])

    def describe(self) -> dict[str, Any]:
        """The claim with its verdict as JSON types."""
        return {
            "claim": self.text,
            "source": self.source,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "comparisons": [
                {
                    "label": comparison.label,
                    "claimed": list(comparison.claimed),
                    "other": list(comparison.other),
                    "lower_is_better": comparison.lower,
                    "verdict": comparison.verdict,
                }
                for comparison in self.comparisons
            ],
        }


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean to this many significant digits and, for several values, the standard deviation: "9.50 ± 0.10"."""
    if not values:
        return ""
    mean = fmean(values)
    if 0.0 < abs(mean) < 1e-4:  # so close to 0 that the order of magnitude is enough
        return f"{mean:.0e}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(mean))) if math.isfinite(mean) and mean else 0))
    text = f"{mean:.{places}f}"
    return f"{text} ± {stdev(values):.{places}f}" if len(values) > 1 else text
