"""EDM's preconditioning (Karras et al. 2022, Eq. 7 and Table 1) of a network, as the velocity of the arc.

EDM's denoiser of x' = x/cos = image + sigma noise, sigma = tan, is, with d = sigma_data and r^2 = sin^2 + d^2 cos^2,

    D = c_skip x' + c_out F(c_in x', ln(sigma)/4)     c_skip = d^2 cos^2/r^2,  c_out = d tan cos/r,  c_in = cos/r

so that the network F is called with x/r, and the velocity of the arc, cos noise - sin image, is

    v = (1 - d^2) sin cos/r^2 x - d/r F

which is defined at both ends. `quarterarc.interop.EDM` of D is the same denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..arc import spread
from ..networks import build_network

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module):
    """A network of EDM, called with times of the arc, 0..1000 for 0..arctan(largest_sigma); returns the velocity.

    Args:
        network: the description of the network F (`quarterarc.networks.build_network`), whose weights are `model.*`.
        sigma_data: standard deviation of the training images.
        smallest_sigma, largest_sigma: the range of sigma; outside, the network is called with the nearest one.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        sigma_data: float = 0.5,
        smallest_sigma: float = 0.002,
        largest_sigma: float = 80.0,
    ) -> None:
        super().__init__()
        self.model = build_network(network)
        self.sigma_data, self.smallest_sigma, self.largest_sigma = sigma_data, smallest_sigma, largest_sigma

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """X of shape (B, C, H, W), time of shape () or (B,), labels (B,); returns (B, C, H, W)."""
        d = self.sigma_data
        angle = time * (math.atan(self.largest_sigma) / 1000.0)
        s, c = angle.sin(), angle.cos()
        r = (s**2 + d**2 * c**2).sqrt()
        level = (s / c).clamp(self.smallest_sigma, self.largest_sigma).log() / 4.0
        scale, skip, out = (spread(factor, x) for factor in (1.0 / r, (1.0 - d**2) * s * c / r**2, d / r))
        return skip * x - out * self.model(scale * x, level, labels)
