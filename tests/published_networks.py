"""The forward passes of published networks, written independently of the package as functions of their weights by name.

`Weights` creates each weight at its first use, so that the functions also define the names and shapes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(dict[str, Tensor]):
    """Random weights by name, made on demand."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def get_or_make(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            fan = math.prod(shape[1:]) if len(shape) > 1 else 1
            noise = torch.randn(*shape, generator=self.generator)
            # norms near one, matrices that keep the scale, small biases
            self[name] = (
                1.0 + 0.2 * noise
                if len(shape) == 1 and "norm" in name
                else noise * (0.8 / math.sqrt(fan) if fan > 1 else 0.1)
            )
        return self[name]

    def linear(self, name: str, x: Tensor, outputs: int, bias: bool = True) -> Tensor:
        weight = self.get_or_make(f"{name}.weight", outputs, x.shape[1])
        return F.linear(x, weight, self.get_or_make(f"{name}.bias", outputs) if bias else None)

    def conv(self, name: str, x: Tensor, outputs: int, kernel: int = 3, **options: int) -> Tensor:
        weight = self.get_or_make(f"{name}.weight", outputs, x.shape[1], kernel, kernel)
        options.setdefault("padding", kernel // 2)
        return F.conv2d(x, weight, self.get_or_make(f"{name}.bias", outputs), **options)

    def norm(self, name: str, x: Tensor, groups: int, epsilon: float) -> Tensor:
        channels = x.shape[1]
        weight, bias = self.get_or_make(f"{name}.weight", channels), self.get_or_make(f"{name}.bias", channels)
        return F.group_norm(x, groups, weight, bias, epsilon)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, C, N) queries, keys and values of one head."""
    weights = torch.einsum("bcn,bcm->bnm", q, k / math.sqrt(q.shape[1])).softmax(dim=2)
    return torch.einsum("bnm,bcm->bcn", weights, v)


# --- DDIM: ermongroup/ddim, pesser/pytorch_diffusion --------------------------------------------------------------


def ddim(w: Weights, x: Tensor, t: Tensor, ch: int, mult: tuple[int, ...], blocks: int, attends: set[int]) -> Tensor:
    """The U-Net of DDIM's code, whose norms have 32 groups; `attends` are levels."""
    half = ch // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    phases = t[:, None] * frequencies[None]
    temb = w.linear("temb.dense.0", torch.cat([phases.sin(), phases.cos()], 1), 4 * ch)
    temb = w.linear("temb.dense.1", F.silu(temb), 4 * ch)

    def res(name: str, h: Tensor, out: int) -> Tensor:
        y = w.conv(f"{name}.conv1", F.silu(w.norm(f"{name}.norm1", h, 32, 1e-6)), out)
        y = y + w.linear(f"{name}.temb_proj", F.silu(temb), out)[:, :, None, None]
        y = w.conv(f"{name}.conv2", F.silu(w.norm(f"{name}.norm2", y, 32, 1e-6)), out)
        return y + (h if h.shape[1] == out else w.conv(f"{name}.nin_shortcut", h, out, 1))

    def attn(name: str, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        y = w.norm(f"{name}.norm", h, 32, 1e-6)
        q, k, v = (w.conv(f"{name}.{part}", y, c, 1).reshape(b, c, -1) for part in "qkv")
        return h + w.conv(f"{name}.proj_out", attention(q, k, v).reshape(b, c, height, width), c, 1)

    hs = [w.conv("conv_in", x, ch)]
    for level, m in enumerate(mult):
        for block in range(blocks):
            h = res(f"down.{level}.block.{block}", hs[-1], ch * m)
            hs.append(attn(f"down.{level}.attn.{block}", h) if level in attends else h)
        if level < len(mult) - 1:
            padded = F.pad(hs[-1], (0, 1, 0, 1))
            hs.append(w.conv(f"down.{level}.downsample.conv", padded, ch * m, stride=2, padding=0))
    h = res("mid.block_1", hs[-1], ch * mult[-1])
    h = res("mid.block_2", attn("mid.attn_1", h), ch * mult[-1])
    for level in reversed(range(len(mult))):
        for block in range(blocks + 1):
            h = res(f"up.{level}.block.{block}", torch.cat([h, hs.pop()], 1), ch * mult[level])
            if level in attends:
                h = attn(f"up.{level}.attn.{block}", h)
        if level:
            doubled = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = w.conv(f"up.{level}.upsample.conv", doubled, ch * mult[level])
    return w.conv("conv_out", F.silu(w.norm("norm_out", h, 32, 1e-6)), x.shape[1])


# --- ADM: openai/guided-diffusion, openai/improved-diffusion -------------------------------------------------------


def adm(
    w: Weights,
    x: Tensor,
    t: Tensor,
    labels: Tensor | None,
    *,
    ch: int,
    mult: tuple[int, ...],
    blocks: int,
    attends: set[int],
    heads: int,
    outputs: int,
    classes: int = 0,
    updown: bool = True,
    new_order: bool = False,
    scale_shift: bool = True,
) -> Tensor:
    """The U-Net of guided-diffusion (`updown`: resblock_updown) and improved-diffusion; `attends` are levels."""
    half = ch // 2
    phases = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
    emb = w.linear("time_embed.0", torch.cat([phases.cos(), phases.sin()], 1), 4 * ch)
    emb = w.linear("time_embed.2", F.silu(emb), 4 * ch)
    if labels is not None:
        emb = emb + w.get_or_make("label_emb.weight", classes, 4 * ch)[labels]

    def up(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def down(h: Tensor) -> Tensor:
        return (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4

    def res(name: str, h: Tensor, out: int, resample: str = "") -> Tensor:
        change = {"up": up, "down": down, "": lambda y: y}[resample]
        y = w.conv(f"{name}.in_layers.2", change(F.silu(w.norm(f"{name}.in_layers.0", h, 32, 1e-5))), out)
        e = w.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out if scale_shift else out)[:, :, None, None]
        if scale_shift:
            y = w.norm(f"{name}.out_layers.0", y, 32, 1e-5) * (1 + e[:, :out]) + e[:, out:]
        else:
            y = w.norm(f"{name}.out_layers.0", y + e, 32, 1e-5)
        y = w.conv(f"{name}.out_layers.3", F.silu(y), out)
        h = change(h)
        return y + (h if h.shape[1] == out else w.conv(f"{name}.skip_connection", h, out, 1))

    def attn(name: str, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        y = w.norm(f"{name}.norm", h, 32, 1e-5).reshape(b, c, -1)
        weight = w.get_or_make(f"{name}.qkv.weight", 3 * c, c, 1)
        qkv = F.conv1d(y, weight, w.get_or_make(f"{name}.qkv.bias", 3 * c))
        per = c // heads
        results = []
        for head in range(heads):
            if new_order:
                q, k, v = (qkv[:, part * c + head * per : part * c + (head + 1) * per] for part in range(3))
            else:
                q, k, v = qkv[:, 3 * head * per : 3 * (head + 1) * per].split(per, 1)
            results.append(attention(q, k, v))
        weight = w.get_or_make(f"{name}.proj_out.weight", c, c, 1)
        y = F.conv1d(torch.cat(results, 1), weight, w.get_or_make(f"{name}.proj_out.bias", c))
        return h + y.reshape(b, c, height, width)

    h, number = w.conv("input_blocks.0.0", x, ch), 1
    hs = [h]
    for level, m in enumerate(mult):
        for _ in range(blocks):
            h = res(f"input_blocks.{number}.0", h, ch * m)
            h = attn(f"input_blocks.{number}.1", h) if level in attends else h
            hs.append(h)
            number += 1
        if level < len(mult) - 1:
            name = f"input_blocks.{number}.0"
            h = res(name, h, ch * m, "down") if updown else w.conv(f"{name}.op", h, ch * m, stride=2)
            hs.append(h)
            number += 1
    h = res("middle_block.0", h, ch * mult[-1])
    h = res("middle_block.2", attn("middle_block.1", h), ch * mult[-1])
    number = 0
    for level in reversed(range(len(mult))):
        for block in range(blocks + 1):
            place, width = 1, ch * mult[level]
            h = res(f"output_blocks.{number}.0", torch.cat([h, hs.pop()], 1), width)
            if level in attends:
                h, place = attn(f"output_blocks.{number}.1", h), 2
            if level and block == blocks:
                name = f"output_blocks.{number}.{place}"
                h = res(name, h, width, "up") if updown else w.conv(f"{name}.conv", up(h), width)
            number += 1
    return w.conv("out.2", F.silu(w.norm("out.0", h, 32, 1e-5)), outputs)


# --- EDM: NVlabs/edm, SongUNet with the settings of ddpmpp ---------------------------------------------------------


def ddpmpp(
    w: Weights,
    x: Tensor,
    c_noise: Tensor,
    labels: Tensor | None,
    *,
    ch: int,
    mult: tuple[int, ...],
    blocks: int,
    attends: set[int],
    classes: int = 0,
) -> Tensor:
    """The network F of EDM for CIFAR-10 (`attends` are sides in pixels), with the names of its state dict."""
    half = ch // 2
    phases = c_noise[:, None] * (1 / 10000) ** (torch.arange(half) / (half - 1))[None]
    emb = torch.cat([phases.sin(), phases.cos()], 1)
    if labels is not None:
        one_hot = F.one_hot(labels, classes + 1)[:, :classes].float()
        emb = emb + w.linear("model.map_label", one_hot * math.sqrt(classes), ch)
    emb = F.silu(w.linear("model.map_layer0", emb, 4 * ch))
    emb = F.silu(w.linear("model.map_layer1", emb, 4 * ch))

    def norm(name: str, h: Tensor) -> Tensor:
        return w.norm(name, h, min(32, h.shape[1] // 4), 1e-6)

    def change(h: Tensor, name: str, resample: str) -> Tensor:
        if not resample:
            return h
        w.setdefault(f"{name}.resample_filter", torch.full((1, 1, 2, 2), 0.25))
        kernel = w[f"{name}.resample_filter"].repeat(h.shape[1], 1, 1, 1)
        if resample == "down":
            return F.conv2d(h, kernel, stride=2, groups=h.shape[1])
        return F.conv_transpose2d(h, 4 * kernel, stride=2, groups=h.shape[1])

    def block(name: str, h: Tensor, out: int, resample: str = "", attend: bool = False) -> Tensor:
        y = w.conv(f"{name}.conv0", change(F.silu(norm(f"{name}.norm0", h)), f"{name}.conv0", resample), out)
        y = y + w.linear(f"{name}.affine", emb, out)[:, :, None, None]
        y = w.conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", y)), out)
        if resample or h.shape[1] != out:
            h = w.conv(f"{name}.skip", change(h, f"{name}.skip", resample), out, 1)
        h = (y + h) / math.sqrt(2)
        if attend:
            b, c, height, width = h.shape
            qkv = w.conv(f"{name}.qkv", norm(f"{name}.norm2", h), 3 * c, 1).reshape(b, c, 3, -1)
            y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, c, height, width)
            h = (h + w.conv(f"{name}.proj", y, c, 1)) / math.sqrt(2)
        return h

    side = x.shape[-1]
    hs = [w.conv(f"model.enc.{side}x{side}_conv", x, ch)]
    for level, m in enumerate(mult):
        place = f"model.enc.{side >> level}x{side >> level}"
        if level:
            hs.append(block(f"{place}_down", hs[-1], hs[-1].shape[1], "down"))
        for number in range(blocks):
            hs.append(block(f"{place}_block{number}", hs[-1], ch * m, attend=side >> level in attends))
    h = hs[-1]
    for level in reversed(range(len(mult))):
        place = f"model.dec.{side >> level}x{side >> level}"
        if level == len(mult) - 1:
            h = block(f"{place}_in0", h, h.shape[1], attend=True)
            h = block(f"{place}_in1", h, h.shape[1])
        else:
            h = block(f"{place}_up", h, h.shape[1], "up")
        for number in range(blocks + 1):
            attend = number == blocks and side >> level in attends
            h = block(f"{place}_block{number}", torch.cat([h, hs.pop()], 1), ch * mult[level], attend=attend)
    h = F.silu(norm(f"model.dec.{side}x{side}_aux_norm", h))
    return w.conv(f"model.dec.{side}x{side}_aux_conv", h, x.shape[1])


def edm_denoised(
    w: Weights, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_data: float = 0.5, **network: object
) -> Tensor:
    """EDM's preconditioned denoiser D(x; sigma), Table 1 of the paper."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    output = ddpmpp(w, x / total.sqrt(), sigma.log() / 4, labels, **network)  # type: ignore[arg-type]
    return sigma_data**2 / total * x + s * sigma_data / total.sqrt() * output
