"""`python -m benchmarks overhead`: a sampler against bare calls of its network, at equal evaluations.

A trajectory is everything that a sampler adds to the network: the denoiser, the projection, the steps, and fresh noise
where there is any; its first noise is drawn before. The bare calls are of the same network with the same batch. Both
alternate, and the ratio is taken per pair, so that other load on the machine affects both alike; its quartiles show
how much.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

import quarterarc as qa
from benchmarks.network import CASES, WARMUP, Case, randomise
from benchmarks.report import Row, environment, now, quartiles
from quarterarc.common.devices import pick_device
from quarterarc.common.errors import unknown_name
from quarterarc.networks import UNet
from quarterarc.sampling import Plan, Sampling
from quarterarc.sampling import run as run_plan
from quarterarc.sampling.compiled import compiled


def run(
    *,
    cases: Sequence[str],
    samplers: Sequence[str],
    nfe: int,
    repeats: int,
    batch: int | None,
    device: str,
    dtype: str,
    compile: bool,
    show: Callable[[str], None] = print,
    add: Callable[[Row], object] = lambda row: None,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure the cases.

    Args:
        cases: names in `benchmarks.network.CASES`.
        samplers: names of samplers with one evaluation per step.
        nfe: evaluations per image.
        repeats: pairs of a trajectory and bare calls.
        batch: images per batch; the case's own number if None.
        device: "cpu" or "cuda".
        dtype: "fp32", or "bf16" for autocast.
        compile: compile the network; on a GPU in CUDA graphs.
        show: receives each line of the table as soon as it is measured.
        add: receives each row as soon as it is measured.
        ready: called before the first pair of each row, when the network is compiled.

    Returns:
        "settings", "environment", and "rows", one per case and sampler, with the milliseconds of a "trajectory" and of
        the calls alone, "bare", the median "ratio" and its quartiles "low" and "high".

    Raises:
        InputError: for an unknown case or sampler, or a missing device.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    for name in samplers:
        qa.sampler(name)
    place = pick_device(device)
    about = {"nfe": nfe, "repeats": repeats, "dtype": dtype, "compiled": compile}
    machine = environment(place)
    show(", ".join(f"{name} {value}" for name, value in (machine | about).items()) + "\n")
    show(_HEAD)
    rows = []
    for name in cases:
        count = batch or CASES[name].forward
        denoise = _denoiser(CASES[name], place, torch.bfloat16 if dtype == "bf16" else None)
        used = compiled(Sampling("ddim", nfe).plan(denoise), compile, count, count).denoise
        for sampler in samplers:
            row = {"case": name, "batch": count, "sampler": sampler}
            row |= _measure(Sampling(sampler, nfe).plan(used), count, nfe, repeats, place, ready)
            rows.append(row)
            add(row)
            show(_LINE.format(**row))
    return {"settings": about, "environment": machine, "rows": rows}


_HEAD = """\
| case | batch | sampler | trajectory, ms | bare network, ms | ratio (quartiles) |
|---|---|---|---|---|---|"""
_LINE = "| {case} | {batch} | {sampler} | {trajectory:.4g} | {bare:.4g} | {ratio:.3f} ({low:.3f}..{high:.3f}) |"


def _denoiser(case: Case, device: torch.device, precision: torch.dtype | None) -> qa.Denoiser:
    """The case's network with random weights, as `quarterarc.load` returns one."""
    network = UNet(**case.network)
    randomise(network)
    table, channels = qa.schedule("arc", 1000), case.network["in_channels"]
    shape = (channels, case.size, case.size)
    return qa.Denoiser(
        network.to(device).eval(), table, qa.head("both", table), shape, precision=precision, projection="velocity"
    )


def _measure(plan: Plan, count: int, nfe: int, repeats: int, device: torch.device, ready: Callable[[], object]) -> Row:
    """Times of a trajectory and of as many bare calls, in pairs whose order alternates."""
    denoise = plan.denoise
    assert isinstance(denoise, qa.Denoiser)
    assert denoise.shape is not None
    network, precision, seeds = denoise.network, denoise.precision, range(count)
    noise, time = qa.noise(seeds, denoise.shape, device), torch.full((), 500.0, device=device)

    def trajectory() -> None:
        run_plan(plan, noise, seeds=seeds)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(nfe):
                with torch.autocast(device.type, precision) if precision else nullcontext():
                    network(noise, time, None)

    calls = (trajectory, bare)
    for call in calls * WARMUP:
        call()
    ready()
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 else (1, 0):
            start = now(device)
            calls[index]()
            seconds[index].append(now(device) - start)
    return {
        "trajectory": 1e3 * statistics.median(seconds[0]),
        "bare": 1e3 * statistics.median(seconds[1]),
        **quartiles([ours / theirs for ours, theirs in zip(*seconds, strict=True)]),
        "seconds": {"trajectory": seconds[0], "bare": seconds[1]},
    }
