"""Networks: modules that map noisy images, times and labels to output channels, without knowledge of diffusion.

A network is an `nn.Module` that is called as

    network(x, time, labels) -> output

    x         float, shape (B, C, H, W)
    time      float32 in 0..1000, shape (B,) in training; shape () where all images share it
    labels    int64, shape (B,), in 0..classes, where `classes` means "no label"; None without labels
    output    float, shape (B, channels of the head, H, W)

A recipe names one of `NETWORKS` or an import path `package.module:Class`, and gives the arguments of its constructor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..common.errors import InputError
from ..common.memory import is_out_of_memory, require_memory
from ..common.registry import Registry
from ..common.text import one_line
from .edm import ADM, DDPMpp
from .unet import UNet, attention_levels, attention_resolutions, fewest_weights

__all__ = [
    "ADM",
    "NETWORKS",
    "DDPMpp",
    "UNet",
    "attention_levels",
    "attention_resolutions",
    "build_network",
    "describe_network",
    "fill_arguments",
]

_DESCRIPTION = "_quarterarc_description"


def _check_network(entry: Any, path: str) -> None:
    if not (inspect.isclass(entry) and issubclass(entry, nn.Module)):
        raise InputError(f"the network '{path}' is not a subclass of torch.nn.Module")


NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network", {"unet": UNet, "ddpm++": DDPMpp, "adm": ADM}, _check_network
)
"""The networks by name. An entry is called with the arguments of a recipe and returns a module."""


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """A network with new weights from its description.

    Args:
        description: `{"name": ..., "arguments": {...}}`, or the arguments of the U-Net alone.

    Raises:
        InputError: if the network cannot be found, or its constructor does not accept the arguments.
    """
    if "name" not in description:
        return build_network({"name": "unet", "arguments": description})
    name, arguments = str(description["name"]), dict(description.get("arguments", {}))
    build = NETWORKS.lookup(name)
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise InputError(
            f"the network '{name}' does not accept its arguments: {one_line(error)} (given: {given})"
        ) from None
    if build in (UNet, DDPMpp, ADM):
        _check_memory(name, build, arguments)
    try:
        network = build(**arguments)
    except InputError:
        raise
    except Exception as error:  # code from outside this package
        if is_out_of_memory(error):
            raise InputError(f"out of memory: {_too_large(name)}") from None
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"the network '{name}' cannot be built from its arguments: {reason}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"the network '{name}' is a {type(network).__name__}, not a torch.nn.Module")
    if type(network) is not UNet:
        network.__dict__[_DESCRIPTION] = {"name": name, "arguments": arguments}
    return network


def _check_memory(name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Raise an InputError for one of this package's networks whose weights exceed the memory of this machine."""
    call = inspect.signature(build).bind(**arguments)
    call.apply_defaults()
    weights = 0
    with suppress(TypeError):  # the constructor has the message for arguments of another type
        weights = fewest_weights(*(call.arguments[name] for name in ("channels", "multipliers", "blocks")))
    require_memory(4 * weights, torch.device("cpu"), lambda: _too_large(name))


def _too_large(name: str) -> str:
    return f"the network '{name}' is too large: lower its numbers of channels (network.channels), levels and blocks"


def fill_arguments(name: str, arguments: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network, with `values` for those of its constructor's parameters that are not given.

    Args:
        name: a name of `NETWORKS`, or an import path.
        arguments: the given arguments.
        values: values by parameter name; those without a parameter of that name are left out.
    """
    parameters = inspect.signature(NETWORKS.lookup(name)).parameters
    return {**{key: value for key, value in values.items() if key in parameters}, **arguments}


def describe_network(network: object) -> dict[str, Any]:
    """The description from which `build_network` builds a network again, as JSON types.

    A module that `build_network` did not build needs an importable class, and an attribute `config`: a mapping of the
    constructor's arguments.

    Raises:
        InputError: for another network.
    """
    if type(network) is UNet:  # the description of a subclass has its name
        return network.config
    kind = type(network)
    if not isinstance(network, nn.Module):
        raise InputError(f"a {kind.__name__} cannot be saved: only a torch.nn.Module can")
    if _DESCRIPTION in network.__dict__:
        return dict(network.__dict__[_DESCRIPTION])
    config = network.__dict__.get("config")
    if isinstance(network, UNet) and inspect.signature(kind).parameters.keys() - {*network.config, "args", "kwargs"}:
        config = None  # a subclass with arguments of its own, which the config of the U-Net does not contain
    if not isinstance(config, Mapping) or kind.__module__ == "__main__" or "<" in kind.__qualname__:
        raise InputError(
            f"the arguments of this {kind.__name__} are not known, so it cannot be saved: build it by "
            f"quarterarc.networks.build_network({{'name': 'package.module:{kind.__name__}', 'arguments': {{...}}}})"
        )
    return {"name": f"{kind.__module__}:{kind.__qualname__}", "arguments": dict(config)}
