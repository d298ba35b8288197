"""The calculation of training on many GPUs: limits that are known in closed form."""

import pytest

from benchmarks.__main__ import main
from benchmarks.scaling import BUCKET, FIRST_BUCKET, MEASURED, Links, Measured, all_reduce, step_seconds

FAST = Links(nvlink_delay=0.0, network_delay=0.0)


def test_a_ring_moves_almost_twice_the_bytes() -> None:
    """2 (n - 1)/n of them within a node; between nodes of k GPUs each card moves a k-th."""
    assert all_reduce(1e9, 1, Links()) == 0.0
    assert all_reduce(1e9, 8, FAST) == pytest.approx(2 * 7 / 8 * 1e9 / FAST.nvlink, rel=1e-12)
    inside, between = all_reduce(1e9, 8, FAST), 2 * 7 / 8 * 1e9 / 8 / FAST.network
    assert all_reduce(1e9, 64, FAST) == pytest.approx(inside + between, rel=1e-12)
    single = Links(node=1, network_delay=2e-6)  # one GPU per node, empty messages
    assert all_reduce(0.0, 4, single) == pytest.approx(2 * 3 * 2e-6, rel=1e-12)


def test_a_fast_network_leaves_the_last_bucket() -> None:
    """All others are sent during the backward pass."""
    one = Measured(batch=128, step=1.0, forward=0.3, weights=(FIRST_BUCKET + 3 * BUCKET) / 4)
    left = step_seconds(one, 64, FAST) - one.step
    assert left == pytest.approx(all_reduce(BUCKET, 64, FAST), rel=1e-9)


def test_a_slow_network_sends_for_longer_than_the_backward_pass() -> None:
    """From the first bucket on without a pause: the step is longer by all of it but the backward pass after that."""
    one = Measured(batch=128, step=1e-3, forward=0.3e-3, weights=(FIRST_BUCKET + 3 * BUCKET) / 4)
    size, slow = 4 * one.weights, Links(network=1e9, nvlink_delay=0.0, network_delay=0.0)
    first = one.backward * FIRST_BUCKET / size
    expected = one.step - one.backward + first + all_reduce(size, 64, slow)
    assert step_seconds(one, 64, slow) == pytest.approx(expected, rel=1e-9)


def test_without_overlap_everything_is_sent_after_the_backward_pass() -> None:
    one = MEASURED["cifar10"]
    left = step_seconds(one, 64, FAST, overlap=False) - one.step
    assert left == pytest.approx(all_reduce(4 * one.weights, 64, FAST), rel=1e-9)


def test_more_gpus_are_never_more_efficient(capsys: pytest.CaptureFixture[str]) -> None:
    for one in MEASURED.values():
        steps = [step_seconds(one, count, Links()) for count in (1, 2, 8, 16, 64)]
        assert steps == sorted(steps)
    assert main(["scaling", "--gpus", "1,64"]) == 0
    assert capsys.readouterr().out.startswith("calculated, not measured")
    assert main(["scaling", "--gpus", "12"]) == 2
    assert "multiple" in capsys.readouterr().err
