"""Grids: evenly spaced in their coordinate, and strictly descending to 0."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quarterarc import grids
from quarterarc.arc import log_snr, sigma
from quarterarc.common.errors import InputError
from quarterarc.grids import GRIDS, PUBLISHED, GridRequest, explicit, grid
from quarterarc.schedules import SCHEDULES, schedule

PI_2 = math.pi / 2


@pytest.mark.parametrize("start", [PI_2, 1.5644, 1.0, 0.1])
@pytest.mark.parametrize("name", [name for name in GRIDS if name not in PUBLISHED])
def test_grids_descend_strictly_from_their_start_to_0(name: str, start: float) -> None:
    for steps in (*range(1, 34), 50, 60):
        angles = grid(name, steps, start)
        assert angles.dtype == np.float64
        assert angles.shape == (steps + 1,)
        assert angles[0] == start
        assert angles[-1] == 0.0
        assert np.all(np.diff(angles) < 0)


@pytest.mark.parametrize("start", [PI_2, 1.0])
def test_grid_angle_is_uniform_in_the_angle(start: float) -> None:
    for steps in (1, 3, 10, 1000):
        np.testing.assert_allclose(np.diff(grid("angle", steps, start)), -start / steps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("start", [PI_2, math.atan(80.0), 1.2])
def test_grid_log_snr_is_uniform_in_log_snr(start: float) -> None:
    angles = grid("log-snr", 20, start)
    values = log_snr(angles[:-1])
    if start == PI_2:
        values[0] = log_snr(math.atan(80.0))  # the first angle is moved from sigma = 80 to the end of the arc
    np.testing.assert_allclose(np.diff(values), np.diff(values).mean(), rtol=1e-10)
    assert sigma(angles[-2]) == pytest.approx(0.002, rel=1e-12)
    assert values[0] == pytest.approx(log_snr(min(start, math.atan(80.0))), rel=1e-12)


@pytest.mark.parametrize("start", [PI_2, math.atan(80.0), 1.2])
def test_grid_rho_matches_karras_et_al(start: float) -> None:
    steps, largest, smallest = 18, min(math.tan(start), 80.0), 0.002  # Karras et al. 2022, Eq. 5 and Table 1
    k = np.arange(steps)
    expected = (largest ** (1 / 7) + k / (steps - 1) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    angles = grid("rho", steps, start)
    first = 1 if start == PI_2 else 0
    np.testing.assert_allclose(sigma(angles[first:-1]), expected[first:], rtol=1e-10)


@pytest.mark.parametrize("name", ["log-snr", "rho"])
def test_grids_of_infinite_coordinates_end_at_the_smallest_angle_of_the_denoiser(name: str) -> None:
    assert grid(name, 20, smallest=0.01)[-2] == pytest.approx(0.01, rel=1e-12)
    assert grid(name, 20, smallest=1e-4)[-2] == pytest.approx(math.atan(0.002), rel=1e-12)


@pytest.mark.parametrize("name", ["time", "quadratic"])
@pytest.mark.parametrize("of", SCHEDULES)
def test_times_are_whole_and_distinct_for_every_number_of_steps(name: str, of: str) -> None:
    length = 60
    table = schedule(of, length)
    for steps in range(1, length + 1):
        times = table.time(grid(name, steps, table.end, table))
        whole = np.round(times)
        np.testing.assert_allclose(times, whole, rtol=0, atol=1e-9)  # rounding of an angle near pi/2 is 1e-13 in time
        assert whole[0] == length
        assert whole[-1] == 0
        assert np.all(np.diff(whole) <= -1)
        falling = 1 - np.arange(steps + 1) / steps
        exact = length * (falling if name == "time" else falling**2)
        lowest = np.arange(steps, -1, -1)  # for strict descent in whole times
        np.testing.assert_array_less(np.abs(whole - np.maximum(exact, lowest)), 0.5 + 1e-9)
    with pytest.raises(InputError, match=f"{length + 1} steps on a schedule that has {length}"):
        grid(name, length + 1, table.end, table)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_grids_stay_within_the_range_of_the_denoiser(name: str) -> None:
    table = schedule("arc", 100)
    for start in (PI_2, table.angle(99.0), 1.0):
        for steps in (1, 7, 100):
            angles = grid(name, steps, start, table)
            assert angles[0] <= start
            assert angles[-2] == table.angle(1.0)
            assert angles[-1] == 0.0
    with pytest.raises(InputError, match="101 steps on a schedule that has 100"):
        grid(name, 101, PI_2, table)


def test_grids_of_all_training_steps_equal_the_schedule() -> None:
    table = schedule("cosine", 100)
    np.testing.assert_array_equal(grid("time", 100, table.end, table), table.angles[::-1])
    np.testing.assert_array_equal(grid("quadratic", 100, table.end, table), table.angles[::-1])


@pytest.mark.parametrize("name", ["time", "quadratic"])
def test_times_below_a_start_between_two_training_steps_are_whole(name: str) -> None:
    table = schedule("arc", 20)
    for start in (table.angle(7.3), table.angle(7.9), table.angle(0.4)):
        most = math.ceil(table.time(start))
        for steps in range(1, most + 1):
            times = table.time(grid(name, steps, start, table))
            assert times[0] == pytest.approx(table.time(start), abs=1e-12)
            np.testing.assert_allclose(times[1:], np.round(times[1:]), rtol=0, atol=1e-12)
            assert np.all(np.diff(times) < 0)
        with pytest.raises(InputError, match="take at most that many"):
            grid(name, most + 1, start, table)


@pytest.mark.parametrize("name", ["time", "quadratic"])
def test_a_start_beyond_the_schedule_raises(name: str) -> None:
    with pytest.raises(InputError, match=r"'linear' ends at angle 1\.564.*, before the start 1\.57"):
        grid(name, 10, PI_2, schedule("linear"))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_invalid_numbers_of_steps_raise(steps: int) -> None:
    with pytest.raises(InputError, match="whole number of steps, at least 1"):
        grid("angle", steps)
    with pytest.raises(InputError, match="at most 100,000 steps, got 99,999,999"):
        grid("angle", 99_999_999)


@pytest.mark.parametrize("start", [0.0, -1.0, 1.6, math.nan])
def test_starts_outside_the_arc_raise(start: float) -> None:
    with pytest.raises(InputError, match="a grid starts in"):
        grid("angle", 10, start)


def test_images_without_pixels_raise() -> None:
    with pytest.raises(InputError, match="at least one pixel value, got dimensions=0"):
        grid("octave", 10, dimensions=0)


def test_unknown_names_raise_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(InputError, match=r"unknown grid 'angel'; did you mean 'angle'\?") as caught:
        grid("angel", 10)
    for name in GRIDS:
        assert name in str(caught.value)


def test_explicit_grids_are_copied_unchanged() -> None:
    angles = [1.5, 1.0, 0.3]
    np.testing.assert_array_equal(explicit(angles), angles)
    array = np.array([1.0, 0.0])
    assert explicit(array) is not array
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
def test_unusable_explicit_grids_raise(angles: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explicit(angles)


def test_range_and_exponent_of_rho_match_karras_et_al() -> None:
    assert (grids.LARGEST_SIGMA, grids.SMALLEST_SIGMA, grids.RHO) == (80.0, 0.002, 7.0)


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("dimensions", [6, 64, 3 * 256 * 256])
def test_grid_octave_falls_as_a_power_of_the_noise_level_in_octaves(steps: int, dimensions: int) -> None:
    coarsest = math.sqrt(dimensions)
    angles = grid("octave", steps, dimensions=dimensions)
    octaves = np.log2((np.sin(angles) + 0.3 * np.cos(angles)) / (np.cos(angles) + np.sin(angles) / coarsest))
    shares = (octaves - math.log2(0.3)) / (math.log2(coarsest) - math.log2(0.3))
    np.testing.assert_allclose(shares, (1 - np.arange(steps + 1) / steps) ** 1.3, rtol=0, atol=1e-9)
    # for a denoiser that is undefined near 0 all angles but the last lie in its range
    lifted = grid("octave", steps, smallest=0.2, dimensions=dimensions)
    assert lifted[-2] >= 0.2 - 1e-12
    assert lifted[-1] == 0.0


def squares(request: GridRequest) -> np.ndarray:
    """A grid as another package writes it."""
    return request.start * request.falling**2


def test_an_import_path_is_a_grid() -> None:
    np.testing.assert_allclose(grid(f"{__name__}:squares", 2, 1.2), [1.2, 0.3, 0.0], rtol=1e-15)


def test_a_registered_name_is_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRIDS, "_entries", dict(GRIDS))
    GRIDS.register("squares")(squares)
    np.testing.assert_array_equal(grid("squares", 5), PI_2 * (1 - np.arange(6) / 5) ** 2)


def test_a_grid_function_is_called_with_the_whole_request(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def record(request: GridRequest) -> np.ndarray:
        requests.append(request)
        return request.start * request.falling

    monkeypatch.setattr(GRIDS, "_entries", {"record": record})
    table = schedule("linear", 50)
    grid("record", 4, 1.0, table, smallest=0.1, dimensions=12)
    assert requests == [GridRequest(steps=4, start=1.0, smallest=0.1, schedule=table, dimensions=12)]
    grid("record", 4)
    assert (requests[1].schedule.name, requests[1].schedule.steps) == ("arc", 1000)


def ascending(request: GridRequest) -> np.ndarray:
    return squares(request)[::-1]


def too_short(request: GridRequest) -> np.ndarray:
    return squares(request)[1:]


def repeated(request: GridRequest) -> np.ndarray:
    return np.array([request.start, 0.5, 0.5, 0.0])


def nothing(request: GridRequest) -> None:
    return None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ascending", r"it goes from 1.2 to 0, got 0\.\.1\.2"),
        ("too_short", r"3 steps take 4 angles, got shape \(3,\)"),
        ("repeated", "a grid descends strictly"),
        ("nothing", r"3 steps take 4 angles, got shape \(\)"),
    ],
)
def test_a_function_that_returns_no_grid_raises(function: str, message: str) -> None:
    with pytest.raises(InputError, match=f"the grid '{__name__}:{function}' does not return .*: {message}"):
        grid(f"{__name__}:{function}", 3, 1.2)
