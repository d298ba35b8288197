"""DINOv2 ViT-L/14 (Oquab et al. 2023), closer to human judgement than Inception (Stein et al. 2023).

The network is transformers' `Dinov2Model`; its weights come from the hub (`facebook/dinov2-large`) or a local folder.
transformers interpolates the position embeddings from 518 to 224 pixels in its own way, so features are comparable
only with features of this implementation.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError
from .base import FeatureNetwork

__all__ = ["Dinov2", "load_dinov2"]

_HUB = "facebook/dinov2-large"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE = 224


class Dinov2(FeatureNetwork):
    """The class token after the last normalisation: uint8 (B, 3, H, W) -> (B, width), 1024 for ViT-L.

    Images are resized to 224x224 by antialiased bicubic interpolation in float32, without rounding to levels.
    """

    kinds = ("pool",)
    resize = "bicubic antialiased to 224x224"
    channels = 3

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Class tokens (B, width) of images with levels 0..255."""
        x = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        x = (x / 255.0 - self.mean) / self.std
        return self.model(pixel_values=x).last_hidden_state[:, 0]


def load_dinov2(weights: Path | None = None) -> Dinov2:
    """The network with its weights, from a folder (config.json, model.safetensors) or from the hub.

    Raises:
        InputError: if transformers is missing or fails to import, or the weights are unavailable.
    """
    if weights is not None and not (weights / "config.json").is_file():
        raise InputError(f"no DINOv2 model at {weights}: give a folder with config.json and model.safetensors")
    model: Any = _transformers("Dinov2Model")
    try:
        return Dinov2(model.from_pretrained(str(weights or _HUB), use_safetensors=True))
    except Exception as error:  # from transformers, the hub's client or the connection
        raise InputError(
            f"cannot load DINOv2 from {weights or _HUB}: {' '.join(str(error).split())[:200]}; without a connection, "
            "give a folder with its config.json and model.safetensors as the weights"
        ) from None


def _transformers(name: str) -> Any:
    try:
        return getattr(import_module("transformers"), name)
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            raise InputError("'dinov2' features need transformers: pip install 'quarterarc[dinov2]'") from None
        reason = str(error)
    except Exception as error:  # a broken installation may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(
        f"'dinov2' features need transformers, whose import fails ({reason[:200]}): repair the installation, or "
        "remove torchvision if its build does not match torch"
    )
