"""Figure 5 and Table 1: quality against steps and against NFE, and its spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean, stdev

from ..base import Experiment, Measurements
from ..cells import Cell, quality
from ..claims import Claim, Comparison, spread
from ..findings import Findings, Section, Table
from ..scales import Scale
from ..tables import TITLES, CellAt, compare, grid_table, order_table, quality_chart, title
from .ablation import DDIM, OURS, Row

__all__ = ["SEEDS", "STEPS"]

METHODS = (
    Row("DDPM", DDIM.arm, "ddpm"),
    DDIM,
    OURS,
    Row("ours, RK2 (midpoint)", OURS.arm, "midpoint"),
    Row("ours, RK4", OURS.arm, "rk4"),
)
"""The methods of Figure 5, and `ours` with the solvers of section 3.3."""


def _counts(scale: Scale) -> tuple[int, ...]:
    return (*scale.at(10, 20, 50, 100, 200), scale.all_steps)


def _cell(row: Row, scale: Scale, steps: int, seed: int) -> Cell:
    """A method at a number of steps, whatever its number of network evaluations."""
    return quality(scale, row.arm, seed, row.sampler, steps)


def _counts_of(scale: Scale, row: Row) -> tuple[int, ...]:
    """The step counts of a row; at most 50 for solvers of higher order, which need several evaluations per step."""
    return _counts(scale) if row in METHODS[:3] else tuple(n for n in _counts(scale) if n <= 50) or _counts(scale)[:1]


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [_cell(row, scale, steps, seed) for row in METHODS for seed in seeds for steps in _counts_of(scale, row)]


def _report(measured: Measurements) -> Findings:
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
                    grid_table(measured, f"{title(metric)} by method and steps", papers, steps, metric),
                    quality_chart(measured, "steps", papers, steps, metric, by="steps"),
                    grid_table(measured, f"{title(metric)} of 'ours' by order of the solver", higher, few, metric),
                    quality_chart(measured, "orders", higher, few, metric),
                ],
            )
        )
    note = (
        ""
        if "sfid" in scale.metrics
        else (
            f"The spatial Frechet distance (sFID) is missing, because '{scale.features}' features have no spatial "
            "positions."
        )
    )
    sections.append(Section("Ranking", note, [order_table(measured, papers, steps)]))
    return Findings(sections, _claims(measured, at, steps))


def _claims(measured: Measurements, at: dict[str, CellAt], steps: Sequence[int]) -> list[Claim]:
    source = "Zhang et al., Figure 5 and section 5"
    below, last = steps[:-1], steps[-1]
    claims = []
    for other in ("DDPM", "DDIM"):
        for metric in ("fid", "sfid", "precision", "recall"):
            if metric in measured.scale.metrics:
                text = f"'ours' has a better {TITLES[metric]} than {other}."
                claims.append(Claim(text, source, [compare(measured, at["ours"], at[other], n, metric) for n in steps]))
    claims += [
        Claim(
            "At T steps, DDPM has a lower Frechet distance than 'ours'.",
            source,
            [compare(measured, at["DDPM"], at["ours"], last)],
        ),
        Claim(
            "At fewer than T steps, DDIM has a lower Frechet distance than DDPM.",
            "Song et al. 2020a, as cited in section 2.1",
            [compare(measured, at["DDIM"], at["DDPM"], n) for n in below],
        ),
        Claim(
            "At T steps, DDPM has a lower Frechet distance than DDIM.",
            "Song et al. 2020a, as cited in section 2.1",
            [compare(measured, at["DDPM"], at["DDIM"], last)],
        ),
    ]
    return claims


STEPS = Experiment(
    "steps",
    "How good are the images, by steps and by network evaluations?",
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


def _seed_report(measured: Measurements) -> Findings:
    scale, counts = measured.scale, _seed_counts(measured.scale)
    distances = {
        steps: [
            [float(measured[_drawn(scale, steps, seed, draw)].get("fid", float("nan"))) for draw in range(DRAWS)]
            for seed in measured.seeds
        ]
        for steps in counts
    }
    rows = [
        [f"network trained with seed {seed}", *(spread(distances[steps][place]) for steps in counts)]
        for place, seed in enumerate(measured.seeds)
    ]
    if len(measured.seeds) > 1:
        rows.append(
            [
                "over networks, of the mean over draws",
                *(spread([fmean(draws) for draws in distances[n]]) for n in counts),
            ]
        )
    table = Table(
        "Table 1",
        ["Frechet distance of 'ours'", *(_column(scale, steps) for steps in counts)],
        rows,
        f"Mean ± standard deviation over {DRAWS} draws of the initial noise for one network, as in the paper."
        + (" The last row is over networks trained with different seeds." if len(measured.seeds) > 1 else ""),
    )
    between = [
        stdev([fmean(draws) for draws in distances[n]]) if len(measured.seeds) > 1 else float("nan") for n in counts
    ]
    within = [fmean([stdev(draws) for draws in distances[n]]) for n in counts]
    sources = Table(
        "Standard deviation by its source",
        ["standard deviation", *(f"{steps} steps" for steps in counts)],
        [
            ["over draws of noise, for one network", *(spread([value]) for value in within)],
            [
                "over networks, of the mean over draws",
                *("unknown (one network)" if value != value else spread([value]) for value in between),
            ],
        ],
    )
    relative = [max(stdev(draws) / fmean(draws) for draws in distances[steps]) for steps in counts]
    pairs = ", ".join(f"{100 * value:.1f} % at {steps} steps" for steps, value in zip(counts, relative, strict=True))
    falls = [
        Comparison(
            f"{more} steps against {fewer}", [fmean(d) for d in distances[more]], [fmean(d) for d in distances[fewer]]
        )
        for fewer, more in pairwise(counts)
        if more != scale.all_steps or scale.few == scale.images
    ]
    claims = [
        Claim(
            "The quality of 'ours' is stable over random seeds: the spread over draws of noise is small.",
            "Zhang et al., Table 1",
            (),
            f"standard deviation relative to the mean, maximum over networks: {pairs}; in the paper at most 1.2 % with "
            "50,000 images. The paper states no threshold, so the claim has no comparison",
        ),
        Claim(
            "The Frechet distance of 'ours' decreases from each number of steps to the next.",
            "Zhang et al., Table 1",
            falls,
        ),
    ]
    return Findings([Section("Spread over seeds", "", [table, sources])], claims)


SEEDS = Experiment(
    "seeds",
    "How much does the quality vary with the seed?",
    "Zhang, Ehinger & Drummond 2023, Table 1",
    _seed_cells,
    _seed_report,
)
