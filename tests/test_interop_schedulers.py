"""diffusers' schedulers: their beta tables as schedules, and their timesteps as grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quarterarc import InputError
from quarterarc.arc import NOISE_END
from quarterarc.interop import pipeline_grid, pipeline_schedule
from scheduler_tables import TABLES

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("config", TABLES, ids=lambda config: "-".join(str(v)[:12] for v in config.values()))
def test_alpha_bar_equals_that_of_diffusers_at_every_step(config: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**config)
    schedule = pipeline_schedule(scheduler)
    assert schedule.steps == scheduler.config.num_train_timesteps
    # diffusers multiplies up to 1000 factors near 1 in float32, with errors of 3e-8 per factor
    np.testing.assert_allclose(schedule.alpha_bar[1:], scheduler.alphas_cumprod.numpy(), rtol=3e-5, atol=1e-9)
    # the noise level near the image, which has four digits in diffusers
    np.testing.assert_allclose(np.sin(schedule.angles[1]) ** 2, scheduler.betas[0].item(), rtol=1e-3)
    if config.get("rescale_betas_zero_snr"):
        assert schedule.end == NOISE_END


def test_alpha_bar_of_the_exponential_table_equals_that_of_diffusers() -> None:
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=50)
    expected = scheduler.alphas_cumprod.numpy()
    np.testing.assert_allclose(pipeline_schedule(scheduler).alpha_bar[1:], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("trained", "steps"), [*((100, steps) for steps in (1, 4, 10, 50, 100)), (1000, 48), (1000, 80)]
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_grid_has_the_timesteps_of_diffusers(spacing: str, trained: int, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=trained, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    schedule = pipeline_schedule(scheduler)
    numbers = schedule.time(pipeline_grid(scheduler, steps)[:-1]) - 1
    np.testing.assert_allclose(numbers, scheduler.timesteps.numpy(), atol=1e-9)  # of interpolation in both directions
    assert pipeline_grid(scheduler, steps)[-1] == 0.0


def test_invalid_steps_spacings_and_offsets_raise() -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50)
    for steps in (0, 51, -1):
        with pytest.raises(InputError, match="has 50 steps"):
            pipeline_grid(scheduler, steps)
    with pytest.raises(InputError, match="unknown timestep_spacing 'even'"):
        pipeline_grid({**scheduler.config, "timestep_spacing": "even"}, 5)
    with pytest.raises(InputError, match="steps_offset=1 puts the first of 50 leading steps beyond the scheduler's 50"):
        pipeline_grid({**scheduler.config, "steps_offset": 1}, 50)
    assert len(pipeline_grid({**scheduler.config, "steps_offset": 1}, 25)) == 26
