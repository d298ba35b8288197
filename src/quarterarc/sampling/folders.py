"""Sample folders: one PNG per seed, a contact sheet, and samples.json with the settings of the sampling.

Image files appear under their names only when complete, so an interrupted folder continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.devices import processes
from ..common.errors import InputError
from ..common.progress import progress_bar
from ..common.text import ranges
from ..data.pixels import to_uint8
from ..denoiser import Denoise, traits
from ..samplers import current_options
from ..storage.files import make_folder, read_json, write_json
from ..storage.pictures import contact_sheet, read_png, write_png
from .generation import batches
from .plans import Sampling, check_labels

__all__ = ["SHEETS", "write_samples"]

ABOUT, SHEET = "samples.json", "contact-sheet.png"
SHEETS = (SHEET, "grid.png")
"""File names of the contact sheet, which is no sample; the second one is of version 0.1."""
IN_SHEET = 64
RESULTS = ("complete", "count", "seeds", "nfe", "images_per_second", "device")
"""The keys of samples.json that describe the outcome; the others are settings, which determine the images."""


def write_samples(
    denoise: Denoise,
    out: Path,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 64,
    labels: Sequence[int] | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Sample to a folder in bounded memory, skipping the seeds that are already there; processes share the seeds.

    Args:
        denoise: a denoiser that declares the shape of its images.
        out: the folder; it may hold images of the same settings.
        seeds: one per image; the PNG of seed 7 is 000007.png.
        sampling: the request; the defaults if None.
        batch_size: images per batch.
        labels: classes, used in turn: the image of seed s has the label labels[s % len(labels)].
        about: further settings to record, such as the checkpoint's hash.
        progress: whether to show a progress bar on a terminal.

    Returns:
        The contents of samples.json; None in every process but the first.

    Raises:
        InputError: for settings that `sample` does not accept, or a folder with samples of other settings.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    check_labels(denoise, labels)
    plan = (sampling or Sampling()).plan(denoise)
    settings = {**(about or {}), **plan.describe(), "labels": None if labels is None else list(labels)}
    process = processes()
    existed = out.exists()
    make_folder(out)
    nfe = _check_same(out, settings)
    process.wait()  # no process writes before every process has checked
    if process.rank == 0:
        _describe(out, settings, complete=False)
    mine = [seed for seed in seeds[process.rank :: process.count] if not (out / _name(seed)).exists()]
    results = batches(
        plan,
        mine,
        batch_size=batch_size,
        labels=None if labels is None else [labels[seed % len(labels)] for seed in mine],
    )
    started, evaluations = time.perf_counter(), 0.0
    bar = progress_bar(len(mine), "image", "sample", progress and process.rank == 0)
    undone = _removed_on_error(out, existed) if process.rank == 0 else nullcontext()
    with undone, bar, ThreadPoolExecutor(4) as writers:
        for part, result in results:
            evaluations += result.nfe * len(part)
            _check_finite(part, result.images)
            pixels = to_uint8(result.images).cpu()
            # a batch is written before the next one is sampled: memory stays bounded, and finished images are kept
            list(writers.map(write_png, (out / _name(seed) for seed in part), pixels))
            bar.update(len(part))
    seconds = time.perf_counter() - started
    if mine:
        mean = evaluations / len(mine)
        nfe = int(mean) if mean.is_integer() else round(mean, 2)
    process.wait()
    if process.rank:
        return None
    first = torch.stack([read_png(out / _name(seed)) for seed in seeds[:IN_SHEET]])
    write_png(out / SHEET, contact_sheet(first))
    speed = {"images_per_second": round(len(mine) * process.count / seconds, 2)} if mine else {}
    return _describe(out, settings, complete=True, nfe=nfe, device=str(traits(denoise).device or "cpu"), **speed)


def _check_finite(seeds: Sequence[int], images: Tensor) -> None:
    finite = images.flatten(1).isfinite().all(1).tolist()
    bad = [seed for seed, good in zip(seeds, finite, strict=True) if not good]
    if bad:
        raise InputError(
            f"the image of seed {bad[0]} has pixels that are NaN or infinite: check the network's weights and the "
            "sampler's options"
        )


@contextmanager
def _removed_on_error(out: Path, existed: bool) -> Iterator[None]:
    """On an InputError before the first image, remove samples.json, and the folder if it is new."""
    try:
        yield
    except InputError:
        if not any(out.glob("*.png")):
            (out / ABOUT).unlink(missing_ok=True)
            if not existed:
                with suppress(OSError):
                    out.rmdir()
        raise


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _check_same(out: Path, settings: Mapping[str, Any]) -> float | None:
    """The NFE of the images in a folder; None without images.

    Raises:
        InputError: if the images have other settings or an unknown origin.
    """
    if (out / ABOUT).is_file() and any(out.glob("*.png")):
        before = read_json(out / ABOUT)
        if not isinstance(before, dict):
            raise InputError(f"{out / ABOUT} does not hold the settings of its images: give another --out")
        earlier = _current({key: value for key, value in before.items() if key not in RESULTS})
        changed = sorted(key for key in earlier.keys() | settings.keys() if earlier.get(key) != settings.get(key))
        if changed:
            raise InputError(f"{out} holds samples with other settings ({', '.join(changed)}): give another --out")
        return before.get("nfe")
    if any(out.glob("*.png")):
        raise InputError(f"{out} holds images but no {ABOUT}: give an empty folder as --out")
    return None


def _current(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a samples.json with the options under their current names."""
    name, options = settings.get("sampler"), settings.get("options")
    if isinstance(name, str) and isinstance(options, dict):
        with suppress(InputError):  # the name of a class, or of a sampler that is not installed
            return {**settings, "options": current_options(name, options, warn=False)}
    return settings


def _describe(out: Path, settings: Mapping[str, Any], complete: bool, **results: Any) -> dict[str, Any]:
    seeds = sorted(int(path.stem) for path in out.glob("*.png") if path.stem.isdigit())
    value = {**settings, "complete": complete, "count": len(seeds), "seeds": ranges(seeds), **results}
    write_json(out / ABOUT, value)
    return value
