"""The Inception network of FID (Heusel et al. 2017): TensorFlow's version of 5 December 2015, with its resizing.

It loads the weights that pytorch-fid and torch-fidelity distribute, under their parameter names:

    weights-inception-2015-12-05-6726825d.pth   (or pt_inception-2015-12-05-6726825d.pth, the same numbers)

Unlike other versions of Inception, its average pooling excludes the padding, its last block uses max pooling, and it
has 1008 classes. Requires torch only.
"""

from __future__ import annotations

import hashlib
import pickle
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError
from ...storage.files import replace_file
from ...storage.weights import read_weights
from .base import FeatureNetwork

__all__ = ["FILE", "Inception", "find_weights", "load_inception", "resize_tf1"]

FILE = "weights-inception-2015-12-05-6726825d.pth"
_ALSO = ("pt_inception-2015-12-05-6726825d.pth",)
_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
_SHA256 = "6726825d"
SIDE = 299
SPATIAL_CHANNELS = 7


def resize_tf1(images: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear` with `align_corners=False`, of float32 images (B, C, H, W).

    Pixel i of the result is at position i * (old / new) of the image, without half-pixel offset and antialiasing.
    """
    (left, right, dx), (top, bottom, dy) = (
        _neighbours(old, new, images.device) for old, new in ((images.shape[3], width), (images.shape[2], height))
    )
    across = images[..., left] + (images[..., right] - images[..., left]) * dx
    above, below = across[..., top, :], across[..., bottom, :]
    return above + (below - above) * dy[:, None]


def _neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each new pixel, the two neighbouring old pixels and the distance from the first of them, in float32."""
    place = torch.arange(new, dtype=torch.float32) * torch.tensor(old / new, dtype=torch.float32)
    low = place.long()
    return low.to(device), (low + 1).clamp_max(old - 1).to(device), (place - low).to(device)


class _Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


_Layer: TypeAlias = tuple[str, int, str]
"""A convolution: name, output channels, and kernel: "3x3", or "3x3/2" with stride 2 and without padding."""
_Step: TypeAlias = "_Layer | Callable[[Tensor], Tensor] | list[_Layer]"
"""A convolution, a pooling function, or parallel convolutions of the same input."""


class _Mixed(nn.Module):
    """An Inception block: parallel paths of steps, whose outputs are concatenated along the channels."""

    def __init__(self, channels: int, *paths: Sequence[_Step]) -> None:
        super().__init__()
        self.paths = paths
        for path in paths:
            inside = channels
            for step in path:
                layers = [] if callable(step) else step if isinstance(step, list) else [step]
                for name, out, kernel in layers:
                    self.add_module(name, self._conv(inside, out, kernel))
                inside = sum(out for _, out, _ in layers) or inside

    @staticmethod
    def _conv(channels: int, out: int, kernel: str) -> _Conv:
        height, width = (int(side) for side in kernel.removesuffix("/2").split("x"))
        if kernel.endswith("/2"):
            return _Conv(channels, out, (height, width), 2, (0, 0))
        return _Conv(channels, out, (height, width), 1, (height // 2, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._follow(path, x) for path in self.paths], 1)

    def _follow(self, path: Sequence[_Step], x: Tensor) -> Tensor:
        for step in path:
            if callable(step):
                x = step(x)
            elif isinstance(step, list):
                x = torch.cat([self.get_submodule(name)(x) for name, _, _ in step], 1)
            else:
                x = self.get_submodule(step[0])(x)
        return x


def _block_35(channels: int, pooled: int) -> _Mixed:
    return _Mixed(
        channels,
        [("branch1x1", 64, "1x1")],
        [("branch5x5_1", 48, "1x1"), ("branch5x5_2", 64, "5x5")],
        [("branch3x3dbl_1", 64, "1x1"), ("branch3x3dbl_2", 96, "3x3"), ("branch3x3dbl_3", 96, "3x3")],
        [_average, ("branch_pool", pooled, "1x1")],
    )


def _from_35_to_17(channels: int) -> _Mixed:
    return _Mixed(
        channels,
        [("branch3x3", 384, "3x3/2")],
        [("branch3x3dbl_1", 64, "1x1"), ("branch3x3dbl_2", 96, "3x3"), ("branch3x3dbl_3", 96, "3x3/2")],
        [_halve],
    )


def _block_17(inner: int) -> _Mixed:
    return _Mixed(
        768,
        [("branch1x1", 192, "1x1")],
        [("branch7x7_1", inner, "1x1"), ("branch7x7_2", inner, "1x7"), ("branch7x7_3", 192, "7x1")],
        [
            ("branch7x7dbl_1", inner, "1x1"),
            ("branch7x7dbl_2", inner, "7x1"),
            ("branch7x7dbl_3", inner, "1x7"),
            ("branch7x7dbl_4", inner, "7x1"),
            ("branch7x7dbl_5", 192, "1x7"),
        ],
        [_average, ("branch_pool", 192, "1x1")],
    )


def _from_17_to_8() -> _Mixed:
    return _Mixed(
        768,
        [("branch3x3_1", 192, "1x1"), ("branch3x3_2", 320, "3x3/2")],
        [
            ("branch7x7x3_1", 192, "1x1"),
            ("branch7x7x3_2", 192, "1x7"),
            ("branch7x7x3_3", 192, "7x1"),
            ("branch7x7x3_4", 192, "3x3/2"),
        ],
        [_halve],
    )


def _block_8(channels: int, pool: Callable[[Tensor], Tensor]) -> _Mixed:
    return _Mixed(
        channels,
        [("branch1x1", 320, "1x1")],
        [("branch3x3_1", 384, "1x1"), [("branch3x3_2a", 384, "1x3"), ("branch3x3_2b", 384, "3x1")]],
        [
            ("branch3x3dbl_1", 448, "1x1"),
            ("branch3x3dbl_2", 384, "3x3"),
            [("branch3x3dbl_3a", 384, "1x3"), ("branch3x3dbl_3b", 384, "3x1")],
        ],
        [pool, ("branch_pool", 192, "1x1")],
    )


class Inception(FeatureNetwork):
    """FID's Inception: uint8 (B, 3, H, W) -> pool_3 (2048), 7 channels of Mixed_6d (2023), and logits (1008).

    The spatial features are flattened as (height, width, channel), and the logits omit the bias of the last layer, both
    as in the statistics that OpenAI published with ADM (Nash et al. 2021 for sFID, Salimans et al. 2016 for the score).
    """

    kinds = ("pool", "spatial", "logits")
    resize = "TensorFlow 1 bilinear to 299x299 (align_corners=False)"
    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), 1, (0, 0))
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _from_35_to_17(288)
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        self.Mixed_7a = _from_17_to_8()
        self.Mixed_7b = _block_8(1280, _average)
        self.Mixed_7c = _block_8(2048, _largest)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pool (B, 2048), spatial (B, 2023) and logits (B, 1008) of images with levels 0..255, any size."""
        x = (resize_tf1(images.to(self.fc.weight.dtype), SIDE, SIDE) - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean((2, 3))
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.fc.weight.T}


def load_inception(weights: Path | None = None) -> Inception:
    """The network with its weights, from a file (.safetensors, or the published .pth) or from the usual download.

    A .pth file is a pickle; it is read by torch's restricted unpickler, which creates only tensors.

    Raises:
        InputError: if the weights are missing, unreadable, or do not fit the network.
    """
    path = find_weights() if weights is None else weights
    with torch.device("meta"):
        network = Inception()
    network = network.to_empty(device="cpu")
    # a plain dict drops the file's version number, which would require counters that the file lacks
    state = dict(read_weights(path) if path.suffix == ".safetensors" else _read_pth(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split()).partition("\t")[0][:200]
        raise InputError(f"{path} does not hold the weights of FID's Inception ({first}): give {FILE}") from None
    return network


def _read_pth(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no weights at {path}: give the file {FILE} from {_URL}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles of other formats; the result is checked below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise InputError(f"{path} does not hold tensors only: give {FILE} from {_URL}, or *.safetensors")
    return state


def found_weights() -> Path | None:
    """The path of the weights in torch's download cache, or None."""
    return next((path for name in (FILE, *_ALSO) if (path := _folder() / name).is_file()), None)


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights() -> Path:
    """The path of the weights in torch's download cache, downloaded if missing.

    Raises:
        InputError: if the file is missing and the download fails.
    """
    if found := found_weights():
        return found
    target = _folder() / FILE
    try:
        _download(target)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the weights of 'inception' are missing, and the download failed ({' '.join(str(error).split())}): put "
            f"{_URL} at {target}, or give the path of the file as the weights"
        ) from None
    return target


def _download(target: Path) -> None:
    """Download the published file; it appears under its name only when it is complete and its hash is correct."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with urllib.request.urlopen(_URL, timeout=30) as response, replace_file(target) as beside:
        with beside.open("wb") as file:
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
        if not digest.hexdigest().startswith(_SHA256):
            raise ValueError(f"the downloaded file has SHA-256 {digest.hexdigest()[:8]}, expected {_SHA256}")
