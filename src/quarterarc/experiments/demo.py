"""The demo: trains on handwritten digits, samples, and writes a report with pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..common.errors import InputError
from ..common.limits import MOST_IMAGES, MOST_STEPS
from ..common.progress import progress_bar
from ..common.text import duration
from ..data import open_data
from ..data.pixels import to_uint8
from ..denoiser import Denoiser
from ..evaluation.extractors import extractor
from ..evaluation.measure import DEFAULT_METRICS
from ..evaluation.metrics import METRICS, Settings
from ..report import Series, data_url, responsive_chart, write_page
from ..samplers import sampler as named_sampler
from ..sampling.generation import first_noise, generate
from ..sampling.plans import Sampling
from ..sampling.trajectories import sample, trajectory
from ..storage.checkpoints import hash_of, load
from ..storage.files import make_folder, write_json
from ..storage.pictures import contact_sheet, write_png
from ..storage.runs import checkpoint_name, checkpoints, steps_of
from ..storage.temporary import sweep
from ..training.api import train
from ..training.log import read_log, seconds_of
from ..training.recipe import Recipe
from .demo_map import MOST, compare_map, distil_map
from .demo_quality import FEATURES, Quality

__all__ = ["MAP_STEPS", "run_demo"]

MAP_STEPS = 250
"""Optimiser steps of the flow map: a minute on two cores."""
MEASURED, EVALUATIONS = ("ddim", "euler", "heun", "multistep"), (6, 10, 20)
"""The samplers whose images are measured, and their network evaluations per image."""

SHOWN = 64
ROWS = 8
COMPARED = (("ddpm", 10), ("ddim", 10), ("euler", 10), ("heun", 5), ("multistep", 10), ("rk4", 50))
"""Samplers and their steps: five at 10 network evaluations, and one at 200 whose discretisation error is negligible.

DDIM, Cold and rotation are identical for projected estimates, which a loaded network has (docs/residual.md)."""


def run_demo(recipe: Recipe, out: Path, measured: int = 400, map_steps: int = MAP_STEPS) -> dict[str, Any]:
    """Train by `recipe` in `out` (or resume), distil a flow map, and write the pictures, metrics.json and report.html.

    Args:
        recipe: the recipe; its images are gray with sides of 8 to 32 pixels, which the `digits` features need.
        out: the run folder.
        measured: the number of images that are measured per sampler and number of network evaluations.
        map_steps: optimiser steps of the flow map; 0 for none.

    Returns:
        The content of metrics.json.

    Raises:
        InputError: for too few or too many images to measure, a recipe whose samples cannot be made without labels or
            measured, fewer steps than the flow map has, and as for `quarterarc.train`.
    """
    fewest = max(METRICS[name].fewest(Settings()) for name in DEFAULT_METRICS)
    if not fewest <= measured <= MOST_IMAGES:
        raise InputError(
            f"--measure is the number of images that are measured, at least {fewest} and at most {MOST_IMAGES:,}, got "
            f"{measured}"
        )
    if not 0 <= map_steps <= MOST_STEPS:
        raise InputError(
            f"--map-steps is the number of optimiser steps of the flow map, 0 for none and at most {MOST_STEPS:,}, got "
            f"{map_steps}"
        )
    _check_recipe(recipe, out, map_steps)
    data = open_data(recipe.data, progress=False)
    count = data.count or 0
    if count < fewest:
        raise InputError(f"the demo compares samples with at least {fewest} images, got {data.description}")
    checkpoint = train(recipe, out, resume=True)
    denoise = load(checkpoint)
    mapped = distil_map(denoise, out, map_steps)
    log = read_log(out)
    default = Sampling().plan(denoise)

    started = time.perf_counter()
    images = generate(denoise, range(SHOWN), batch_size=SHOWN, progress=False)
    seconds = time.perf_counter() - started
    write_png(out / "samples.png", contact_sheet(to_uint8(images), columns=16, smooth=True))
    angles = _write_progress(denoise, out / "progress.png")
    rows = _compare(denoise, out)
    real = data.batch(range(count)).images
    write_png(out / "real.png", contact_sheet(real[:SHOWN], columns=16, smooth=True))
    quality = Quality(real, measured)
    measurements = _measure(denoise, quality)
    best = min((line for line in measurements["samplers"] if line["nfe"] == MOST), key=lambda line: float(line["fid"]))
    compared = None if mapped is None else compare_map(mapped, denoise, quality, best, out)

    assert isinstance(denoise.network, torch.nn.Module)
    metrics = {
        "quarterarc": __version__,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hash_of(checkpoint),
        "parameters": sum(weight.numel() for weight in denoise.network.parameters()),
        "training": {**log[-1], "seconds": round(seconds_of(log), 1)},
        "sampling": {
            **default.describe(),
            "nfe": _nfe(denoise),
            "images_per_second": round(SHOWN / seconds, 1),
            "device": str(denoise.device),
        },
        "quality": measurements,
        "map": compared and _without_pictures(compared),
        "compared": [{key: row[key] for key in ("sampler", "steps", "nfe", "distance")} for row in rows],
    }
    write_json(out / "metrics.json", metrics)
    _write_report(out, metrics, log, rows, compared, angles, len(real))
    return metrics


def _check_recipe(recipe: Recipe, out: Path, map_steps: int) -> None:
    """Raise an InputError, before training, for what the demo cannot sample, measure or continue."""
    data = recipe.data
    extractor(FEATURES).check((data.channels, data.height, data.width), "the demo")
    if data.labels and recipe.training.drop_labels == 0.0:
        raise InputError(
            "the demo samples without labels, which training.drop_labels=0 leaves untrained: leave it out, or give "
            "data.labels=false"
        )
    begun = checkpoints(out / "maps" / checkpoint_name(recipe.training.steps))
    if begun and 0 < map_steps < (done := steps_of(begun[-1])):
        raise InputError(
            f"--map-steps {map_steps}, but the flow map in {out} is at step {done}: give at least {done}, 0 for "
            "none, or another --out"
        )


def _without_pictures(compared: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `compare_map` that metrics.json stores, which are the same at any place: without paths."""
    return {
        name: [{key: line[key] for key in line if key != "picture"} for line in value]
        if isinstance(value, list)
        else value
        for name, value in compared.items()
        if name != "run"
    }


def _nfe(denoise: Denoiser) -> float:
    return sample(denoise, first_noise(denoise, range(1))).nfe


def _write_progress(denoise: Denoiser, path: Path) -> list[float]:
    """Write image estimates along the trajectories of the first seeds; returns the angles of the columns."""
    seeds = range(ROWS)
    states = list(trajectory(denoise, first_noise(denoise, seeds), seeds=seeds))
    columns = [state.x if state.estimate is None else state.estimate.image for state in states]
    by_row = torch.stack(columns, dim=1).flatten(0, 1)  # (rows * columns, C, H, W), row by row
    write_png(path, contact_sheet(to_uint8(by_row), columns=len(columns), smooth=True))
    return [state.angle for state in states]


def _compare(denoise: Denoiser, out: Path) -> list[dict[str, Any]]:
    """Images of several samplers from the same noise, and their distance from those of the last, most accurate one."""
    seeds = range(ROWS)
    start = first_noise(denoise, seeds)
    results = {name: sample(denoise, start, name, steps, seeds=seeds) for name, steps in COMPARED}
    reference = results[COMPARED[-1][0]].images
    rows = []
    folder = make_folder(out / "compare")
    sweep(folder)
    for name, steps in COMPARED:
        picture = folder / f"{name}.png"
        write_png(picture, contact_sheet(to_uint8(results[name].images), columns=ROWS, size=48, smooth=True))
        row = {"sampler": name, "steps": steps, "nfe": results[name].nfe, "picture": picture}
        rows.append({**row, "distance": round(_distance(results[name].images, reference), 4)})
    return rows


def _measure(denoise: Denoiser, quality: Quality) -> dict[str, Any]:
    """Frechet distance, precision and recall by sampler and NFE, with the same network and seeds, and their floor."""
    lines = []
    runs = [(name, nfe) for name in MEASURED for nfe in EVALUATIONS]
    with progress_bar(len(runs), "setting", "measure") as bar:
        for name, nfe in runs:
            lines.append(quality.of(denoise, name, max(1, nfe // named_sampler(name).evaluations)))
            bar.update()
    about = {"features": FEATURES, "count": quality.count, "reference": len(quality.real)}
    return {**about, "floor": quality.floor, "samplers": lines}


def _distance(images: Tensor, reference: Tensor) -> float:
    """Median over images of the root mean square difference."""
    return float((images - reference).flatten(1).pow(2).mean(1).sqrt().median())


def _write_report(
    out: Path, metrics: dict[str, Any], log: list[dict[str, Any]], rows: list[dict[str, Any]],
    compared: Mapping[str, Any] | None, angles: list[float], images: int,
) -> None:  # fmt: skip
    steps = [line["step"] for line in log]
    errors = ("velocity", "image", "noise", "residual")
    sampling, training = metrics["sampling"], metrics["training"]
    write_page(
        out / "report.html",
        "demo.html",
        title="From noise to digits along a quarter circle",
        parameters=f"{metrics['parameters']:,}",
        images_seen=f"{training['images']:,}",
        images=f"{images:,}",
        training_time=duration(training["seconds"]),
        nfe=sampling["nfe"],
        sampler=sampling["sampler"],
        images_per_second=f"{sampling['images_per_second']:.0f}",
        device=sampling["device"],
        loss=f"{training['loss']:.3f}",
        residual=f"{training['residual']:.4f}",
        last_seed=SHOWN - 1,
        samples_png=data_url(out / "samples.png"),
        progress_png=data_url(out / "progress.png"),
        progress_angles=", ".join(f"{math.degrees(angle):.0f}°" for angle in angles[:-1]),
        real_png=data_url(out / "real.png"),
        arc_svg=arc_picture(),
        loss_svg=responsive_chart(
            [Series(name, steps, [line[name] for line in log]) for name in errors],
            "Mean squared errors", "optimiser step", "mean squared error", log_y=True,
        ),
        quality=metrics["quality"],
        quality_svg=responsive_chart(
            [
                Series(name, [line["nfe"] for line in lines], [line["fid"] for line in lines])
                for name in MEASURED
                for lines in [[line for line in metrics["quality"]["samplers"] if line["sampler"] == name]]
            ],
            "Frechet distance in digits features", "network evaluations (NFE)", "Frechet distance",
            log_x=True, log_y=True,
        ),
        rows=[{**row, "picture": data_url(row["picture"])} for row in rows],
        map=compared and _map_for_page(compared),
        run=out,
        version=metrics["quarterarc"],
        checkpoint=metrics["checkpoint_sha256"][:12],
    )  # fmt: skip


def _map_for_page(compared: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison of map and teacher, with pictures as URLs, in pairs of equal evaluations."""
    lines = {
        name: [{**line, "picture": data_url(line["picture"])} for line in compared[name]] for name in ("map", "teacher")
    }
    *few, best = lines["teacher"]
    return {
        "steps": f"{compared['steps']:,}",
        "time": duration(compared["seconds"]),
        "pairs": list(zip(lines["map"], few, strict=True)),
        "best": best,
        "run": compared["run"],
    }


def arc_picture() -> str:
    """The quarter arc with image, noise, a point and its velocity, as SVG of the width of a narrow screen."""
    radius, x0, y0 = 180.0, 70.0, 215.0
    angle = math.radians(38)
    px, py = x0 + radius * math.cos(angle), y0 - radius * math.sin(angle)
    tx, ty = px - 70 * math.sin(angle), py - 70 * math.cos(angle)
    left = f'x="{tx - 4:.1f}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="14 0 350 250" fill="none" stroke="currentColor"
  font-family="system-ui, sans-serif" font-size="13" style="max-width: 26rem">
<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L10 5L0 10z" fill="#e1793b" stroke="none"/></marker></defs>
<path d="M{x0} {y0 - radius}V{y0}H{x0 + radius}" opacity="0.35"/>
<path d="M{x0 + radius} {y0}A{radius} {radius} 0 0 0 {x0} {y0 - radius}" stroke="#3867d6" stroke-width="3"/>
<path d="M{x0} {y0}L{px:.1f} {py:.1f}" opacity="0.5"/>
<path d="M{px:.1f} {py:.1f}L{tx:.1f} {ty:.1f}" stroke="#e1793b" stroke-width="2.5" marker-end="url(#tip)"/>
<path d="M{x0 + 46} {y0}A46 46 0 0 0 {x0 + 46 * math.cos(angle):.1f} {y0 - 46 * math.sin(angle):.1f}"/>
<g fill="currentColor" stroke="none">
<circle cx="{px:.1f}" cy="{py:.1f}" r="5"/><circle cx="{x0 + radius}" cy="{y0}" r="4"/>
<circle cx="{x0}" cy="{y0 - radius}" r="4"/>
<text x="{x0 + radius + 10}" y="{y0 + 4}">image (angle 0)</text>
<text x="{x0 - 50}" y="{y0 - radius - 12}">noise (angle π/2)</text>
<text x="{x0 + 54}" y="{y0 - 14}">angle</text>
<text x="{px + 10:.1f}" y="{py - 2:.1f}">x = cos · image<tspan x="{px + 28:.1f}" dy="17">+ sin · noise</tspan></text>
<text {left} y="{ty - 25:.1f}">velocity =<tspan {left} dy="17">cos · noise − sin · image</tspan></text>
</g></svg>"""
