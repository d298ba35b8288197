"""The U-Net of DDPM (Ho et al. 2020, appendix B) and DDIM, written for speed.

Residual blocks of GroupNorm and SiLU, a sinusoidal embedding of the time added inside each, self-attention at
chosen levels, strided convolutions on the way down, nearest-neighbour upsampling on the way up.

Activations have the memory layout of the weights (`UNet.lay_out`), channels-last on the CPU and channels-first on a
GPU; only the output of attention is always channels-last. Everything that depends on time and label alone (the
embedding, its two layers, and the projections of all blocks, which are one matrix) is computed first, once per batch
if all images share a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import limits
from ..common.errors import InputError
from ..common.text import counted
from .blocks import Attention, Down, Downsample, ResidualBlock, Up, Upsample, directly, recomputed
from .layers import Convolution, GroupNorm
from .layout import LaidOut

__all__ = ["UNet", "attention_levels", "attention_resolutions", "fewest_weights"]


def attention_levels(size: int, resolutions: Sequence[int], levels: int) -> tuple[int, ...]:
    """The levels of a U-Net at which images of `size` pixels have the given resolutions.

    Papers name resolutions ("attention at 16x16"), a network its levels: level 0 has the resolution of the image, each
    further level half of the one before, rounded up.

    Args:
        size: height or width of the images in pixels.
        resolutions: resolutions with attention, for example (16,).
        levels: number of levels of the network, `len(multipliers)`.

    Returns:
        The levels, smallest first; (1,) for 16 pixels of a 32-pixel image.

    Raises:
        InputError: if no level has one of the resolutions.
    """
    sizes = _resolutions(size, levels)
    for resolution in resolutions:
        if resolution not in sizes:
            raise InputError(
                f"attention at resolution {resolution}: images of {size} pixels have the resolutions "
                f"{', '.join(map(str, sizes))} in a network of {counted(levels, 'level')}; choose from these"
            )
    return tuple(level for level, resolution in enumerate(sizes) if resolution in resolutions)


def attention_resolutions(size: int, levels: int, largest: int = 16) -> tuple[int, ...]:
    """The largest resolution of a U-Net's levels that is at most `largest` pixels; empty if there is none.

    Args:
        size: height or width of the images in pixels.
        levels: number of levels of the network.
        largest: largest resolution at which attention is affordable.
    """
    return tuple(resolution for resolution in _resolutions(size, levels) if resolution <= largest)[:1]


def _resolutions(size: int, levels: int) -> list[int]:
    return [-(-size // 2**level) for level in range(levels)]


def fewest_weights(channels: int, multipliers: Sequence[int], blocks: int) -> int:
    """A lower bound of a U-Net's number of weights: its 3x3 convolutions of equal width, and the time embedding."""
    widths = [channels * multiplier for multiplier in multipliers]
    return sum(9 * width * width * 4 * blocks for width in widths) + 20 * channels * channels


class UNet(LaidOut):
    """The DDPM U-Net.

    Height and width are arbitrary, and those of the output are those of the input; odd ones are halved rounding up.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the output.
        channels: width of level 0.
        multipliers: width of each level as a multiple of `channels`.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: levels with self-attention, 0 is the full resolution; `attention_levels` computes them from
            resolutions. The middle always has attention.
        head_channels: channels per attention head; None for one head.
        dropout: dropout probability in the residual blocks.
        classes: number of labels; the label `classes` itself then means "no label".
        groups: groups of every norm; None for DDPM's 32 or, if `channels` is below 128, the largest number that leaves
            at least 8 channels per group.
        epsilon: added to the variance in the norms.
        symmetric: pad downsampling convolutions by one pixel on all sides, instead of at the right and bottom
            only, as DDPM does for even sizes.
        frequency_shift: the frequencies of the time embedding are 10000^(-i/(n - frequency_shift)), i < n.
        cosine_first: order of the time embedding: cosines before sines.
        spans: whether the network also takes the span of a jump, as flow maps do.
        augmentations: number of parameters by which training images were augmented, a condition of the network; 0 for
            none.

    Attributes:
        recompute: keep only the inputs of blocks and resampling for the backward pass, which computes the rest again
            (activation checkpointing, Chen et al. 2016): less memory, the same gradients. False in a new network.

    Raises:
        InputError: if the arguments contradict each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        *,
        head_channels: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        groups: int | None = None,
        epsilon: float = 1e-6,
        symmetric: bool = False,
        frequency_shift: float = 1.0,
        cosine_first: bool = False,
        spans: bool = False,
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = False
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": sorted(attention),
            "head_channels": head_channels,
            "dropout": dropout,
            "classes": classes,
            "groups": groups,
            "epsilon": epsilon,
            "symmetric": symmetric,
            "frequency_shift": frequency_shift,
            "cosine_first": cosine_first,
            "spans": spans,
            "augmentations": augmentations,
        }
        widths = _widths(self.config)
        groups = _groups(self.config, widths)
        embedding = 4 * channels

        def residual(inputs: int, outputs: int) -> nn.Module:
            return ResidualBlock(inputs, outputs, groups, epsilon, dropout)

        def attending(width: int, level: int | None = None) -> nn.Module:
            if level is None or level in attention:
                return Attention(width, head_channels or width, groups, epsilon)
            return nn.Identity()

        self.frequencies = (channels // 2, frequency_shift, cosine_first)
        self.time = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.span = None
        if spans:
            self.span = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.labels = None if classes is None else nn.Embedding(classes + 1, embedding)
        self.augmentation = nn.Linear(augmentations, embedding, bias=False) if augmentations else None
        self.input = Convolution(in_channels, channels)

        self.down = nn.ModuleList()
        skips = [channels]
        for level, width in enumerate(widths):
            level_blocks = [residual(inputs, width) for inputs in (skips[-1], *[width] * (blocks - 1))]
            deeper = level + 1 < len(widths)
            skips += [width] * (blocks + deeper)
            down = Downsample(width, symmetric) if deeper else None
            self.down.append(Down(level_blocks, [attending(width, level) for _ in level_blocks], down))

        self.middle = Down([residual(width, width) for _ in range(2)], [attending(width), nn.Identity()], None)

        self.up = nn.ModuleList()
        last = width
        for level, width in reversed(list(enumerate(widths))):
            level_blocks = [residual(inputs + skips.pop(), width) for inputs in (last, *[width] * blocks)]
            up = Upsample(width) if level > 0 else None
            self.up.append(Up(level_blocks, [attending(width, level) for _ in level_blocks], up))
            last = width

        self.norm = GroupNorm(groups, widths[0], epsilon)
        self.output = Convolution(widths[0], out_channels)

        residuals = [block for block in self.modules() if isinstance(block, ResidualBlock)]
        self.shifts = [block.out_channels for block in residuals]
        self.project = nn.Linear(embedding, sum(self.shifts))
        self._initialise()
        self.lay_out()

    @property
    def last(self) -> nn.Conv2d:
        """The convolution of the output."""
        return self.output

    def _initialise(self) -> None:
        """DDPM's initial weights; zeros in the last layer of a block."""
        initialise(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.output.weight)
        if self.labels is not None:
            nn.init.zeros_(self.labels.weight[-1].detach())
        if self.span is not None:
            nn.init.zeros_(self.span.get_parameter("2.weight"))
        if self.augmentation is not None:
            nn.init.zeros_(self.augmentation.weight)

    def with_spans(self) -> UNet:
        """A copy that also takes the span of a jump, and no augmentation; an untrained span changes no output."""
        copy = UNet(**{**self.config, "spans": True, "augmentations": 0}).to(self.output.weight)
        copy.load_state_dict(self.state_dict(), strict=False)
        copy.recompute = self.recompute
        return copy.train(self.training)

    def forward(
        self,
        x: Tensor,
        time: Tensor | float,
        labels: Tensor | None = None,
        span: Tensor | float | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: images, shape (B, in_channels, H, W), any floating dtype.
            time: in 0..1000, fractions allowed; a number or a tensor of shape () or (1,) for the whole batch, or one
                per image, shape (B,).
            labels: int64, shape (B,), in 0..classes, where `classes` means "no label"; None for no labels.
            span: for a network with spans, the length of the jump in the unit of the time; shapes as for the time; None
                for 0.
            augmentation: for a network with augmentations, the parameters by which the images were augmented, shape
                (B, augmentations); None for images that were not.

        Returns:
            Shape (B, out_channels, H, W), in the dtype of the weights; under autocast in float32.

        Raises:
            InputError: if shapes do not fit, or labels, spans or augmentations are given to a network without them.
        """
        if x.ndim != 4 or x.shape[1] != self.input.in_channels:
            raise InputError(
                f"the network takes images of shape (B, {self.input.in_channels}, H, W), got {tuple(x.shape)}"
            )
        run = recomputed if self.recompute and torch.is_grad_enabled() else directly
        shifts = iter(self._embed(x, time, labels, span, augmentation).split(self.shifts, dim=1))
        x = x.to(self.input.weight.dtype).contiguous(memory_format=self.layout)
        skips = [self.input(x)]
        for stage in self.down:
            skips += stage(skips[-1], shifts, run)
        x = self.middle(skips[-1], shifts, run)[-1]
        for stage in self.up:
            x = stage(x, shifts, skips, run)
        return run(self._read, x)

    def _read(self, x: Tensor) -> Tensor:
        """The output from that of the last stage, in the precision of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            output: Tensor = self.output(self.norm(x.to(self.norm.weight.dtype)))
            return output

    def _embed(
        self,
        x: Tensor,
        time: Tensor | float,
        labels: Tensor | None,
        span: Tensor | float | None,
        augmentation: Tensor | None,
    ) -> Tensor:
        """The shifts of all residual blocks' channels: shape (B, sum(shifts)), or (1, sum(shifts)) if all are equal."""
        embedding = self.time(self._waves(x, time, "times"))
        if self.span is not None:
            embedding = embedding + self.span(self._waves(x, 0.0 if span is None else span, "spans"))
        elif span is not None:
            raise InputError("a span for a network without spans: leave it out, or build it with spans=True")
        if self.labels is not None:
            if labels is None:
                labels = torch.full((1,), self.labels.num_embeddings - 1, device=x.device)
            elif labels.shape != (len(x),):
                raise InputError(f"labels of shape {tuple(labels.shape)} for {len(x)} images: give one per image")
            embedding = embedding + self.labels(labels)
        elif labels is not None:
            raise InputError("labels for a network without classes: leave them out, or build it with classes=...")
        if augmentation is not None:
            if self.augmentation is None:
                raise InputError("an augmentation for a network without: leave it out, or give augmentations=...")
            if augmentation.shape != (len(x), self.augmentation.in_features):
                raise InputError(
                    f"augmentations of shape {tuple(augmentation.shape)} for {len(x)} images: give "
                    f"{self.augmentation.in_features} numbers per image"
                )
            embedding = embedding + self.augmentation(augmentation.to(embedding.dtype))
        return self.project(F.silu(embedding))

    def _waves(self, x: Tensor, time: Tensor | float, what: str) -> Tensor:
        """The sinusoids of times, in the dtype of the weights: shape (B, channels), or (1, channels)."""
        dtype = self.project.weight.dtype
        return sinusoid(one_or_each(time, x, dtype, what), *self.frequencies, odd=self.config["channels"] % 2).to(dtype)


def initialise(network: nn.Module) -> None:
    """DDPM's initial weights: uniform of variance 1/mean(fan in, fan out); biases of 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def one_or_each(time: Tensor | float, x: Tensor, dtype: torch.dtype, what: str = "times") -> Tensor:
    """Times for images x, shape (1,) or (B,), in the dtype of the weights or float32 if that is more precise.

    Raises:
        InputError: for another number of times.
    """
    time = torch.as_tensor(time, dtype=torch.promote_types(dtype, torch.float32), device=x.device).reshape(-1)
    if len(time) not in (1, len(x)):
        raise InputError(f"{len(time)} {what} for {len(x)} images: give one, or one per image")
    return time


def sinusoid(time: Tensor, count: int, shift: float, cosine_first: bool, odd: int = 0) -> Tensor:
    """The embedding of times, shape (B,), by sines and cosines of `count` frequencies, as DDPM computes it.

    Returns:
        Shape (B, 2 count + odd); the last channel of an odd number is 0.
    """
    steps = torch.arange(count, dtype=time.dtype, device=time.device)
    angles = time[:, None] * torch.exp(steps * (-math.log(10000.0) / max(count - shift, 1e-9)))
    waves = [angles.cos(), angles.sin()] if cosine_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, odd))


def _widths(config: dict[str, Any]) -> list[int]:
    """Channels of each level; raises an InputError for arguments that do not describe a network."""
    for name in ("in_channels", "out_channels", "channels", "blocks"):
        if config[name] < 1:
            raise InputError(f"{name} must be at least 1, got {config[name]}")
    if config["blocks"] > limits.MOST_BLOCKS or len(config["multipliers"]) > limits.MOST_LEVELS:
        raise InputError(
            f"a U-Net has at most {limits.MOST_LEVELS} levels of {limits.MOST_BLOCKS:,} blocks, got "
            f"{len(config['multipliers'])} levels of {config['blocks']:,}"
        )
    widths = [config["channels"] * multiplier for multiplier in config["multipliers"]]
    if not widths or any(width != int(width) or width < 1 for width in widths):
        raise InputError(
            f"multipliers {config['multipliers']} of {config['channels']} channels give the widths {widths}; give at "
            "least one, and whole numbers of channels"
        )
    if outside := [level for level in config["attention"] if not 0 <= level < len(widths)]:
        raise InputError(f"attention at level {outside[0]}: the network has levels 0..{len(widths) - 1}")
    if not 0.0 <= config["dropout"] < 1.0:
        raise InputError(f"dropout must be in [0, 1), got {config['dropout']}")
    if config["classes"] is not None and config["classes"] < 1:
        raise InputError(f"classes must be at least 1 or None, got {config['classes']}")
    heads = config["head_channels"]
    attending = {widths[level] for level in config["attention"]} | {widths[-1]}
    if heads is not None and (heads < 1 or any(width % heads for width in attending)):
        raise InputError(f"head_channels {heads} must divide the widths {sorted(attending)} of levels with attention")
    return [int(width) for width in widths]


def _groups(config: dict[str, Any], widths: Sequence[int]) -> int:
    """The number of groups of every norm: the given one, which must divide all widths, or at most DDPM's 32."""
    common = math.gcd(config["channels"], *widths)
    groups = config["groups"]
    if groups is None:
        narrowest = min(config["channels"], *widths)
        most = 32 if narrowest >= 128 else max(1, narrowest // 8)
        return max(count for count in range(1, most + 1) if common % count == 0)
    if groups < 1 or common % groups:
        raise InputError(f"groups {groups} must divide the widths {sorted({config['channels'], *widths})}")
    return int(groups)
