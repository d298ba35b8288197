"""Published methods against implementations of their own, written from the papers and the authors' code in NumPy.

Times are numbered from 0, as in that code; the library numbers them from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.grids import grid
from quarterarc.heads import head
from quarterarc.likelihood import bits_per_dim
from quarterarc.objectives.bound import step_term
from quarterarc.samplers import DDPM
from quarterarc.sampling import sample
from quarterarc.schedules import schedule
from quarterarc.training.recipe_text import read_recipe
from quarterarc.wrappers import Guided

T = 40
BETAS = np.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T)
KEPT = np.cumprod(1 - BETAS)  # alpha-bar
KEPT_BEFORE = np.concatenate([[1.0], KEPT[:-1]])
POSTERIOR = BETAS * (1 - KEPT_BEFORE) / (1 - KEPT)
TABLE = schedule("linear", T)


def noise_of(x: np.ndarray, t: Any) -> np.ndarray:
    """A network that estimates noise, poor enough that its images leave [-1, 1]."""
    return 0.7 * x + 0.4 * np.sin(3 * x + 0.1 * t)


def log_variance_of(x: np.ndarray, t: Any) -> np.ndarray:
    """The other half of a network's output."""
    return -4.0 + 0.5 * np.tanh(x) - 0.01 * t


Function = Callable[[np.ndarray, Any], np.ndarray]


def denoiser(name: str, *outputs: Function) -> Denoiser:
    """A denoiser whose network concatenates functions of x and t, which is numbered from 0."""

    def evaluate(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        t = time.round().long().reshape(-1, 1, 1, 1).numpy()  # times are float32
        return torch.cat([torch.from_numpy(output(x.numpy(), t)).to(x) for output in outputs], 1)

    return Denoiser(evaluate, TABLE, head(name, TABLE), time_shift=-1.0, time_scale=1.0)


def start(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, 2, 2))


# --- DDIM's grids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 16, 20, 50, 99, 100, 333, 1000])
def test_grids_of_ddims_code(steps: int) -> None:
    table = schedule("linear", 1000)

    def times(name: str) -> list[int]:
        return [round(t) for t in table.time(grid(name, steps, table.end, table)).tolist()]

    uniform = [1 + t for t in reversed(range(0, 1000, 1000 // steps))]
    assert times("uniform") == [*uniform, 0]
    # in floating point, as there: the last but three of 16 is the square root of 512, which rounds down to 511
    between = math.sqrt(0.8 * 1000) / max(1, steps - 1)
    roots = [place * between for place in range(steps - 1)] + [math.sqrt(0.8 * 1000) if steps > 1 else 0.0]
    quad = sorted({1 + math.floor(root * root) for root in roots}, reverse=True)
    assert times("quad") == [*quad, 0]


def test_sixteen_uniform_steps_of_ddims_code_are_17_evaluations_from_t_993() -> None:
    table = schedule("linear", 1000)
    seen = list[float]()

    def evaluate(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(float(time))
        return torch.zeros_like(x)

    denoise = Denoiser(evaluate, table, head("noise", table))
    result = sample(denoise, torch.zeros(1, 1, 2, 2), "ddim", 16, "uniform")
    assert seen[0] == pytest.approx(993)
    assert result.nfe == len(seen) == 17
    assert table.time(float(result.angles[0])) == pytest.approx(993)
    assert sample(denoise, torch.zeros(1, 1, 2, 2), "ddim", 16, "quad").angles[0] == pytest.approx(table.angle(801.0))


# --- Ho et al.'s sampler --------------------------------------------------------------------------------------------


def ho_steps(
    x: np.ndarray,
    numbers: list[int],
    fresh: list[np.ndarray],
    log_variance: Function | None = None,
) -> np.ndarray:
    """Ho et al.'s sampler on a subset of the times, with a large or a learned variance, and clipped estimates.

    Args:
        x: the noise at the first of the times.
        numbers: descending times.
        fresh: the noise of each step.
        log_variance: the learned variance; None for the large one.
    """
    for t, before, z in zip(numbers, [*numbers[1:], -1], fresh, strict=True):
        kept, kept_before = KEPT[t], KEPT[before] if before >= 0 else 1.0
        beta = 1 - kept / kept_before
        image = np.clip(x / np.sqrt(kept) - np.sqrt(1 / kept - 1) * noise_of(x, t), -1, 1)
        mean = (np.sqrt(kept_before) * beta * image + np.sqrt(1 - beta) * (1 - kept_before) * x) / (1 - kept)
        deviation = np.sqrt(beta) if log_variance is None else np.exp(0.5 * log_variance(x, t))
        x = mean if before < 0 else mean + deviation * z
    return x


@pytest.mark.parametrize("numbers", [list(range(T))[::-1], [36, 24, 12, 0]], ids=["all", "subset"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_sampler_of_ho_et_al(numbers: list[int], learned: bool) -> None:
    fresh = [np.random.default_rng(1 + place).normal(size=start().shape) for place in range(len(numbers))]
    plain, learning = denoiser("noise", noise_of), denoiser("noise+log-variance", noise_of, log_variance_of)
    denoise = learning if learned else plain
    draws = iter(fresh)
    rule = DDPM("learned" if learned else "large", clip=True)
    angles = [TABLE.angle(t + 1.0) for t in numbers] + [0.0]
    states = list(rule(denoise, torch.from_numpy(start()), angles, lambda like: torch.from_numpy(next(draws))))
    expected = ho_steps(start(), numbers, fresh, log_variance_of if learned else None)
    np.testing.assert_allclose(states[-1].x.numpy(), expected, rtol=0, atol=1e-9)
    # the case tests the clipping, and the estimates of the trajectory are the clipped ones
    unclipped = denoise(states[0].x, angles[0]).image
    assert unclipped.abs().max() > 1.0
    assert states[0].estimate is not None
    torch.testing.assert_close(states[0].estimate.image, unclipped.clamp(-1, 1), rtol=0, atol=1e-12)


def test_the_sampler_of_ho_et_al_by_name_and_options() -> None:
    denoise = denoiser("noise", noise_of)
    x = torch.from_numpy(start())
    result = sample(denoise, x, "ddpm", T, "uniform", seeds=range(3), variance="large", clip=True)
    assert result.images.abs().max() <= 1.0  # the last step ends in the clipped estimate
    plain = sample(denoise, x, "ddpm", T, "uniform", seeds=range(3), variance="large")
    assert (result.images - plain.images).abs().max() > 0.1


# --- Ho et al.'s learned variance -----------------------------------------------------------------------------------


def ho_term(image: np.ndarray, x: np.ndarray, t: int) -> np.ndarray:
    """L_{t-1} or L_0 with learned diagonal Sigma, in nats per dimension: the network's output is the log variance."""
    first = np.sqrt(KEPT_BEFORE[t]) * BETAS[t] / (1 - KEPT[t])
    second = np.sqrt(1 - BETAS[t]) * (1 - KEPT_BEFORE[t]) / (1 - KEPT[t])
    estimated = x / np.sqrt(KEPT[t]) - np.sqrt(1 / KEPT[t] - 1) * noise_of(x, t)
    mean, log_variance = first * estimated + second * x, log_variance_of(x, t)
    if t == 0:
        deviation = np.exp(0.5 * log_variance)
        upper = np.where(image > 0.999, 1.0, norm.cdf((image + 1 / 255 - mean) / deviation))
        lower = np.where(image < -0.999, 0.0, norm.cdf((image - 1 / 255 - mean) / deviation))
        term = -np.log(upper - lower)
    else:
        true = first * image + second * x
        ratio = POSTERIOR[t] / np.exp(log_variance)
        term = 0.5 * (ratio - 1 - np.log(ratio) + (true - mean) ** 2 / np.exp(log_variance))
    return np.asarray(term.reshape(len(term), -1).mean(1))


def levels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 1, 2, 2)) / 127.5 - 1


@pytest.mark.parametrize("t", [0, 1, 7, T - 1])
def test_terms_of_the_bound_with_ho_et_als_learned_variance(t: int) -> None:
    image = levels()
    x = np.sqrt(KEPT[t]) * image + np.sqrt(1 - KEPT[t]) * start()
    denoise = denoiser("noise+log-variance", noise_of, log_variance_of)
    b, a = (torch.full((3,), TABLE.angle(float(time)), dtype=torch.float64) for time in (t + 1, t))
    points, angle = torch.from_numpy(x), float(b[0])
    term = step_term(denoise(points, angle), torch.from_numpy(image), points, b, a, TABLE, "learned")
    np.testing.assert_allclose(term.numpy(), ho_term(image, x, t), rtol=1e-8)


def test_the_bound_uses_a_learned_log_variance_by_default() -> None:
    denoise = denoiser("noise+log-variance", noise_of, log_variance_of)
    images = torch.from_numpy(np.round((levels() + 1) * 127.5).astype(np.uint8))
    own, learned = (bits_per_dim(denoise, images, variance) for variance in (None, "learned"))
    assert own.total.mean() == learned.total.mean() != bits_per_dim(denoise, images, "large").total.mean()


def test_guidance_keeps_the_learned_log_variance_of_the_condition() -> None:
    def evaluate(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return torch.cat([x, labels[:, None, None, None].expand_as(x).to(x)], 1)

    denoise = Denoiser(evaluate, TABLE, head("noise+log-variance", TABLE), classes=5)
    estimate = Guided(denoise, 2.0)(torch.zeros(2, 1, 2, 2), 0.5, torch.tensor([1, 3]))
    assert estimate.log_variance is not None
    assert estimate.log_variance[:, 0, 0, 0].tolist() == [1, 3]


def test_the_objective_vlb_accepts_both_kinds_of_learned_variance() -> None:
    for name in ("noise+variance", "mean+log-variance"):
        assert read_recipe("digits", [f"head={name}", "objective.name=vlb"]).head == name
    with pytest.raises(InputError, match="needs a head that estimates one"):
        read_recipe("digits", ["head=noise", "objective.name=vlb"])


def test_the_published_samplers_on_the_command_line(tiny_run: Path, tmp_path: Path) -> None:
    ddpm = ["--sampler", "ddpm", "--option", "variance=large", "--option", "clip=true", "--grid", "uniform"]
    ddim = ["--sampler", "ddim", "--grid", "quad"]
    for name, options in (("ddpm", ddpm), ("ddim", ddim)):
        out = tmp_path / name
        assert main(["sample", str(tiny_run), "--out", str(out), "--seeds", "0-1", "--steps", "5", *options]) == 0
        assert len(list(out.glob("0*.png"))) == 2
