"""The counter-based generator: published vectors, numpy's own, and the streams that are drawn from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterarc.common import streams as module
from quarterarc.common.errors import InputError
from quarterarc.common.philox import philox, philox_cpu
from quarterarc.common.streams import Purpose, stream, streams

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, words
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
CONSTANTS = {
    32: ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)),
    64: ((0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)),
}


def reference(bits: int, counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox 4xbits-10 in whole numbers of any size (Salmon et al. 2011, section 3)."""
    mask, (multipliers, steps) = (1 << bits) - 1, CONSTANTS[bits]
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = a * multipliers[0], c * multipliers[1]
        a, b, c, d = (right >> bits) ^ b ^ k, right & mask, (left >> bits) ^ d ^ m, left & mask
        k, m = (k + steps[0]) & mask, (m + steps[1]) & mask
    return a, b, c, d


def words_of(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    words = tuple(int(word) for word in philox([torch.tensor(word) for word in counter], key))
    assert tuple(int(word) for word in philox_cpu([np.array([word], np.uint32) for word in counter], key)) == words
    return words


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert words_of(counter, key) == expected
    assert reference(32, counter, key) == expected


def test_the_reference_is_numpys_philox_in_64_bits_and_ours_in_32() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        wide = [int(word) for word in random.integers(0, 2**64, size=6, dtype=np.uint64)]
        numpys = np.random.Philox(counter=np.array(wide[:4], np.uint64), key=np.array(wide[4:], np.uint64))
        # numpy increments the counter before the first block
        counter = sum(word << 64 * place for place, word in enumerate(wide[:4])) + 1
        next_words = tuple(counter >> 64 * place & (2**64 - 1) for place in range(4))
        assert reference(64, next_words, tuple(wide[4:])) == tuple(int(word) for word in numpys.random_raw(4))
        narrow = tuple(int(word) for word in random.integers(0, 2**32, size=6))
        assert words_of(narrow[:4], narrow[4:]) == reference(32, narrow[:4], narrow[4:])


def test_counters_and_keys_are_broadcast() -> None:
    words = philox((torch.arange(5), 7, torch.tensor([[1], [2**32 - 1]]), 0), (3, torch.tensor([[8], [9]])))
    assert [tuple(word.shape) for word in words] == [(2, 5)] * 4
    for row, (third, key) in enumerate(((1, 8), (2**32 - 1, 9))):
        for block in range(5):
            expected = reference(32, (block, 7, third, 0), (3, key))
            assert tuple(int(word[row, block]) for word in words) == expected
    arrays = (np.arange(5, dtype=np.uint32), 7, np.array([[1], [2**32 - 1]], np.uint32), 0)
    on_cpu = philox_cpu(arrays, (3, np.array([[8], [9]], np.uint32)))
    assert all(torch.equal(word, other.long()) for word, other in zip(words, on_cpu, strict=True))


def test_the_numbers_of_a_key_are_the_same_in_every_version() -> None:
    # a change of these numbers changes every image and every run of format 2
    seed, step, place = 2**40 + 5, 11, 3
    drawn = streams(Purpose.EXAMPLE, seed, step, [place])
    blocks = [reference(32, (n, step, seed % 2**32, seed >> 32), (int(Purpose.EXAMPLE), place)) for n in range(4)]
    (a, b, c, d), (e, f, _, _) = blocks[:2]
    uniform = [((a >> 5) * 2**26 + (b >> 6)) / 2**53, ((c >> 5) * 2**26 + (d >> 6)) / 2**53]
    assert drawn.uniform(2)[0].tolist() == uniform
    assert drawn.integers(1, 1001).tolist() == [1 + int(((e >> 5) * 2**26 + (f >> 6)) / 2**53 * 1000)]
    radius, turn = (blocks[2][0] + 0.5) / 2**32, (blocks[2][1] + 0.5) / 2**32
    length = np.sqrt(-2 * np.log(radius))
    expected = [length * np.cos(2 * np.pi * turn), length * np.sin(2 * np.pi * turn)]
    np.testing.assert_allclose(drawn.normal((6,))[0, :2], expected, rtol=1e-6)
    a, b, c, d = reference(32, (0, 0, 7, 0), (int(Purpose.NOISE), 0))
    radius = ((a >> 5) * 2**26 + (b >> 6) + 1) / 2**53
    turn = ((c >> 5) * 2**26 + (d >> 6) + 1) / 2**53
    double = streams(Purpose.NOISE, [7]).normal((1,), torch.float64)
    np.testing.assert_allclose(double[0], np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * turn), rtol=1e-14)


def test_format_1_draws_from_numpys_generators() -> None:
    drawn = streams(Purpose.EXAMPLE, 4, 7, range(3), format=1)
    generators = [stream(4, Purpose.EXAMPLE, 7, place) for place in range(3)]
    assert torch.equal(drawn.uniform(2), torch.from_numpy(np.stack([each.random(2) for each in generators])))
    assert drawn.integers(1, 9).tolist() == [each.integers(1, 9) for each in generators]
    expected = [each.standard_normal((2, 5), dtype=np.float32) for each in generators]
    assert torch.equal(drawn.normal((2, 5)), torch.from_numpy(np.stack(expected)))
    seeds = streams(Purpose.NOISE, [3, 1], format=1).normal((4,))
    assert torch.equal(seeds[1], torch.from_numpy(stream(1, Purpose.NOISE).standard_normal(4, dtype=np.float32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_stream_does_not_depend_on_the_others(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(*seeds: int) -> Tensor:
        return streams(Purpose.NOISE, seeds).normal((2, 3, 5), dtype)

    together = noise(4, 9, 2)
    assert together.dtype == dtype
    assert together.shape == (3, 2, 3, 5)
    assert torch.equal(together, torch.cat([noise(4), noise(9), noise(2)]))
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    assert torch.equal(noise(4, 9, 2), together)


def test_a_draw_continues_where_the_last_one_ended() -> None:
    drawn = streams(Purpose.STEPS, [0, 1])
    first, second = drawn.normal((8,)), drawn.normal((8,))
    whole = streams(Purpose.STEPS, [0, 1]).normal((16,))
    assert torch.equal(torch.cat([first, second], 1), whole)


def test_every_part_of_the_key_makes_another_stream() -> None:
    keys = itertools.product(Purpose, (0, 1, 2**31, 2**32, 2**63), (0, 1, 2**31), (0, 1, 2**31))
    first = [float(streams(*key[:3], [key[3]]).uniform(1)) for key in keys]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(dtype: torch.dtype) -> None:
    def by_seed(count: int) -> Tensor:
        return streams(Purpose.NOISE, range(4)).normal((count // 4,), dtype)

    def by_place(count: int) -> Tensor:
        return streams(Purpose.EXAMPLE, 0, 5, range(4)).normal((count // 4,), dtype)

    def over_streams(count: int) -> Tensor:
        return streams(Purpose.NOISE, range(count // 4)).normal((4,), dtype).T

    draws: list[Callable[[int], Tensor]] = [by_seed, by_place, over_streams]
    count = 200_000
    for draw in draws:
        rows = draw(count).double()
        flat = rows.flatten()
        # five standard errors of the first four moments, of the share beyond 3, and of correlations
        assert abs(float(flat.mean())) < 5 / count**0.5
        assert abs(float(flat.var()) - 1) < 5 * (2 / count) ** 0.5
        assert abs(float((flat**3).mean())) < 5 * (15 / count) ** 0.5
        assert abs(float((flat**4).mean()) - 3) < 5 * (96 / count) ** 0.5
        assert abs(float((flat.abs() > 3).double().mean()) - 0.0026998) < 5 * (0.0027 / count) ** 0.5
        assert (torch.corrcoef(rows) - torch.eye(4, dtype=torch.float64)).abs().max() < 5 / (count / 4) ** 0.5
        lagged = torch.corrcoef(torch.stack([flat[:-1], flat[1:]]))[0, 1]
        assert abs(float(lagged)) < 5 / count**0.5


def test_uniform_numbers_and_whole_numbers() -> None:
    drawn = streams(Purpose.EXAMPLE, 0, 0, range(40_000))
    uniform = drawn.uniform(3)
    assert uniform.shape == (40_000, 3)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert torch.allclose(uniform.mean(0), torch.tensor(0.5, dtype=torch.float64), atol=5 * (1 / 12 / 40_000) ** 0.5)
    counts = torch.bincount(drawn.integers(1, 5), minlength=6)
    assert counts[[0, 5]].tolist() == [0, 0]
    assert (counts[1:5] - 10_000).abs().max() < 5 * 7_500**0.5


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ((Purpose.NOISE, [-1]), "seeds are whole numbers from 0, got -1"),
        ((Purpose.NOISE, [1.0]), "seeds are whole numbers from 0, got 1.0"),
        ((Purpose.NOISE, [True]), "seeds are whole numbers from 0, got True"),
        ((Purpose.NOISE, [2**64]), r"seeds are whole numbers from 0 to 2\^64 - 1, got 18446744073709551616"),
        ((Purpose.EXAMPLE, 0, 2**32, [0]), r"from 0 to 2\^32 - 1"),
    ],
)
def test_invalid_keys_raise(key: tuple[object, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        streams(*key)  # type: ignore[arg-type]


def test_an_unknown_format_raises() -> None:
    with pytest.raises(InputError, match="random streams have the formats 1 and 2, got 3"):
        streams(Purpose.NOISE, [0], format=3)
