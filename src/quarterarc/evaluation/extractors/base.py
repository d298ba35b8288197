"""Feature extractors: a network from 8-bit images to features, with the attributes that make results comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...common.errors import InputError
from ...common.text import counted
from ...storage.weights import hash_of_weights

__all__ = ["KINDS", "Extractor", "FeatureNetwork"]

KINDS = {
    "pool": "one vector per image, for distances between sets of images",
    "spatial": "features that depend on position, for sFID",
    "logits": "unnormalised log probabilities of classes, for the inception score",
}
"""The kinds of features."""


class FeatureNetwork(nn.Module):
    """Base class of networks for feature extractors; it declares their attributes.

    `forward` takes uint8 images (B, C, H, W) and returns pool features (B, D), or a mapping from kind to features
    (B, D). It does all resizing and scaling, in floating point: pixels are rounded to 8 bits only once, before. An
    `nn.Module` that is not a subclass may declare the same attributes; missing ones have the defaults below.

    Attributes:
        kinds: the kinds of features in the result, some of `KINDS`.
        resize: description of the resizing before the first layer. Results with another description do not compare.
        channels: number of channels of the images, 1 or 3; None for any. Gray images are accepted for 3, as colour.
        sides: shortest and longest side of an image in pixels; None for any.
    """

    kinds: tuple[str, ...] = ("pool",)
    resize: str = "unspecified"
    channels: int | None = None
    sides: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network for features, on a device, with its name and the hash of its weights.

    Attributes:
        name: name in results.
        network: as `FeatureNetwork`.
        kinds, resize, channels, sides: attributes of `FeatureNetwork`.
        weights: SHA-256 of the weights, `hash_of_weights`.
        device: device of the network.
    """

    name: str
    network: nn.Module
    kinds: tuple[str, ...]
    resize: str
    weights: str
    channels: int | None = None
    sides: tuple[int, int] | None = None
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, name: str, network: nn.Module, device: torch.device | str = "cpu") -> Extractor:
        """An extractor from a network; this is the only place where the attributes of a network are read.

        Raises:
            InputError: for a kind that is not one of `KINDS`.
        """
        kinds = tuple(getattr(network, "kinds", FeatureNetwork.kinds))
        if not kinds or not set(kinds) <= KINDS.keys():
            raise InputError(
                f"the feature extractor '{name}' declares kinds = {kinds}: give some of {', '.join(KINDS)}"
            )
        network = network.eval().requires_grad_(False).to(device)
        return cls(
            name,
            network,
            kinds,
            str(getattr(network, "resize", FeatureNetwork.resize)),
            hash_of_weights(network),
            getattr(network, "channels", FeatureNetwork.channels),
            getattr(network, "sides", FeatureNetwork.sides),
            torch.device(device),
        )

    def describe(self) -> dict[str, str]:
        """JSON types that must agree for two results to be comparable."""
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.resize}

    def check(self, shape: Iterable[int], what: str) -> None:
        """Raise an InputError for images of a shape (C, H, W) that the network does not accept.

        Args:
            shape: (C, H, W).
            what: name of the images, for the message.
        """
        channels, *sides = shape
        if self.channels is not None and channels != self.channels and not (channels == 1 and self.channels == 3):
            raise InputError(
                f"{what}: {counted(channels, 'channel')}, but '{self.name}' features need {self.channels}: choose "
                "other features, or convert the images"
            )
        if self.sides is not None and not (self.sides[0] <= min(sides) and max(sides) <= self.sides[1]):
            raise InputError(
                f"{what}: {sides[0]}x{sides[1]} pixels, but '{self.name}' features need sides of "
                f"{self.sides[0]} to {self.sides[1]} pixels: choose other features"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The features of uint8 images (B, C, H, W): float32 (B, D) per kind, on the device.

        Gray images are repeated to three equal channels for a network of colour images.

        Raises:
            InputError: for images of another dtype or shape, or if the network returns an unexpected shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images must be uint8 of shape (B, C, H, W), got {images.dtype} {tuple(images.shape)}: "
                "quarterarc.to_uint8(images) converts floating-point images in [-1, 1]"
            )
        self.check(images.shape[1:], "features")
        images = images.to(self.device)
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        # standard strides: for other strides of single channels, convolutions select kernels that round differently
        images = images.contiguous().view(-1).view(images.shape)
        # no TF32, autocast or autotuning: they would change features by 1e-3 between machines or batches
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            output = self.network(images)
        features = dict(output) if isinstance(output, Mapping) else {"pool": output}
        for kind in self.kinds:
            values = features.get(kind)
            if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images):
                got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
                raise InputError(
                    f"the network of '{self.name}' returns {kind} features of {got} for {len(images)} images, "
                    "expected shape (images, dimensions)"
                )
        return {kind: features[kind].float() for kind in self.kinds}
