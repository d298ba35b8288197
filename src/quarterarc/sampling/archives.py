"""Samples in one npz in ADM's layout, for those who do not want a file per image.

| array     | content                                                                     |
|-----------|-----------------------------------------------------------------------------|
| `arr_0`   | the images in the order of the seeds, uint8 (N, H, W, C)                    |
| `arr_1`   | their labels, int64 (N,); missing without labels                            |
| `samples` | the record of a sample folder, samples.json, as text: the settings and more |

The file appears when it is complete. Until then OUT.partial holds one file per batch, from which the same command
continues after an interruption. Memory holds two or three batches, and the disk the images twice.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..common.devices import Processes, processes
from ..common.errors import InputError
from ..common.progress import progress_bar
from ..common.text import ranges
from ..data.pixels import levels
from ..denoiser import required_shape, traits
from ..storage.files import check_writable, make_folder, parse_json, read_json, write_json
from ..storage.locks import LOCK, locked
from ..storage.npz import Npz, Rows, write_npz
from ..storage.temporary import is_temporary, remove_folder, sweep, sweep_beside
from .arrivals import arriving, check_finite, wait_for
from .compiled import compiled
from .generation import batches, mean_evaluations
from .records import ABOUT, Job, changed_settings, names_of

__all__ = ["read_record", "write_archive"]

logger = logging.getLogger("quarterarc")

IMAGES, CLASSES, RECORD = "arr_0", "arr_1", "samples"
"""The arrays of a file."""


def write_archive(out: Path, job: Job) -> dict[str, Any] | None:
    """Sample to an npz; processes share the seeds.

    Args:
        out: the file.
        job: what to sample.

    Returns:
        The record; None in every process but the first.

    Raises:
        InputError: for a file or a folder OUT.partial with other images, or one that another process is filling.
        OSError: if the images cannot be written, for example to a full disk; those that could be are kept.
    """
    process, folder = processes(), out.with_name(f"{out.name}.partial")
    new = [parent for parent in folder.parents if not parent.exists()]
    complete = None
    with process.raising_together():
        if process.rank == 0:
            complete = _complete(out, job)
            sweep_beside(folder)
            if complete is None:
                check_writable(out)
                make_folder(folder)
            elif (folder / ABOUT).is_file():  # a process was killed before it removed it
                with suppress(OSError):
                    remove_folder(folder)
    if process.from_first(complete is not None):
        return complete
    with locked(folder, "writing samples") if process.rank == 0 else nullcontext():
        return _write(out, folder, new, job, process)


def read_record(stored: Npz) -> dict[str, Any] | None:
    """The record in an npz that `write_archive` wrote; None for another npz."""
    if RECORD not in stored.names:
        return None
    with stored.opened(RECORD) as (header, _):
        if header.dtype.kind != "U" or header.shape:
            return None
    try:
        record = parse_json(stored.read(RECORD).item())
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        return None
    return record if isinstance(record, dict) else None


def _complete(out: Path, job: Job) -> dict[str, Any] | None:
    """The record of a file that holds the images already; None without a file.

    Raises:
        InputError: if it holds something else, or is damaged.
    """
    if not out.exists():
        return None
    if not out.is_file():
        raise InputError(f"{out} is not a regular file: give another --out")
    stored = Npz(out)
    record = read_record(stored)
    if record is None:
        raise InputError(f"{out} exists, and was not written by `quarterarc sample`: give another --out")
    _check_same(f"{out}", record, job)
    with stored.opened(IMAGES) as (_, file):
        while file.read(2**20):  # to its end, where the checksum is compared
            pass
    logger.info("%s is complete", out)
    return record


def _check_same(what: str, record: Any, job: Job) -> None:
    """Raise an InputError unless a record is that of the images of a job."""
    if not job.plan.exact:
        raise InputError(
            f"{what} holds images, and the settings of the sampler {job.plan.name} cannot be compared with theirs: "
            "give another --out"
        )
    if not isinstance(record, dict):
        raise InputError(f"{what} does not hold the settings of its images: give another --out")
    changed = changed_settings(record, job.settings)
    if record.get("seeds") != ranges(job.seeds):
        changed = [*changed, "seeds"]
    if changed:
        raise InputError(f"{what} holds samples with other settings ({', '.join(changed)}): give another --out")


def _write(out: Path, folder: Path, new: Sequence[Path], job: Job, process: Processes) -> dict[str, Any] | None:
    """Sample to a folder that the first process has locked, then join its files; result as for `write_archive`."""
    missing: list[int] = []
    with process.raising_together():
        if process.rank == 0:
            missing = _prepare(folder, job)
    missing = process.from_first(missing)
    chunks = [missing[first : first + job.batch_size] for first in range(0, len(missing), job.batch_size)]
    chunks = chunks[process.rank :: process.count]
    places = [place for chunk in chunks for place in chunk]
    results = batches(
        compiled(job.plan, job.compile, len(places), job.batch_size),
        [job.seeds[place] for place in places],
        batch_size=job.batch_size,
        labels=None if job.labels is None else [job.labels[place] for place in places],
    )
    started = time.perf_counter()
    bar = progress_bar(len(places), "image", "sample", job.progress and process.rank == 0)
    undone = _removed_on_error(folder, new) if process.rank == 0 else nullcontext()
    with undone, bar, ThreadPoolExecutor(1) as writer:
        writing: list[Future[None]] = []
        for chunk, batch in zip(chunks, arriving(results, levels), strict=True):
            check_finite(batch.seeds, batch.finite)
            wait_for(writing)  # at most one batch waits for its file: memory stays bounded
            writing = [writer.submit(_write_part, folder, chunk, batch.images, batch.nfe)]
            bar.update(len(chunk))
        wait_for(writing)
    seconds = time.perf_counter() - started
    made = sum(process.gathered(len(places)))  # all files of the folder are complete
    if process.rank:
        return None
    record = _join(out, folder, job, {"images_per_second": round(made / seconds, 2)} if made else {})
    with suppress(OSError):
        remove_folder(folder)
    return record


# --- the folder of batches ---------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A file of one batch: the places of its images in the order of the seeds, and their NFE."""

    path: Path
    places: NDArray[np.int64]
    nfe: float

    def images(self) -> NDArray[np.uint8]:
        """The images, uint8 (B, H, W, C)."""
        return Npz(self.path).read("images")


def _write_part(folder: Path, places: Sequence[int], images: Tensor, nfe: float) -> None:
    arrays = {
        "places": np.array(places, np.int64),
        "images": images.permute(0, 2, 3, 1).contiguous().numpy(),
        "nfe": np.array(nfe, np.float64),
    }
    write_npz(folder / f"{places[0]:08d}.npz", arrays, durable=False)  # it has a checksum


def _prepare(folder: Path, job: Job) -> list[int]:
    """Record the settings, and return the places of the images that are missing.

    Raises:
        InputError: for a folder that holds something else.
    """
    sweep(folder, locked=True)
    names = {path.name for path in folder.iterdir() if not is_temporary(path)} - {LOCK}
    if names and ABOUT not in names:
        raise InputError(
            f"{folder} would hold the batches of an unfinished file, but holds something else: rename or remove it, or "
            "give another --out"
        )
    parts = [*folder.glob("*.npz")]
    if parts:
        _check_same(f"{folder}, of an interrupted command,", read_json(folder / ABOUT), job)
    write_json(folder / ABOUT, {**job.settings, "complete": False, "seeds": ranges(job.seeds)})
    channels, height, width = required_shape(job.plan.denoise)
    missing = np.ones(len(job.seeds), bool)
    for path in parts:
        places = _places_of_whole(path, job, (height, width, channels))
        if places is None:
            logger.warning("%s is damaged: its images are sampled again", path)
            path.unlink()
        else:
            missing[places] = False
    return np.flatnonzero(missing).tolist()


def _places_of_whole(path: Path, job: Job, shape: tuple[int, int, int]) -> NDArray[np.int64] | None:
    """The places of the images in a file of one batch; None for a damaged one."""
    try:
        part = _read_part(path)
        images = part.images()
    except InputError:
        return None
    fits = images.dtype == np.uint8 and images.shape == (len(part.places), *shape)
    inside = len(part.places) > 0 and part.places.min() >= 0 and part.places.max() < len(job.seeds)
    return part.places if fits and inside and math.isfinite(part.nfe) else None


def _read_part(path: Path) -> _Part:
    stored = Npz(path)
    if {*stored.names} != {"places", "images", "nfe"}:
        raise InputError(f"{path} is damaged: it holds {', '.join(stored.names)}")
    places, nfe = stored.read("places"), stored.read("nfe")
    if places.dtype != np.int64 or places.ndim != 1 or nfe.dtype != np.float64 or nfe.ndim:
        raise InputError(f"{path} is damaged: its numbers have another type")
    return _Part(path, places, float(nfe))


@contextmanager
def _removed_on_error(folder: Path, new: Sequence[Path]) -> Iterator[None]:
    """On an error before the first image, remove the folder, and its parents that are new."""
    try:
        yield
    except (InputError, OSError):
        if not any(folder.glob("*.npz")):
            with suppress(OSError):
                remove_folder(folder)
                for parent in new:
                    parent.rmdir()
        raise


# --- the file ----------------------------------------------------------------------------------------------------


def _join(out: Path, folder: Path, job: Job, results: dict[str, Any]) -> dict[str, Any]:
    """Join the files of a folder to the npz; returns its record."""
    parts, count, declared = [*map(_read_part, sorted(folder.glob("*.npz")))], len(job.seeds), traits(job.plan.denoise)
    part_of, row_of = np.full(count, -1), np.zeros(count, int)
    for number, part in enumerate(parts):
        part_of[part.places], row_of[part.places] = number, np.arange(len(part.places))
    if (part_of < 0).any():
        raise InputError(f"batches in {folder} were removed meanwhile: run the same command again")
    record = {
        **job.settings,
        "complete": True,
        "count": count,
        "seeds": ranges(job.seeds),
        "nfe": mean_evaluations([(part.nfe, len(part.places)) for part in parts]),
        "device": str(declared.device or "cpu"),
        **results,
        **names_of(job.labels or (), declared.class_names),
    }

    def images() -> Iterator[NDArray[np.uint8]]:
        """The images in the order of the seeds, as many at a time as lie in one file."""
        loaded, pixels = -1, np.zeros(0, np.uint8)
        for places in np.split(np.arange(count), np.flatnonzero(np.diff(part_of)) + 1):
            number = int(part_of[places[0]])
            if number != loaded:
                loaded, pixels = number, parts[number].images()
            yield pixels[row_of[places]]

    channels, height, width = required_shape(job.plan.denoise)
    arrays: dict[str, NDArray[Any] | Rows] = {
        IMAGES: Rows((count, height, width, channels), np.dtype(np.uint8), images())
    }
    if job.labels is not None:
        arrays[CLASSES] = np.array(job.labels, np.int64)
    write_npz(out, {**arrays, RECORD: np.array(json.dumps(record))})
    return record
