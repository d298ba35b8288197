"""Write a sampler: each step is a weighted sum of state and estimates. This one is DDIM, and equals the library's."""

import math
from dataclasses import dataclass

import torch

import quarterarc as qa
from quarterarc.samplers import LinearSampler, Weights


@dataclass(frozen=True)
class Mine(LinearSampler):
    """x_a = cos a image + sin a noise."""

    def weights(self, b: float, a: float) -> Weights:
        """Weights of the step from angle b to the smaller angle a."""
        return Weights(x=0.0, image=math.cos(a), noise=math.sin(a))


world = qa.GaussianData(torch.zeros(1, 4, 4, dtype=torch.float64), 0.3)
noise = torch.randn(8, 1, 4, 4, dtype=torch.float64)
mine = qa.sample(world, noise, Mine(), steps=25).images
assert torch.allclose(mine, qa.sample(world, noise, "ddim", steps=25).images, atol=1e-12)
print("the same images as ddim; exact flow differs by", float((mine - world.flow(noise, math.pi / 2, 0.0)).abs().max()))
