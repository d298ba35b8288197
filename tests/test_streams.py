"""Random streams: independent of batch, order and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, normal, stream, torch_seed


def draw(seed: int, purpose: Purpose = Purpose.NOISE, *path: int) -> np.ndarray:
    return stream(seed, purpose, *path).standard_normal(4)


def test_equal_keys_give_equal_streams_and_different_keys_different_ones() -> None:
    np.testing.assert_array_equal(draw(3, Purpose.STEPS, 1), draw(3, Purpose.STEPS, 1))
    keys = [
        (seed, purpose, *path)
        for seed in (0, 1, 2**31, 2**32, 2**40, 2**63)
        for purpose in Purpose
        for path in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))
    ]
    first_numbers = {float(draw(*key)[0]) for key in keys}
    assert len(first_numbers) == len(keys)
    assert len({torch_seed(*key) for key in keys}) == len(keys)


def test_seeds_give_the_same_numbers_as_in_every_version() -> None:
    # a change of these numbers changes every image that was sampled from a seed
    assert [int(purpose) for purpose in Purpose] == [*range(13)]
    assert len(Purpose.__members__) == 13  # none is an alias of another
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence(7, spawn_key=(0,))))
    np.testing.assert_array_equal(draw(7), expected.standard_normal(4))


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float64, np.float64), (torch.float32, np.float32)])
def test_noise_is_drawn_by_numpy_in_the_requested_precision(dtype: torch.dtype, kind: type) -> None:
    expected = stream(7, Purpose.NOISE).standard_normal((2, 3), dtype=kind)
    assert torch.equal(normal([stream(7, Purpose.NOISE)], (2, 3), dtype)[0], torch.from_numpy(expected))


def test_numpy_integers_are_accepted_as_seeds() -> None:
    np.testing.assert_array_equal(stream(np.int64(5), Purpose.NOISE).standard_normal(3), draw(5)[:3])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1", None])
def test_invalid_seeds_raise(seed: int) -> None:
    with pytest.raises(InputError, match=f"seeds are whole numbers from 0, got {seed!r}"):
        stream(seed, Purpose.NOISE)
    with pytest.raises(InputError, match="seeds are whole numbers"):
        stream(0, Purpose.EXAMPLE, seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    def noise(*seeds: int) -> torch.Tensor:
        return normal([stream(seed, Purpose.NOISE) for seed in seeds], (2, 3, 5), dtype)

    together = noise(4, 9, 2)
    assert together.dtype == dtype
    assert together.shape == (3, 2, 3, 5)
    assert torch.equal(together, torch.cat([noise(4), noise(9), noise(2)]))
    assert torch.equal(noise(2, 4)[1], together[0])


def test_half_precision_noise_is_float32_noise_rounded() -> None:
    single = normal([stream(1, Purpose.NOISE)], (1, 8, 8))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(normal([stream(1, Purpose.NOISE)], (1, 8, 8), dtype), single.to(dtype))


def test_a_stream_continues_where_the_last_draw_ended() -> None:
    # the noise of the second step is the second draw, with or without other images
    streams = [stream(seed, Purpose.STEPS) for seed in (0, 1)]
    first, second = normal(streams, (1, 4, 4)), normal(streams, (1, 4, 4))
    assert not torch.equal(first, second)
    alone = [stream(1, Purpose.STEPS)]
    normal(alone, (1, 4, 4))
    assert torch.equal(normal(alone, (1, 4, 4))[0], second[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(dtype: torch.dtype) -> None:
    count = 200_000
    drawn = normal([stream(seed, Purpose.NOISE) for seed in range(4)], (count // 4,), dtype).double()
    flat = drawn.flatten()
    # five standard errors of mean, variance, and the correlation of two seeds
    assert abs(float(flat.mean())) < 5 / count**0.5
    assert abs(float(flat.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float((flat**4).mean()) - 3) < 5 * (96 / count) ** 0.5
    correlation = torch.corrcoef(drawn) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 5 / (count / 4) ** 0.5
