"""Training: from a recipe and images to checkpoints.

Everything random in optimiser step k is derived from (seed, k, place in the global batch), so a run that was killed and
resumed ends bit for bit where an uninterrupted one does (on the CPU), and two processes see what one would.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError
from ..common.streams import Purpose, torch_seed
from ..data import ImageData, open_data, to_uint8
from ..denoiser import Denoiser
from ..heads import head as named_head
from ..networks import UNet, attention_levels
from ..objectives import Losses
from ..sampling.generation import generate
from ..schedules import schedule as named_schedule
from ..storage.checkpoints import describe_denoiser
from ..storage.files import make_folder, replace_file
from ..storage.pictures import contact_sheet, write_png
from ..storage.runs import checkpoints, locked
from ..storage.training_state import restore, save, sweep
from ..training import ema
from .batches import Batch, Batches, part_size
from .log import LOGGED, Log, Pending
from .recipe import Recipe, differences, read_recipe
from .stopping import Interrupted, Stop

__all__ = ["MAY_CHANGE", "Diverged", "Interrupted", "Trainer", "recipe_network", "train"]

logger = logging.getLogger("quarterarc")

MAY_CHANGE = ("training.steps", "training.log_every", "training.checkpoint_every", "training.keep",
              "training.sample_every", "training.sample_count")  # fmt: skip
"""What a resumed run may set anew without becoming another run."""


class Diverged(InputError):
    """The loss or its gradient is no longer a finite number."""


def train(recipe: Recipe | None, out: str | Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train by a recipe and return the newest checkpoint.

    Args:
        recipe: what to do; None to take the run's own when resuming.
        out: the run folder.
        resume: go on from the newest complete checkpoint, or from the start if there is none yet. Only the number of
            steps and how often to write may differ from the recipe of the run.
        progress: show a progress bar, if there is a terminal.

    Raises:
        InputError: for a folder that is in use, holds a run already, or cannot be written to; data that cannot be
            used; a batch that does not divide over the processes.
        Diverged: if a loss is not finite; no checkpoint is written after that.
        Interrupted: after SIGINT or SIGTERM, once the checkpoint is saved.
    """
    there = Path(out).exists()
    run = make_folder(Path(out))
    accelerator = Accelerator(mixed_precision="no")  # the denoiser itself runs under autocast, as it does in sampling
    holds = locked(run) if accelerator.is_main_process else nullcontext()
    with holds:
        try:
            recipe = _resolve(recipe, run, resume)
            trainer = Trainer(recipe, run, accelerator, progress)
        except InputError:
            if accelerator.is_main_process and not there:
                shutil.rmtree(run)  # nothing has begun
            raise
        if accelerator.is_main_process:
            sweep(run)
            with replace_file(run / "recipe.yaml") as beside:
                beside.write_text(recipe.to_yaml(), encoding="utf-8")
        accelerator.wait_for_everyone()
        return trainer.run_to_end()


def _resolve(recipe: Recipe | None, run: Path, resume: bool) -> Recipe:
    """The recipe of this run, from what was asked for and what the folder holds."""
    saved = read_recipe(str(run / "recipe.yaml")) if (run / "recipe.yaml").is_file() else None
    if not resume:
        if recipe is None:
            raise InputError("training needs a recipe; only --resume goes on without one")
        if saved is not None and checkpoints(run):
            raise InputError(f"{run} already holds a run, up to {checkpoints(run)[-1].name}: "
                             "--resume goes on with it, another --out starts a new one")  # fmt: skip
        return recipe
    if recipe is None:
        if saved is None:
            raise InputError(f"{run} holds no run to resume: give a recipe")
        return saved
    if saved is not None and checkpoints(run):
        changed = sorted(name for name, _, _ in differences(saved, recipe) if name not in MAY_CHANGE)
        if changed:
            raise InputError(f"{run} was trained by another recipe (it differs in {', '.join(changed)}): "
                             "resume with the same one, or give another --out")  # fmt: skip
    return recipe


class Trainer:
    """One run: its network, its data, and the step it is at."""

    def __init__(self, recipe: Recipe, run: Path, accelerator: Accelerator, progress: bool = True) -> None:
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.progress = progress and accelerator.is_main_process
        settings = recipe.training
        part_size(recipe, accelerator.num_processes)  # refused before any data is read
        if settings.compile:
            _check_compiler(accelerator.device)
        self.data: ImageData = open_data(recipe.data, accelerator.device, progress=self.progress, seed=settings.seed)
        network, self.denoise = self._build()
        self.network = network
        self.average = deepcopy(network).eval().requires_grad_(False)
        self.objective = recipe.objective.build()
        chosen = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            network.parameters(), chosen.learning_rate, chosen.betas, chosen.eps, chosen.weight_decay, fused=True
        )
        self.step = 0
        self.pending = Pending()
        self._resume()
        if settings.compile:
            network.compile()
        self.parallel: Any = accelerator.prepare_model(network)
        self.denoise_training = Denoiser(
            self.parallel, self.denoise.schedule, self.denoise.head, precision=self.denoise.precision
        )
        # the largest time at which the head's estimates are defined: T, or T - 1 for a noise head that ends at pi/2
        last_time = math.floor(self.denoise.schedule.time(self.denoise.largest_angle) + 1e-6)
        self.batches = Batches(self.data, recipe, accelerator, last_time)
        self.stop = Stop(accelerator)

    # --- the run ---------------------------------------------------------------------------------------------------

    def run_to_end(self) -> Path:
        """Step until the recipe's last step, writing what it asks for on the way; the newest checkpoint."""
        settings = self.recipe.training
        if self.accelerator.is_main_process:
            weights = sum(weight.numel() for weight in self.network.parameters())
            logger.info("%s; %s parameters on %s", self.data.description, f"{weights:,}", self.accelerator.device)
            logger.info("training in %s from step %d to %d", self.run, self.step, settings.steps)
        log = Log(self.run, self.step) if self.accelerator.is_main_process else None
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", desc=self.recipe.name, smoothing=0.05,
                   disable=None if self.progress else True, dynamic_ncols=True)  # fmt: skip
        started, logged_at = time.perf_counter(), self.step
        checkpoint: Path | None = None
        with bar, ThreadPoolExecutor(1) as ahead, self.stop.listening():
            waiting = ahead.submit(self.batches.of_step, self.step)
            while self.step < settings.steps:
                parts = waiting.result()
                if self.step + 1 < settings.steps:
                    waiting = ahead.submit(self.batches.of_step, self.step + 1)  # drawn while this step computes
                losses, norm = self._step(parts)
                self.pending.add(losses)
                done = self.step == settings.steps
                stop = self.stop.asked()
                bar.update()
                if self.step % settings.log_every == 0 or done:
                    means = self._pending_means()
                    rate = (self.step - logged_at) * settings.batch / (time.perf_counter() - started)
                    if log:
                        log.write(self.step, settings.batch, dict(zip(LOGGED, means, strict=True)), float(norm),
                                  self.optimizer.param_groups[0]["lr"], rate)  # fmt: skip
                    bar.set_postfix(loss=f"{means[0]:.4f}", images_per_s=f"{rate:.0f}")
                    self.pending = Pending()
                    started, logged_at = time.perf_counter(), self.step
                if self.step % settings.sample_every == 0 or done:
                    self._preview()
                if self.step % settings.checkpoint_every == 0 or done or stop:
                    checkpoint = self._save()
                if stop and not done:
                    raise Interrupted(stop, checkpoint or self.run)
        if log:
            log.close()
        return checkpoint or checkpoints(self.run)[-1]

    def _step(self, parts: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """One optimiser step over this process's parts of the global batch: the losses, and the gradient's norm."""
        settings, chosen = self.recipe.training, self.recipe.optimizer
        torch.manual_seed(torch_seed(settings.seed, Purpose.DROPOUT, self.step, self.accelerator.process_index))
        self.parallel.train()
        logged = torch.zeros(len(LOGGED), device=self.accelerator.device)
        for place, batch in enumerate(parts):
            last = place == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.parallel):
                losses = self._losses(batch)
                self.accelerator.backward(losses.total.mean() / len(parts))
            means = (losses.total, losses.image, losses.noise, losses.velocity, losses.residual)
            logged += torch.stack([each.detach().mean() for each in means]) / len(parts)
        for group in self.optimizer.param_groups:
            group["lr"] = chosen.learning_rate * self._rate(self.step)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), chosen.clip)
        if not math.isfinite(float(norm)):
            self._diverged(float(logged[0]))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ema.update(
            self.average.parameters(),
            self.network.parameters(),
            ema.decay_at(self.step, self.recipe.ema.decay, self.recipe.ema.warmup),
        )
        self.step += 1
        return logged, norm

    def _pending_means(self) -> list[float]:
        """The mean of what is pending, over all processes."""
        if not self.pending.steps:
            return [0.0] * len(LOGGED)
        return self.accelerator.reduce(self.pending.means, "mean").tolist()

    def _losses(self, batch: Batch) -> Losses:
        return self.denoise_training.loss(self.objective, batch.image, batch.noise, batch.times, batch.labels)

    def _rate(self, step: int) -> float:
        """What the learning rate is multiplied by: a linear warm-up, then constant or half a cosine to 0."""
        chosen = self.recipe.optimizer
        if step < chosen.warmup:
            return (step + 1) / chosen.warmup
        if chosen.decay == "constant":
            return 1.0
        span = max(1, self.recipe.training.steps - chosen.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - chosen.warmup) / span)))

    # --- what it is made of, and what it writes --------------------------------------------------------------------

    def _build(self) -> tuple[UNet, Denoiser]:
        recipe, data = self.recipe, self.data
        table = named_schedule(recipe.schedule.name, recipe.schedule.steps)
        head = named_head(recipe.head, table)
        classes = data.classes if recipe.data.labels else None
        torch.manual_seed(torch_seed(recipe.training.seed, Purpose.WEIGHTS))
        network = recipe_network(recipe, data.channels, head.channels(data.channels), classes)
        network = network.to(self.accelerator.device)
        precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
        shape = (data.channels, data.height, data.width)
        unlabelled = recipe.training.drop_labels > 0
        return network, Denoiser(network, table, head, shape, classes, precision, unlabelled=unlabelled)

    def _resume(self) -> None:
        found = checkpoints(self.run)
        if not found:
            return
        config = restore(found[-1], self.network, self.average, self.optimizer)
        if config["data"] != self.data.fingerprint:
            raise InputError(
                f"{self.run} was trained on other data (fingerprint {config['data']}), not on {self.data.description}: "
                "resume on the same images, or give another --out"
            )
        self.step = config["step"]
        pending = config["pending"]
        self.pending = Pending(torch.tensor(pending["means"]).to(self.accelerator.device), pending["steps"])

    def _save(self) -> Path | None:
        pending = {"means": self._pending_means(), "steps": self.pending.steps}
        if not self.accelerator.is_main_process:
            return None
        config = {
            "step": self.step,
            "data": self.data.fingerprint,
            "pending": pending,
            "denoiser": describe_denoiser(self.denoise),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        return save(self.run, config, self.network, self.average, self.optimizer, self.recipe.training.keep)

    def _preview(self) -> None:
        """A grid of images from fixed seeds, so that a person can follow the run."""
        if not self.accelerator.is_main_process:
            return
        settings, classes = self.recipe.training, self.denoise.classes
        denoise = Denoiser(self.average, self.denoise.schedule, self.denoise.head, self.denoise.shape, classes,
                           self.denoise.precision, projection="velocity")  # fmt: skip
        seeds = range(settings.sample_count)
        labels = None if classes is None else [seed % classes for seed in seeds]
        images = generate(denoise, seeds, labels=labels, batch_size=min(64, self.batches.share))
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"step-{self.step:08d}.png", contact_sheet(to_uint8(images)))

    def _diverged(self, loss: float) -> None:
        found = checkpoints(self.run)
        last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint has been written yet"
        raise Diverged(
            f"the gradient is not finite at step {self.step} (loss {loss:.6g}), on the images with indices "
            f"{self.batches.places(self.step)}: {last}; lower optimizer.learning_rate, or look at "
            "these images"
        )


def _check_compiler(device: torch.device) -> None:
    """Refuse, in one line and before any work, to compile where that cannot be done: without a C++ compiler, say."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler, or what it calls, raises
        reason = str(error).partition(" Set TORCHDYNAMO_VERBOSE")[0].partition("\n\n")[0]
        raise InputError(
            f"training.compile=true cannot be done here ({' '.join(reason.split())[:200]}): leave it out, or install "
            "what is missing"
        ) from None


def recipe_network(recipe: Recipe, in_channels: int, out_channels: int, classes: int | None) -> UNet:
    """The recipe's U-Net, with attention where the height of the image has shrunk to one of the given resolutions."""
    chosen, size = recipe.network, recipe.data.height
    return UNet(
        in_channels,
        out_channels,
        chosen.channels,
        chosen.multipliers,
        chosen.blocks,
        attention_levels(size, chosen.attention, len(chosen.multipliers)),
        dropout=chosen.dropout,
        classes=classes,
    )
