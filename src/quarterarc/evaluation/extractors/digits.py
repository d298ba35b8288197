"""Features for small gray images: a classifier of handwritten digits that is part of the package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.weights import load_weights
from .base import FeatureNetwork

__all__ = ["HELD_OUT", "WEIGHTS", "DigitsNet", "load_digits_net"]

WEIGHTS = Path(__file__).parents[1] / "digits_classifier.safetensors"
HELD_OUT = 5
"""Every fifth digit of the embedded set (number % 5 == 4) is held out from training."""


class DigitsNet(FeatureNetwork):
    """A convolutional network with 50,000 weights, trained on the embedded digits (`tools/train_digits_classifier.py`).

    Input: uint8 (B, 1, H, W) with sides of 8 to 32 pixels, resized to 16x16. Pool features: the 64 activations before
    the last layer. Logits: the 10 digits.
    """

    kinds = ("pool", "logits")
    resize = "bilinear antialiased to 16x16"
    channels = 1
    sides = (8, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.halve = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.second = nn.Conv2d(24, 48, 3, padding=1)
        self.halve_again = nn.Conv2d(48, 48, 3, stride=2, padding=1)
        self.features = nn.Linear(48 * 4, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pool features (B, 64) and logits (B, 10) of images of any real dtype, levels 0..255."""
        x = images.float() / 127.5 - 1.0
        x = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True, align_corners=False)
        for layer in (self.first, self.halve, self.second, self.halve_again):
            x = F.silu(layer(x))
        pool = F.silu(self.features(F.avg_pool2d(x, 2).flatten(1)))
        return {"pool": pool, "logits": self.classes(pool)}


def load_digits_net() -> DigitsNet:
    """The network with the weights of the package."""
    with torch.device("meta"):
        network = DigitsNet()
    network = network.to_empty(device="cpu")
    load_weights(network, WEIGHTS)
    return network
