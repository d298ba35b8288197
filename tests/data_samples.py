"""Photographs, and files and tables of them, for the tests of the data package."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


@cache
def photographs() -> tuple[Array, Array]:
    """scikit-learn's china.jpg and flower.jpg: uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return china, flower


def patch(number: int, height: int = 32, width: int = 32) -> Array:
    """A patch of a photograph, a different one per number: uint8 (height, width, 3)."""
    photo = photographs()[number % 2]
    top, left = (37 * number) % (427 - height), (53 * number) % (640 - width)
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def encode(image: Array | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def write_folder(folder: Path, count: int = 10, height: int = 32, width: int = 32) -> list[Array]:
    """Write patches as `00.png`, `01.png`, ...; returns their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [patch(number, height, width) for number in range(count)]
    for number, image in enumerate(images):
        (folder / f"{number:02}.png").write_bytes(encode(image))
    return images


def table(cells: list[Any], labels: list[Any] | None = None, image: str = "image", label: str = "label") -> Any:
    """An Arrow table in the format of the hub: a struct of bytes and path, and labels."""
    import pyarrow as arrow

    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    rows = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    columns = {image: arrow.array(rows, kind)}
    if labels is not None:
        columns[label] = arrow.array(labels)
    return arrow.table(columns)


def write_parquet(path: Path, count: int = 10, first: int = 0, row_group_size: int = 4) -> list[Array]:
    """Write patches in small row groups, with labels 0, 1, 2, 0, ...; returns their pixels."""
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [patch(number) for number in range(first, first + count)]
    content = table([encode(image) for image in images], [number % 3 for number in range(count)])
    parquet.write_table(content, path, row_group_size=row_group_size)
    return images


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> None:
    """Write an LMDB folder in LSUN's format, without its lock file."""
    import lmdb

    environment = lmdb.open(str(folder), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    (folder / "lock.mdb").unlink()


def png(samples: Array, color_type: int, clear: bytes = b"") -> bytes:
    """A 16-bit PNG of uint16 (H, W) or (H, W, C), written byte by byte; `clear` is the content of its tRNS chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
        + (chunk(b"tRNS", clear) if clear else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(
    strip: bytes, height: int, width: int, bits: int, photometric: int = 1, order: str = "<", sample_format: int = 1
) -> bytes:
    """An uncompressed gray TIFF of one strip, written byte by byte, in either byte order ('<' or '>')."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(strip), 339: sample_format}
    padded = strip + b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8 + len(padded))
        + padded
        + struct.pack(order + "H", len(tags))
        + entries
        + struct.pack(order + "I", 0)
    )
