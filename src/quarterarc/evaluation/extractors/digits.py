"""Features of small gray images: a classifier of handwritten digits that comes with the package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.weights import load_weights

__all__ = ["HELD_OUT", "WEIGHTS", "DigitsNet", "load_digits_net"]

WEIGHTS = Path(__file__).parents[1] / "digits_classifier.safetensors"
HELD_OUT = 5
"""Every fifth digit of the embedded set (those whose number leaves 4) was not trained on."""


class DigitsNet(nn.Module):
    """A convolutional network of 50,000 weights; `tools/train_digits_classifier.py` trained it on the embedded digits.

    Takes uint8 (B, 1, H, W) with sides of 8 to 32, which become 16x16; the pool features are the 64 numbers before the
    last layer, the logits those of the ten digits.
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
    """The network with the weights that come with the package."""
    with torch.device("meta"):
        network = DigitsNet()
    network = network.to_empty(device="cpu")
    load_weights(network, WEIGHTS)
    return network
