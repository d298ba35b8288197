"""Sample folders: one PNG per seed, a contact sheet, and samples.json with the settings of the sampling.

Image files appear under their names only when complete, so an interrupted folder continues where it stopped. Before
samples.json calls a folder complete, its images are on the disk; those that a power failure or a copy has damaged are
sampled again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.compiling import Compile
from ..common.devices import Processes, processes
from ..common.errors import InputError
from ..common.limits import check_batch_size
from ..common.progress import progress_bar
from ..common.text import counted, ranges
from ..data.pixels import levels
from ..denoiser import Denoise, required_shape, traits
from ..storage.files import flush, make_folder, read_json, write_json
from ..storage.locks import LOCK, locked
from ..storage.pictures import columns_of, contact_sheet, is_whole_png, read_png, write_png
from ..storage.temporary import is_temporary, sweep
from .archives import write_archive
from .arrivals import arriving, check_finite, wait_for
from .compiled import compiled
from .generation import batches, count_evaluations, mean_evaluations
from .plans import Plan, Sampling, labels_in_turn, note_missing_labels, numbered_labels
from .records import ABOUT, LABELS, Job, changed_settings, names_of
from .sheets import rows_of
from .trajectories import IN_SHEET

__all__ = ["SHEETS", "is_sample", "write_plan", "write_samples"]

logger = logging.getLogger("quarterarc")

SHEET = "contact-sheet.png"
SHEETS = (SHEET, "grid.png")
"""File names of the contact sheet, which is no sample; the second one is of version 0.1."""


def write_samples(
    denoise: Denoise,
    out: Path,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 64,
    labels: Sequence[int | str] | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
    compile: Compile = "auto",
) -> dict[str, Any] | None:
    """Sample to a folder or an npz in bounded memory, skipping the seeds that are there; processes share the seeds.

    Images of a folder that are incomplete, damaged or of another size are sampled again. Other files stay; the log
    names them.

    Args:
        denoise: a denoiser that declares the shape of its images.
        out: the folder; it may hold images of the same settings. A name that ends in .npz is a file in ADM's layout
            (`archives`), which may exist only if it holds the same images.
        seeds: one per image; the PNG of seed 7 is 000007.png.
        sampling: the request; the defaults if None.
        batch_size: images per batch.
        labels: classes by number or name, used in turn over `seeds`: the image of seeds[k] has the label
            labels[k % len(labels)], which the record keeps. An image that the folder has already must have the same.
        about: further settings to record, such as the checkpoint's hash.
        progress: whether to show progress: a bar, or lines in a log file.
        compile: true, false, or `auto` to compile the network on a GPU for many images, which takes a minute or two.

    Returns:
        The record: the contents of samples.json. None in every process but the first.

    Raises:
        InputError: for settings that `sample` does not accept, a folder or file with other images, settings or labels,
            or one that another process is filling.
        OSError: if an image cannot be written, for example to a full disk.
    """
    plan = (sampling or Sampling()).plan(denoise)
    return write_plan(
        plan, out, seeds, batch_size=batch_size, labels=labels, about=about, progress=progress, compile=compile
    )


def write_plan(
    plan: Plan,
    out: Path,
    seeds: Sequence[int],
    *,
    batch_size: int = 64,
    labels: Sequence[int | str] | None = None,
    about: Mapping[str, Any] | None = None,
    beside: Mapping[str, Tensor] | None = None,
    progress: bool = True,
    compile: Compile = "auto",
) -> dict[str, Any] | None:
    """Sample by a plan as `write_samples` does.

    Args:
        plan: how the images are sampled.
        out, seeds, batch_size, labels, about, progress, compile: as for `write_samples`.
        beside: as for `Job`; for a folder.
    """
    check_batch_size(batch_size)
    numbers = numbered_labels(plan.denoise, labels)
    if not len(seeds):
        raise InputError("no seeds were given: give one per image")
    if processes().rank == 0:
        note_missing_labels(plan.denoise, labels)
    settings = {**(about or {}), **plan.describe(), "labels": numbers}
    job = Job(plan, seeds, labels_in_turn(numbers, len(seeds)), settings, batch_size, progress, compile, beside or {})
    if out.suffix.lower() == ".npz" and not out.is_dir():
        return write_archive(out, job)
    process = processes()
    existed = out.exists()
    make_folder(out)
    with locked(out, "writing samples") if process.rank == 0 else nullcontext():
        return _write(out, job, process, existed)


def _write(out: Path, job: Job, process: Processes, existed: bool) -> dict[str, Any] | None:
    """Sample to a folder that the first process has locked; result as for `write_samples`."""
    plan, seeds, settings = job.plan, job.seeds, job.settings
    if process.rank == 0:
        sweep(out, locked=True)
    if not plan.exact and _seeds_in(out):
        raise InputError(
            f"{out} holds images, and the settings of the sampler {plan.name} cannot be compared with theirs: give "
            "another --out"
        )
    nfe, classes = _check_same(out, settings)
    label_of = dict(zip(seeds, job.labels or (), strict=job.labels is not None))
    _check_same_labels(out, classes, label_of)
    classes |= label_of
    whole = process.from_first(set() if process.rank else _whole(out, seeds, required_shape(plan.denoise), job.beside))
    process.wait()  # no process writes before every process has checked
    if process.rank == 0:
        _describe(out, settings, whole, complete=False, classes=classes, **({} if nfe is None else {"nfe": nfe}))
    mine = [seed for seed in seeds[process.rank :: process.count] if seed not in whole]
    results = batches(
        compiled(plan, job.compile, len(mine), job.batch_size),
        mine,
        batch_size=job.batch_size,
        labels=None if job.labels is None else [label_of[seed] for seed in mine],
    )
    started = time.perf_counter()
    evaluated: list[tuple[float, int]] = []
    bar = progress_bar(len(mine), "image", "sample", job.progress and process.rank == 0)
    undone = _removed_on_error(out, existed) if process.rank == 0 else nullcontext()
    with undone, bar, ThreadPoolExecutor(4) as writers:
        writing: list[Future[None]] = []
        written: list[Path] = []
        for batch in arriving(results, levels):
            evaluated.append((batch.nfe, len(batch.seeds)))
            check_finite(batch.seeds, batch.finite)
            # a batch is written while the next one is computed, and before a third one is: memory stays bounded
            wait_for(writing)
            paths = [out / _name(seed) for seed in batch.seeds]
            writing = [writers.submit(write_png, path, image) for path, image in zip(paths, batch.images, strict=True)]
            # the batch before is on the disk by now, or nearly so, and flushing it costs little
            writing += [writers.submit(flush, path) for path in written]
            written = paths
            bar.update(len(batch.seeds))
        wait_for(writing)
        list(writers.map(flush, written))
    seconds = time.perf_counter() - started
    evaluated = [batch for parts in process.gathered(evaluated) for batch in parts]
    if process.rank:
        return None
    if evaluated:
        nfe = mean_evaluations(evaluated)
    elif nfe is None:  # the process that sampled them was killed before it recorded this
        nfe = count_evaluations(plan, seeds[0], label_of.get(seeds[0]))
    declared = traits(plan.denoise)
    for name, pixels in job.beside.items():
        write_png(out / name, pixels)
        flush(out / name)
    _write_sheet(out, seeds, job.labels, declared.class_names, [*job.beside.values()])
    flush(out)  # the names of the images
    speed = {"images_per_second": round(len(mine) * process.count / seconds, 2)} if mine else {}
    device, named = str(declared.device or "cpu"), names_of(classes.values(), declared.class_names)
    return _describe(
        out, settings, whole | {*seeds}, complete=True, classes=classes, nfe=nfe, device=device, **speed, **named
    )


def _write_sheet(
    out: Path, seeds: Sequence[int], labels: Sequence[int] | None, names: Sequence[str], beside: Sequence[Tensor]
) -> None:
    """Write the contact sheet of the first images; with labels the first ones of each class, one row per class.

    Pictures beside the images are the first row of a sheet without classes.
    """
    rows: list[list[int]] | None = None
    shown: list[str] = []
    if beside:
        count, first = min(len(seeds), IN_SHEET), len(beside)
        columns = columns_of(count)
        rows = [list(range(first))]
        rows += [list(range(first + at, first + min(at + columns, count))) for at in range(0, count, columns)]
    elif labels is not None:
        rows, shown = rows_of(labels, IN_SHEET, names)
        places = [place for row in rows for place in row]
        seeds = [seeds[place] for place in places]
        numbers = iter(range(len(places)))
        rows = [[next(numbers) for _ in row] for row in rows]
    pixels = torch.stack([*beside, *(read_png(out / _name(seed)) for seed in seeds[:IN_SHEET])])
    write_png(out / SHEET, contact_sheet(pixels, rows=rows, names=shown))
    flush(out / SHEET)


@contextmanager
def _removed_on_error(out: Path, existed: bool) -> Iterator[None]:
    """On an InputError before the first image, remove samples.json, and the folder if it is new."""
    try:
        yield
    except InputError:
        if not _seeds_in(out):
            (out / ABOUT).unlink(missing_ok=True)
            if not existed:
                (out / LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    out.rmdir()
        raise


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _check_same(out: Path, settings: Mapping[str, Any]) -> tuple[float | None, dict[int, int]]:
    """The NFE of the images in a folder, None without images, and the label of each image by seed.

    Raises:
        InputError: if the images have other settings or an unknown origin.
    """
    if (out / ABOUT).is_file() and _seeds_in(out):
        before = read_json(out / ABOUT)
        if not isinstance(before, dict):
            raise InputError(f"{out / ABOUT} does not hold the settings of its images: give another --out")
        changed = changed_settings(before, settings)
        if changed:
            raise InputError(f"{out} holds samples with other settings ({', '.join(changed)}): give another --out")
        nfe = before.get("nfe")
        if isinstance(nfe, bool) or not isinstance(nfe, int | float | None) or not 0 <= (nfe or 0) < math.inf:
            raise InputError(f'{out / ABOUT} is damaged: its "nfe" is {nfe!r}: give another --out')
        return nfe, _recorded_labels(out, before)
    if _seeds_in(out):
        raise InputError(f"{out} holds images but no {ABOUT}: give an empty folder as --out")
    return None, {}


def _recorded_labels(out: Path, about: Mapping[str, Any]) -> dict[int, int]:
    """The labels of the images in a folder by seed."""
    labels, recorded = about.get("labels"), about.get(LABELS)
    if not labels:
        return {}
    seeds = _seeds_in(out)
    try:
        if recorded is None:  # until version 0.2 the label of a seed was labels[seed % len(labels)]
            return {seed: labels[seed % len(labels)] for seed in seeds}
        return {seed: int(recorded[str(seed)]) for seed in seeds}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{out / ABOUT} does not hold the labels of its images: give another --out") from None


def _check_same_labels(out: Path, before: Mapping[int, int], label_of: Mapping[int, int]) -> None:
    """Raise an InputError if an image in a folder has another label than the one of this request."""
    seed = next((seed for seed in before if label_of.get(seed, before[seed]) != before[seed]), None)
    if seed is not None:
        raise InputError(
            f"{out} holds the image of seed {seed} with the label {before[seed]}, not {label_of[seed]} as by these "
            "--seeds and --labels: repeat the request that made it, or give another --out"
        )


def _seeds_in(out: Path) -> list[int]:
    """The seeds of the images in a folder, ascending."""
    return sorted(int(path.stem) for path in out.glob("*.png") if is_sample(path.name))


def is_sample(name: str) -> bool:
    """Whether a file has the name of a sample, 000007.png."""
    stem = name.removesuffix(".png")
    return stem.isdecimal() and stem.isascii() and name == _name(int(stem))


def _whole(out: Path, seeds: Sequence[int], shape: Sequence[int], beside: Iterable[str]) -> set[int]:
    """The seeds of the images in a folder that are complete; the log names the other ones, and other files."""
    present = _seeds_in(out)
    with ThreadPoolExecutor(4) as readers:
        good = readers.map(lambda seed: is_whole_png(out / _name(seed), shape), present)
        whole = {seed for seed, complete in zip(present, good, strict=True) if complete}
    for bad, then in (
        (sorted({*present} & {*seeds} - whole), "sampled again"),
        (sorted({*present} - {*seeds} - whole), f"left out of {ABOUT}: sample these seeds again"),
    ):
        if bad:
            number = counted(len(bad), "image")
            logger.warning("%s: %s damaged or of another size (seeds %s), %s", out, number, ranges(bad), then)
    own = {ABOUT, LOCK, *SHEETS, *beside}
    other = sorted(p.name for p in out.iterdir() if not (p.name in own or is_sample(p.name) or is_temporary(p)))
    if other:
        names = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        logger.warning("%s also holds %s, which stay: %s", out, counted(len(other), "other file"), names)
    return whole


def _describe(
    out: Path, settings: Mapping[str, Any], made: Set[int], complete: bool, classes: Mapping[int, int], **results: Any
) -> dict[str, Any]:
    seeds = sorted(made)
    value = {**settings, "complete": complete, "count": len(seeds), "seeds": ranges(seeds), **results}
    if classes:  # before the first image also the labels of the images to come, in case this process is killed
        value[LABELS] = {str(seed): classes[seed] for seed in (seeds if complete else sorted(classes))}
    write_json(out / ABOUT, value)
    return value
