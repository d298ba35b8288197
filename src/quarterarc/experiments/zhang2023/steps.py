"""Figure 5 and Table 1: quality against steps and against NFE, and how far it varies with the seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean, stdev

from ..base import Experiment, Measured
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..reading import CellAt, compare, grid_table, order_table, quality_chart
from ..scales import Scale
from .ablation import DDIM, OURS, Row

__all__ = ["SEEDS", "STEPS"]

METHODS = (
    Row("DDPM", DDIM.arm, "ddpm"),
    DDIM,
    OURS,
    Row("ours, RK2 (midpoint)", OURS.arm, "midpoint"),
    Row("ours, RK4", OURS.arm, "rk4"),
)
"""The methods of Figure 5, and ours with the solvers of section 3.3."""


def _counts(scale: Scale) -> tuple[int, ...]:
    return (*scale.at(10, 20, 50, 100, 200), scale.all_steps)


def _cell(row: Row, scale: Scale, steps: int, seed: int) -> Cell:
    """A method at a number of steps, whatever they cost."""
    return quality(scale, row.arm, seed, row.sampler, steps)


def _counts_of(scale: Scale, row: Row) -> tuple[int, ...]:
    """Higher orders take several evaluations a step: all of the schedule's steps are more than anybody takes."""
    return _counts(scale) if row in METHODS[:3] else tuple(n for n in _counts(scale) if n <= 50) or _counts(scale)[:1]


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(row, scale, steps, seed) for row in METHODS for seed in seeds for steps in _counts_of(scale, row)]


def _report(measured: Measured) -> Findings:
    scale = measured.scale
    steps = _counts(scale)
    at: dict[str, CellAt] = {row.label: partial(_cell, row, scale) for row in METHODS}
    papers = {row.label: at[row.label] for row in METHODS[:3]}
    sections = []
    for metric in scale.metrics:
        higher = {row.label: at[row.label] for row in METHODS[2:]}
        few = _counts_of(scale, METHODS[-1])
        sections.append(
            Section(
                metric.upper() if metric in ("fid", "is") else {"sfid": "sFID"}.get(metric, metric.capitalize()),
                "",
                [
                    grid_table(measured, f"{metric} by method and steps", papers, steps, metric),
                    quality_chart(measured, "steps", papers, steps, metric, by="steps"),
                    grid_table(measured, f"{metric} of ours by order", higher, few, metric),
                    quality_chart(measured, "orders", higher, few, metric),
                ],
            )
        )
    note = (
        ""
        if "sfid" in scale.metrics
        else (
            f"sFID needs features that keep their places in the image, which '{scale.features}' features do not: this "
            "scale leaves it out."
        )
    )
    sections.append(Section("How sure the orders are", note, [order_table(measured, papers, steps)]))
    return Findings(sections, _claims(measured, at, steps))


def _claims(measured: Measured, at: dict[str, CellAt], steps: Sequence[int]) -> list[Claim]:
    source = "Zhang et al., Figure 5 and section 5"
    below, last = steps[:-1], steps[-1]
    claims = []
    for other in ("DDPM", "DDIM"):
        for metric in ("fid", "sfid", "precision", "recall"):
            if metric in measured.scale.metrics:
                text = f"Ours has the better {'Frechet distance' if metric == 'fid' else metric} than {other}."
                claims.append(Claim(text, source, [compare(measured, at["ours"], at[other], n, metric) for n in steps]))
    claims += [
        Claim(
            "At all of the schedule's steps DDPM has the better Frechet distance than ours.",
            source,
            [compare(measured, at["DDPM"], at["ours"], last)],
        ),
        Claim(
            "With fewer steps than the schedule's, DDIM has the better Frechet distance than DDPM.",
            "Song et al. 2020a, as cited in section 2.1",
            [compare(measured, at["DDIM"], at["DDPM"], n) for n in below],
        ),
        Claim(
            "At all of the schedule's steps DDPM has the better Frechet distance than DDIM.",
            "Song et al. 2020a, as cited in section 2.1",
            [compare(measured, at["DDPM"], at["DDIM"], last)],
        ),
    ]
    return claims


STEPS = Experiment(
    "steps",
    "How good are the images, by steps and by evaluations?",
    "Zhang, Ehinger & Drummond 2023, Figure 5",
    _cells,
    _report,
)


# --- Table 1 --------------------------------------------------------------------------------------------------------

DRAWS = 3


def _seed_counts(scale: Scale) -> tuple[int, ...]:
    return (*scale.at(10, 20, 50, 100), scale.all_steps)


def _drawn(scale: Scale, steps: int, seed: int, draw: int) -> Cell:
    return quality(scale, OURS.arm, seed, OURS.sampler, steps, draw=draw)


def _seed_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        _drawn(scale, steps, seed, draw) for seed in seeds for steps in _seed_counts(scale) for draw in range(DRAWS)
    ]


def _column(scale: Scale, steps: int) -> str:
    images = _drawn(scale, steps, 0, 0)["images"]
    return f"{steps} steps" if images == scale.images else f"{steps} steps ({images:,} images)"


def _seed_report(measured: Measured) -> Findings:
    scale, counts = measured.scale, _seed_counts(measured.scale)
    found = {
        steps: [
            [float(measured[_drawn(scale, steps, seed, draw)].get("fid", float("nan"))) for draw in range(DRAWS)]
            for seed in measured.seeds
        ]
        for steps in counts
    }
    rows = [
        [f"network of seed {seed}", *(spread(found[steps][place]) for steps in counts)]
        for place, seed in enumerate(measured.seeds)
    ]
    if len(measured.seeds) > 1:
        rows.append(["means of the networks", *(spread([fmean(draws) for draws in found[n]]) for n in counts)])
    table = Table(
        "Table 1",
        ["Frechet distance of ours", *(_column(scale, steps) for steps in counts)],
        rows,
        f"Mean ± standard deviation over {DRAWS} draws of noise from one network, as in the paper; the last row, where "
        "there are several networks, is over networks trained from different seeds.",
    )
    between = [stdev([fmean(draws) for draws in found[n]]) if len(measured.seeds) > 1 else float("nan") for n in counts]
    within = [fmean([stdev(draws) for draws in found[n]]) for n in counts]
    apart = Table(
        "Where the spread comes from",
        ["standard deviation", *(f"{steps} steps" for steps in counts)],
        [
            ["over draws of noise, one network", *(f"{value:.3g}" for value in within)],
            [
                "over networks, means of draws",
                *("one network" if value != value else f"{value:.3g}" for value in between),
            ],
        ],
    )
    relative = [max(stdev(draws) / fmean(draws) for draws in found[steps]) for steps in counts]
    pairs = ", ".join(f"{steps} steps {100 * value:.1f} %" for steps, value in zip(counts, relative, strict=True))
    falls = [
        Comparison(f"{more} steps against {fewer}", [fmean(d) for d in found[more]], [fmean(d) for d in found[fewer]])
        for fewer, more in pairwise(counts)
        if more != scale.all_steps or scale.few == scale.images
    ]
    claims = [
        Claim(
            "Ours is stable over random seeds: the spread over draws of noise is small.",
            "Zhang et al., Table 1",
            (),
            f"standard deviation as a share of the mean, the largest over networks: {pairs}; in the paper at most "
            "1.2 % with 50,000 images. How small is small is not said, so there is no verdict.",
        ),
        Claim(
            "The Frechet distance of ours falls with every further step count of the table.",
            "Zhang et al., Table 1",
            falls,
        ),
    ]
    return Findings([Section("Ours by steps", "", [table, apart])], claims)


SEEDS = Experiment(
    "seeds",
    "How far does the quality vary with the seed?",
    "Zhang, Ehinger & Drummond 2023, Table 1",
    _seed_cells,
    _seed_report,
)
