"""`open_data`: image data from a description, or from images in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from ..common.errors import InputError
from ..common.hashes import digest
from ..common.progress import progress_bar
from ..common.text import counted
from ..storage.checksums import read_sealed, write_sealed
from ..storage.locks import waiting_lock
from .archives import ARCHIVES, open_archives
from .arrays import NUMPY, array_source
from .containers import how_to_use
from .decode import DECODING
from .formats import ENDINGS
from .images import ImageData, MappedImages, MemoryImages, decode_all
from .memory import MEMORY, TensorSource, memory_source, memory_spec
from .patterns import matching_files
from .sources import DigitSource, FileSource, LmdbSource, Source
from .spec import DataSpec
from .splits import check_no_split, files_of_split
from .survey import survey
from .trees import FolderTree, files_under

__all__ = ["NoSuchData", "default_cache", "from_memory", "is_on_the_hub", "open_data", "open_source"]


class NoSuchData(InputError):
    """The path of a source does not exist."""


_HUB = {"cifar10": "uoft-cs/cifar10", "celeba": "flwrlabs/celeba"}


def open_data(
    spec: DataSpec,
    device: torch.device | str = "cpu",
    cache_dir: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
    *,
    images: Any = None,
) -> ImageData:
    """Open the images that `spec` describes.

    Data that fits (`spec.memory`) is decoded at once into one uint8 tensor on `device`; other data is decoded on
    demand. Both give the same images, bit for bit, under the same numbers. With `skip_bad`, data on demand is decoded
    once first to find the unusable images, whose list is kept in the cache. A hub dataset with `memory: stream` is
    streamed instead of downloaded (see `stream`).

    Args:
        spec: the source of the images and their preparation.
        device: the device of the batches.
        cache_dir: the folder for Arrow tables of parquet files, lists of unusable images and hub datasets; default:
            `$XDG_CACHE_HOME/quarterarc` (`~/.cache/quarterarc`), and for hub datasets the cache of `datasets`.
        progress: whether to show progress: a bar, or lines in a log file.
        seed: the seed of a stream's shuffling; other data does not use it.
        images: images in memory, in place of `spec.source`: a tensor or NumPy array uint8 (N, C, H, W), a list of PIL
            images, a pair (images, labels) of these with integers (N,), or a `datasets.Dataset`. A tensor of the
            shape that `spec` describes is used without a copy where it is on the device, and must not be changed.

    Raises:
        InputError: if there is no such source, or it cannot be used as described.
    """
    device = torch.device(device)
    cache = Path(cache_dir) if cache_dir is not None else None
    hub_id = _hub_id(spec.source)
    if images is None and hub_id is not None and spec.memory == "stream":
        from .stream import stream_dataset
        from .tables import open_hub

        dataset = open_hub(spec, hub_id, cache, streaming=True, progress=progress)
        return stream_dataset(spec, dataset, f"hub:{hub_id} {spec.split}", device, seed)
    if spec.stream_parts > 1:
        raise InputError(
            f"data.stream_parts={spec.stream_parts} divides a hub dataset that is streamed (hub:owner/name with "
            "data.memory=stream): leave it out for other images"
        )
    source = open_source(spec, cache, progress, images=images)
    size = source.count * spec.channels * spec.height * spec.width
    fits = spec.memory == "memory" or (spec.memory == "auto" and size <= spec.memory_limit_gb * 1e9)
    if isinstance(source, TensorSource) and source.images.shape[1:] == (spec.channels, spec.height, spec.width):
        with _memory_checked(source, source.images.shape, device):
            return MemoryImages(source, spec, source.images.to(device) if fits else source.images, {}, device)
    notes = survey(source, spec)
    if fits:
        return _load(source, spec, device, progress, notes)
    return _map(source, spec, device, cache or default_cache(), progress, notes)


def from_memory(images: Any, *, device: torch.device | str = "cpu", progress: bool = True, **fields: Any) -> ImageData:
    """Open images in memory at their own size and number of channels.

    Args:
        images: as for `open_data`: a tensor, an array, a list of PIL images, a pair (images, labels), or a
            `datasets.Dataset`.
        device: the device of the batches.
        progress: whether to show progress: a bar, or lines in a log file.
        fields: fields of `DataSpec`, to resize, crop, limit or convert the images.
    """
    return open_data(memory_spec(images, **fields), device, progress=progress, images=images)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/quarterarc`, or `~/.cache/quarterarc`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quarterarc"


def open_source(spec: DataSpec, cache_dir: Path | None = None, progress: bool = True, *, images: Any = None) -> Source:
    """The encoded images of `spec.source` (a name in the documentation of `DataSpec.source`, otherwise a path).

    Args:
        spec: the source, its split, columns and limit.
        cache_dir: see `open_data`.
        progress: whether to show progress: a bar, or lines in a log file.
        images: images in memory, in place of `spec.source`; see `open_data`.
    """
    if images is not None:
        return memory_source(images, spec)
    if spec.source == "digits":
        return DigitSource(spec)
    hub_id = _hub_id(spec.source)
    if hub_id is not None:
        from .tables import hub_source

        return hub_source(spec, hub_id, cache_dir, progress)
    path = _path_of(spec.source)
    cache = cache_dir or default_cache()
    if path.is_dir():
        return _folder_source(spec, path, cache, progress)
    if path.is_file():
        return _file_source(spec, path, cache, progress)
    if spec.source == MEMORY:
        raise InputError("the data was given as images in memory: give the same images again, as data or images")
    files = _files_of_pattern(spec.source, path)
    if files[0].suffix.lower() == ".parquet":
        return _parquet(spec, files, cache, progress)
    return FileSource(spec, open_archives(files, f"{len(files)} archives {spec.source}"))


def _files_of_pattern(source: str, path: Path) -> list[Path]:
    """The files that match a pattern, sorted, all of one kind: parquet, zip or tar."""
    files, kinds = [], (".parquet", *ARCHIVES)
    for file in matching_files(str(path)):
        if file.suffix.lower() not in kinds:
            instead = how_to_use(file)
            raise InputError(
                f"the pattern {source} also matches {file}; only *.parquet, *.zip or *.tar files can be given by a "
                "pattern" + (f"; {instead}" if instead else "")
            )
        kinds = (file.suffix.lower(),)
        files.append(file)
    if not files:
        raise NoSuchData(
            f"no such data: {source}; give digits, cifar10, celeba, hub:owner/name, a folder of images, "
            "a *.zip, *.tar, *.npy, *.npz or *.parquet file, a pattern, or an LMDB folder (data.source=PATH)"
        )
    return sorted(files)


def _file_source(spec: DataSpec, path: Path, cache: Path, progress: bool) -> Source:
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(spec, [path], cache, progress)
    if ending in ARCHIVES:
        return FileSource(spec, open_archives([path]))
    if ending in NUMPY:
        return array_source(spec, path)
    advice = how_to_use(path) or "give the folder it lies in"
    raise InputError(f"{path} is a file, but neither an archive, an array nor *.parquet; {advice}")


def _path_of(source: str) -> Path:
    """The path of a source; a name that begins with `~` is a file of that name if there is one."""
    path = Path(source)
    if not source.startswith("~") or path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user
        return path


def is_on_the_hub(source: str) -> bool:
    """Whether `DataSpec.source` names a dataset of the Hugging Face hub."""
    return _hub_id(source) is not None


def _hub_id(source: str) -> str | None:
    return source[4:] if source.startswith("hub:") else _HUB.get(source)


def _folder_source(spec: DataSpec, folder: Path, cache: Path, progress: bool) -> Source:
    if (folder / "data.mdb").exists():
        return LmdbSource(spec, folder)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        from .tables import saved_source

        return saved_source(spec, folder)
    tables = list(files_under(folder, (".parquet",)))
    if not tables:
        return _tree_source(spec, folder)
    image = next(files_under(folder, ENDINGS), None)
    if image is not None:
        raise InputError(
            f"{folder} holds both parquet files ({tables[0]}) and images ({image}); "
            "give the pattern of the parquet files, or the subfolder of the images"
        )
    files = files_of_split(folder, tables, spec.split)
    return _parquet(spec.model_copy(update={"split": "train"}), files, cache, progress, folder)


def _tree_source(spec: DataSpec, folder: Path) -> FileSource:
    """The images of a folder; where it has archives and no images, those in the archives: the shards of a data set."""
    tree = FolderTree(folder)
    kinds = [kind for kind in ARCHIVES if any(name.lower().endswith(kind) for name in tree.names)]
    if len(kinds) != 1 or any(name.lower().endswith(ENDINGS) for name in tree.names):
        return FileSource(spec, tree)
    shards = [name for name in tree.names if name.lower().endswith(kinds[0])]
    files = files_of_split(folder, shards, spec.split)
    archives = open_archives(files, f"folder {folder} of {counted(len(files), 'archive')}")
    return FileSource(spec.model_copy(update={"split": "train"}), archives)


def _parquet(spec: DataSpec, files: list[Path], cache: Path, progress: bool, folder: Path | None = None) -> Source:
    from .parquet import parquet_source

    what = f"parquet {folder or files[0]}" + (f" and {len(files) - 1} more" if not folder and len(files) > 1 else "")
    check_no_split(spec, what)
    return parquet_source(spec, files, what, cache, progress)


def _load(source: Source, spec: DataSpec, device: torch.device, progress: bool, notes: Sequence[str]) -> MemoryImages:
    shape = (source.count, spec.channels, spec.height, spec.width)
    with _memory_checked(source, shape, device):
        images = torch.empty(shape, dtype=torch.uint8)
        with progress_bar(source.count, "image", f"reading {source.what}", progress) as bar:
            bad = decode_all(source, spec, images.numpy(), bar.update)
        _check_some_left(source, bad)
        images = _compacted(images, bad).to(device)
    return MemoryImages(source, spec, images, bad, notes=notes)


@contextmanager
def _memory_checked(source: Source, shape: Sequence[int], device: torch.device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if "memory" not in str(error):
            raise
        raise InputError(
            f"{source.what} takes {np.prod(shape) / 1e9:.1f} GB as pixels, more than {device} has; "
            "read it on demand (memory: stream)"
        ) from error


def _compacted(images: torch.Tensor, bad: dict[int, str]) -> torch.Tensor:
    """Close the gaps in place: a second tensor might not fit."""
    if not bad:
        return images
    kept = np.delete(np.arange(len(images)), list(bad))
    for place, number in enumerate(kept):
        if place != number:
            images[place] = images[int(number)]
    return images[: len(kept)]


def _map(
    source: Source, spec: DataSpec, device: torch.device, cache: Path, progress: bool, notes: Sequence[str]
) -> MappedImages:
    bad = _find_bad(source, spec, cache, progress) if spec.skip_bad else {}
    _check_some_left(source, bad)
    return MappedImages(source, spec, device, bad, notes)


def _find_bad(source: Source, spec: DataSpec, cache: Path, progress: bool) -> dict[int, str]:
    """The unusable images, from the cache or by decoding all; concurrent processes wait for the first one."""
    # what decides whether an image is usable, beside the image itself
    limits = {"rules": DECODING, "pillow": PIL.__version__, **spec.model_dump(mode="json", include=_LIMITS)}
    note = cache / "checked" / f"{digest(source.identity, limits)}.json"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(note):
            known = _read_bad(note)
            if known is not None:
                return known
            with progress_bar(source.count, "image", f"checking {source.what}", progress) as bar:
                bad = decode_all(source, spec, None, bar.update)
            unusable = {str(number): reason for number, reason in bad.items()}
            about = {"source": source.what, "images": source.count, "limits": limits}
            write_sealed(note, {**about, "bad": unusable})
            return bad
    except OSError as error:
        raise InputError(f"cannot write {note}: {error.strerror}; choose another cache folder") from error


def _read_bad(note: Path) -> dict[int, str] | None:
    """The unusable images from the cache; None if there is no such file or it is damaged."""
    try:
        return {int(number): str(reason) for number, reason in read_sealed(note)["bad"].items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return None


_LIMITS = {"crop", "max_pixels", "pages", "range"}
"""Fields of `DataSpec` that decide whether an image is usable."""


def _check_some_left(source: Source, bad: dict[int, str]) -> None:
    if len(bad) == source.count:
        first = f"{source.name(min(bad))}: {bad[min(bad)]}"
        raise InputError(
            f"none of the {counted(source.count, 'image')} of {source.what} can be used; the first: {first}"
        )
