"""Feature extractors by name: `inception`, `dinov2`, `digits`, `pixels`, or a network as `package.module:attribute`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...common.errors import InputError, unknown_name
from .base import KINDS, Extractor, hash_of_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["EXTRACTORS", "KINDS", "Extractor", "extractor", "hash_of_weights"]


class Pixels(torch.nn.Module):
    """The pixels themselves, in [0, 1]: shape (B, C H W)."""

    resize = "none"

    def forward(self, images: Tensor) -> Tensor:
        """Pixels of uint8 images (B, C, H, W)."""
        return images.flatten(1).float() / 255.0


def _pixels(weights: Path | None) -> nn.Module:
    return Pixels()


def _digits(weights: Path | None) -> nn.Module:
    from .digits import load_digits_net

    return load_digits_net()


def _inception(weights: Path | None) -> nn.Module:
    from .inception import load_inception

    return load_inception(weights)


def _dinov2(weights: Path | None) -> nn.Module:
    from .dinov2 import load_dinov2

    return load_dinov2(weights)


EXTRACTORS: dict[str, Callable[[Path | None], nn.Module]] = {
    "inception": _inception,
    "dinov2": _dinov2,
    "digits": _digits,
    "pixels": _pixels,
}
"""How each named extractor's network is made from its weights, or from its usual ones."""
_TAKE_WEIGHTS = ("inception", "dinov2")


def extractor(name: str, device: torch.device | str = "cpu", weights: str | Path | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: one of `EXTRACTORS`, or `package.module:attribute`, which is an `nn.Module` or makes one when called
            without arguments; `Extractor` says what it may say of itself.
        device: where to put the network.
        weights: for `inception` a weights file, for `dinov2` a model folder; by default the usual download.

    Raises:
        InputError: for an unknown name, weights that are not there or do not fit, or a library that is missing or
            breaks when it is imported.
    """
    if weights is not None and name not in _TAKE_WEIGHTS:
        raise InputError(f"'{name}' features take no weights ({' and '.join(_TAKE_WEIGHTS)} do)")
    if ":" in name:
        return Extractor.of(name, _by_path(name), device)
    if name not in EXTRACTORS:
        raise unknown_name("features", name, [*EXTRACTORS, "package.module:attribute"])
    return Extractor.of(name, EXTRACTORS[name](None if weights is None else Path(weights)), device)


def _by_path(path: str) -> nn.Module:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever importing somebody's module raises
        raise InputError(f"cannot import the features '{path}': {_line(error)}") from None
    if not isinstance(found, torch.nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise InputError(f"cannot make the features '{path}': calling it failed: {_line(error)}") from None
    if not isinstance(found, torch.nn.Module):
        raise InputError(f"the features '{path}' are a {type(found).__name__}, expected a torch.nn.Module")
    return found


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
