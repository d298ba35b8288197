"""Noise by one compiled kernel: equal to that of tensor operations, and its fallback."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from quarterarc.common.fused_noise import FusedNoise
from quarterarc.common.streams import Purpose, Streams, streams


def example(step: int, fused: FusedNoise | None) -> Streams:
    """The streams of three examples, after the draws that come before their noise."""
    drawn = streams(Purpose.EXAMPLE, 2**40 + 3, step, [0, 5, 2**31], fused=fused)
    drawn.uniform(2)
    return drawn


def test_one_kernel_draws_the_noise_of_184_operations(caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor import metrics

    fused = FusedNoise()
    metrics.reset()
    for step in (0, 1, 2**31):  # the step is an argument of the kernel: nothing is compiled again
        made, expected = example(step, fused).normal((3, 5, 5)), example(step, None).normal((3, 5, 5))
        assert torch.allclose(made, expected, rtol=0.0, atol=1e-6)
    assert metrics.generated_kernel_count <= 4
    assert len(fused._rules) == 1
    assert "without compilation" not in caplog.text


@pytest.mark.parametrize("broken", ["raises", "wrong"])
def test_without_a_sound_kernel_the_operations_draw(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile(rule: Any, **settings: Any) -> Any:
        def fused(words: torch.Tensor) -> torch.Tensor:
            if broken == "raises":
                raise RuntimeError("no compiler here")
            return rule(words) + 1e-3

        return fused

    monkeypatch.setattr(torch, "compile", compile)
    with caplog.at_level(logging.WARNING, "quarterarc"):
        made = example(1, FusedNoise()).normal((3, 5, 5))
    assert torch.equal(made, example(1, None).normal((3, 5, 5)))
    assert ("no compiler here" if broken == "raises" else "differ by 0.001") in caplog.text


def test_large_noise_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part by its own rule, which continues where the part before ended."""
    monkeypatch.setattr("quarterarc.common.streams._AT_ONCE", 8)
    monkeypatch.setattr(torch, "compile", lambda rule, **settings: rule)
    assert torch.equal(example(1, FusedNoise()).normal((3, 5, 5)), example(1, None).normal((3, 5, 5)))
