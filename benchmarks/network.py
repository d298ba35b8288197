"""`quarterarc bench network`: our U-Net beside diffusers' `UNet2DModel`, with the same weights, in one run.

Forward is what a sampler does: no gradients, evaluation mode, one time for the batch. Training is a forward and a
backward pass in training mode, one time an image. Calls of the two networks alternate, and the ratio is that of the
two calls of a pair, so that what else the machine does hits both alike; its quartiles say how much that is.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quarterarc.common.errors import InputError, unknown_name
from quarterarc.storage.files import check_writable, make_folder, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from quarterarc.networks import UNet

__all__ = ["CASES", "Case", "add_arguments", "main", "run"]

Row = dict[str, Any]
WARMUP = 2


@dataclass(frozen=True)
class Case:
    """What is measured: a network, and batches of images.

    Attributes:
        network: arguments of `UNet`.
        size: height and width of the images.
        forward: images a batch in the forward pass.
        training: images a batch in training.
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
"""The networks of the recipe `digits`, of 6.5 million parameters for 32x32 pixels, and of the recipe `cifar10`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of calls (default: 15)")
    parser.add_argument("--batch", type=int, help="images a batch (default: the case's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast (default: fp32)")
    parser.add_argument("--compile", action="store_true", help="compile both networks")
    parser.add_argument("--channels-last", action="store_true", help="put both networks channels-last, on a GPU too")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON; returns 0.

    Raises:
        InputError: on an unknown case, a number below 1, a missing device, or without diffusers.
    """
    if args.out is not None:
        check_writable(args.out)
    report = run(
        args.cases,
        repeats=args.repeats,
        batch=args.batch,
        device=args.device,
        dtype=args.dtype,
        compiled=args.compile,
        channels_last=args.channels_last,
        threads=args.threads,
        show=print,
    )
    if args.out is not None:
        make_folder(args.out.parent)
        write_json(args.out, report)
    return 0


def run(
    cases: Sequence[str] = tuple(CASES),
    *,
    repeats: int = 15,
    batch: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    compiled: bool = False,
    channels_last: bool = False,
    threads: int | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the cases.

    Args:
        cases: names in `CASES`.
        repeats: pairs of calls.
        batch: images a batch; None for the case's own numbers.
        device: where to run.
        dtype: "fp32", or "bf16" for autocast.
        compiled: whether both networks are compiled.
        channels_last: whether both networks are put channels-last; ours is anyway on the CPU.
        threads: of PyTorch; None leaves them.
        show: takes each line of the table as soon as it is known.

    Returns:
        "settings", "environment", and "rows", one a case and task, with images a second of "ours" and of "theirs",
        the median "ratio" and its quartiles "low" and "high", and the largest "difference" of the two outputs.

    Raises:
        InputError: as `main`.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    if min(repeats, batch or 1, threads or 1) < 1:
        raise InputError("--repeats, --batch and --threads must be at least 1")
    try:
        import diffusers
    except ImportError:
        raise InputError("the benchmark needs diffusers: pip install 'quarterarc[diffusers]'") from None
    import torch

    from quarterarc.common.devices import pick_device

    if threads is not None:
        torch.set_num_threads(threads)
    where = pick_device(device)
    settings = {"repeats": repeats, "dtype": dtype, "compiled": compiled, "channels_last": channels_last}
    environment = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    show(", ".join(f"{name} {value}" for name, value in (environment | settings).items()))
    show(_HEADER)
    rows = []
    for name in cases:
        for row in _measure(name, CASES[name], where, batch, repeats, dtype, compiled, channels_last):
            rows.append(row)
            show(_LINE.format(**row))
    return {"settings": settings, "environment": environment, "rows": rows}


_HEADER = "case     million  task     batch  ours/s    theirs/s  ratio (quartiles)   difference"
_LINE = (
    "{case:<8} {parameters:<8.2f} {task:<8} {batch:<6} {ours:<9.4g} {theirs:<9.4g} {ratio:.2f} ({low:.2f}..{high:.2f})"
    "   {difference:.1e}"
)


def _measure(
    name: str,
    case: Case,
    device: torch.device,
    batch: int | None,
    repeats: int,
    dtype: str,
    compiled: bool,
    channels_last: bool,
) -> list[Row]:
    """The rows of a case."""
    import torch

    from quarterarc.interop.unet_weights import to_diffusers
    from quarterarc.networks import UNet

    ours = UNet(**case.network).to(device)
    randomise(ours)
    model = to_diffusers(ours)
    if channels_last:
        for each in (ours, model):
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def theirs(x: Tensor, time: Tensor) -> Tensor:
        result: Tensor = model(x, time, return_dict=False)[0]
        return result

    def cast() -> Any:
        return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()

    modules: tuple[nn.Module, nn.Module] = (ours, model)
    networks: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (ours, theirs)
    if compiled:
        networks = (torch.compile(ours), torch.compile(theirs))
    rows = []
    for task, own in (("forward", case.forward), ("training", case.training)):
        count = batch or own
        x = torch.randn(count, case.network["in_channels"], case.size, case.size, device=device)
        times = torch.rand(count, device=device) * 1000.0
        calls = [_call(task, *each, x, times, cast) for each in zip(networks, modules, strict=True)]
        with torch.no_grad(), cast():
            for module in modules:
                module.eval()
            difference = (networks[0](x, times).float() - networks[1](x, times).float()).abs().max().item()
        row = {"case": name, "parameters": sum(weight.numel() for weight in ours.parameters()) / 1e6}
        row |= {"task": task, "batch": count, "size": case.size}
        rows.append(row | _race(calls, count, repeats, device) | {"difference": difference})
    return rows


def _call(
    task: str, network: Callable[..., Tensor], module: nn.Module, x: Tensor, times: Tensor, cast: Callable[[], Any]
) -> Callable[[], None]:
    """What is timed."""
    import torch

    def forward() -> None:
        module.eval()
        with torch.no_grad(), cast():
            network(x, times[0])

    def training() -> None:
        module.train()
        with cast():
            loss = network(x, times).float().square().mean()
        loss.backward()
        module.zero_grad(set_to_none=True)

    return forward if task == "forward" else training


def _race(calls: Sequence[Callable[[], None]], count: int, repeats: int, device: torch.device) -> Row:
    """Calls in pairs, the other one first in every second pair."""
    for call in calls:
        for _ in range(WARMUP):
            call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds[which].append(_time(calls[which], device))
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    low, high = (statistics.quantiles(ratios)[index] for index in (0, 2)) if repeats > 1 else ratios * 2
    return {
        "ours": count / statistics.median(seconds[0]),
        "theirs": count / statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "seconds": {"ours": seconds[0], "theirs": seconds[1]},
    }


def _time(call: Callable[[], None], device: torch.device) -> float:
    import torch

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = finished()
    call()
    return finished() - start


def randomise(network: UNet) -> None:
    """Weights that are zero nowhere, of the size that keeps the scale of the signal, from seed 0.

    A new network ends its blocks in zeros, which would hide what lies before them.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                values *= 0.5 / weight[0].numel() ** 0.5
            else:
                values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            weight.copy_(values)


def _processor() -> str:
    """The processor's name, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"
