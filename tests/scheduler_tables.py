"""Settings of diffusers' schedulers, one for every kind of beta table."""

import numpy as np

TABLES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "linear", "num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "laplace"},
    {"trained_betas": np.geomspace(1e-4, 0.3, 60).tolist(), "num_train_timesteps": 60},
    {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "num_train_timesteps": 200},
]
