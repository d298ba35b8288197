"""`python -m benchmarks sampling`: images per second, from seeds to 8-bit images, against diffusers' `DDIMPipeline`.

Same weights, same evaluations per image, same batches: ours is `quarterarc.generate` with its default sampler, and
`write_samples`, which is what `quarterarc sample` calls; theirs is the pipeline with one generator per batch, and
`save` of each image. Compiled, theirs is in channels-last layout and its time a tensor on the device, for CUDA graphs.
Calls alternate, and the ratio is taken per round.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from torch import Tensor

import quarterarc as qa
from benchmarks.network import CASES, Case, randomise
from benchmarks.report import Row, environment, now, quartiles, reason
from quarterarc.common.devices import pick_device
from quarterarc.common.errors import unknown_name
from quarterarc.denoiser import Denoise
from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet
from quarterarc.sampling.compiled import compiled
from quarterarc.sampling.folders import write_samples

Images = list[Image.Image]
TASKS = ("images", "files")
"""Images in memory, and PNG files."""


def run(
    *,
    cases: Sequence[str],
    device: str,
    dtype: str,
    compile: bool,
    count: int,
    batch: int,
    nfe: int,
    rounds: int,
    show: Callable[[str], None] = print,
    add: Callable[[Row], object] = lambda row: None,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure the cases.

    Args:
        cases: names in `benchmarks.network.CASES`.
        device: "cpu" or "cuda".
        dtype: "fp32", or "bf16" for autocast.
        compile: also measure both compiled; on a GPU in CUDA graphs.
        count: images per call.
        batch: images per batch.
        nfe: evaluations per image.
        rounds: rounds of calls.
        show: receives each line of the table as soon as it is measured.
        add: receives each row as soon as it is measured.
        ready: called before the calls of each case, when everything is compiled.

    Returns:
        "settings", "environment", and "rows": one per case, task and mode, with images per second of "ours" and
        "theirs", the median "ratio" and its quartiles "low" and "high"; or with an "error".

    Raises:
        InputError: for an unknown case or a missing device.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    settings = _Settings(pick_device(device), dtype, count, min(batch, count), nfe)
    about = {"dtype": dtype, "compiled": compile, "count": count, "batch": settings.batch, "nfe": nfe, "rounds": rounds}
    machine = environment(settings.device, diffusers=diffusers.__version__)
    show(", ".join(f"{name} {value}" for name, value in (machine | about).items()) + "\n")
    show(HEAD)
    rows: list[Row] = []
    for name in cases:
        for row in _measure(name, settings, rounds, compile, ready):
            rows.append(row)
            add(row)
            show(line(row))
    return {"settings": about, "environment": machine, "rows": rows}


HEAD = """\
| network, batch | task | ours | theirs | ours, images/s | theirs, images/s | ratio (quartiles) |
|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    """A row as a line of the table below `HEAD`."""
    start = f"| {row['case']}, {row['batch']} | {row['task']} | {row['our mode']} | {row['their mode']} | "
    if "error" in row:
        return f"{start}{row['error']} |" + " |" * 2
    return (
        f"{start}{row['ours']:,.4g} | {row['theirs']:,.4g} | {row['ratio']:.2f} ({row['low']:.2f}..{row['high']:.2f}) |"
    )


@dataclass(frozen=True)
class _Settings:
    device: torch.device
    dtype: str
    count: int
    batch: int
    nfe: int

    @property
    def seeds(self) -> range:
        return range(self.count)

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which their network computes in this dtype; ours applies it itself."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.dtype == "bf16" else nullcontext()


class Ours:
    """quarterarc's sampling of a network."""

    def __init__(self, unet: UNet, case: Case, settings: _Settings, compile: bool) -> None:
        table = qa.schedule("linear", 1000)
        shape = (case.network["in_channels"], case.size, case.size)
        precision = torch.bfloat16 if settings.dtype == "bf16" else None
        self.denoise: Denoise = qa.Denoiser(unet.eval(), table, qa.head("noise", table), shape, precision=precision)
        self.settings = settings
        if compile:  # once for all calls
            plan = qa.Sampling(steps=settings.nfe).plan(self.denoise)
            self.denoise = compiled(plan, True, settings.count, settings.batch).denoise

    def images(self, seeds: Sequence[int]) -> Images:
        """The images of these seeds, as 8-bit images in memory."""
        settings = self.settings
        made = qa.generate(
            self.denoise, seeds, steps=settings.nfe, batch_size=settings.batch, progress=False, compile=False
        )
        pixels = qa.to_uint8(made).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(image.squeeze()) for image in pixels]

    def files(self, folder: Path) -> None:
        """The images as PNG files."""
        settings = self.settings
        write_samples(
            self.denoise, folder, settings.seeds, qa.Sampling(steps=settings.nfe), batch_size=settings.batch,
            progress=False, compile=False,
        )  # fmt: skip


class Theirs:
    """diffusers' sampling of the same network."""

    def __init__(self, unet: UNet, case: Case, settings: _Settings, compile: bool) -> None:
        model = to_diffusers(unet).eval()
        model.register_to_config(sample_size=case.size)
        if compile:
            model.to(memory_format=torch.channels_last)
            forward = torch.compile(
                model.forward, mode="reduce-overhead" if settings.device.type == "cuda" else "default"
            )

            @functools.wraps(forward)
            def call(sample: Tensor, timestep: Tensor, **options: Any) -> Any:
                torch.compiler.cudagraph_mark_step_begin()  # as ours does, in the same process
                return forward(sample, timestep.to(sample.device), **options)  # CUDA graphs take no input on the CPU

            model.forward = call
        self.pipeline = DDIMPipeline(model, DDIMScheduler(num_train_timesteps=1000)).to(settings.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = settings

    def images(self, seeds: Sequence[int]) -> Images:
        """As many images, as 8-bit images in memory."""
        settings, made = self.settings, Images()
        for first in range(0, len(seeds), settings.batch):
            size = len(seeds[first : first + settings.batch])
            generator = torch.Generator(settings.device).manual_seed(first)
            with settings.autocast():
                made += self.pipeline(size, generator, num_inference_steps=settings.nfe).images
        return made

    def files(self, folder: Path) -> None:
        """The images as PNG files."""
        folder.mkdir()
        for seed, image in enumerate(self.images(self.settings.seeds)):
            image.save(folder / f"{seed:06d}.png")


Arm = tuple[str, str]
"""Whose, and the mode: ("ours", "compiled")."""


def _measure(name: str, settings: _Settings, rounds: int, compile: bool, ready: Callable[[], object]) -> list[Row]:
    """The rows of a case: each task, with ours compiled against both, and as it is against the pipeline as it is."""
    arms: dict[Arm, Ours | Theirs] = {}
    errors: dict[Arm, str] = {}
    modes = ("compiled", "eager") if compile else ("eager",)
    for whose, build in (("ours", Ours), ("theirs", Theirs)):
        for mode in modes:
            unet = UNet(**{**CASES[name].network, "out_channels": CASES[name].network["in_channels"]})
            randomise(unet)
            try:
                arm = build(unet.to(settings.device), CASES[name], settings, mode == "compiled")
                arm.images(settings.seeds[: settings.batch])  # compiles
            except Exception as error:  # whatever happens in one arm, the others are measured
                errors[whose, mode] = f"{whose}: {reason(error)}"
            else:
                arms[whose, mode] = arm
    ready()
    rows = []
    for task in TASKS:
        seconds = _seconds(task, arms, errors, settings, rounds)
        for ours in modes:
            for theirs in modes if ours == "compiled" else ("eager",):
                row = {"case": name, "batch": settings.batch, "task": task, "our mode": ours, "their mode": theirs}
                failed = [errors[arm] for arm in (("ours", ours), ("theirs", theirs)) if arm in errors]
                rows.append(
                    {**row, "error": failed[0]}
                    if failed
                    else row | _row(seconds["ours", ours], seconds["theirs", theirs], settings.count)
                )
    return rows


def _seconds(
    task: str, arms: dict[Arm, Ours | Theirs], errors: dict[Arm, str], settings: _Settings, rounds: int
) -> dict[Arm, list[float]]:
    """The seconds of each arm's calls; an arm that fails moves from `arms` to `errors`."""
    seconds: dict[Arm, list[float]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for arm in list(arms)[:: -1 if number % 2 else 1]:
                start = now(settings.device)
                try:
                    if task == "files":
                        arms[arm].files(Path(folder) / f"{'-'.join(arm)}-{number}")
                    else:
                        arms[arm].images(settings.seeds)
                except Exception as error:
                    errors[arm] = f"{arm[0]}: {reason(error)}"
                    del arms[arm]
                else:
                    seconds[arm].append(now(settings.device) - start)
    return seconds


def _row(ours: list[float], theirs: list[float], count: int) -> Row:
    return {
        "ours": count / statistics.median(ours),
        "theirs": count / statistics.median(theirs),
        **quartiles([other / own for own, other in zip(ours, theirs, strict=True)]),
        "seconds": {"ours": ours, "theirs": theirs},
    }
