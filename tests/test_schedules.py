"""Schedules: every row of the table against its formula, computed independently in 50 decimal digits."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from itertools import pairwise

import numpy as np
import pytest
import torch

from quarterarc.common.errors import InputError
from quarterarc.schedules import LARGEST_BETA, SCHEDULES, Schedule, schedule

getcontext().prec = 50
LENGTHS = [1, 2, 10, 1000]


def spaced(low: float, high: float, count: int) -> list[Decimal]:
    step = (Decimal(high) - Decimal(low)) / max(count - 1, 1)
    return [Decimal(low) + k * step for k in range(count)]


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def cosine_square(part: float) -> float:
    return math.sin((1 - part) * math.pi / 2) ** 2  # cos^2 without cancellation near its end


def expected_beta(name: str, steps: int) -> list[Decimal]:
    """The beta of the papers by their definitions, in 50 digits where the definition is arithmetic."""
    if name == "jsd":
        return [Decimal(1) / (steps - t + 1) for t in range(1, steps + 1)]
    if name == "linear":
        beta = [value * 1000 / steps for value in spaced(1e-4, 0.02, steps)]
    elif name == "quadratic":
        low, high = Decimal("1e-4").sqrt(), Decimal("0.02").sqrt()
        beta = [(low + (high - low) * k / max(steps - 1, 1)) ** 2 for k in range(steps)]
    elif name == "sigmoid":
        low, high = Decimal("1e-4"), Decimal("0.02")
        beta = [low + (high - low) * sigmoid(value) for value in spaced(-6, 6, steps)]
    else:
        if name == "cosine":
            level = [cosine_square((t / steps + 0.008) / 1.008) for t in range(steps + 1)]
        else:
            level = [cosine_square(t / steps) for t in range(steps + 1)]
        beta = [Decimal(1) - Decimal(b) / Decimal(a) for a, b in pairwise(level)]
    return [min(value, Decimal("0.999")) for value in beta] if name != "arc" else beta


def cumulative(beta: list[Decimal]) -> list[Decimal]:
    alpha_bar = [Decimal(1)]
    for value in beta:
        alpha_bar.append(alpha_bar[-1] * (1 - value))
    return alpha_bar


def rounding(table: Schedule) -> float:
    """Rounding error of beta: an angle is accurate to 2e-16, its cosine to a relative 2e-16 tan(angle)."""
    return 2e-15 * float(np.tan(table.angles[table.angles < math.pi / 2]).max()) + 1e-15


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_beta_and_alpha_bar_match_the_papers(name: str, steps: int) -> None:
    table, beta = schedule(name, steps), expected_beta(name, steps)
    np.testing.assert_allclose(table.beta[1:], np.array(beta, dtype=float), rtol=1e-13, atol=rounding(table))
    np.testing.assert_allclose(table.alpha_bar, np.array(cumulative(beta), dtype=float), rtol=1e-13, atol=1e-15)
    assert table.beta[0] == 0.0
    assert table.alpha_bar[0] == 1.0


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid", "jsd"])  # defined by arithmetic
def test_angles_are_accurate_at_both_ends(name: str, steps: int) -> None:
    # tan^2 angle = (1 - alpha_bar)/alpha_bar in 50 digits, near 0 and near pi/2 alike
    table = schedule(name, steps)
    for t, level in enumerate(cumulative(expected_beta(name, steps))):
        exact = float(((1 - level) / level).sqrt()) if level > 0 else math.inf
        assert math.atan(exact) == pytest.approx(table.angles[t], rel=1e-13)


def test_arc_is_uniform_in_the_angle() -> None:
    table = schedule("arc", 1000)
    np.testing.assert_allclose(table.angles, [t / 1000 * math.pi / 2 for t in range(1001)], rtol=1e-15)
    assert table.end == math.pi / 2


def test_jsd_is_uniform_in_alpha_bar() -> None:
    table = schedule("jsd", 1000)
    np.testing.assert_allclose(table.alpha_bar, 1 - np.arange(1001) / 1000, rtol=0, atol=1e-15)
    assert table.beta[1] == pytest.approx(1 / 1000, rel=1e-12)  # not 1, as in the paper's order
    assert table.end == math.pi / 2


def test_ends_of_the_schedules_match_the_papers() -> None:
    linear = schedule("linear")
    assert linear.beta[1] == pytest.approx(1e-4, rel=1e-12)
    assert linear.beta[1000] == pytest.approx(0.02, rel=1e-12)
    assert linear.alpha_bar[-1] == pytest.approx(4.04e-5, abs=5e-8)  # three digits, as published
    for name in set(SCHEDULES) - {"arc", "jsd"}:
        assert schedule(name).end < math.pi / 2
    for name in ("cosine", "beta-star"):  # their last beta is 1 before it is clipped
        assert schedule(name).beta[-1] == pytest.approx(LARGEST_BETA, rel=1e-12)
        assert schedule(name).end > 1.57
    short = schedule("linear", 500)
    np.testing.assert_allclose(short.beta[[1, 500]], [2e-4, 0.04], rtol=1e-12)


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_beta_is_1_minus_the_ratio_of_alpha_bar(name: str, steps: int) -> None:
    table = schedule(name, steps)
    ratio = table.alpha_bar[1:] / table.alpha_bar[:-1]
    np.testing.assert_allclose(table.beta[1:], 1 - ratio, rtol=0, atol=rounding(table))


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_angles_ascend_from_zero_and_are_read_only(name: str, steps: int) -> None:
    table = schedule(name, steps)
    assert table.steps == steps
    assert table.angles.shape == (steps + 1,)
    assert table.angles.dtype == np.float64
    assert table.angles[0] == 0.0
    assert np.all(np.diff(table.angles) > 0)
    assert np.all((table.beta[1:] > 0) & (table.beta[1:] <= 1 + rounding(table)))
    with pytest.raises(ValueError, match="read-only"):
        table.angles[0] = 1.0


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_time_and_angle_are_inverse_functions(name: str, steps: int) -> None:
    table = schedule(name, steps)
    times = np.unique(np.concatenate([np.linspace(0, steps, 137), np.arange(min(steps, 50) + 1)]))
    angles = table.angle(times)
    # an angle near pi/2 has a rounding error of 2e-16, and a time that error over the distance of two angles
    tolerance = 1e-15 * steps + 4e-16 / float(np.diff(table.angles).min())
    np.testing.assert_allclose(table.time(angles), times, rtol=0, atol=tolerance)
    np.testing.assert_allclose(table.angle(np.arange(steps + 1)), table.angles, rtol=0, atol=0)
    np.testing.assert_array_equal(table.time(table.angles), np.arange(steps + 1))
    for t in (0, 0.25, 1, steps - 0.5, steps):
        assert isinstance(table.angle(t), float)
        assert table.time(table.angle(t)) == pytest.approx(t, abs=tolerance)
    tensor = torch.tensor(times, dtype=torch.float64)
    torch.testing.assert_close(table.angle(tensor), torch.from_numpy(angles), rtol=0, atol=0)
    torch.testing.assert_close(table.time(table.angle(tensor)), tensor, rtol=0, atol=tolerance)


def test_angle_returns_the_type_of_its_argument() -> None:
    table = schedule("arc", 10)
    assert isinstance(table.angle(np.float64(3)), float)
    assert isinstance(table.angle([0, 3]), np.ndarray)
    assert table.angle(np.zeros((2, 3))).shape == (2, 3)
    for dtype in (torch.float32, torch.float64, torch.int64):
        assert table.angle(torch.tensor([3, 5], dtype=dtype)).dtype == torch.float64
    assert table.angle(torch.tensor(3)).shape == ()
    between = table.angle(3.5)
    assert between == pytest.approx((table.angles[3] + table.angles[4]) / 2, abs=1e-16)  # linear in t


def test_pi_over_2_in_float32_is_the_end() -> None:
    end = torch.tensor(math.pi / 2)
    assert float(end) > math.pi / 2
    assert schedule("arc", 10).time(end) == 10


def test_schedules_from_beta_and_from_angles() -> None:
    beta = [0.1, 0.5, 0.9]
    table = Schedule.from_beta(beta)
    np.testing.assert_allclose(table.alpha_bar, [1, 0.9, 0.45, 0.045], rtol=1e-14)
    np.testing.assert_allclose(table.beta[1:], beta, rtol=1e-14)
    angles = np.array([0.0, 0.5, 1.0])
    mine = Schedule("mine", angles)
    angles[1] = 9.0
    np.testing.assert_array_equal(mine.angles, [0.0, 0.5, 1.0])  # a copy of the caller's array
    assert mine.end == 1.0


@pytest.mark.parametrize(
    "angles", [[0.0], [], [[0.0, 1.0]], [0.1, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.5], [0.0, 1.0, 1.6], [0.0, math.nan]]
)
def test_unusable_angles_raise(angles: list[float]) -> None:
    with pytest.raises(InputError, match="a schedule"):
        Schedule("bad", np.array(angles))


def test_the_error_shows_both_ends() -> None:
    with pytest.raises(InputError, match=r"got 0\.25 \.\.\. 1\.5$"):
        Schedule("bad", np.array([0.25, 1.0, 1.5]))


@pytest.mark.parametrize("beta", [[], [0.0], [1.0], [0.5, -0.1], [[0.5]], [math.nan]])
def test_unusable_betas_raise(beta: list[float]) -> None:
    with pytest.raises(InputError, match="every value in"):
        Schedule.from_beta(beta)


def test_times_and_angles_outside_the_schedule_raise() -> None:
    table = schedule("linear", 1000)
    for t in (-1, 1000.5, math.nan):
        with pytest.raises(InputError, match=r"times lie in 0\.\.1000"):
            table.angle(t)
    with pytest.raises(InputError, match=r"got 1\.0\.\.2000\.0"):
        table.angle(torch.tensor([1.0, 2000.0, 5.0]))
    with pytest.raises(InputError, match=r"got 1000\.5$"):
        table.angle(1000.5)
    for angle in (-0.1, 1.58, math.pi / 2):
        with pytest.raises(InputError, match=r"the angles of 'linear' lie in 0\.\.1\.56"):
            table.time(angle)


def test_unknown_names_raise_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(InputError, match="unknown schedule 'lineer'; did you mean 'linear'") as caught:
        schedule("lineer")
    for name in SCHEDULES:
        assert name in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "ten"])
def test_invalid_numbers_of_steps_raise(steps: int) -> None:
    with pytest.raises(InputError, match="whole number of steps"):
        schedule("arc", steps)


def cube(steps: int) -> np.ndarray:
    """A schedule as another package writes it."""
    return (np.arange(steps + 1) / steps) ** 3 * math.pi / 2


def from_beta(steps: int) -> Schedule:
    return Schedule.from_beta(np.full(steps, 0.1))


@pytest.mark.parametrize("function", ["cube", "from_beta"])
def test_an_import_path_is_a_schedule_and_its_name(function: str) -> None:
    table = schedule(f"{__name__}:{function}", 10)
    assert table.name == f"{__name__}:{function}"
    assert table.steps == 10
    expected = {"cube": cube(10), "from_beta": from_beta(10).angles}[function]
    np.testing.assert_array_equal(table.angles, expected)


def test_a_registered_name_is_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCHEDULES, "_entries", dict(SCHEDULES))
    SCHEDULES.register("cube")(cube)
    assert schedule("cube", 10).name == "cube"


def descending(steps: int) -> np.ndarray:
    return cube(steps)[::-1]


def too_long(steps: int) -> np.ndarray:
    return cube(steps + 1)


def text(steps: int) -> str:
    return "angles"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("descending", "does not return the angles of a schedule: a schedule's angles ascend strictly"),
        ("too_long", "returns 12 angles for T = 10, not 11"),
        ("text", "does not return the angles of a schedule: could not convert"),
    ],
)
def test_a_function_that_returns_no_schedule_raises(function: str, message: str) -> None:
    with pytest.raises(InputError, match=f"the schedule '{__name__}:{function}' {message}"):
        schedule(f"{__name__}:{function}", 10)


def failing(steps: int) -> np.ndarray:
    raise RuntimeError("a reason\nof two lines")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("builtins:print", "is a builtin_function_or_method"),
        ("time:sleep", "is a builtin_function_or_method"),
        ("collections:Counter", "standard library"),
        (f"{__name__}:failing", "fails for T = 3: RuntimeError: a reason of two lines"),
    ],
)
def test_an_import_path_of_other_or_failing_code_is_no_schedule(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(path, 3)
