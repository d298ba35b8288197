"""Networks: modules of images, times and labels that know nothing of diffusion.

A network is an `nn.Module` called as `network(x, time, labels)`: x of shape (B, C, H, W), time float32 of shape () or
(B,) in 0..1000, labels int64 of shape (B,) or None. It returns a tensor of shape (B, channels, H, W).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..common.errors import InputError
from ..common.registry import Registry
from .unet import UNet, attention_levels

__all__ = ["NETWORKS", "UNet", "attention_levels", "build_network", "describe_network"]


def _check_network(entry: Any, path: str) -> None:
    if not (inspect.isclass(entry) and issubclass(entry, nn.Module)):
        raise InputError(f"the network '{path}' is not a subclass of torch.nn.Module")


NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network", {"unet": UNet}, _check_network)
"""The networks by name; an entry is called with the arguments of a recipe."""


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from its description.

    Args:
        description: `{"name": ..., "arguments": {...}}`, or the arguments of the U-Net alone.

    Raises:
        InputError: if the network cannot be found, or does not accept the arguments.
    """
    if "name" not in description:
        return UNet(**description)
    name, arguments = str(description["name"]), dict(description.get("arguments", {}))
    try:
        network = NETWORKS.lookup(name)(**arguments)
    except TypeError as error:
        raise InputError(f"the network '{name}' does not accept the arguments {arguments}: {error}") from None
    network.description = {"name": name, "arguments": arguments}  # type: ignore[assignment]
    return network


def describe_network(network: object) -> dict[str, Any]:
    """The description from which `build_network` builds a network again, as JSON types.

    Raises:
        InputError: for a network that was not built by `build_network`, and is not the U-Net.
    """
    if isinstance(network, UNet):
        return network.config
    description = network.__dict__.get("description") if isinstance(network, nn.Module) else None
    if description is None:
        raise InputError(
            f"a {type(network).__name__} does not say how it was built: build it with quarterarc.networks.build_network"
        )
    return dict(description)
