"""Hostile files: damaged variants of every format that quarterarc reads, and hand-made bombs.

`hostile_file(random, folder)` writes one into an empty folder, chosen and damaged at random: for a generator with the
same state, the same file. Nothing here is slow or large on disk: a sparse file of many gigabytes takes no blocks, and
what takes time to build is built once per process.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

Use = Literal["source", "reference", "recipe", "image"]
Random = np.random.Generator


class Hostile(NamedTuple):
    """A hostile file or folder."""

    kind: str
    """Format and damage: `png: zeroed`, `parquet bomb: null rows`."""
    path: Path
    use: Use
    """`source`: `path` is a `data.source`; `reference`: for `--reference` of `evaluate`, or its images; `recipe`: for
    `train`; `image`: a file whose folder (`path.parent`) is a `data.source`."""


def hostile_file(random: Random, folder: Path, only: str = "") -> Hostile:
    """Write one random hostile file into an empty folder.

    Args:
        random: chooses the kind and the damage.
        folder: an empty folder.
        only: one of `KINDS`; any if empty. 7 in 10 are damaged files, the others bombs.
    """
    kind = only or str(random.choice(KINDS))
    if kind in bombs() and (kind not in DAMAGED or random.random() < 0.3):
        names = sorted(bombs()[kind])
        name = names[int(random.integers(len(names)))]
        path, use = bombs()[kind][name](folder)
        return Hostile(f"{kind} bomb: {name}", path, use)
    name, path, use = DAMAGED[kind](random, folder)
    return Hostile(f"{kind}: {name}", path, use)


# --- damage ------------------------------------------------------------------------------------------------------


def damage(random: Random, data: bytes, block: int = 64) -> tuple[str, bytes]:
    """Damage bytes in one or more random ways; returns the name of the last one, and the bytes."""
    name = "unchanged"
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        name = str(random.choice(tuple(_WAYS)))
        data = _WAYS[name](random, data, block)
    return name, data


def _flipped(random: Random, data: bytes, _: int) -> bytes:
    changed = bytearray(data)
    for place in random.integers(0, max(len(data), 1), int(random.choice([1, 1, 4, 20]))):
        if changed:
            changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _early(random: Random, data: bytes, _: int) -> bytes:
    """Bytes of the beginning, where most headers are, replaced."""
    changed = bytearray(data)
    for place in random.integers(0, max(min(len(data), 128), 1), int(random.choice([1, 2, 8]))):
        if changed:
            changed[place] = int(random.choice([0, 1, 127, 128, 255, int(random.integers(256))]))
    return bytes(changed)


def _late(random: Random, data: bytes, block: int) -> bytes:
    """Bytes of the end, where archives and parquet files have their directory, replaced."""
    return _early(random, data[::-1], block)[::-1]


def _number(random: Random, data: bytes, _: int) -> bytes:
    """An integer at a random place replaced by an extreme one."""
    value, size = int(random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 2**24])), int(random.choice([2, 4, 8]))
    place = int(random.integers(0, max(len(data), 1)))
    order: Literal["little", "big"] = "little" if random.random() < 0.5 else "big"
    return data[:place] + (value % 256**size).to_bytes(size, order) + data[place + size :]


def _truncated(random: Random, data: bytes, _: int) -> bytes:
    return data[: int(random.integers(0, max(len(data), 1)))]


def _blocks(random: Random, data: bytes, block: int) -> tuple[int, int]:
    count = max(len(data) // block, 1)
    return int(random.integers(count)) * block, int(random.choice([1, 1, 2, 8])) * block


def _zeroed(random: Random, data: bytes, block: int) -> bytes:
    place, size = _blocks(random, data, block)
    return data[:place] + bytes(len(data[place : place + size])) + data[place + size :]


def _ones(random: Random, data: bytes, block: int) -> bytes:
    place, size = _blocks(random, data, block)
    return data[:place] + b"\xff" * len(data[place : place + size]) + data[place + size :]


def _duplicated(random: Random, data: bytes, block: int) -> bytes:
    place, size = _blocks(random, data, block)
    return data[: place + size] + data[place : place + size] + data[place + size :]


def _copied(random: Random, data: bytes, block: int) -> bytes:
    """A block written over another one, so that the length stays."""
    (source, size), (place, _) = _blocks(random, data, block), _blocks(random, data, block)
    part = data[source : source + size][: len(data) - place]
    return data[:place] + part + data[place + len(part) :]


def _removed(random: Random, data: bytes, block: int) -> bytes:
    place, size = _blocks(random, data, block)
    return data[:place] + data[place + size :]


def _noise(random: Random, data: bytes, block: int) -> bytes:
    place, size = _blocks(random, data, block)
    part = data[place : place + size]
    return data[:place] + random.bytes(len(part)) + data[place + size :]


_MAGICS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"GIF89a",
    b"PAR1",
    b"PK\x03\x04",
    b"\x93NUMPY\x01\0",
    b"ARROW1\0\0",
    b"%!PS-Adobe",
    b"\0asm",
    b"\x1f\x8b\x08",
)


def _magic(random: Random, data: bytes, _: int) -> bytes:
    """The first bytes of another format."""
    magic = _MAGICS[int(random.integers(len(_MAGICS)))]
    return magic + data[len(magic) :]


def _appended(random: Random, data: bytes, _: int) -> bytes:
    return data + random.bytes(int(random.choice([1, 16, 4096])))


_WAYS: dict[str, Callable[[Random, bytes, int], bytes]] = {
    "flipped": _flipped,
    "early": _early,
    "late": _late,
    "number": _number,
    "truncated": _truncated,
    "zeroed": _zeroed,
    "ones": _ones,
    "duplicated": _duplicated,
    "copied": _copied,
    "removed": _removed,
    "noise": _noise,
    "magic": _magic,
    "appended": _appended,
}


# --- sound files, which are damaged ------------------------------------------------------------------------------


def _pixels(number: int = 0, size: int = 24, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth image, a different one per number: uint8 (size, size, channels)."""
    y, x = np.mgrid[:size, :size]
    planes = [127.5 + 127.0 * np.sin(x / (3.0 + number) + y / (5.0 + plane) + number) for plane in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


@cache
def sound_images() -> dict[str, list[tuple[str, bytes]]]:
    """Sound images by format, as pairs of ending and bytes: several variants of each."""

    def saved(form: str, image: Image.Image, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    rgb, rgba = Image.fromarray(_pixels()), Image.fromarray(_pixels(1, channels=4), "RGBA")
    gray, deep = rgb.convert("L"), Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 257)
    palette, other = rgb.quantize(16), Image.fromarray(_pixels(2))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    more = {"save_all": True, "append_images": [other, rgb]}
    tiffs = [rgb, gray, deep, palette, rgba]
    return {
        "png": [(".png", saved("PNG", image)) for image in (rgb, rgba, gray, deep, palette)]
        + [(".png", saved("PNG", rgb, exif=exif)), (".png", saved("PNG", rgb, **more))],
        "jpg": [
            (".jpg", saved("JPEG", rgb, exif=exif)),
            (".jpeg", saved("JPEG", rgb, progressive=True, quality=95)),
            (".jpg", saved("JPEG", gray, restart_marker_blocks=2)),
            (".jpg", saved("JPEG", rgb.convert("CMYK"))),
        ],
        "webp": [
            (".webp", saved("WEBP", rgb)),
            (".webp", saved("WEBP", rgba, lossless=True, exif=exif)),
            (".webp", saved("WEBP", rgb, **more)),
        ],
        "bmp": [(".bmp", saved("BMP", image)) for image in (rgb, gray, palette, rgba)],
        "tiff": [(".tif", saved("TIFF", image)) for image in tiffs]
        + [(".tiff", saved("TIFF", rgb, compression=c)) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
        + [(".tif", saved("TIFF", gray.convert("1"), compression="group4")), (".tif", saved("TIFF", rgb, **more))],
        "gif": [(".png", saved("GIF", palette)), (".jpg", saved("GIF", rgb, **more))],
    }


def _damaged_image(form: str) -> Callable[[Random, Path], tuple[str, Path, Use]]:
    def write(random: Random, folder: Path) -> tuple[str, Path, Use]:
        variants = sound_images()[form]
        ending, data = variants[int(random.integers(len(variants)))]
        name, data = damage(random, data, int(random.choice([8, 64, 512])))
        path = folder / f"a{ending}"
        path.write_bytes(data)
        return name, path, "image"

    return write


@cache
def sound_parquets() -> list[bytes]:
    """Sound parquet files of images and labels, with several compressions and encodings."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    png = [data for _, data in sound_images()["png"]]
    rows = [{"bytes": png[number % len(png)], "path": f"{number}.png"} for number in range(12)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = arrow.table({"image": arrow.array(rows, kind), "label": [number % 2 for number in range(12)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    flat = arrow.table({"image": arrow.array([row["bytes"] for row in rows])})
    files = []
    for content, options in (
        (table, {"row_group_size": 4}),
        (table, {"compression": "zstd", "use_dictionary": False, "data_page_size": 500}),
        (table, {"compression": "gzip", "data_page_version": "2.0", "write_page_checksum": True}),
        (table, {"compression": "none"}),
        (flat, {"compression": "snappy"}),
    ):
        file = io.BytesIO()
        parquet.write_table(content, file, **options)
        files.append(file.getvalue())
    return files


def _damaged_parquet(random: Random, folder: Path) -> tuple[str, Path, Use]:
    files = sound_parquets()
    data = files[int(random.integers(len(files)))]
    if random.random() < 0.4:  # the footer: the thrift of schema, row groups and columns
        size = int.from_bytes(data[-8:-4], "little") + 8
        name, footer = damage(random, data[-size:-8], 16)
        data = data[:-size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        name = f"footer {name}"
    else:
        name, data = damage(random, data)
    (folder / "a.parquet").write_bytes(data)
    return name, folder / "a.parquet", "source"


@cache
def sound_lmdb() -> bytes:
    """The data.mdb of an LMDB with branch pages, leaves, overflow pages and free pages."""
    import lmdb

    images = sound_images()
    large = [data for _, data in images["bmp"]] + [data + bytes(9000) for _, data in images["png"]]
    with tempfile.TemporaryDirectory() as folder:
        environment = lmdb.open(folder, map_size=1 << 24)
        for step in range(3):
            with environment.begin(write=True) as transaction:
                for number in range(120):
                    value = large[number % len(large)] if number % 10 == 0 else images["png"][number % 5][1]
                    transaction.put(b"%08d" % number + b"k" * (8 * (number % 40)), value)
                if step:
                    transaction.delete(b"%08d" % step + b"k" * (8 * step))
        environment.close()
        return (Path(folder) / "data.mdb").read_bytes()


_PAGE = 4096  # bytes of a page of an LMDB


def _damaged_lmdb(random: Random, folder: Path) -> tuple[str, Path, Use]:
    data = sound_lmdb()
    if random.random() < 0.6:  # one page: its header, its node pointers or its nodes
        page = int(random.integers(len(data) // _PAGE)) * _PAGE
        size = int(random.choice([16, 64, _PAGE]))
        name, part = damage(random, data[page : page + size], 16)
        data = data[:page] + part[:size].ljust(size, b"\0") + data[page + size :]
        name = f"page {name}"
    else:
        name, data = damage(random, data, _PAGE)
    (folder / "data.mdb").write_bytes(data)
    return name, folder, "source"


@cache
def sound_npzs() -> list[bytes]:
    """Sound npz files of images and of statistics, stored and compressed."""
    images = np.stack([_pixels(number) for number in range(6)])
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 8))
    statistics = {"mu": rows.mean(0), "sigma": np.cov(rows.T), "about": np.array(json.dumps({"count": 64}))}
    files = []
    for save, arrays in (
        (np.savez, {"arr_0": images}),
        (np.savez_compressed, {"arr_0": images}),
        (np.savez_compressed, {"arr_0": images, **statistics}),
        (np.savez, statistics),
        (np.savez, {"arr_0": images, "samples": np.array(json.dumps({"sampler": "ddim", "complete": True}))}),
    ):
        file = io.BytesIO()
        save(file, **arrays)
        files.append(file.getvalue())
    return files


def _damaged_npz(random: Random, folder: Path) -> tuple[str, Path, Use]:
    files = sound_npzs()
    name, data = damage(random, files[int(random.integers(len(files)))], int(random.choice([8, 64, 512])))
    (folder / "a.npz").write_bytes(data)
    return name, folder / "a.npz", "reference"


@cache
def sound_saved() -> dict[str, bytes]:
    """The files of a folder that `datasets`' `save_to_disk` writes, by name."""
    import datasets
    import pyarrow as arrow

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    rows = [{"bytes": data, "path": None} for _, data in sound_images()["png"]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = arrow.table({"image": arrow.array(rows, kind), "label": [number % 2 for number in range(len(rows))]})
    with tempfile.TemporaryDirectory() as folder:
        datasets.disable_progress_bars()
        datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(folder)
        datasets.enable_progress_bars()
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _damaged_saved(random: Random, folder: Path) -> tuple[str, Path, Use]:
    files = dict(sound_saved())
    victim = sorted(files)[int(random.integers(len(files)))]
    if victim.endswith(".json") and random.random() < 0.6:
        name, files[victim] = "value", json.dumps(_changed(random, json.loads(files[victim]))).encode()
    else:
        name, files[victim] = damage(random, files[victim])
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return f"{victim.rpartition('.')[2]} {name}", folder, "source"


_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 10**30, float("nan"), [], {}, ["a"], [[[]]], {"name": "x"}, "", "x", "nan"),
    *("\x1b[31mred", "../x", "/etc/passwd", "\0", "a\nb\r\tc", "\u202eabc", "a" * 100_000),
)


def _changed(random: Random, value: Any) -> Any:
    """A JSON value in which one part, at a random depth, is replaced by a value of another type."""
    if random.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return _VALUES[int(random.integers(len(_VALUES)))]
    if isinstance(value, list):
        place = int(random.integers(len(value)))
        return [*value[:place], _changed(random, value[place]), *value[place + 1 :]]
    key = list(value)[int(random.integers(len(value)))]
    return {**value, key: _changed(random, value[key])}


RECIPE: dict[str, Any] = {
    "name": "a",
    "data": {"source": "digits", "size": 8, "channels": 1, "labels": False},
    "network": {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1},
    "training": {"steps": 2, "batch": 4},
    "optimizer": {"learning_rate": 1e-3},
}


def _damaged_recipe(random: Random, folder: Path) -> tuple[str, Path, Use]:
    text = json.dumps(RECIPE, indent=1).encode()
    if random.random() < 0.5:
        name, data = "value", json.dumps(_changed(random, RECIPE)).encode()
    else:
        name, data = damage(random, text, 8)
    (folder / "a.yaml").write_bytes(data)
    return name, folder / "a.yaml", "recipe"


DAMAGED: dict[str, Callable[[Random, Path], tuple[str, Path, Use]]] = {
    **{form: _damaged_image(form) for form in ("png", "jpg", "webp", "bmp", "tiff", "gif")},
    "parquet": _damaged_parquet,
    "lmdb": _damaged_lmdb,
    "npz": _damaged_npz,
    "saved": _damaged_saved,
    "recipe": _damaged_recipe,
}


# --- bombs: small files that stand for much memory or time -------------------------------------------------------


def deflated_zeros(size: int) -> bytes:
    """A zlib stream of `size` zeros, a multiple of 2**20, made without compressing them all: 1 kB per 2**20."""
    first = zlib.compressobj(9)
    block = first.compress(bytes(2**20)) + first.flush(zlib.Z_FULL_FLUSH)
    header, block = block[:2], block[2:]
    checksum = struct.pack(">I", (size % 65521) << 16 | 1)  # Adler-32 of zeros
    return header + block * (size >> 20) + b"\x03\0" + checksum


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, lines: bytes, *before: bytes, bits: int = 8, after: bytes = b"") -> bytes:
    """A gray PNG with these compressed lines, other chunks before and after them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", lines) + after + chunk(b"IEND", b"")


_LINES = zlib.compress(bytes(9 * 8))  # of an image of 8x8 gray pixels


@cache
def _png_bombs() -> dict[str, bytes]:
    text, small = deflated_zeros(2**28), (8, 8, _LINES)
    profile = b"icc\0\0" + text
    return {
        "claimed size": png(50_000, 50_000, _LINES, bits=16),
        "largest size": png(2**31 - 1, 2**31 - 1, _LINES),
        "real size": png(16_383, 2**16, deflated_zeros(2**30)),
        "zTXt": png(*small, chunk(b"zTXt", b"Comment\0\0" + text)),
        "many zTXt": png(*small, *[chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(2**20))] * 200),
        "iTXt": png(*small, chunk(b"iTXt", b"Comment\0\1\0\0\0" + text)),
        "zTXt after the pixels": png(*small, after=chunk(b"zTXt", b"Comment\0\0" + text)),
        "iCCP": png(*small, chunk(b"iCCP", profile)),
        "exif of many tags": png(*small, chunk(b"eXIf", tiff_of_shared_tags(4000, 2**18))),
        "many empty chunks": png(*small, chunk(b"tEXt", b"a\0b") * 200_000),
        "many empty IDAT": png(*small, *[chunk(b"IDAT", b"")] * 200_000),
        "data after the end": png(*small) + bytes(2**22),
        "many frames": png(
            *small,
            chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
            after=b"".join(chunk(b"fcTL", struct.pack(">IIIIIHHBB", n, 8, 8, 0, 0, 1, 1, 0, 0)) for n in range(50_000)),
        ),
    }


def tiff_of_shared_tags(count: int, size: int) -> bytes:
    """A small gray TIFF with `count` more tags, which all have the same `size` bytes as their value."""
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (4, 1, 8), 259: (4, 1, 1), 262: (4, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (4, 1, 1), 278: (4, 1, 8), 279: (4, 1, 64)}
    tags |= {40_000 + number: (7, size, 8) for number in range(min(count, 25_000))}
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    data = bytes(max(size, 64))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def _tiff(tags: dict[int, tuple[int, int, int]], data: bytes = bytes(64), following: int = 0) -> bytes:
    """A TIFF of one directory, little-endian; the data begin at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    return (b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries) + struct.pack(
        "<I", following
    )


@cache
def _tiff_bombs() -> dict[str, bytes]:
    def gray(width: int = 8, height: int = 8, **more: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
        tags = {256: (4, 1, width), 257: (4, 1, height), 258: (4, 1, 8), 259: (4, 1, 1), 262: (4, 1, 1), 273: (4, 1, 8)}
        tags |= {277: (4, 1, 1), 278: (4, 1, height), 279: (4, 1, 64)}
        return tags | {int(name[1:]): value for name, value in more.items()}

    directories = 300_000
    chain = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 8)
    pages = b"".join(chain + struct.pack("<I", 8 + 18 * (number + 1)) for number in range(directories))
    zeros = deflated_zeros(2**29)
    return {
        "claimed size": _tiff(gray(60_000, 60_000)),
        "shared tags": tiff_of_shared_tags(20_000, 2**20),
        "a tag of 4 GB": _tiff(gray(t305=(2, 2**32 - 1, 8))),
        "many strips": _tiff(gray(8, 8, t273=(4, 2**28, 8), t279=(4, 2**28, 8), t278=(4, 1, 1))),
        "strips of one row": _tiff(gray(8, 2**20, t273=(4, 2**18, 8), t278=(4, 1, 1)), bytes(2**20)),
        "a loop of pages": _tiff(gray(), following=72),
        "many pages": b"II*\0" + struct.pack("<I", 8) + pages + bytes(20),
        "huge tiles": _tiff(gray(t322=(4, 1, 2**20), t323=(4, 1, 2**20), t324=(4, 1, 8), t325=(4, 1, 64))),
        "deflate": _tiff(gray(8192, 8192, t259=(4, 1, 8), t279=(4, 1, len(zeros))), zeros),
        "deflate beyond its size": _tiff(gray(8, 8, t259=(4, 1, 8), t279=(4, 1, len(zeros))), zeros),
        "samples per pixel": _tiff(gray(t277=(4, 1, 65_535))),
    }


def jpeg_of_scans(size: int, scans: int, empty: bool = True) -> bytes:
    """A progressive gray JPEG of size x size pixels with many scans, all of them empty or like the first one."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    frame, scan = whole.index(b"\xff\xc2"), whole.index(b"\xff\xda")
    whole = whole[: frame + 5] + struct.pack(">HH", size, size) + whole[frame + 9 :]
    length = 2 + int.from_bytes(whole[scan + 2 : scan + 4], "big")
    part = whole[scan : scan + length] if empty else whole[scan : whole.index(b"\xff", scan + length)]
    return whole[:scan] + part * scans + b"\xff\xd9"


@cache
def _jpg_bombs() -> dict[str, bytes]:
    sound = sound_images()["jpg"][0][1]
    segment = b"\xff\xe1\xff\xff" + b"Exif\0\0" + tiff_of_shared_tags(4000, 2**10)[:65_500].ljust(65_527, b"\0")
    return {
        "scans": jpeg_of_scans(4096, 2000),
        "many scans": jpeg_of_scans(8000, 100_000),
        "claimed size": jpeg_of_scans(65_500, 1),
        "small scans": jpeg_of_scans(16, 200_000, empty=False),
        "metadata": sound[:2] + (b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + bytes(65_519)) * 300 + sound[2:],
        "exif": sound[:2] + segment * 60 + sound[2:],
        "comments": sound[:2] + b"\xff\xfe\0\3a" * 300_000 + sound[2:],
        "fill bytes": sound[:2] + b"\xff" * 2**22 + sound[2:],
    }


@cache
def image_bombs() -> dict[str, dict[str, bytes]]:
    """Images by format and name."""

    def riff(*chunks: tuple[bytes, bytes]) -> bytes:
        content = b"WEBP" + b"".join(k + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for k, c in chunks)
        return b"RIFF" + struct.pack("<I", len(content)) + content

    sound = sound_images()["webp"][0][1]
    frame = sound[12:]
    largest = struct.pack("<I", 0x10)[:4] + (16_382).to_bytes(3, "little") * 2
    animated = struct.pack("<I", 0x02)[:4] + (16_382).to_bytes(3, "little") * 2
    piece = bytes(6) + (23).to_bytes(3, "little") * 2 + bytes(4) + frame
    wide = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    rle = struct.pack("<IiiHHIIiiII", 40, 8_000, 8_000, 1, 8, 1, 2 * 2**19, 0, 0, 256, 0) + bytes(1024)
    return {
        "png": _png_bombs(),
        "jpg": _jpg_bombs(),
        "tiff": _tiff_bombs(),
        "webp": {
            "claimed size": riff((b"VP8X", largest), (b"VP8 ", frame[8:])),
            "lossless of the largest size": riff((b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + bytes(64))),
            "many frames": riff((b"VP8X", animated), (b"ANIM", bytes(6)), *[(b"ANMF", piece)] * 2000),
            "exif": riff((b"VP8X", struct.pack("<I", 8) + (23).to_bytes(3, "little") * 2), (b"VP8 ", frame[8:]))
            + bytes(8),
        },
        "bmp": {
            "claimed size": b"BM" + struct.pack("<IHHI", 2**31, 0, 0, 54) + wide,
            "run lengths": b"BM" + struct.pack("<IHHI", 2**21, 0, 0, 1078) + rle + b"\xff\0" * 2**19,
            "negative size": b"BM" + struct.pack("<IHHIIii", 54, 0, 0, 54, 40, -8, -(2**31)) + bytes(28),
        },
    }


@cache
def parquet_bomb(name: str) -> bytes:
    """A parquet bomb of `PARQUET_BOMBS`."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    file = io.BytesIO()
    if name == "null rows":
        table = arrow.table({"image": arrow.nulls(2_000_000, kind)})
        with parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
            for _ in range(15):
                writer.write_table(table, row_group_size=2_000_000)
    elif name == "repeated image":
        cell = arrow.scalar({"bytes": sound_images()["bmp"][0][1] * 100, "path": None}, kind)
        indices = arrow.array(np.zeros(8_000, np.int32))
        rows = arrow.array([cell.as_py()], kind).take(indices)
        parquet.write_table(arrow.table({"image": rows}), file, compression="zstd")
    elif name == "a cell of zeros":
        parquet.write_table(
            arrow.table({"image": arrow.array([bytes(2**28)], arrow.binary())}),
            file, compression="zstd", use_dictionary=False, write_statistics=False,
        )  # fmt: skip
    elif name == "many cells of zeros":
        parquet.write_table(
            arrow.table({"image": arrow.array([bytes(2**22)] * 60, arrow.binary())}),
            file, compression="zstd", use_dictionary=False, write_statistics=False,
        )  # fmt: skip
    elif name == "many columns":
        png = sound_images()["png"][0][1]
        parquet.write_table(arrow.table({f"c{number}": [png] for number in range(5_000)}), file)
    elif name == "many row groups":
        table = arrow.table({"image": arrow.array([sound_images()["png"][0][1]] * 3_000)})
        parquet.write_table(table, file, row_group_size=1)
    elif name == "nested lists":
        deep = arrow.binary()
        for _ in range(200):
            deep = arrow.list_(deep)
        parquet.write_table(arrow.table({"image": arrow.nulls(10, deep)}), file)
    elif name == "long lists":
        offsets = arrow.array(np.array([0, 50_000_000], np.int32))
        values = arrow.array(np.zeros(50_000_000, np.uint8))
        parquet.write_table(arrow.table({"image": arrow.ListArray.from_arrays(offsets, values)}), file)
    elif name == "long names":
        table = arrow.table({"\x1b[31m" + "n" * 1_000_000: arrow.array([b"x"]), "image" * 100_000: [1]})
        parquet.write_table(table, file)
    else:  # a footer with far more metadata than data
        table = arrow.table({"image": [b"x"]}).replace_schema_metadata({"huggingface": "[" * 500_000})
        parquet.write_table(table, file)
    return file.getvalue()


PARQUET_BOMBS = (
    "null rows", "repeated image", "a cell of zeros", "many cells of zeros", "many columns", "many row groups",
    "nested lists", "long lists", "long names", "metadata",
)  # fmt: skip


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """The header of a .npy file."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


class Entry(NamedTuple):
    """An entry of a zip archive: `data` as they are stored, which may contradict the other fields."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    size: int | None = None


def zip_of(*entries: Entry) -> bytes:
    """A zip archive written byte by byte."""
    body, directory = io.BytesIO(), io.BytesIO()
    for name, data, method, flags, size in entries:
        claimed = len(data) if size is None else size
        sizes = (zlib.crc32(data), len(data), claimed, len(name), 0)
        fields = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 0x21, *sizes)
        directory.write(b"PK\x01\x02\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, body.tell()) + name.encode())
        body.write(b"PK\x03\x04" + fields + name.encode() + data)
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), directory.tell(), body.tell(), 0)
    return body.getvalue() + directory.getvalue() + b"PK\x05\x06" + end


@cache
def npz_bomb(name: str) -> bytes:
    """An npz bomb of `NPZ_BOMBS`."""
    raw = deflated_zeros(2**30)[2:-4]  # deflate without the header and checksum of zlib
    image = npy_header((1, 8, 8, 3)) + bytes(192)
    claims = npy_header((10**12, 1, 1, 1)) + bytes(9)
    mean = npy_header((2**14,), "<f8") + bytes(2**17)

    def zeros(header: bytes) -> Entry:
        """`header` in a block without compression, and 2**30 zeros."""
        stored = b"\0" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF) + header
        return Entry("arr_0.npy", stored + raw, 8, 0, len(header) + 2**30)

    archives: dict[str, tuple[Entry, ...]] = {
        "claimed items": (Entry("arr_0.npy", claims),),
        "claimed size": (Entry("arr_0.npy", claims, size=2**32 - 1),),
        "claimed statistics": (
            Entry("mu.npy", npy_header((2**40,), "<f8")),
            Entry("sigma.npy", npy_header((2**20, 2**20), "<f8")),
        ),
        "encrypted": (Entry("arr_0.npy", image, flags=1),),
        "unknown compression": (Entry("arr_0.npy", image, 99),),
        "path": (Entry("../../arr_0.npy", image), Entry("arr_0.npy", image)),
        "many entries": tuple(Entry(f"{number}.npy", b"") for number in range(5_000)),
        "twice": (Entry("arr_0.npy", image),) * 2,
        "zeros": (zeros(npy_header((2**18, 64, 64, 1))),),
        "zeros as statistics": (
            Entry("mu.npy", mean),
            zeros(npy_header((2**14, 2**13), "<f8"))._replace(name="sigma.npy"),
        ),
    }
    if name in archives:
        return zip_of(*archives[name])
    file = io.BytesIO()
    if name == "pickle":
        np.savez(file, arr_0=np.array([{"a": 1}], dtype=object))
    elif name == "pickled statistics":
        np.savez(file, mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(2))
    elif name == "long text":
        np.savez_compressed(file, mu=np.zeros(2), sigma=np.eye(2), about=np.array("x" * 30_000_000))
    else:  # bzip2, whose ratio is far above that of deflate
        with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("arr_0.npy", npy_header((2**12, 64, 64, 3)) + bytes(2**24 * 3))
    return file.getvalue()


NPZ_BOMBS = (
    "claimed items", "claimed size", "claimed statistics", "encrypted", "unknown compression", "path", "many entries",
    "twice", "zeros", "zeros as statistics", "pickle", "pickled statistics", "long text", "bzip2",
)  # fmt: skip


@cache
def recipe_bombs() -> dict[str, bytes]:
    """Recipes that stand for much memory or time, or would run code if they were not only data."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    aliases = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(letters))
    return {
        "aliases": aliases.encode(),
        "merge keys": b"data: &a {source: digits}\ntraining: {<<: *a}\n",
        "deep lists": b"data: " + b"[" * 60_000,
        "deep mappings": b"data: " + b"{a: " * 15_000,
        "deep blocks": b"\n".join(b" " * depth + b"a:" for depth in range(350)),
        "python": b"data: !!python/object/apply:os.system ['touch hacked']\n",
        "python name": b"name: !!python/name:os.system\n",
        "long text": b"name: " + b"x" * 20_000_000,
        "long key": b"x" * 60_000 + b": 1\n",
        "long number": b"training: {steps: " + b"9" * 60_000 + b"}\n",
        "sexagesimal": b"training: {steps: " + b"1" + b":59" * 20_000 + b"}\n",
        "many keys": b"".join(b"k%d: 1\n" % number for number in range(3_000)),
        "control characters": b'"\\x1b]0;title\\x07\\x1b[2J": 1\ndata: "\\x1b[31mred\\r"\n',
        "binary": b"training: {steps: !!binary " + b"QUFB" * 15_000 + b"}\n",
        "nul": b"data: digits\0\n",
        "utf-16": "data: digits\n".encode("utf-16"),
        "latin-1": b"data: \xe9t\xe9\n",
        "escaped surrogate": b'data: "\\ud800"\n',
        "code as a network": b"data: digits\nnetwork: {name: 'os:system', arguments: {command: 'touch hacked'}}\n",
        "a source of the kernel": b"data: {source: /proc/self/mem, size: 8}\n",
        "folders of the kernel": b"data: {source: /proc/self/task, size: 8}\n",
        "a device as source": b"data: {source: /dev/zero, size: 8}\n",
        "an address as source": b"data: {source: 'http://127.0.0.1:9/a.png', size: 8}\n",
    }


Writer = Callable[[Path], tuple[Path, Use]]


def _writer(name: str, use: Use, content: Callable[[], bytes]) -> Writer:
    """Writes one file with this name and content."""

    def write(folder: Path) -> tuple[Path, Use]:
        (folder / name).write_bytes(content())
        return (folder if name in _FOLDERS else folder / name), use

    return write


def _saved_writer(file: str, change: Callable[[dict[str, Any]], Any]) -> Writer:
    def write(folder: Path) -> tuple[Path, Use]:
        for name, data in sound_saved().items():
            content = json.dumps(change(json.loads(data))).encode() if name == file else data
            (folder / name).write_bytes(content)
        return folder, "source"

    return write


SPECIAL = ("FIFO", "device", "sparse", "folder", "broken link", "loop", "empty")


def special(path: Path, name: str) -> None:
    """Make a file that is not a regular one (`SPECIAL`), or one of 100 GB that takes no blocks."""
    if name == "FIFO":
        os.mkfifo(path)
    elif name == "device":
        path.symlink_to("/dev/zero")
    elif name == "sparse":
        path.touch()
        os.truncate(path, 100 * 2**30)
    elif name == "folder":
        path.mkdir()
    elif name == "empty":
        path.touch()
    else:
        path.symlink_to("gone" if name == "broken link" else path.name)


def _special_writer(file: str, name: str, use: Use) -> Writer:
    def write(folder: Path) -> tuple[Path, Use]:
        special(folder / file, name)
        return (folder if file in _FOLDERS else folder / file), use

    return write


_FOLDERS = ("data.mdb", "state.json", "dataset_dict.json", "dataset.json", "samples.json")
_USES: dict[str, Use] = {
    **dict.fromkeys(("a.png", "a.tif"), "image"),
    **dict.fromkeys(("a.npz", "a.safetensors", "samples.json"), "reference"),
    "a.yaml": "recipe",
}
_LMDBS: dict[str, Callable[[bytes], bytes]] = {
    "loop": lambda data: data[: 2 * _PAGE] + data[2 * _PAGE : 3 * _PAGE] * (len(data) // _PAGE - 2),
    "meta pages only": lambda data: data[: 2 * _PAGE],
    "cut to whole pages": lambda data: data[: len(data) // 2 // _PAGE * _PAGE],
    "zeros after the meta pages": lambda data: data[: 2 * _PAGE] + bytes(len(data) - 2 * _PAGE),
    "map size": lambda data: data[:24] + b"\xff" * 8 + data[32:],
}
_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a file elsewhere": lambda state: {**state, "_data_files": [{"filename": "../../etc/passwd"}]},
    "an address": lambda state: {**state, "_data_files": [{"filename": "http://127.0.0.1:9/a.arrow"}]},
    "the same file often": lambda state: {**state, "_data_files": state["_data_files"] * 20_000},
    "a long fingerprint": lambda state: {**state, "_fingerprint": "../" * 100_000},
    "a format with code": lambda state: {**state, "_format_type": "os.system", "_format_kwargs": {"a": "touch hacked"}},
}


@cache
def bombs() -> dict[str, dict[str, Writer]]:
    """The writers of all bombs by kind and name."""

    def of(file: str, use: Use, content: Callable[[str], bytes], names: Iterable[str]) -> dict[str, Writer]:
        return {name: _writer(file, use, partial(content, name)) for name in names}

    written = {
        form: of(f"a.{'tif' if form == 'tiff' else form}", "image", files.__getitem__, files)
        for form, files in image_bombs().items()
    }
    return written | {
        "parquet": of("a.parquet", "source", parquet_bomb, PARQUET_BOMBS),
        "npz": of("a.npz", "reference", npz_bomb, NPZ_BOMBS),
        "recipe": of("a.yaml", "recipe", recipe_bombs().__getitem__, recipe_bombs()),
        "lmdb": of("data.mdb", "source", lambda name: _LMDBS[name](sound_lmdb()), _LMDBS),
        "saved": {name: _saved_writer("state.json", change) for name, change in _STATES.items()},
        "special": {
            f"{name} as {file}": _special_writer(file, name, _USES.get(file, "source"))
            for name in SPECIAL
            for file in ("a.parquet", *_USES, *_FOLDERS)
        },
    }


KINDS = (*DAMAGED, "special")


def clear(folder: Path) -> None:
    """Remove the content of a folder, so that another hostile file can be written into it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
