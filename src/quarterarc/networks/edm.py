"""The U-Nets of EDM (Karras et al. 2022, appendix F): DDPM++ of Song et al. (2021) and ADM of Dhariwal & Nichol (2021).

Both have the blocks and the parameter names of EDM's code, so that its weights load as they are. A block resamples
itself: it halves or doubles its input between the first norm and the first convolution.

|                             | `DDPMpp`                             | `ADM`                               |
|-----------------------------|--------------------------------------|-------------------------------------|
| embedding of time and label | added before the second norm         | scales and shifts the second norm   |
| attention on the way up     | after the last block of a level      | after every block of a level        |
| sum with the shortcut       | divided by sqrt(2)                   | as it is                            |
| heads                       | one                                  | one per `head_channels` channels    |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import limits
from ..common.errors import InputError
from .blocks import Downsample, Upsample, directly, recomputed
from .layers import Convolution, GroupNorm, attend, double, drop, nearest
from .layout import LaidOut
from .unet import initialise, one_or_each, sinusoid

__all__ = ["ADM", "DDPMpp"]


@dataclass(frozen=True)
class _Kind:
    """What blocks of the two networks do differently.

    Attributes:
        embedding: width of the embedding.
        dropout: dropout probability.
        epsilon: added to the variance in the norms.
        scaled: whether the embedding scales and shifts the second norm, instead of being added before it.
        projected: whether the shortcut of a resampling block has a convolution.
        factor: factor of every sum with a shortcut.
        group: least number of channels per group of a norm.
    """

    embedding: int
    dropout: float
    epsilon: float
    scaled: bool
    projected: bool
    factor: float
    group: int = 4

    def norm(self, channels: int, activate: bool = True) -> GroupNorm:
        """A norm of at most 32 groups."""
        return GroupNorm(max(1, min(32, channels // self.group)), channels, self.epsilon, activate)


class _Block(nn.Module):
    """A residual block that may resample its input, followed by attention where it has heads.

    Args:
        inputs, outputs: channels.
        kind: the settings of the network.
        heads: attention heads; 0 for no attention.
        resample: "up", "down" or "".
    """

    def __init__(self, inputs: int, outputs: int, kind: _Kind, heads: int = 0, resample: str = "") -> None:
        super().__init__()
        self.outputs, self.kind, self.heads, self.resample = outputs, kind, heads, resample
        self.norm0 = kind.norm(inputs)
        self.conv0 = Convolution(inputs, outputs)
        self.affine = nn.Linear(kind.embedding, outputs * (2 if kind.scaled else 1))
        self.norm1 = kind.norm(outputs, activate=not kind.scaled)
        self.conv1 = Convolution(outputs, outputs)
        projects = inputs != outputs or (kind.projected and resample != "")
        self.skip = nn.Conv2d(inputs, outputs, 1) if projects else nn.Identity()
        if heads:
            self.norm2 = kind.norm(outputs, activate=False)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """X of shape (B, inputs, H, W), embedding (B, E) or (1, E); returns (B, outputs, H, W) at the new size."""
        h, affine = self.norm0(x), self.affine(embedding)
        if self.kind.scaled:
            scale, shift = affine[:, :, None, None].chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(self._convolved(h)), scale + 1.0))
        else:
            h = self.norm1(self._convolved(h, affine))
        h = self.conv1(drop(h, self.kind.dropout, self.training))
        h = h.add_(self.skip(self._resampled(x)))
        x = h if self.kind.factor == 1.0 else h * self.kind.factor
        if not self.heads:
            return x
        x = x + self._attention(x)
        return x if self.kind.factor == 1.0 else x * self.kind.factor

    def _convolved(self, h: Tensor, shift: Tensor | None = None) -> Tensor:
        """The first convolution after resampling, plus a shift per channel."""
        if self.resample == "up":
            h = double(h, self.conv0)
            return h if shift is None else h + shift[:, :, None, None]
        assert self.conv0.bias is not None
        result: Tensor = self.conv0(self._resampled(h), None if shift is None else shift + self.conv0.bias)
        return result

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return nearest(x)
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def _attention(self, x: Tensor) -> Tensor:
        """Self-attention between pixels; output channels of `qkv` are ordered by head, channel, and q, k, v."""
        b, c, h, w = x.shape
        tokens = self.norm2(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        weight = self.qkv.weight.reshape(self.heads, -1, 3, c).permute(2, 0, 1, 3).reshape(3 * c, c)
        assert self.qkv.bias is not None
        bias = self.qkv.bias.view(self.heads, -1, 3).permute(2, 0, 1).reshape(3 * c)
        tokens = attend(F.linear(tokens, weight, bias), self.heads)
        tokens = F.linear(tokens, self.proj.weight.reshape(c, c), self.proj.bias)
        return tokens.view(b, h, w, c).permute(0, 3, 1, 2)


class _Down(Downsample):
    """A strided convolution in place of a block."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, symmetric=True)
        self.outputs = channels


class _Up(Upsample):
    """A doubling with a convolution in place of a block."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return double(x, self.conv)


class _Network(LaidOut):
    """What both networks share: the embedding, the way down and up, and the checks of what they are called with."""

    frequency_shift: float
    cosine_first: bool

    def __init__(self, config: dict[str, Any], kind: _Kind, everywhere: bool, resample: str = "block") -> None:
        super().__init__()
        _check(config)
        self.config, self.recompute = config, False
        size, channels, blocks = config["size"], config["channels"], config["blocks"]
        attention, head_channels = config["attention"], config.get("head_channels")
        widths = [int(channels * multiplier) for multiplier in config["multipliers"]]
        self.map_layer0 = nn.Linear(channels, kind.embedding)
        self.map_layer1 = nn.Linear(kind.embedding, kind.embedding)

        def block(inputs: int, outputs: int, attends: bool = False, change: str = "") -> nn.Module:
            heads = (outputs // head_channels if head_channels else config.get("heads", 1)) if attends else 0
            if attends and (heads < 1 or outputs % heads or (head_channels and outputs % head_channels)):
                raise InputError(
                    f"{outputs} channels cannot be divided among attention heads of {head_channels or 'equal'} "
                    "channels: change head_channels or heads"
                )
            return _Block(inputs, outputs, kind, heads, change)

        def resampling(width: int, change: str) -> nn.Module:
            if resample == "block":
                return block(width, width, change=change)
            return _Down(width) if change == "down" else _Up(width)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sizes = [size >> level for level in range(len(widths))]
        width = channels
        self.enc[f"{size}x{size}_conv"] = Convolution(config["in_channels"], channels)
        skips = [channels]
        for level, (side, wide) in enumerate(zip(sizes, widths, strict=True)):
            if level:
                self.enc[f"{side}x{side}_down"] = resampling(width, "down")
                skips.append(width)
            for number in range(blocks):
                self.enc[f"{side}x{side}_block{number}"] = block(width, wide, side in attention)
                width = wide
                skips.append(width)
        for level, (side, wide) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(width, width, attends=True)
                self.dec[f"{side}x{side}_in1"] = block(width, width)
            else:
                self.dec[f"{side}x{side}_up"] = resampling(width, "up")
            for number in range(blocks + 1):
                attends = side in attention and (everywhere or number == blocks)
                self.dec[f"{side}x{side}_block{number}"] = block(width + skips.pop(), wide, attends)
                width = wide
        self.width = width

    def forward(self, x: Tensor, time: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: images, shape (B, in_channels, H, W), with sides that every level but the last halves exactly.
            time: any number: a number or a tensor of shape () or (1,) for the whole batch, or one per image, (B,).
            labels: int64, shape (B,), in 0..classes, where `classes` means "no label"; None for no labels.

        Returns:
            Shape (B, out_channels, H, W), in the dtype of the weights; under autocast in float32.

        Raises:
            InputError: if shapes do not fit, or labels are given to a network without classes.
        """
        factor = 2 ** (len(self.config["multipliers"]) - 1)
        if x.ndim != 4 or x.shape[1] != self.config["in_channels"] or x.shape[2] % factor or x.shape[3] % factor:
            raise InputError(
                f"the network takes images of shape (B, {self.config['in_channels']}, H, W) with H and W divisible by "
                f"{factor}, got {tuple(x.shape)}"
            )
        run = recomputed if self.recompute and torch.is_grad_enabled() else directly
        embedding = self._embed(x, time, labels)
        x = x.to(self.last.weight.dtype).contiguous(memory_format=self.layout)
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = run(block, x, embedding) if isinstance(block, _Block) else run(block, x)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = run(_joined, block, x, skips.pop(), embedding)
            elif "_aux" not in name:
                x = run(block, x, embedding) if isinstance(block, _Block) else run(block, x)
        return run(self._read, x)

    def _read(self, x: Tensor) -> Tensor:
        """The output from that of the last block, in the precision of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            output: Tensor = self.last(self.last_norm(x.to(self.last.weight.dtype)))
            return output

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the last convolution."""
        raise NotImplementedError

    def _waves(self, x: Tensor, time: Tensor | float) -> Tensor:
        """The sinusoids of times, in the dtype of the weights: shape (B, channels), or (1, channels)."""
        dtype = self.map_layer0.weight.dtype
        time, channels = one_or_each(time, x, dtype), self.config["channels"]
        return sinusoid(time, channels // 2, self.frequency_shift, self.cosine_first, channels % 2).to(dtype)

    def _rows(self, x: Tensor, labels: Tensor | None, weight: Tensor) -> Tensor:
        """The row of each label of a weight of shape (width, classes); zeros for "no label"."""
        if labels is None:
            labels = torch.full((1,), weight.shape[1], device=x.device)
        elif labels.shape != (len(x),):
            raise InputError(f"labels of shape {tuple(labels.shape)} for {len(x)} images: give one per image")
        return F.embedding(labels, F.pad(weight.t(), (0, 0, 0, 1)))

    def _check_unlabelled(self, labels: Tensor | None) -> None:
        if labels is not None:
            raise InputError("labels for a network without classes: leave them out, or build it with classes=...")

    def _embed(self, x: Tensor, time: Tensor | float, labels: Tensor | None) -> Tensor:
        """The embedding of time and labels: shape (B, E), or (1, E) if all are equal."""
        raise NotImplementedError


def _joined(block: nn.Module, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
    """A block of x and a skip connection."""
    result: Tensor = block(torch.cat([x, skip], dim=1), embedding)
    return result


class DDPMpp(_Network):
    """DDPM++ (Song et al. 2021, appendix H) as EDM configures it for CIFAR-10; the defaults are its 56 M parameters.

    Args:
        size: side of the images in pixels, which names the levels.
        in_channels, out_channels: channels of images and output.
        channels: width that the multipliers multiply.
        multipliers: width of each level as a multiple of `channels`.
        blocks: blocks per level on the way down; one more on the way up.
        attention: sides in pixels of levels with attention; the middle always has it.
        dropout: dropout probability.
        classes: number of labels; the label `classes` itself then means "no label".

    Attributes:
        recompute: as for `quarterarc.networks.UNet`.

    Raises:
        InputError: if the arguments contradict each other.
    """

    frequency_shift, cosine_first = 1.0, False

    def __init__(
        self,
        size: int,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        multipliers: Sequence[float] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        *,
        dropout: float = 0.13,
        classes: int | None = None,
    ) -> None:
        config = {
            "size": size, "in_channels": in_channels, "out_channels": out_channels, "channels": channels,
            "multipliers": list(multipliers), "blocks": blocks, "attention": list(attention), "dropout": dropout,
            "classes": classes,
        }  # fmt: skip
        kind = _Kind(4 * channels, dropout, 1e-6, scaled=False, projected=True, factor=math.sqrt(0.5))
        super().__init__(config, kind, everywhere=False)
        self.map_label = None if classes is None else nn.Linear(classes, channels)
        self._final = f"{size}x{size}_aux"
        self.dec[f"{self._final}_norm"] = kind.norm(self.width)
        self.dec[f"{self._final}_conv"] = Convolution(self.width, out_channels)
        self._initialise()
        self.lay_out()

    @property
    def last(self) -> nn.Conv2d:
        """The convolution of the output."""
        module = self.dec[f"{self._final}_conv"]
        assert isinstance(module, nn.Conv2d)
        return module

    @property
    def last_norm(self) -> nn.Module:
        """The norm before it."""
        return self.dec[f"{self._final}_norm"]

    def _initialise(self) -> None:
        """EDM's initial weights: those of DDPM, but nearly zero in the last layers."""
        initialise(self)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, _Block):
                    module.conv1.weight.mul_(1e-5)
                    if module.heads:
                        module.qkv.weight.mul_(math.sqrt(0.2))
                        module.proj.weight.mul_(1e-5)
            self.last.weight.mul_(1e-5)

    def _embed(self, x: Tensor, time: Tensor | float, labels: Tensor | None) -> Tensor:
        embedding = self._waves(x, time)
        if self.map_label is None:
            self._check_unlabelled(labels)
        else:
            rows = self._rows(x, labels, self.map_label.weight) * math.sqrt(self.map_label.in_features)
            embedding = embedding + rows + self.map_label.bias
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))


class ADM(_Network):
    """The network of ADM (Dhariwal & Nichol 2021); the defaults are those for ImageNet at 64 pixels, 296 M parameters.

    Args:
        size, in_channels, out_channels, channels, multipliers, blocks, attention, dropout, classes: as for `DDPMpp`.
        head_channels: channels per attention head; None for `heads` at every width.
        heads: number of heads, without `head_channels`.
        resample: "block", or "conv" for convolutions in place of resampling blocks (Nichol & Dhariwal 2021).
        scaled: whether the embedding scales and shifts the second norm of a block, instead of being added before it.
        group: least number of channels per group of a norm; there are at most 32 groups.

    Attributes:
        recompute: as for `quarterarc.networks.UNet`.

    Raises:
        InputError: if the arguments contradict each other.
    """

    frequency_shift, cosine_first = 0.0, True

    def __init__(
        self,
        size: int,
        in_channels: int,
        out_channels: int,
        channels: int = 192,
        multipliers: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        *,
        dropout: float = 0.1,
        classes: int | None = None,
        head_channels: int | None = 64,
        heads: int = 1,
        resample: str = "block",
        scaled: bool = True,
        group: int = 4,
    ) -> None:
        if resample not in ("block", "conv"):
            raise InputError(f"resample is 'block' or 'conv', got {resample!r}")
        config = {
            "size": size, "in_channels": in_channels, "out_channels": out_channels, "channels": channels,
            "multipliers": list(multipliers), "blocks": blocks, "attention": list(attention), "dropout": dropout,
            "classes": classes, "head_channels": head_channels, "heads": heads, "resample": resample, "scaled": scaled,
            "group": group,
        }  # fmt: skip
        kind = _Kind(4 * channels, dropout, 1e-5, scaled=scaled, projected=False, factor=1.0, group=group)
        super().__init__(config, kind, everywhere=True, resample=resample)
        self.map_label = None if classes is None else nn.Linear(classes, kind.embedding, bias=False)
        self.out_norm = kind.norm(self.width)
        self.out_conv = Convolution(self.width, out_channels)
        self._initialise()
        self.lay_out()

    @property
    def last(self) -> nn.Conv2d:
        """The convolution of the output."""
        return self.out_conv

    @property
    def last_norm(self) -> nn.Module:
        """The norm before it."""
        return self.out_norm

    def _initialise(self) -> None:
        """EDM's initial weights: PyTorch's own, and zeros in the last layers of blocks and network."""
        final: list[nn.Module] = [self.out_conv]
        for module in self.modules():
            if isinstance(module, _Block):
                final += [module.conv1, *([module.proj] if module.heads else [])]
        for module in final:
            for weight in module.parameters():
                nn.init.zeros_(weight)

    def _embed(self, x: Tensor, time: Tensor | float, labels: Tensor | None) -> Tensor:
        embedding = self.map_layer1(F.silu(self.map_layer0(self._waves(x, time))))
        if self.map_label is None:
            self._check_unlabelled(labels)
        else:
            embedding = embedding + self._rows(x, labels, self.map_label.weight)
        return F.silu(embedding)


def _check(config: dict[str, Any]) -> None:
    """Raise an InputError for arguments that do not describe a network."""
    for name in ("size", "in_channels", "out_channels", "channels", "blocks"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise InputError(f"{name} is a whole number, at least 1, got {config[name]!r}")
    multipliers, blocks, size = config["multipliers"], config["blocks"], config["size"]
    if not 1 <= len(multipliers) <= limits.MOST_LEVELS or blocks > limits.MOST_BLOCKS:
        raise InputError(
            f"a U-Net has 1 to {limits.MOST_LEVELS} levels of at most {limits.MOST_BLOCKS:,} blocks, got "
            f"{len(multipliers)} levels of {blocks:,}"
        )
    widths = [config["channels"] * multiplier for multiplier in multipliers]
    if any(width != int(width) or width < 1 for width in widths):
        raise InputError(f"multipliers {multipliers} of {config['channels']} channels give the widths {widths}")
    if size % 2 ** (len(widths) - 1):
        raise InputError(
            f"size {size} cannot be halved {len(widths) - 1} times: change data.size, or give fewer multipliers"
        )
    if not 0.0 <= config["dropout"] < 1.0:
        raise InputError(f"dropout must be in [0, 1), got {config['dropout']}")
    if config["classes"] is not None and config["classes"] < 1:
        raise InputError(f"classes must be at least 1 or None, got {config['classes']}")
