"""Files that are more than one picture of at most four channels, of more than 8 bits, or of other colours than sRGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_samples import encode, patch, png, tiff
from quarterarc.common.errors import InputError
from quarterarc.data import open_data
from quarterarc.data.decode import BadImage, read_pixels
from quarterarc.data.profiles import to_srgb
from quarterarc.data.spec import DataSpec


def read(encoded: bytes | Image.Image, **fields: Any) -> np.ndarray:
    return read_pixels(encoded, DataSpec(**{"source": "test", "size": 32, **fields}), "the image")


def reason(encoded: bytes, **fields: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read(encoded, **fields)
    return caught.value.reason


def write(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


# --- pages and frames --------------------------------------------------------------------------------------------


def pages(form: str, count: int, **options: Any) -> bytes:
    more = [Image.fromarray(patch(number)) for number in range(1, count)]
    return encode(patch(0), form, save_all=True, append_images=more, **options)


@pytest.mark.parametrize("count", [2, 25, 120])
def test_a_tiff_of_several_pages_is_an_error_that_counts_them(count: int) -> None:
    number = count if count < 100 else "over 99"
    assert reason(pages("TIFF", count)).startswith(f"it has {number} pages, of which only one would be used")
    assert "data.pages=first" in reason(pages("TIFF", count))
    assert (read(pages("TIFF", count), pages="first") == patch(0)).all()


def test_a_smaller_copy_beside_the_picture_is_not_a_page() -> None:
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [(254, 1), (256, 1), (257, 1), (258, 8),
                    (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)])  # fmt: skip
    first = tiff(patch(0)[..., 0].tobytes(), 32, 32, 8)
    second = struct.pack("<H", 10) + tags + struct.pack("<I", 0)
    both = first[:-4] + struct.pack("<I", len(first)) + second
    assert getattr(Image.open(io.BytesIO(both)), "n_frames", 1) == 2
    assert (read(both, channels=1)[..., 0] == patch(0)[..., 0]).all()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_the_first_frame_of_an_animation_is_used_and_mentioned(tmp_path: Path, form: str) -> None:
    moving = pages(form, 3)
    exact = read(Image.open(io.BytesIO(moving)).convert("RGB"))
    assert (read(moving) == exact).all()
    assert (read(moving, pages="first") == exact).all()
    assert "frames, of which only one would be used" in reason(moving, pages="one")
    assert read(encode(patch(0), form), pages="one").shape == (32, 32, 3)
    source = write(tmp_path / "set", {f"0.{form.lower()}": moving, "1.png": encode(patch(1))})
    for memory in ("memory", "stream"):
        spec = DataSpec.model_validate({"source": source, "size": 32, "memory": memory})
        (note,) = open_data(spec).notes
        assert note.startswith("1 of 2 images looked at are animations, of which the first frame is used")


# --- channels ----------------------------------------------------------------------------------------------------


def channels_tiff(samples: int, photometric: int, extra: tuple[int, ...] = (), planes: bool = False) -> bytes:
    """A TIFF of 2x2 pixels with any number of 8-bit channels."""
    size = 2 * 2 * samples
    many = {258: [8] * samples, 338: list(extra)}
    tags = {256: 2, 257: 2, 259: 1, 262: photometric, 273: 8, 277: samples, 278: 2, 279: size, 284: 2 if planes else 1}
    if planes:
        many |= {273: [8 + 4 * plane for plane in range(samples)], 279: [4] * samples}
        tags = {tag: value for tag, value in tags.items() if tag not in many}
    data, tail, entries = bytes(range(size)), b"", []
    place = 8 + size + size % 2
    start = place + 2 + 12 * (len(tags) + sum(1 for values in many.values() if values)) + 4
    for tag, values in sorted({**{tag: [value] for tag, value in tags.items()}, **many}.items()):
        if not values:
            continue
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) <= 4:
            entries.append(struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0"))
        else:
            entries.append(struct.pack("<HHII", tag, 3, len(values), start + len(tail)))
            tail += packed
    header = b"II*\0" + struct.pack("<I", place) + data + b"\0" * (size % 2)
    return header + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0) + tail


@pytest.mark.parametrize(
    ("samples", "photometric", "extra", "planes"),
    [
        (2, 1, (0,), False),
        (4, 2, (0,), False),
        (5, 2, (0, 0), False),
        (5, 2, (2, 0), False),
        (6, 2, (0, 0, 0), False),
        (5, 1, (0,) * 4, True),
        (8, 1, (0,) * 7, False),
        (8, 1, (0,) * 7, True),
    ],
)
def test_further_channels_are_an_error(samples: int, photometric: int, extra: tuple[int, ...], planes: bool) -> None:
    what = reason(channels_tiff(samples, photometric, extra, planes), size=2)
    assert what.startswith(f"it has {samples} channels, of which only gray or RGB, with or without alpha, can be read")


@pytest.mark.parametrize(
    ("samples", "photometric", "extra"), [(1, 1, ()), (3, 2, ()), (4, 2, (2,)), (4, 2, ()), (4, 5, ())]
)
def test_channels_that_are_known_are_read(samples: int, photometric: int, extra: tuple[int, ...]) -> None:
    assert read(channels_tiff(samples, photometric, extra), size=2).shape == (2, 2, 3)


# --- more than 8 bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "bits"), [*((form, bits) for form in ("PNG", "TIFF") for bits in (8, 10, 12, 14)), ("colour", 12)]
)
def test_16_bit_images_that_are_all_nearly_black_are_an_error(tmp_path: Path, bits: int, form: str) -> None:
    white = 2**bits - 1
    values = np.linspace(0, white, 32 * 32).round().reshape(32, 32).astype(np.uint16)
    data = png(np.stack([values] * 3, -1), 2) if form == "colour" else encode(values, form)
    source = write(tmp_path / "set", {"a.png": data, "b.png": encode(patch(0))})
    for memory in ("memory", "stream"):
        spec = DataSpec.model_validate({"source": source, "size": 32, "channels": 1, "memory": memory})
        with pytest.raises(InputError, match=rf"nearly black: set data.range=0,{white} if they have {bits} bits"):
            open_data(spec)
    dark = open_data(spec.model_copy(update={"range": (0, 65535)}))
    assert dark.batch([0]).images.max() == round(white / 257) or form == "colour"
    scaled = spec.model_copy(update={"range": (0, white), "memory": "memory"})
    if form == "colour":
        with pytest.raises(BadImage, match=r"data\.range applies to gray images, and it has 16-bit colour"):
            open_data(scaled)
    else:
        expected = np.round(values * (255 / white))
        assert np.abs(open_data(scaled).batch([0]).images[0, 0].numpy() - expected).max() == 0


def test_dark_images_beside_bright_ones_are_no_error(tmp_path: Path) -> None:
    dark = encode(np.full((32, 32), 900, np.uint16))
    bright = encode(np.full((32, 32), 40000, np.uint16))
    black = encode(np.zeros((32, 32), np.uint16))
    assert open_data(DataSpec(source=write(tmp_path / "a", {"0.png": dark, "1.png": bright}), size=8)).count == 2
    assert open_data(DataSpec(source=write(tmp_path / "b", {"0.png": black}), size=8)).count == 1


@pytest.mark.parametrize(
    ("dtype", "sample_format", "limits", "values"),
    [
        ("<i2", 2, (-1000, 1000), [-2000, -1000, 0, 1000]),
        ("<i4", 2, (-1000, 1000), [-2000, -1000, 0, 1000]),
        ("<f4", 3, (0, 1), [-0.5, 0.0, 0.5, 1.0]),
        ("<f4", 3, (0, 255), [-3.0, 0.0, 127.5, 300.0]),
        ("<u2", 1, (0, 4095), [0, 0, 2048, 65535]),
    ],
)
def test_a_named_range_becomes_0_to_255(dtype: str, sample_format: int, limits: Any, values: list[float]) -> None:
    array = np.array(values, dtype).reshape(2, 2)
    data = tiff(array.tobytes(), 2, 2, 8 * array.itemsize, sample_format=sample_format)
    assert read(data, size=2, channels=1, range=limits).ravel().tolist() == [0, 0, 128, 255]
    if sample_format == 2:  # Pillow has no signed values whose white is the lowest
        return
    inverted = tiff(array.tobytes(), 2, 2, 8 * array.itemsize, photometric=0, sample_format=sample_format)
    assert np.abs(read(inverted, size=2, channels=1, range=limits).ravel() - [255, 255, 127.5, 0]).max() <= 0.5


def test_a_range_is_two_ascending_numbers_and_leaves_8_bits_alone() -> None:
    assert (read(encode(patch(0)), range=(0, 1)) == patch(0)).all()
    for limits in ((1, 1), (2, 1), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(InputError, match="data: range: expected two finite numbers, the first below the second"):
            DataSpec(source="x", size=8, range=limits)
    nan = tiff(np.full((2, 2), np.nan, "<f4").tobytes(), 2, 2, 32, sample_format=3)
    assert reason(nan, size=2, range=(0, 1)) == "it has pixels that are NaN"


def test_pgm_is_scaled_by_its_own_white() -> None:
    values = np.array([[0, 1000], [2048, 4095]])
    data = b"P5 2 2 4095\n" + values.astype(">u2").tobytes()
    assert (read(data, size=2, channels=1)[..., 0] == np.round(values * 255 / 4095)).all()


# --- colour profiles ---------------------------------------------------------------------------------------------


def matrix_profile(primaries: list[tuple[float, float, float]], gamma: float) -> bytes:
    """An ICC profile (version 2) of RGB primaries, as columns of XYZ under D50, with a power law."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = [(b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    tags += [(name, xyz(value)) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return profile(b"RGB ", tags)


def profile(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]


def converted(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Display P3 primaries with a power law to sRGB, by the formulas of both."""
    linear = (pixels / 255) ** gamma @ np.array(P3) @ np.linalg.inv(np.array(SRGB))
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_colours_are_converted_to_srgb(form: str) -> None:
    exact: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    icc = matrix_profile(P3, 2.2)
    ramp = np.arange(0, 256, 8, dtype=np.uint8)
    colours = np.stack([*np.meshgrid(ramp, ramp, indexing="ij"), np.full((32, 32), 40, np.uint8)], -1)
    pixels = read(encode(colours, form, icc_profile=icc, **exact.get(form, {}))).astype(float)
    # rounding, the 8.8 fixed-point gamma of the profile; AVIF also converts to YCbCr of 8 bits
    assert np.abs(pixels - converted(colours, 2.2)).max() < (12 if form == "AVIF" else 2.5)
    assert np.abs(pixels - colours).max() > 30


def test_alpha_palettes_and_decoded_images_are_converted_too() -> None:
    icc = matrix_profile(P3, 2.2)
    image = Image.fromarray(patch(0))
    expected = read(encode(image, icc_profile=icc))
    rgba = image.copy()
    rgba.putalpha(77)
    pixels = read(encode(rgba, icc_profile=icc), channels=4)
    assert (pixels[..., :3] == expected).all()
    assert (pixels[..., 3] == 77).all()
    assert (read(Image.open(io.BytesIO(encode(image, icc_profile=icc)))) == expected).all()
    palette = image.quantize(64)
    colours = read(encode(palette.convert("RGB"), icc_profile=icc))
    assert (read(encode(palette, icc_profile=icc)) == colours).all()


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    for icc in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b""):
        assert (read(encode(patch(0), icc_profile=icc)) == patch(0)).all()


def test_gray_profiles_convert_by_their_curve() -> None:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256)) + b"\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    icc = profile(b"GRAY", [(b"wtpt", white), (b"kTRC", curve)])
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = (ramp / 255) ** 1.8
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels = read(encode(ramp, icc_profile=icc), size=16, channels=1)[..., 0]
    assert np.abs(pixels - expected).max() < 1.5  # rounding in two steps
    assert (read(encode(patch(0), icc_profile=icc)) == patch(0)).all()  # RGB pixels with a profile of gray


def test_profiles_that_cannot_be_used_are_ignored() -> None:
    good = matrix_profile(P3, 2.2)
    broken = [b"hello", b"\0" * 128, good[:100], good[:140], good.replace(b"RGB ", b"Lab "), good[:-60] + b"\xff" * 60]
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(good)
        for place in generator.integers(0, len(good), 8):
            damaged[place] = generator.integers(256)
        broken.append(bytes(damaged))
    for icc in broken:
        assert to_srgb(Image.fromarray(patch(0)), icc).size == (32, 32)
    for icc in broken[:5]:
        assert (read(encode(patch(0), icc_profile=icc)) == patch(0)).all()
