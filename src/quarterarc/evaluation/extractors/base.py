"""What an extractor is: a network that turns 8-bit images into features, with what makes its numbers comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...common.errors import InputError

__all__ = ["KINDS", "Extractor", "hash_of_weights"]

KINDS = {
    "pool": "one vector an image, for distances between sets of images",
    "spatial": "features that keep their places in the image, for sFID",
    "logits": "unnormalised log probabilities of classes, for the inception score",
}
"""The kinds of features there are."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that takes 8-bit images, and what it says of itself.

    Attributes:
        name: what results call it.
        network: uint8 images (B, C, H, W) -> a tensor of pool features (B, D), or a mapping from kind to tensor. All
            resizing and scaling happens in it, in floating point: pixels are rounded once, when they become images.
        kinds: which of `KINDS` it gives.
        resize: in words, what it does to images before the first layer.
        weights: SHA-256 of its weights, `hash_of_weights`.
        channels: what it takes, 1 or 3; None for any.
        sides: the shortest and longest side in pixels that it takes; None for any.
        device: where the network is.
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
        """An extractor from a network, which may say `kinds`, `resize`, `channels` and `sides` of itself as attributes.

        Raises:
            InputError: if a kind is not one of `KINDS`.
        """
        kinds = tuple(getattr(network, "kinds", ("pool",)))
        if not kinds or not set(kinds) <= KINDS.keys():
            raise InputError(f"the features '{name}' are of kinds {kinds}: kinds are some of {', '.join(KINDS)}")
        network = network.eval().requires_grad_(False).to(device)
        return cls(
            name,
            network,
            kinds,
            str(getattr(network, "resize", "its own")),
            hash_of_weights(network),
            getattr(network, "channels", None),
            getattr(network, "sides", None),
            torch.device(device),
        )

    def describe(self) -> dict[str, str]:
        """What two results must share to be compared, as JSON types."""
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.resize}

    def check(self, shape: Iterable[int], what: str) -> None:
        """Refuse images of a shape (C, H, W) that the network does not take.

        Raises:
            InputError: naming `what` they are.
        """
        channels, *sides = shape
        if self.channels is not None and channels != self.channels and not (channels == 1 and self.channels == 3):
            raise InputError(
                f"{what} has images of {channels} channels, but '{self.name}' features are of {self.channels}: "
                "choose other --features, or convert the images"
            )
        if self.sides is not None and not (self.sides[0] <= min(sides) and max(sides) <= self.sides[1]):
            raise InputError(
                f"{what} has images of {sides[0]}x{sides[1]} pixels, but '{self.name}' features are of sides from "
                f"{self.sides[0]} to {self.sides[1]}: choose other --features"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The features of uint8 images (B, C, H, W): float32 (B, D) of each kind, on the device.

        Gray images become three equal channels where the network takes colour.

        Raises:
            InputError: if the images are not uint8 of such a shape, or the network gives something else.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images are uint8 of shape (B, C, H, W), got {images.dtype} {tuple(images.shape)}: "
                "quarterarc.to_uint8 rounds what lies in [-1, 1]"
            )
        self.check(images.shape[1:], "the set")
        images = images.to(self.device)
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        # where strides of single channels differ, convolutions take other kernels, which round otherwise
        images = images.contiguous().view(-1).view(images.shape)
        # no TF32, autocast or autotuning: they would change features by 1e-3 from one machine or batch to the next
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            made = self.network(images)
        features = dict(made) if isinstance(made, Mapping) else {"pool": made}
        for kind in self.kinds:
            there = features.get(kind)
            if not isinstance(there, Tensor) or there.ndim != 2 or len(there) != len(images):
                got = tuple(there.shape) if isinstance(there, Tensor) else type(there).__name__
                raise InputError(
                    f"the network of '{self.name}' gives {kind} features of shape {got} for {len(images)} images, "
                    "expected (images, dimensions)"
                )
        return {kind: features[kind].float() for kind in self.kinds}


def hash_of_weights(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, dtypes, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # counts training steps; some files have it, and nothing reads it
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
