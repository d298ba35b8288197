"""Conversion of 8-bit levels to [-1, 1] and back, in every precision that distinguishes them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from quarterarc.common.errors import InputError
from quarterarc.data.pixels import apply_flips, to_float, to_uint8
from quarterarc.sampling.trajectories import Result

GRID = np.zeros(2)
LEVELS = torch.arange(256, dtype=torch.uint8)


def test_ends_and_middle_of_the_range_are_exact() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    assert to_float(LEVELS).dtype == torch.float32
    torch.testing.assert_close(to_float(LEVELS).double(), LEVELS.double() * 2 / 255 - 1, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_uint8_inverts_to_float_on_all_levels(dtype: Any) -> None:
    assert torch.equal(to_uint8(to_float(LEVELS).to(dtype)), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_have_no_level_and_are_an_error(dtype: Any, value: float) -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=dtype)
    images[1, 0, 1, 1] = value
    with pytest.raises(InputError, match=r"image 1 of 3 has pixels that are NaN or infinite \(1 of 12\)"):
        to_uint8(images)
    with pytest.raises(InputError, match="NaN"):
        to_uint8(images[1, 0])
    with pytest.raises(InputError, match="NaN or infinite"):
        Result(images, 1.0, GRID).pil()


def test_half_precision_is_converted_to_float32_before_scaling() -> None:
    # float16 spaces values near 1 by 2**-11, finer than the levels' 1/127.5, but arithmetic in it would lose levels.
    assert torch.equal(to_uint8(to_float(LEVELS).half()), LEVELS)
    # bfloat16 itself merges levels; the cast moves one by at most its spacing, 2**-8 at 1.
    error = to_uint8(to_float(LEVELS).bfloat16()).int() - LEVELS.int()
    assert error.abs().max() <= 1


def test_to_uint8_clamps_and_rounds() -> None:
    given = torch.tensor([-7.0, -1.0, 1.0, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 0.0])
    assert to_uint8(given).tolist() == [0, 0, 255, 255, 100, 101, 128]


def test_only_the_masked_images_are_mirrored() -> None:
    batch = torch.arange(3 * 2 * 2 * 5, dtype=torch.uint8).reshape(3, 2, 2, 5)
    flipped = apply_flips(batch, torch.tensor([True, False, True]))
    assert torch.equal(flipped[1], batch[1])
    assert torch.equal(flipped[0, 1, 0], batch[0, 1, 0].flip(0))
    assert torch.equal(flipped[2], batch[2].flip(-1))
    assert flipped.dtype == torch.uint8


def test_the_spec_imports_no_heavy_module() -> None:
    code = (
        "import sys; from quarterarc.data import DataSpec; print(sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
