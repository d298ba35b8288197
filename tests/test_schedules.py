"""Schedules: every row of the table against its own formula, computed independently with decimals."""

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
    return math.sin((1 - part) * math.pi / 2) ** 2  # of that part of a right angle, without loss near its end


def expected_beta(name: str, steps: int) -> list[Decimal]:
    """Each beta of the papers by its definition, in 50 digits where the definition is arithmetic."""
    if name == "jsd":
        return [Decimal(1) / (steps - t + 1) for t in range(1, steps + 1)]
    if name == "linear":
        beta = [each * 1000 / steps for each in spaced(1e-4, 0.02, steps)]
    elif name == "quadratic":
        low, high = Decimal("1e-4").sqrt(), Decimal("0.02").sqrt()
        beta = [(low + (high - low) * k / max(steps - 1, 1)) ** 2 for k in range(steps)]
    elif name == "sigmoid":
        beta = [sigmoid(each) * (Decimal("0.02") - Decimal("1e-4")) + Decimal("1e-4") for each in spaced(-6, 6, steps)]
    else:
        if name == "cosine":
            level = [cosine_square((t / steps + 0.008) / 1.008) for t in range(steps + 1)]
        else:
            level = [cosine_square(t / steps) for t in range(steps + 1)]
        beta = [Decimal(1) - Decimal(b) / Decimal(a) for a, b in pairwise(level)]
    return [min(each, Decimal("0.999")) for each in beta] if name != "arc" else beta


def cumulative(beta: list[Decimal]) -> list[Decimal]:
    alpha_bar = [Decimal(1)]
    for each in beta:
        alpha_bar.append(alpha_bar[-1] * (1 - each))
    return alpha_bar


def rounding(made: Schedule) -> float:
    """What rounding may do to beta: an angle is known to 2e-16, which is 2e-16 tan(angle) of its cosine."""
    return 2e-15 * float(np.tan(made.angles[made.angles < math.pi / 2]).max()) + 1e-15


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_beta_and_alpha_bar_are_the_papers(name: str, steps: int) -> None:
    made, beta = schedule(name, steps), expected_beta(name, steps)
    np.testing.assert_allclose(made.beta[1:], np.array(beta, dtype=float), rtol=1e-13, atol=rounding(made))
    np.testing.assert_allclose(made.alpha_bar, np.array(cumulative(beta), dtype=float), rtol=1e-13, atol=1e-15)
    assert made.beta[0] == 0.0
    assert made.alpha_bar[0] == 1.0


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid", "jsd"])  # those known to more than 16 digits
def test_the_angle_keeps_its_digits_at_both_ends(name: str, steps: int) -> None:
    # tan^2 angle = (1 - alpha_bar)/alpha_bar in 50 digits, near 0 and near pi/2 alike
    made = schedule(name, steps)
    for t, level in enumerate(cumulative(expected_beta(name, steps))):
        exact = float(((1 - level) / level).sqrt()) if level > 0 else math.inf
        assert math.atan(exact) == pytest.approx(made.angles[t], rel=1e-13)


def test_arc_is_linear_in_the_angle() -> None:
    made = schedule("arc", 1000)
    np.testing.assert_allclose(made.angles, [t / 1000 * math.pi / 2 for t in range(1001)], rtol=1e-15)
    assert made.end == math.pi / 2


def test_jsd_is_linear_in_alpha_bar() -> None:
    made = schedule("jsd", 1000)
    np.testing.assert_allclose(made.alpha_bar, 1 - np.arange(1001) / 1000, rtol=0, atol=1e-15)
    assert made.beta[1] == pytest.approx(1 / 1000, rel=1e-12)  # and not 1, which would erase the image at once
    assert made.end == math.pi / 2


def test_the_ends_that_the_papers_state() -> None:
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
def test_beta_is_one_minus_the_ratio_of_alpha_bar(name: str, steps: int) -> None:
    made = schedule(name, steps)
    ratio = made.alpha_bar[1:] / made.alpha_bar[:-1]
    np.testing.assert_allclose(made.beta[1:], 1 - ratio, rtol=0, atol=rounding(made))


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_angles_ascend_from_zero_and_are_read_only(name: str, steps: int) -> None:
    made = schedule(name, steps)
    assert made.steps == steps
    assert made.angles.shape == (steps + 1,)
    assert made.angles.dtype == np.float64
    assert made.angles[0] == 0.0
    assert np.all(np.diff(made.angles) > 0)
    assert np.all((made.beta[1:] > 0) & (made.beta[1:] <= 1 + rounding(made)))
    with pytest.raises(ValueError, match="read-only"):
        made.angles[0] = 1.0


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_time_and_angle_are_inverse(name: str, steps: int) -> None:
    made = schedule(name, steps)
    times = np.unique(np.concatenate([np.linspace(0, steps, 137), np.arange(min(steps, 50) + 1)]))
    angles = made.angle(times)
    # an angle near pi/2 is rounded at 2e-16, and a time is that over the distance of two angles
    tolerance = 1e-15 * steps + 4e-16 / float(np.diff(made.angles).min())
    np.testing.assert_allclose(made.time(angles), times, rtol=0, atol=tolerance)
    np.testing.assert_allclose(made.angle(np.arange(steps + 1)), made.angles, rtol=0, atol=0)
    np.testing.assert_array_equal(made.time(made.angles), np.arange(steps + 1))
    for t in (0, 0.25, 1, steps - 0.5, steps):
        assert isinstance(made.angle(t), float)
        assert made.time(made.angle(t)) == pytest.approx(t, abs=tolerance)
    tensor = torch.tensor(times, dtype=torch.float64)
    torch.testing.assert_close(made.angle(tensor), torch.from_numpy(angles), rtol=0, atol=0)
    torch.testing.assert_close(made.time(made.angle(tensor)), tensor, rtol=0, atol=tolerance)


def test_numbers_arrays_and_tensors_come_back_as_they_went_in() -> None:
    made = schedule("arc", 10)
    assert isinstance(made.angle(np.float64(3)), float)
    assert isinstance(made.angle([0, 3]), np.ndarray)
    assert made.angle(np.zeros((2, 3))).shape == (2, 3)
    for dtype in (torch.float32, torch.float64, torch.int64):
        assert made.angle(torch.tensor([3, 5], dtype=dtype)).dtype == torch.float64
    assert made.angle(torch.tensor(3)).shape == ()
    between = made.angle(3.5)
    assert between == pytest.approx((made.angles[3] + made.angles[4]) / 2, abs=1e-16)  # linear in t


def test_the_float32_nearest_to_the_end_is_the_end() -> None:
    end = torch.tensor(math.pi / 2)
    assert float(end) > math.pi / 2
    assert schedule("arc", 10).time(end) == 10


def test_custom_schedules() -> None:
    beta = [0.1, 0.5, 0.9]
    made = Schedule.from_beta(beta)
    np.testing.assert_allclose(made.alpha_bar, [1, 0.9, 0.45, 0.045], rtol=1e-14)
    np.testing.assert_allclose(made.beta[1:], beta, rtol=1e-14)
    angles = np.array([0.0, 0.5, 1.0])
    mine = Schedule("mine", angles)
    angles[1] = 9.0
    np.testing.assert_array_equal(mine.angles, [0.0, 0.5, 1.0])  # a copy: the caller's array is the caller's
    assert mine.end == 1.0


@pytest.mark.parametrize(
    "angles", [[0.0], [], [[0.0, 1.0]], [0.1, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.5], [0.0, 1.0, 1.6], [0.0, math.nan]]
)
def test_angles_that_are_no_schedule_are_refused(angles: list[float]) -> None:
    with pytest.raises(InputError, match="a schedule"):
        Schedule("bad", np.array(angles))


def test_the_refusal_shows_the_ends() -> None:
    with pytest.raises(InputError, match=r"got 0\.25 \.\.\. 1\.5$"):
        Schedule("bad", np.array([0.25, 1.0, 1.5]))


@pytest.mark.parametrize("beta", [[], [0.0], [1.0], [0.5, -0.1], [[0.5]], [math.nan]])
def test_betas_that_are_no_schedule_are_refused(beta: list[float]) -> None:
    with pytest.raises(InputError, match="every value in"):
        Schedule.from_beta(beta)


def test_times_and_angles_outside_are_refused() -> None:
    made = schedule("linear", 1000)
    for t in (-1, 1000.5, math.nan):
        with pytest.raises(InputError, match=r"times lie in 0\.\.1000"):
            made.angle(t)
    with pytest.raises(InputError, match=r"got 1\.0\.\.2000\.0"):
        made.angle(torch.tensor([1.0, 2000.0, 5.0]))
    with pytest.raises(InputError, match=r"got 1000\.5$"):
        made.angle(1000.5)
    for angle in (-0.1, 1.58, math.pi / 2):
        with pytest.raises(InputError, match=r"the angles of 'linear' lie in 0\.\.1\.56"):
            made.time(angle)


def test_unknown_names_list_the_known_and_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown schedule 'lineer'; did you mean 'linear'") as caught:
        schedule("lineer")
    for name in SCHEDULES:
        assert name in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "ten"])
def test_step_counts_that_are_none_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="whole number of steps"):
        schedule("arc", steps)
