"""`open_data`: from what a recipe says to images that can be had by number."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..common.errors import InputError
from .decode import ENDINGS
from .images import ImageData, MappedImages, MemoryImages, decode_all
from .sources import DigitSource, FolderSource, LmdbSource, Source, digest, files_under
from .spec import DataSpec

__all__ = ["default_cache", "open_data", "open_source"]

_HUB = {"cifar10": "uoft-cs/cifar10", "celeba": "flwrlabs/celeba"}


def open_data(
    spec: DataSpec,
    device: torch.device | str = "cpu",
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> ImageData:
    """Open the images that `spec` describes.

    What fits (`spec.memory`) is decoded at once into one uint8 tensor on `device`. The rest is read when asked for, by
    number all the same; under `skip_bad` all of it is decoded once first, to find out which images there are, and the
    answer is kept in the cache. Both give the same images, bit for bit, under the same numbers. A hub dataset with
    `memory: stream` is not downloaded but streamed (see `stream`).

    Args:
        spec: what to read, and how.
        device: where batches are wanted.
        cache_dir: for copies of parquet files, for lists of bad images, and for downloads from the hub; by default
            `$XDG_CACHE_HOME/quarterarc` (`~/.cache/quarterarc`), and for downloads the cache of `datasets`.
        progress: whether to show a progress bar; None for one on a terminal and none in a pipe.
        seed: of the shuffling of a stream; other data do not use it.

    Raises:
        InputError: if there is no such source, or it cannot be used as stated: the line says what to do.
    """
    device = torch.device(device)
    cache = Path(cache_dir) if cache_dir is not None else None
    hub_id = _hub_id(spec.source)
    if hub_id is not None and spec.memory == "stream":
        from .stream import stream_dataset
        from .tables import open_hub

        dataset = open_hub(spec, hub_id, cache, streaming=True)
        return stream_dataset(spec, dataset, f"hub:{hub_id} {spec.split}", device, seed)
    source = open_source(spec, cache)
    size = source.count * spec.channels * spec.height * spec.width
    if spec.memory == "memory" or (spec.memory == "auto" and size <= spec.memory_limit_gb * 1e9):
        return _load(source, spec, device, progress)
    return _map(source, spec, device, cache or default_cache(), progress)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/quarterarc`, or `~/.cache/quarterarc`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quarterarc"


def open_source(spec: DataSpec, cache_dir: Path | None = None) -> Source:
    """The source that `spec.source` names: a name of `DataSpec.source`, else a path."""
    if spec.source == "digits":
        return DigitSource(spec)
    hub_id = _hub_id(spec.source)
    if hub_id is not None:
        from .tables import hub_source

        return hub_source(spec, hub_id, cache_dir)
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return _folder_source(spec, path)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise InputError(f"{path} is a file, but neither a folder nor *.parquet; give the folder it lies in")
        return _parquet(spec, [path])
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not found:
        raise InputError(
            f"no such data: {spec.source}; give digits, cifar10, celeba, hub:owner/name, a folder of images, "
            "a *.parquet file or pattern, or an LMDB folder"
        )
    wrong = next((match for match in found if match.suffix.lower() != ".parquet"), None)
    if wrong is not None:
        raise InputError(
            f"the pattern {spec.source} also matches {wrong}; only *.parquet files can be given by a pattern"
        )
    return _parquet(spec, found)


def _hub_id(source: str) -> str | None:
    return source[4:] if source.startswith("hub:") else _HUB.get(source)


def _folder_source(spec: DataSpec, folder: Path) -> Source:
    if (folder / "data.mdb").exists():
        return LmdbSource(spec, folder)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        from .tables import saved_source

        return saved_source(spec, folder)
    tables = list(files_under(folder, (".parquet",)))
    if not tables:
        return FolderSource(spec, folder)
    image = next(files_under(folder, ENDINGS), None)
    if image is not None:
        raise InputError(
            f"{folder} holds both parquet files ({tables[0]}) and images ({image}); "
            "give the pattern of the parquet files, or the subfolder of the images"
        )
    from .tables import parquet_files

    return _parquet(spec.model_copy(update={"split": "train"}), parquet_files(folder, tables, spec.split), folder)


def _parquet(spec: DataSpec, files: list[Path], folder: Path | None = None) -> Source:
    from .sources import check_no_split
    from .tables import parquet_source

    what = f"parquet {folder or files[0]}" + (f" and {len(files) - 1} more" if not folder and len(files) > 1 else "")
    check_no_split(spec, what)
    return parquet_source(spec, files, what)


def _load(source: Source, spec: DataSpec, device: torch.device, progress: bool | None) -> MemoryImages:
    shape = (source.count, spec.channels, spec.height, spec.width)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
        with _bar(source, "reading", progress) as advance:
            bad = decode_all(source, spec, images.numpy(), advance)
        _check_some_left(source, bad)
        images = _compacted(images, bad).to(device)
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if "memory" not in str(error):
            raise
        raise InputError(
            f"{source.what} takes {np.prod(shape) / 1e9:.1f} GB as pixels, more than {device} has; "
            "read it on demand (memory: stream)"
        ) from error
    return MemoryImages(source, spec, images, bad)


def _compacted(images: torch.Tensor, bad: dict[int, str]) -> torch.Tensor:
    """Close the gaps in place: a second tensor might not fit."""
    if not bad:
        return images
    kept = np.delete(np.arange(len(images)), list(bad))
    for place, number in enumerate(kept):
        if place != number:
            images[place] = images[int(number)]
    return images[: len(kept)]


def _map(source: Source, spec: DataSpec, device: torch.device, cache: Path, progress: bool | None) -> MappedImages:
    source.prepare(cache)
    bad = _find_bad(source, spec, cache, progress) if spec.skip_bad else {}
    _check_some_left(source, bad)
    return MappedImages(source, spec, device, bad)


def _find_bad(source: Source, spec: DataSpec, cache: Path, progress: bool | None) -> dict[int, str]:
    """Decode everything once, or remember that it has been done; of several processes one does it."""
    from filelock import FileLock

    note = cache / "checked" / f"{digest(source.identity, spec.crop)}.json"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):
            if note.exists():
                return {int(number): reason for number, reason in json.loads(note.read_text()).items()}
            with _bar(source, "checking", progress) as advance:
                bad = decode_all(source, spec, None, advance)
            beside = note.with_suffix(".part")
            beside.write_text(json.dumps(bad))
            os.replace(beside, note)
            return bad
    except OSError as error:
        raise InputError(f"cannot write {note}: {error.strerror}; choose another cache folder") from error


def _check_some_left(source: Source, bad: dict[int, str]) -> None:
    if len(bad) == source.count:
        raise InputError(
            f"none of the {source.count:,} images of {source.what} can be used; the first: {bad[min(bad)]}"
        )


@contextmanager
def _bar(source: Source, verb: str, progress: bool | None) -> Iterator[Callable[[int], object]]:
    disable = None if progress is None else not progress
    with tqdm(total=source.count, desc=f"{verb} {source.what}", unit=" images", disable=disable) as bar:
        yield bar.update
