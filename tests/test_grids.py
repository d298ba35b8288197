"""Grids: each name's own coordinate is evenly spaced, and every grid descends strictly to 0."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quarterarc import grids
from quarterarc.arc import log_snr, sigma
from quarterarc.common.errors import InputError
from quarterarc.grids import GRIDS, explicit, grid
from quarterarc.schedules import SCHEDULES, schedule

PI_2 = math.pi / 2


@pytest.mark.parametrize("start", [PI_2, 1.5644, 1.0, 0.1])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_descends_strictly_from_its_start_to_zero(name: str, start: float) -> None:
    for steps in (*range(1, 34), 50, 60):
        angles = grid(name, steps, start)
        assert angles.dtype == np.float64
        assert angles.shape == (steps + 1,)
        assert angles[0] == start
        assert angles[-1] == 0.0
        assert np.all(np.diff(angles) < 0)


@pytest.mark.parametrize("start", [PI_2, 1.0])
def test_angle_is_uniform_in_the_angle(start: float) -> None:
    for steps in (1, 3, 10, 1000):
        np.testing.assert_allclose(np.diff(grid("angle", steps, start)), -start / steps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("start", [PI_2, math.atan(80.0), 1.2])
def test_log_snr_is_uniform_in_the_log_snr(start: float) -> None:
    angles = grid("log-snr", 20, start)
    placed = log_snr(angles[:-1])
    if start == PI_2:
        placed[0] = log_snr(math.atan(80.0))  # the first is moved from sigma = 80 to the end of the arc
    np.testing.assert_allclose(np.diff(placed), np.diff(placed).mean(), rtol=1e-10)
    assert sigma(angles[-2]) == pytest.approx(0.002, rel=1e-12)
    assert placed[0] == pytest.approx(log_snr(min(start, math.atan(80.0))), rel=1e-12)


@pytest.mark.parametrize("start", [PI_2, math.atan(80.0), 1.2])
def test_rho_is_karras_et_al(start: float) -> None:
    steps, largest, smallest = 18, min(math.tan(start), 80.0), 0.002  # Karras et al. 2022, Eq. 5 and Table 1
    k = np.arange(steps)
    expected = (largest ** (1 / 7) + k / (steps - 1) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    angles = grid("rho", steps, start)
    first = 1 if start == PI_2 else 0
    np.testing.assert_allclose(sigma(angles[first:-1]), expected[first:], rtol=1e-10)


@pytest.mark.parametrize("name", ["log-snr", "rho"])
def test_grids_of_infinite_coordinates_stop_where_the_denoiser_does(name: str) -> None:
    assert grid(name, 20, smallest=0.01)[-2] == pytest.approx(0.01, rel=1e-12)
    assert grid(name, 20, smallest=1e-4)[-2] == pytest.approx(math.atan(0.002), rel=1e-12)


@pytest.mark.parametrize("name", ["time", "quadratic"])
@pytest.mark.parametrize("of", SCHEDULES)
def test_whole_times_are_distinct_for_every_number_of_steps(name: str, of: str) -> None:
    length = 60
    made = schedule(of, length)
    for steps in range(1, length + 1):
        times = made.time(grid(name, steps, made.end, made))
        whole = np.round(times)
        np.testing.assert_allclose(times, whole, rtol=0, atol=1e-9)  # an angle near pi/2 is a time known to 1e-13 or so
        assert whole[0] == length
        assert whole[-1] == 0
        assert np.all(np.diff(whole) <= -1)
        falling = 1 - np.arange(steps + 1) / steps
        wanted = length * (falling if name == "time" else falling**2)
        room = np.arange(steps, -1, -1)  # what strict descent leaves
        np.testing.assert_array_less(np.abs(whole - np.maximum(wanted, room)), 0.5 + 1e-9)
    with pytest.raises(InputError, match=f"{length + 1} steps on a schedule that has {length}"):
        grid(name, length + 1, made.end, made)


def test_time_at_full_length_is_the_schedule_itself() -> None:
    made = schedule("cosine", 100)
    np.testing.assert_array_equal(grid("time", 100, made.end, made), made.angles[::-1])
    np.testing.assert_array_equal(grid("quadratic", 100, made.end, made), made.angles[::-1])


@pytest.mark.parametrize("name", ["time", "quadratic"])
def test_whole_times_below_a_start_between_two_times(name: str) -> None:
    made = schedule("arc", 20)
    for start in (made.angle(7.3), made.angle(7.9), made.angle(0.4)):
        most = math.ceil(made.time(start))
        for steps in range(1, most + 1):
            times = made.time(grid(name, steps, start, made))
            assert times[0] == pytest.approx(made.time(start), abs=1e-12)
            np.testing.assert_allclose(times[1:], np.round(times[1:]), rtol=0, atol=1e-12)
            assert np.all(np.diff(times) < 0)
        with pytest.raises(InputError, match="take at most that many"):
            grid(name, most + 1, start, made)


@pytest.mark.parametrize("name", ["time", "quadratic"])
def test_a_start_beyond_the_schedule_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"'linear' ends at angle 1\.564.*, before the start 1\.57"):
        grid(name, 10, PI_2, schedule("linear"))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_step_counts_that_are_none_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="whole number of steps, at least 1"):
        grid("angle", steps)
    with pytest.raises(InputError, match="at most 100,000 steps, got 99,999,999"):
        grid("angle", 99_999_999)


@pytest.mark.parametrize("start", [0.0, -1.0, 1.6, math.nan])
def test_starts_off_the_arc_are_refused(start: float) -> None:
    with pytest.raises(InputError, match="a grid starts in"):
        grid("angle", 10, start)


def test_an_image_has_pixels() -> None:
    with pytest.raises(InputError, match="at least one pixel value, got dimensions=0"):
        grid("octave", 10, dimensions=0)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown grid 'angel'; did you mean 'angle'\?") as caught:
        grid("angel", 10)
    for name in GRIDS:
        assert name in str(caught.value)


def test_explicit_grids_are_taken_as_they_are() -> None:
    given = [1.5, 1.0, 0.3]
    angles = explicit(given)
    np.testing.assert_array_equal(angles, given)
    table = np.array([1.0, 0.0])
    assert explicit(table) is not table
    single = np.linspace(PI_2, 0, 11, dtype=np.float32)
    assert float(single[0]) > PI_2  # rounded up
    assert explicit(single)[0] == PI_2


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        ([1.0], "at least two angles"),
        ([], "at least two angles"),
        ([[1.0, 0.0]], "at least two angles"),
        ([1.0, 0.5, 0.5, 0.0], r"got 0.5 before 0.5 \(place 1\)"),
        ([1.0, 0.2, 0.5, 0.0], r"got 0.2 before 0.5 \(place 1\)"),
        ([1.0, math.nan, 0.0], "descends strictly"),
        ([1.6, 0.5, 0.0], r"stays within 0\.\.pi/2 .*, got 1\.6\.\.0$"),
        ([1.0, 0.5, -0.1], r"stays within 0\.\.pi/2 .*, got 1\.\.-0\.1$"),
    ],
)
def test_explicit_grids_that_are_none_are_refused(angles: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explicit(angles)


def test_the_range_of_karras_et_al() -> None:
    assert (grids.LARGEST_SIGMA, grids.SMALLEST_SIGMA, grids.RHO) == (80.0, 0.002, 7.0)


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("dimensions", [6, 64, 3 * 256 * 256])
def test_octave_falls_as_a_power_of_the_octave(steps: int, dimensions: int) -> None:
    coarsest = math.sqrt(dimensions)
    angles = grid("octave", steps, dimensions=dimensions)
    at = np.log2((np.sin(angles) + 0.3 * np.cos(angles)) / (np.cos(angles) + np.sin(angles) / coarsest))
    shares = (at - math.log2(0.3)) / (math.log2(coarsest) - math.log2(0.3))
    np.testing.assert_allclose(shares, (1 - np.arange(steps + 1) / steps) ** 1.3, rtol=0, atol=1e-9)
    # for a denoiser that is not defined at the image, no angle but the last lies below where it is
    lifted = grid("octave", steps, smallest=0.2, dimensions=dimensions)
    assert lifted[-2] >= 0.2 - 1e-12
    assert lifted[-1] == 0.0
