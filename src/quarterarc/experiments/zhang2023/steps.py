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
from .ablation import DDIM, DDPM, DDPM_SMALL, NORMS, OURS, Row, about_norms

__all__ = ["SEEDS", "STEPS"]

METHODS = (DDPM, DDPM_SMALL, DDIM, OURS)
"""The methods of Figure 5, and DDPM with the other variance."""
ORDERS = (OURS, Row("ours, RK2 (midpoint)", OURS.arm, "midpoint"), Row("ours, RK4", OURS.arm, "rk4"))
"""`ours` with the solvers of section 3.3."""

GRID = "uniform"
"""The grid of DDIM's published code, on which `ours` is built."""


def _counts(scale: Scale) -> tuple[int, ...]:
    return (*scale.at(10, 20, 50, 100, 200), scale.all_steps)


def _few(scale: Scale) -> tuple[int, ...]:
    """The numbers of steps of solvers of higher order, which need several evaluations per step."""
    return tuple(n for n in _counts(scale) if n <= 50) or _counts(scale)[:1]


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        cell
        for norm in scale.norms
        for rows, counts in ((METHODS, _counts(scale)), (ORDERS, _few(scale)))
        for row in rows
        for seed in seeds
        for cell in (row.in_norm(norm).at(scale, steps, seed, GRID) for steps in counts)
    ]


def _at(scale: Scale, rows: Sequence[Row], norm: str) -> dict[str, CellAt]:
    return {row.label: partial(row.in_norm(norm).at, scale, grid=GRID) for row in rows}


def _report(measured: Measurements) -> Findings:
    text = (
        f"{about_norms(measured.scale)} All methods use the grid of DDIM's published code. DDPM has its published "
        "sampler, with the large variance and image estimates clipped to [-1, 1], and the other variance without "
        "clipping in a row of its own."
    )
    sections = [Section("Method", text)]
    claims = list[Claim]()
    for norm in measured.scale.norms:
        sections += _sections(measured, norm)
        claims += _claims(measured, norm)
    return Findings(sections, claims)


def _sections(measured: Measurements, norm: str) -> list[Section]:
    """The tables and charts of the arms that are trained in one norm."""
    scale, words = measured.scale, NORMS[norm]
    steps = _counts(scale)
    papers = _at(scale, METHODS, norm)
    sections = []
    for metric in scale.metrics:
        higher, few = _at(scale, ORDERS, norm), _few(scale)
        sections.append(
            Section(
                f"{_heading(metric)}, {words}",
                "",
                [
                    grid_table(measured, f"{title(metric)} by method and steps, {words}", papers, steps, metric),
                    quality_chart(measured, f"steps-{norm}", papers, steps, metric, by="steps"),
                    grid_table(
                        measured, f"{title(metric)} of 'ours' by order of the solver, {words}", higher, few, metric
                    ),
                    quality_chart(measured, f"orders-{norm}", higher, few, metric),
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
    sections.append(Section(f"Ranking, {words}", note, [order_table(measured, papers, steps)]))
    return sections


def _heading(metric: str) -> str:
    return metric.upper() if metric in ("fid", "is") else {"sfid": "sFID"}.get(metric, metric.capitalize())


def _claims(measured: Measurements, norm: str) -> list[Claim]:
    source, steps = "Zhang et al., Figure 5 and section 5", _counts(measured.scale)
    at, below, last = _at(measured.scale, METHODS, norm), steps[:-1], steps[-1]
    claims = []
    for other in ("DDPM", "DDIM"):
        for metric in ("fid", "sfid", "precision", "recall"):
            if metric in measured.scale.metrics:
                text = f"'ours' has a better {TITLES[metric]} than {other} ({norm})."
                claims.append(Claim(text, source, [compare(measured, at["ours"], at[other], n, metric) for n in steps]))
    claims += [
        Claim(
            f"At T steps, DDPM has a lower Frechet distance than 'ours' ({norm}).",
            source,
            [compare(measured, at["DDPM"], at["ours"], last)],
        ),
        Claim(
            f"At fewer than T steps, DDIM has a lower Frechet distance than DDPM ({norm}).",
            "Song et al. 2020a, as cited in section 2.1",
            [compare(measured, at["DDIM"], at["DDPM"], n) for n in below],
        ),
        Claim(
            f"At T steps, DDPM has a lower Frechet distance than DDIM ({norm}).",
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


def _drawn(scale: Scale, norm: str, steps: int, seed: int, draw: int) -> Cell:
    return quality(scale, OURS.arm.in_norm(norm), seed, OURS.sampler, steps, draw=draw)


def _seed_cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [
        _drawn(scale, norm, steps, seed, draw)
        for norm in scale.norms
        for seed in seeds
        for steps in _seed_counts(scale)
        for draw in range(DRAWS)
    ]


def _column(scale: Scale, steps: int) -> str:
    images = _drawn(scale, "mse", steps, 0, 0)["images"]
    return f"{steps} steps" if images == scale.images else f"{steps} steps ({images:,} images)"


def _seed_report(measured: Measurements) -> Findings:
    parts = [_spread_of(measured, norm) for norm in measured.scale.norms]
    tables = [section for section, _ in parts]
    return Findings(
        [Section("Norms", about_norms(measured.scale)), *tables], [claim for _, claims in parts for claim in claims]
    )


def _spread_of(measured: Measurements, norm: str) -> tuple[Section, list[Claim]]:
    """The tables of Table 1, and the claims about them, of arms that are trained in one norm."""
    scale, counts = measured.scale, _seed_counts(measured.scale)
    distances = {
        steps: [
            [float(measured[_drawn(scale, norm, steps, seed, draw)].get("fid", float("nan"))) for draw in range(DRAWS)]
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
        f"Table 1, {NORMS[norm]}",
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
        f"Standard deviation by its source, {NORMS[norm]}",
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
            f"The quality of 'ours' is stable over random seeds: the spread over draws of noise is small ({norm}).",
            "Zhang et al., Table 1",
            (),
            f"standard deviation relative to the mean, maximum over networks: {pairs}; in the paper at most 1.2 % with "
            "50,000 images. The paper states no threshold, so the claim has no comparison",
        ),
        Claim(
            f"The Frechet distance of 'ours' decreases from each number of steps to the next ({norm}).",
            "Zhang et al., Table 1",
            falls,
        ),
    ]
    return Section(f"Spread over seeds, {NORMS[norm]}", "", [table, sources]), claims


SEEDS = Experiment(
    "seeds",
    "How much does the quality vary with the seed?",
    "Zhang, Ehinger & Drummond 2023, Table 1",
    _seed_cells,
    _seed_report,
)
