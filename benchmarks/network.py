"""`python -m benchmarks network`: the U-Net against diffusers' `UNet2DModel`, with the same weights, in one run.

Forward is a sampler's call: evaluation mode, no gradients, one time for the batch. Training is a forward and a backward
pass in training mode, one time per image. Calls of the two networks alternate, and the ratio is taken per pair of
calls, so that other load on the machine affects both alike; its quartiles show how much.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.report import Row, environment, now, quartiles
from quarterarc.common.devices import pick_device
from quarterarc.common.errors import unknown_name
from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet

WARMUP = 2
"""Calls per network before the first one that is timed."""


@dataclass(frozen=True)
class Case:
    """A network, and the batches that it is measured on.

    Attributes:
        network: arguments of `UNet`.
        size: height and width of the images.
        forward: images per batch in the forward pass.
        training: images per batch in training.
    """

    network: dict[str, Any]
    size: int
    forward: int
    training: int


CASES = {
    "digits": Case({"in_channels": 1, "out_channels": 2, "channels": 32, "multipliers": (1, 2)}, 8, 64, 64),
    "small": Case({"in_channels": 3, "out_channels": 6, "channels": 64, "multipliers": (1, 2, 2)}, 32, 16, 16),
    "cifar10": Case({"in_channels": 3, "out_channels": 6, "channels": 128, "dropout": 0.1}, 32, 4, 4),
}
"""The network of the recipe `digits`, one of 6.5 million parameters for 32x32 pixels, and that of `cifar10`."""


def run(
    *,
    cases: Sequence[str],
    repeats: int,
    batch: int | None,
    device: str,
    dtype: str,
    compile: bool,
    channels_last: bool,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the cases.

    Args:
        cases: names in `CASES`.
        repeats: pairs of calls.
        batch: images per batch; the case's own numbers if None.
        device: "cpu" or "cuda".
        dtype: "fp32", or "bf16" for autocast.
        compile: compile both networks.
        channels_last: both networks in channels-last layout; ours has it on the CPU in any case.
        show: receives each line of the table as soon as it is measured.

    Returns:
        "settings", "environment", and "rows", one per case and task, with images per second of "ours" and of "theirs",
        the median "ratio" and its quartiles "low" and "high", and the largest "difference" of the two outputs.

    Raises:
        InputError: for an unknown case or a missing device.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    settings = _Settings(pick_device(device), batch, repeats, dtype, compile, channels_last)
    about = {"repeats": repeats, "dtype": dtype, "compiled": compile, "channels_last": channels_last}
    where = environment(settings.device, diffusers=diffusers.__version__)
    show(", ".join(f"{name} {value}" for name, value in (where | about).items()) + "\n")
    show(_HEAD)
    rows = []
    for name in cases:
        for row in _measure(name, CASES[name], settings):
            rows.append(row)
            show(_LINE.format(**row))
    return {"settings": about, "environment": where, "rows": rows}


_HEAD = """\
| case | million parameters | task | batch | ours, images/s | theirs, images/s | ratio (quartiles) | difference |
|---|---|---|---|---|---|---|---|"""
_LINE = (
    "| {case} | {parameters:.2f} | {task} | {batch} | {ours:.4g} | {theirs:.4g} "
    "| {ratio:.2f} ({low:.2f}..{high:.2f}) | {difference:.1e} |"
)


@dataclass(frozen=True)
class _Settings:
    device: torch.device
    batch: int | None
    repeats: int
    dtype: str
    compile: bool
    channels_last: bool

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which networks compute in this dtype."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.dtype == "bf16" else nullcontext()


def _measure(name: str, case: Case, settings: _Settings) -> list[Row]:
    """The rows of a case: forward, then training."""
    ours = UNet(**case.network).to(settings.device)
    randomise(ours)
    model = to_diffusers(ours)
    modules: tuple[nn.Module, nn.Module] = (ours, model)
    if settings.channels_last:
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def theirs(x: Tensor, time: Tensor) -> Tensor:
        result: Tensor = model(x, time, return_dict=False)[0]
        return result

    networks: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (ours, theirs)
    if settings.compile:
        networks = (torch.compile(ours), torch.compile(theirs))
    rows = []
    for task, default in (("forward", case.forward), ("training", case.training)):
        count = settings.batch or default
        x = torch.randn(count, case.network["in_channels"], case.size, case.size, device=settings.device)
        times = torch.rand(count, device=settings.device) * 1000.0
        calls = [
            _call(task, network, module, x, times, settings) for network, module in zip(networks, modules, strict=True)
        ]
        with torch.no_grad(), settings.autocast():
            for module in modules:
                module.eval()
            difference = (networks[0](x, times).float() - networks[1](x, times).float()).abs().max().item()
        row = {"case": name, "parameters": sum(weight.numel() for weight in ours.parameters()) / 1e6}
        row |= {"task": task, "batch": count, "size": case.size}
        rows.append(row | _time_pairs(calls, count, settings) | {"difference": difference})
    return rows


def _call(
    task: str, network: Callable[..., Tensor], module: nn.Module, x: Tensor, times: Tensor, settings: _Settings
) -> Callable[[], None]:
    """The call that is timed."""

    def forward() -> None:
        module.eval()
        with torch.no_grad(), settings.autocast():
            network(x, times[0])

    def training() -> None:
        module.train()
        with settings.autocast():
            loss = network(x, times).float().square().mean()
        loss.backward()
        module.zero_grad(set_to_none=True)

    return forward if task == "forward" else training


def _time_pairs(calls: Sequence[Callable[[], None]], count: int, settings: _Settings) -> Row:
    """Times of calls in pairs; the order alternates from pair to pair."""
    for call in calls:
        for _ in range(WARMUP):
            call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(settings.repeats):
        for index in (0, 1) if repeat % 2 else (1, 0):
            seconds[index].append(_seconds(calls[index], settings.device))
    return {
        "ours": count / statistics.median(seconds[0]),
        "theirs": count / statistics.median(seconds[1]),
        **quartiles([theirs / ours for ours, theirs in zip(*seconds, strict=True)]),
        "seconds": {"ours": seconds[0], "theirs": seconds[1]},
    }


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    start = now(device)
    call()
    return now(device) - start


def randomise(network: UNet) -> None:
    """Set all weights to random values, none of them zero, that keep the scale of the signal; from seed 0.

    A new network's blocks end in zeros, and its output would not depend on the layers before them.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                values *= 0.5 / weight[0].numel() ** 0.5
            else:
                values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            weight.copy_(values)
