"""The training loop: from a recipe and images to checkpoints.

Everything random in optimiser step k is a function of (seed, k, place in the global batch): a run that was killed and
resumed ends with the same bits as an uninterrupted one (on the CPU), and several processes see the images of one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..common.errors import InputError
from ..common.memory import memory_checked
from ..common.progress import progress_bar
from ..common.streams import Purpose, torch_seed
from ..common.text import counted, one_line
from ..data import ImageData, is_open, open_data, to_uint8
from ..data.images import log_bad
from ..data.loading import NoSuchData
from ..denoiser import Denoiser
from ..heads import Head
from ..heads import head as named_head
from ..networks import NETWORKS
from ..objectives import Losses
from ..sampling.generation import generate
from ..schedules import Schedule
from ..schedules import schedule as named_schedule
from ..storage.checkpoints import describe_denoiser
from ..storage.checksums import DamagedFile
from ..storage.files import write_json
from ..storage.pictures import contact_sheet, write_png
from ..storage.runs import CONFIG, checkpoint_name, checkpoints
from ..storage.training_state import restore, save
from . import ema
from .batches import Batch, Batches, part_size
from .learning_rate import factor_at
from .log import LOGGED, Log, Pending
from .memory import check_memory, what_to_lower
from .network import recipe_network
from .recipe import Recipe
from .same_data import SameData
from .soundness import unsound
from .stopping import Interrupted, Stop

__all__ = ["CORRECTIONS", "MAY_CHANGE", "Diverged", "Trainer"]

logger = logging.getLogger("quarterarc")

MAY_CHANGE = (
    "training.steps", "training.log_every", "training.checkpoint_every", "training.keep", "training.sample_every",
    "training.sample_count", "data.max_pixels",
)  # fmt: skip
"""Fields of a recipe that may change when a run is resumed, since they do not decide the weights of a step."""
CORRECTIONS = ("optimizer.learning_rate", "optimizer.clip", "training.precision", "data.source")
"""Further fields that may change on resume, recorded in changes.jsonl: what a divergence calls for, and the place of
the images, whose fingerprint must be the same."""


SKIPPED = "skipped.json"
"""Name and reason of every image that `data.skip_bad` left out, in the run folder."""


class Diverged(InputError):
    """The gradient of the loss is not finite."""


class Trainer:
    """The state of a run: network, average, optimiser, data and the current step.

    Args:
        recipe: the settings of the run.
        run: the run folder, which exists and is locked by this run.
        accelerator: this process among all.
        progress: show a progress bar on a terminal.
        images: images in memory, in place of the recipe's source, see `quarterarc.train`; or opened data.

    Attributes:
        damaged: checkpoints newer than the one that the run continues from, which cannot be read.

    Raises:
        InputError: if the recipe, data, network or newest checkpoint cannot be used.
    """

    def __init__(
        self, recipe: Recipe, run: Path, accelerator: Accelerator, progress: bool = True, images: Any = None
    ) -> None:
        recipe = recipe.resolved()
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.progress = progress and accelerator.is_main_process
        settings = recipe.training
        # this and the next lines raise before any data is read
        self.part = part_size(recipe, accelerator.num_processes)
        check_memory(recipe, self.part, accelerator.device)
        NETWORKS.lookup(recipe.network.name)
        table = named_schedule(recipe.schedule.name, recipe.schedule.steps)
        head = named_head(recipe.head, table)
        self.objective = recipe.objective.build()
        if settings.compile:
            _check_compiler(accelerator.device)
        self.data: ImageData = images if is_open(images) else self._open(images)
        network, self.denoise = self._build(table, head)
        self.description = describe_denoiser(self.denoise)
        self.network = network
        self.average = deepcopy(network).eval().requires_grad_(False)
        chosen = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            [weight for weight in network.parameters() if weight.requires_grad],
            chosen.learning_rate, chosen.betas, chosen.eps, chosen.weight_decay, fused=True,
        )  # fmt: skip
        self.step = 0
        self.damaged: list[Path] = []
        self.pending = Pending()
        self.same_data = SameData(self.data, accelerator.is_main_process)
        self._resume()
        self.same_data.start()
        if settings.compile:
            network.compile()
        self.parallel: Any = network if accelerator.device.type == "cpu" else accelerator.prepare_model(network)
        self.denoise_training = Denoiser(
            self.parallel, self.denoise.schedule, self.denoise.head, precision=self.denoise.precision
        )
        # the largest time at which both estimates are defined: T, or T - 1 for a noise head on a schedule up to pi/2
        last_time = math.floor(self.denoise.schedule.time(self.denoise.largest_angle) + 1e-6)
        self.batches = Batches(self.data, recipe, accelerator, last_time, self.denoise.streams)
        self.stop = Stop(accelerator)

    # --- the run ---------------------------------------------------------------------------------------------------

    def run_to_end(self) -> Path:
        """Train until the last step of the recipe.

        Returns:
            The folder of the newest checkpoint.

        Raises:
            InputError: if memory does not suffice.
            Diverged: if the gradient is not finite.
            Interrupted: after a signal, once a checkpoint is saved.
        """
        with memory_checked(self._size):
            return self._run_to_end()

    def _run_to_end(self) -> Path:
        settings = self.recipe.training
        if self.accelerator.is_main_process:
            self._announce()
        log = Log(self.run, self.step) if self.accelerator.is_main_process else None
        bar = progress_bar(settings.steps, "step", self.recipe.name, self.progress, initial=self.step, smoothing=0.05)
        started, logged_at = time.perf_counter(), self.step
        checkpoint: Path | None = None
        with bar, closing(log) if log else nullcontext(), ThreadPoolExecutor(1) as ahead, self.stop.listening():
            waiting = ahead.submit(self.batches.of_step, self.step)
            while self.step < settings.steps:
                parts = waiting.result()
                if self.step + 1 < settings.steps:
                    waiting = ahead.submit(self.batches.of_step, self.step + 1)  # prepared while this step computes
                losses, norm = self._step(parts)
                self.pending.add(losses)
                done = self.step == settings.steps
                stop = self.stop.received()
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
                    if log:
                        log.sync()  # the lines of the steps before a checkpoint are not written again
                    checkpoint = self._save()
                if stop and not done:
                    raise Interrupted(stop, checkpoint or self.run)
            if stop := self.stop.received():  # during the last step, whose caller may have more to do
                raise Interrupted(stop, checkpoint or checkpoints(self.run)[-1])
        return checkpoint or checkpoints(self.run)[-1]

    def _step(self, parts: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """One optimiser step on this process's parts of the global batch: mean losses, and the gradient's norm."""
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
            logged += torch.stack([loss.detach().mean() for loss in means]) / len(parts)
        if self.parallel is self.network and self.accelerator.num_processes > 1:
            self._average_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = chosen.learning_rate * self._rate_factor()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), chosen.clip)
        if not math.isfinite(float(norm)):
            self._diverged(
                f"the gradient is not finite at step {self.step} (loss {float(logged[0]):.6g}), on the images with "
                f"indices {self.batches.places(self.step)}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = ema.decay_at(self.step, self.recipe.ema.decay, self.recipe.ema.warmup)
        ema.update_network(self.average, self.network, decay)
        self.step += 1
        return logged, norm

    def _average_gradients(self) -> None:
        """Average the gradients over all processes on the CPU, in the order of the parameters.

        `DistributedDataParallel` puts them in another order after its first step, in which the sums of more than two
        processes have other bits: a resumed run would differ from an uninterrupted one.
        """
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        means = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _pending_means(self) -> list[float]:
        """The pending mean losses, averaged over all processes."""
        if not self.pending.steps:
            return [0.0] * len(LOGGED)
        return self.accelerator.reduce(self.pending.means, "mean").tolist()

    def _losses(self, batch: Batch) -> Losses:
        return self.denoise_training.loss(self.objective, batch.image, batch.noise, batch.times, batch.labels)

    def _rate_factor(self) -> float:
        chosen = self.recipe.optimizer
        assert chosen.warmup != "auto"  # the recipe is resolved
        return factor_at(self.step, self.recipe.training.steps, chosen.warmup, chosen.decay)

    # --- construction, checkpoints and pictures --------------------------------------------------------------------

    def _announce(self) -> None:
        settings, warmup = self.recipe.training, self.recipe.optimizer.warmup
        weights = sum(weight.numel() for weight in self.network.parameters())
        logger.info("%s; %s on %s", self.data.description, counted(weights, "parameter"), self.accelerator.device)
        for note in self.data.notes:
            logger.info("%s", note)
        log_bad(self.data)
        self._write_skipped()
        logger.info("training in %s from step %d to %d", self.run, self.step, settings.steps)
        if warmup != "auto" and warmup > settings.steps:
            logger.warning(
                "optimizer.warmup=%d exceeds training.steps=%d: the learning rate reaches %.3g instead of %.3g",
                warmup, settings.steps, self.recipe.optimizer.learning_rate * settings.steps / warmup,
                self.recipe.optimizer.learning_rate,
            )  # fmt: skip

    def _open(self, images: Any) -> ImageData:
        spec, seed = self.recipe.data, self.recipe.training.seed
        try:
            return open_data(spec, self.accelerator.device, progress=self.progress, seed=seed, images=images)
        except NoSuchData as error:
            moved = "; if the images have moved, resume with data.source=PATH" if checkpoints(self.run) else ""
            raise InputError(f"{error}{moved}") from None

    def _build(self, table: Schedule, head: Head) -> tuple[nn.Module, Denoiser]:
        recipe, data = self.recipe, self.data
        classes, names = (data.classes, tuple(data.class_names)) if recipe.data.labels else (None, ())
        torch.manual_seed(torch_seed(recipe.training.seed, Purpose.WEIGHTS))
        network = recipe_network(recipe, data.channels, head.channels(data.channels), classes)
        network = network.to(self.accelerator.device)
        precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
        shape = (data.channels, data.height, data.width)
        unlabelled = recipe.training.drop_labels > 0
        return network, Denoiser(
            network, table, head, shape, classes, precision, unlabelled=unlabelled, class_names=names
        )

    def _resume(self) -> None:
        complete = checkpoints(self.run)
        if not complete:
            return
        config = self._restore(complete)
        self.same_data.check(self.run, config)
        self.step = config["step"]
        self.pending = Pending.of(config["pending"], self.accelerator.device)
        self.denoise = replace(self.denoise, streams=config["denoiser"].get("streams", 1))
        self.description["streams"] = self.denoise.streams

    def _restore(self, complete: Sequence[Path]) -> dict[str, Any]:
        """Continue from the newest of these checkpoints that can be read: its config.json."""
        errors: list[str] = []
        for folder in reversed(complete):
            try:
                config = restore(folder, self.network, self.average, self.optimizer)
                _check_progress(folder, config)
            except DamagedFile as error:
                errors.append(str(error))
                self.damaged.append(folder)
                continue
            if errors:
                logger.warning("%s; continuing from the older checkpoint %s", errors[0], folder)
            return config
        others = f" (and so are the {len(errors) - 1} other checkpoints)" if len(errors) > 1 else ""
        raise InputError(f"{self.run} cannot be resumed: {errors[0]}{others}")

    def _save(self) -> Path:
        """Save a checkpoint; all processes return its folder, once it is complete.

        Raises:
            Diverged: if training or sampling could not continue from it; then none is written.
        """
        wrong = unsound(self.denoise, self.average, self.optimizer)
        if wrong is not None:
            self._diverged(f"not finite after step {self.step}: {wrong}; no checkpoint of this step is written")
        pending = {"means": self._pending_means(), "steps": self.pending.steps}
        config = {
            "step": self.step,
            **self.same_data.describe(wait=not self.stop.signal),
            "pending": pending,
            "denoiser": self.description,
            "recipe": self.recipe.model_dump(mode="json"),
        }
        if self.accelerator.is_main_process:
            self._check_present()
            self._write_skipped()
            save(self.run, config, self.network, self.average, self.optimizer, self.recipe.training.keep)
        self.accelerator.wait_for_everyone()
        return self.run / "checkpoints" / checkpoint_name(self.step)

    def _write_skipped(self) -> None:
        if self.data.skipped:  # in a stream more and more
            write_json(self.run / SKIPPED, dict(self.data.bad))

    def _preview(self) -> None:
        """Write a contact sheet of images from fixed seeds."""
        if not self.accelerator.is_main_process:
            return
        settings, classes = self.recipe.training, self.denoise.classes
        denoise = replace(self.denoise, network=self.average, projection="velocity")
        seeds = range(settings.sample_count)
        labels = None if classes is None else [seed % classes for seed in seeds]
        try:
            images = generate(denoise, seeds, labels=labels, batch_size=min(64, self.batches.share), progress=False)
        except InputError as error:  # of a network whose images are not finite yet, which does not stop training
            logger.warning("no contact sheet at step %d: %s", self.step, error)
            return
        self._check_present()
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"step-{self.step:08d}.png", contact_sheet(to_uint8(images)))

    def _check_present(self) -> None:
        """Raise an InputError if the run folder is gone; a new one would have neither recipe nor log."""
        if not (self.run / "recipe.yaml").is_file():
            raise InputError(
                f"{self.run} was removed or renamed during training: rename it back and resume, or start anew"
            )

    def _diverged(self, what: str) -> NoReturn:
        complete = checkpoints(self.run)
        last = f"the last good checkpoint is {complete[-1]}" if complete else "no checkpoint has been written yet"
        raise Diverged(
            f"{what}: {last}; resume with a lower optimizer.learning_rate or optimizer.clip, or with "
            "training.precision=fp32, or check the images"
        )

    def _size(self) -> str:
        """The batch and the image size, for messages about memory."""
        return what_to_lower(self.recipe, self.part, self.accelerator.device)


def _check_progress(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a DamagedFile unless config.json has the step and the other values that resuming needs."""
    try:
        step = config["step"]
        if isinstance(step, bool) or checkpoint_name(step) != folder.name or not isinstance(config["data"], str):
            raise ValueError(f"its step is {step!r}")
        Pending.of(config["pending"], torch.device("cpu"))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{folder / CONFIG} does not describe the progress of a run: {one_line(error)}") from None


def _check_compiler(device: torch.device) -> None:
    """Raise an InputError where `torch.compile` does not work, for example without a C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler, and what it calls, may raise anything
        reason = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0][:200]
        raise InputError(
            f"training.compile=true is not possible here ({reason}): leave it out, or install what is missing"
        ) from None
