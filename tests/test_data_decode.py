"""Decoding: uint8 values per format and pixel mode, crops, resizing, and errors of damaged files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_samples import encode, patch, photographs, png, tiff
from quarterarc.common.errors import InputError
from quarterarc.data.decode import BadImage, look, read_pixels, shape_of
from quarterarc.data.spec import DataSpec

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RAMP_8 = np.round(RAMP / 257).astype(np.uint8)  # 65535 = 255 * 257; no value lies halfway


def read(encoded: Any, size: Any = None, **fields: Any) -> np.ndarray:
    """Decode at `size`, by default the image's own."""
    if size is None:
        image = Image.open(io.BytesIO(encoded)) if isinstance(encoded, bytes) else encoded
        size = (image.height, image.width)
    return read_pixels(encoded, DataSpec(source="test", size=size, **fields), "the image")


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 in floating point."""
    return rgb.astype(float) @ np.array([0.299, 0.587, 0.114])


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_decode_to_their_exact_pixels(form: Any, options: Any) -> None:
    image = patch(1, 40, 56)
    assert (read(encode(image, form, **options)) == image).all()


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_lossy_formats_decode_to_similar_pixels(form: Any, options: Any) -> None:
    image = patch(1, 40, 56)
    error = read(encode(image, form, quality=95, **options)).astype(int) - image
    # Quality 95 with halved colour resolution: a mean error of some levels; a swapped channel would give some forty.
    assert np.abs(error).mean() < 5


def test_other_formats_raise_bad_image() -> None:
    for form in ("TGA", "ICO", "PCX"):
        with pytest.raises(BadImage, match="the image: it is not a PNG, JPEG, WEBP, BMP, TIFF, GIF, PPM, JPEG2000"):
            read(encode(patch(0), form), size=32)


# --- modes -------------------------------------------------------------------------------------------------------


def test_gray_is_the_luma_of_colour() -> None:
    image = patch(0)
    gray = luma(image)
    assert np.abs(read(encode(image), channels=1)[..., 0] - gray).max() <= 0.51  # rounded: half a level and a bit
    stored = np.round(gray).astype(np.uint8)
    assert (read(encode(stored), channels=1)[..., 0] == stored).all()
    assert (read(encode(stored), channels=3) == stored[..., None]).all()
    assert (read(encode(stored), channels=2) == np.stack([stored, np.full_like(stored, 255)], -1)).all()
    assert (read(encode(image), channels=4) == np.dstack([image, np.full_like(stored, 255)])).all()


def test_palette_equals_rgb() -> None:
    paletted = Image.fromarray(patch(0)).quantize(16)
    expected = np.asarray(paletted.convert("RGB"))
    for form in ("PNG", "BMP", "TIFF"):
        data = encode(paletted, form)
        assert Image.open(io.BytesIO(data)).mode == "P"
        assert (read(data) == expected).all()
    assert (read(encode(paletted, bits=4)) == expected).all()
    assert (read(encode(paletted), channels=1) == read(encode(expected), channels=1)).all()


def test_palette_with_transparency_equals_rgba() -> None:
    paletted = Image.fromarray(patch(0)).quantize(16)
    alpha_of = bytes(range(0, 256, 17))
    data = encode(paletted, transparency=alpha_of)
    rgba = np.dstack([np.asarray(paletted.convert("RGB")), np.frombuffer(alpha_of, np.uint8)[np.asarray(paletted)]])
    assert (read(data, channels=4) == rgba).all()
    assert (read(data) == read(encode(rgba))).all()


def test_transparent_colours_get_alpha_0() -> None:
    image = patch(0)
    clear = tuple(int(value) for value in image[3, 5])
    alpha = read(encode(image, transparency=clear), channels=4)[..., 3]
    assert ((alpha == 0) == (image == clear).all(-1)).all()
    gray = image[..., 0]
    alpha = read(encode(gray, transparency=int(gray[3, 5])), channels=2)[..., 1]
    assert ((alpha == 0) == (gray == gray[3, 5])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_over_white(channels: Any) -> None:
    image, alpha = patch(0), patch(1)[..., 0]
    alpha[0, :2] = 0, 255
    over = image * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    shown = read(encode(np.dstack([image, alpha])), channels=channels)
    expected = over if channels == 3 else luma(over)[..., None]
    assert np.abs(shown - expected).max() <= 1.01  # two roundings for gray
    assert (shown[0, 0] == 255).all()
    assert (read(encode(np.dstack([image, alpha])), channels=4) == np.dstack([image, alpha])).all()


def test_gray_with_alpha_keeps_its_alpha() -> None:
    gray, alpha = patch(0)[..., 0], patch(1)[..., 0]
    data = encode(Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha))))
    assert (read(data, channels=2) == np.dstack([gray, alpha])).all()
    assert (read(data, channels=4) == np.dstack([gray, gray, gray, alpha])).all()
    over = gray * (alpha / 255) + 255 - alpha
    assert np.abs(read(data, channels=1)[..., 0] - over).max() <= 1


def test_one_bit_images_become_0_and_255() -> None:
    bits = (patch(0)[..., 0] > 128).astype(np.uint8) * 255
    for form, options in (("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})):
        data = encode(Image.fromarray(bits).convert("1"), form, **options)
        assert (read(data, channels=1)[..., 0] == bits).all()
        assert (read(data, channels=3) == bits[..., None]).all()


def test_cmyk_becomes_rgb() -> None:
    image = Image.fromarray(patch(0))
    data = encode(image.convert("CMYK"), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert (read(data) == np.asarray(image)).all()  # the formula and its inverse
    assert np.abs(read(encode(image.convert("CMYK"), "JPEG", quality=100)).astype(int) - np.asarray(image)).mean() < 3


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    for data in (
        png(RAMP, 0),
        encode(RAMP, "TIFF"),
        tiff(RAMP.astype("<u2").tobytes(), 256, 256, 16, order="<"),
        tiff(RAMP.astype(">u2").tobytes(), 256, 256, 16, order=">"),
        tiff((65535 - RAMP).astype("<u2").tobytes(), 256, 256, 16, photometric=0),  # white is zero
    ):
        assert (read(data, channels=1)[..., 0] == RAMP_8).all()
    assert (read(png(RAMP, 0), channels=3) == RAMP_8[..., None]).all()


def test_16_bit_gray_with_a_transparent_value_gets_alpha() -> None:
    pixels = read(png(RAMP, 0, clear=struct.pack(">H", 1000)), channels=2)
    assert (pixels[..., 0] == RAMP_8).all()
    assert ((pixels[..., 1] == 0) == (RAMP == 1000)).all()


def test_16_bit_colour_is_within_one_level() -> None:
    rgba = np.stack([RAMP, RAMP[::-1], RAMP.T, RAMP[:, ::-1]], -1)
    for samples, color_type in ((rgba[..., :3], 2), (rgba, 6)):
        pixels = read(png(samples, color_type), channels=samples.shape[-1])
        assert np.abs(pixels - samples / 257).max() < 1  # Pillow delivers the high byte: within one level
    assert (read(png((RAMP >> 8 << 8) + (RAMP >> 8), 0), channels=1)[..., 0] == RAMP >> 8).all()


def test_12_bit_tiff_is_scaled_to_8_bits() -> None:
    values = np.arange(4096).reshape(64, 64)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    pixels = read(tiff(packed.astype(np.uint8).tobytes(), 64, 64, 12), channels=1)[..., 0]
    assert (pixels == np.round(values * 255 / 4095)).all()


@pytest.mark.parametrize(("dtype", "bits", "sample_format"), [("<i4", 32, 2), ("<f4", 32, 3), ("<i2", 16, 2)])
def test_pixels_without_a_defined_range_raise_bad_image(dtype: Any, bits: Any, sample_format: Any) -> None:
    data = tiff(np.zeros((4, 4), dtype).tobytes(), 4, 4, bits, sample_format=sample_format)
    with pytest.raises(BadImage, match=r"no defined range; give .*data\.range=.*or save it with 8 or 16 bits"):
        read(data, channels=1)


# --- orientation, crop, size -------------------------------------------------------------------------------------

UPRIGHT = {  # EXIF 2.3, tag 0x0112: which stored pixels are the visible top row and left column
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: Any, form: Any) -> None:
    stored = patch(0, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    upright = UPRIGHT[orientation](stored)
    data = encode(stored, form, exif=exif, **options)
    assert (read(data, size=upright.shape[:2]) == upright).all()
    # The crop box lies in the upright image.
    cropped = read(data, size=(4, 6), crop=(2, 3, 4, 6))
    assert (cropped == upright[2:6, 3:9]).all()


def test_exif_of_a_jpeg_is_applied_and_unreadable_exif_ignored() -> None:
    stored = patch(0, 16, 32)
    exif = Image.Exif()
    exif[0x0112] = 3
    plain = read(encode(stored, "JPEG"))
    assert (read(encode(stored, "JPEG", exif=exif)) == plain[::-1, ::-1]).all()
    assert (read(encode(stored, "JPEG", exif=b"Exif\0\0rubbish")) == plain).all()
    spec = DataSpec(source="x", size=8)
    for damaged in (
        b"Exif\0\0rubbish",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",
    ):
        data = encode(stored, "WEBP", exif=damaged)
        assert shape_of(data) == (3, *stored.shape[:2])
        assert (seen := look(data, spec)) is not None
        assert not seen.turned


def test_crop_box_is_exact() -> None:
    image = patch(0, 40, 56)
    assert (read(encode(image), size=(10, 20), crop=(7, 9, 10, 20)) == image[7:17, 9:29]).all()
    assert (read(encode(image), size=(40, 56), crop=(0, 0, 40, 56)) == image).all()


def test_celeba_crop_of_ddim_is_the_documented_box() -> None:
    aligned = patch(0, 218, 178)
    pixels = read(encode(aligned), size=64, crop=(57, 25, 128, 128))
    halved = aligned[57:185, 25:153].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(pixels - halved).max() <= 1  # two passes, each rounded to whole levels


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((40, 56), (8, 8), (0, 8, 40, 40)),
        ((56, 40), (8, 8), (8, 0, 40, 40)),
        ((41, 56), (41, 41), (0, 7, 41, 41)),
        ((40, 56), (10, 20), (6, 0, 28, 56)),
        ((40, 56), (40, 10), (0, 23, 40, 10)),
        ((1, 50), (1, 2), (0, 24, 1, 2)),
    ],
)
def test_centred_crop_is_the_largest_box_of_the_aspect_ratio(shape: Any, size: Any, box: Any) -> None:
    image = patch(0, *shape)
    top, left, height, width = box
    expected = read(encode(image[top : top + height, left : left + width]), size=size)
    assert (read(encode(image), size=size, crop="center") == expected).all()


def test_without_a_crop_the_image_is_stretched() -> None:
    image = patch(0, 32, 64)
    expected = image.reshape(32, 32, 2, 3).mean(2)
    assert np.abs(read(encode(image), size=32) - expected).max() <= 0.5


@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_the_named_filter_and_antialiased(resize: Any) -> None:
    filters = {
        "area": Image.Resampling.BOX,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    photo = photographs()[0]
    expected = np.asarray(Image.fromarray(photo).resize((48, 32), filters[resize]))
    assert (read(encode(photo, "BMP"), size=(32, 48), resize=resize) == expected).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # the finest possible stripes: only their mean remains
    middle = read(encode(stripes), size=8, resize=resize, channels=1)[2:-2, 2:-2, 0]
    assert np.abs(middle.astype(int) - 127.5).max() <= 2.5  # lanczos keeps a ripple of two levels


def test_jpeg_is_decoded_at_full_size_before_resizing() -> None:
    photo = photographs()[0]
    data = encode(photo, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)))
    expected = np.asarray(Image.fromarray(full).resize((40, 40), Image.Resampling.BOX))
    assert (read(data, size=40) == expected).all()


def test_resizing_premultiplies_alpha() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[:, 0] = 255, 0, 0, 255
    image[:, 1] = 0, 255, 0, 0  # invisible green must not leak
    assert read(encode(image), size=1, channels=4).tolist() == [[[255, 0, 0, 128]]]


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
def test_a_truncated_file_raises_or_decodes_completely(form: Any, options: Any) -> None:
    """Wherever it is cut: either an error, or (where only padding or an end mark is lost) every pixel is right."""
    data = encode(patch(0, 24, 24), form, **options)
    whole = read(data)
    complete = 0
    for length in range(0, len(data), 1 if len(data) < 1500 else 7):
        try:
            pixels = read(data[:length], size=24)
        except BadImage:
            continue
        assert (pixels == whole).all(), f"cut to {length} of {len(data)} bytes"
        complete += 1
    assert complete < 30


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_padded_with_zeros_raises_bad_image(options: Any) -> None:
    data = encode(patch(0, 128, 128), "JPEG", **options)
    for length in (len(data) - 2, len(data) - 400):  # both within the last scan
        with pytest.raises(BadImage, match="truncated"):
            read(data[:length] + bytes(len(data) - length), size=128)
    assert (read(data + bytes(100)) == read(data)).all()  # padding after a whole image is harmless


def test_the_error_of_a_bad_image_has_name_and_reason() -> None:
    for data, reason in ((b"", "it is empty"), (b"hello", "it is not a PNG"), (encode(patch(0))[:200], "truncated")):
        with pytest.raises(BadImage, match=reason) as caught:
            read(data, size=8)
        message = str(caught.value)
        assert message.startswith("cannot use the image: ")
        assert "\n" not in message
        assert "0x" not in message


def test_an_image_smaller_than_the_crop_box_raises_bad_image() -> None:
    with pytest.raises(BadImage, match=r"is 20x30 \(height x width\), smaller than the crop box, which needs 185x153"):
        read(encode(patch(0, 20, 30)), size=64, crop=(57, 25, 128, 128))


def test_a_decompression_bomb_raises_bad_image() -> None:
    lines = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    bomb = encode(patch(0)[..., 0])
    header = bomb.index(b"IHDR")
    bomb = bomb[: header + 4] + lines + struct.pack(">I", zlib.crc32(b"IHDR" + lines)) + bomb[header + 21 :]
    with pytest.raises(BadImage, match=r"more than data\.max_pixels=67108864 pixels"):
        read(bomb, size=8)


def test_pillows_switch_for_truncated_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES"):
        read(encode(patch(0))[:800], size=32)
