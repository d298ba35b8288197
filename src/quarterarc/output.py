"""Sample folders: one PNG a seed, a grid to look at, and samples.json that says how they were made.

An image is written under its name only when it is whole, so a folder that was interrupted continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .data.pixels import to_uint8
from .devices import processes
from .errors import InputError
from .estimate import Denoise
from .files import make_folder, read_json, write_json
from .generation import batches
from .images import grid_of, read_png, write_png
from .sampling import plan

__all__ = ["ranges", "write_samples"]

ABOUT, GRID = "samples.json", "grid.png"
IN_GRID = 64
RESULTS = ("complete", "count", "seeds", "nfe", "images_per_second", "device")
"""What samples.json says of the outcome; everything else decides what the images are."""


def write_samples(
    denoise: Denoise,
    out: Path,
    seeds: Sequence[int],
    *,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    batch_size: int = 64,
    labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Sample to a folder in bounded memory, leaving out the seeds that are there; the processes share the seeds.

    Args:
        denoise: a denoiser that knows the `shape` of its images.
        out: the folder; one that holds samples made otherwise is refused.
        seeds: one an image; the PNG of seed 7 is 000007.png.
        sampler, steps, grid, options: as for `quarterarc.sample`.
        batch_size: images at once.
        labels: classes, used in turn: the image of seed s has label labels[s % len(labels)].
        about: more settings to record, such as the checkpoint's hash.

    Returns:
        What samples.json says; None in every process but the first.

    Raises:
        InputError: for settings that `sample` refuses, or a folder that cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    chosen = plan(denoise, sampler, steps, grid, **(options or {}))
    settings = {**(about or {}), **chosen.describe(), "labels": None if labels is None else list(labels)}
    here = processes()
    there = out.exists()
    make_folder(out)
    nfe = _check_same(out, settings)
    here.wait()  # nobody writes before everybody has looked
    if here.rank == 0:
        _describe(out, settings, complete=False)
    mine = [seed for seed in seeds[here.rank :: here.count] if not (out / _name(seed)).exists()]
    made = batches(
        denoise,
        mine,
        chosen.sampler,
        grid=chosen.angles,
        batch_size=batch_size,
        labels=None if labels is None else [labels[seed % len(labels)] for seed in mine],
    )
    started, seen = time.perf_counter(), 0.0
    bar = tqdm(total=len(mine), unit="image", desc="sample", disable=None if here.rank == 0 else True)
    undone = _nothing_left(out, there) if here.rank == 0 else nullcontext()
    with undone, bar, ThreadPoolExecutor(4) as writers:
        for some, result in made:
            seen += result.nfe * len(some)
            _check_finite(some, result.images)
            pixels = to_uint8(result.images).cpu()
            # a batch is on disk before the next is made: memory stays bounded, and what is written stays written
            list(writers.map(write_png, (out / _name(seed) for seed in some), pixels))
            bar.update(len(some))
    seconds = time.perf_counter() - started
    if mine:
        mean = seen / len(mine)
        nfe = int(mean) if mean.is_integer() else round(mean, 2)
    here.wait()
    if here.rank:
        return None
    first = torch.stack([read_png(out / _name(seed)) for seed in seeds[:IN_GRID]])
    write_png(out / GRID, grid_of(first))
    speed = {"images_per_second": round(len(mine) * here.count / seconds, 2)} if mine else {}
    return _describe(out, settings, complete=True, nfe=nfe, device=str(getattr(denoise, "device", "cpu")), **speed)


def _check_finite(seeds: Sequence[int], images: Tensor) -> None:
    bad = [seed for seed, finite in zip(seeds, images.flatten(1).isfinite().all(1).tolist(), strict=True) if not finite]
    if bad:
        raise InputError(
            f"the image of seed {bad[0]} has pixels that are no finite numbers: look at the network's weights, and at "
            "what the sampler was asked for"
        )


@contextmanager
def _nothing_left(out: Path, there: bool) -> Iterator[None]:
    """On a refusal before the first image, take away what was begun: samples.json, and the folder if it is new."""
    try:
        yield
    except InputError:
        if not any(out.glob("*.png")):
            (out / ABOUT).unlink(missing_ok=True)
            if not there:
                with suppress(OSError):
                    out.rmdir()
        raise


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _check_same(out: Path, settings: Mapping[str, Any]) -> float | None:
    """Refuse a folder whose images were made with other settings or are of unknown origin; the NFE of those there."""
    if (out / ABOUT).is_file() and any(out.glob("*.png")):
        before = read_json(out / ABOUT)
        if not isinstance(before, dict):
            raise InputError(f"{out / ABOUT} does not say how the images there were made: give another --out")
        made = {key: value for key, value in before.items() if key not in RESULTS}
        changed = sorted(key for key in made.keys() | settings.keys() if made.get(key) != settings.get(key))
        if changed:
            raise InputError(f"{out} holds samples made with another {', '.join(changed)}: give another --out")
        return before.get("nfe")
    if any(out.glob("*.png")):
        raise InputError(f"{out} holds images but no {ABOUT}: give an empty folder as --out")
    return None


def _describe(out: Path, settings: Mapping[str, Any], complete: bool, **results: Any) -> dict[str, Any]:
    there = sorted(int(path.stem) for path in out.glob("*.png") if path.stem.isdigit())
    value = {**settings, "complete": complete, "count": len(there), "seeds": ranges(there), **results}
    write_json(out / ABOUT, value)
    return value


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers in short: "0-63,100"."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
