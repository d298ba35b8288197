"""The library in ten lines: an exact denoiser of handwritten digits, and the error of five samplers."""

import torch

import quarterarc as qa
from quarterarc.data import DataSpec, open_data

digits = qa.to_float(open_data(DataSpec(source="digits", size=8, channels=1)).batch(range(500)).images).double()
denoise = qa.MixtureData(digits, h=0.15)  # the optimal network, in closed form

noise = torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
truth = qa.sample(denoise, noise, "rk4", steps=400).images
for sampler, steps in (("ddim", 20), ("rotation", 20), ("euler", 20), ("heun", 10), ("rk4", 5)):
    result = qa.sample(denoise, noise, sampler, steps=steps)
    error = (result.images - truth).flatten(1).norm(dim=1).median()
    print(f"{sampler:9} {steps:3} steps {result.nfe:3} evaluations   median distance {error:.4f}")
